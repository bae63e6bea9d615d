"""
Declare the commands of C{pop3svc} in one table.  The help and the parsers of the commands, the
completion in shells and the manual page are made from this table.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """
    A command, such as C{pop3svc serve}.

    @ivar help: a few words that say what the command does.
    @ivar module: the name of the module that has its functions C{main} and C{makeParser}.  The
        module is imported when the command is used, because the other commands do not need it.
    @ivar isShared: whether the module has several commands.  Then the functions of the module also
        need the name of the command.
    """

    name: str
    help: str
    module: str
    isShared: bool = False

    def run(self, argv: Sequence[str]) -> None:
        """
        @param argv: the arguments after the name of the command.
        @raise SystemExit: with one sentence, if the command failed.
        """
        name = [self.name] if self.isShared else []
        import_module(self.module).main([*name, *argv])

    def makeParser(self) -> ArgumentParser:
        """
        @return: the parser of the arguments after the name of the command.
        """
        name = [self.name] if self.isShared else []
        parser: ArgumentParser = import_module(self.module).makeParser(*name)
        return parser


def _inService(module: str, **helps: str) -> list[Command]:
    isShared = len(helps) > 1
    return [
        Command(name, help, f"pop3svc.service.{module}", isShared) for name, help in helps.items()
    ]


COMMANDS = {
    each.name: each
    for each in [
        *_inService(
            "servecommand", serve="serve in the foreground, with the options of twistd pop3svc"
        ),
        *_inService("democommand", demo="serve a playground, with a page in a browser"),
        *_inService("delivercommand", deliver="store a message from the standard input"),
        *_inService(
            "transfercommand",
            **{
                "import": "store the messages of a Maildir, an mbox or a folder",
                "export": "write a mailbox to a Maildir or an mbox",
            },
        ),
        *_inService("fetchcommand", fetch="fetch mail from other POP3 servers"),
        *_inService("configcommand", config="check or show a configuration"),
        *_inService("sqlcommand", sql="make and migrate the tables of a database"),
        Command("check", "check whether a POP3 server follows the RFCs", "pop3svc.check.command"),
        *_inService(
            "admincommand",
            who="list the sessions of a running service",
            kick="end sessions of a running service",
            ban="list, add or lift bans of a running service",
            status="show the state of a running service",
            reload="have a running service read its configuration again",
            trace="show conversations with a running service as they happen",
            drain="have a running service admit no more logins, and end",
        ),
        *_inService("usercommand", user="manage the accounts of a password file"),
        *_inService(
            "manualcommand",
            completion="print the completion of the command line for a shell",
            manual="write the manual pages to a directory",
        ),
    ]
}
