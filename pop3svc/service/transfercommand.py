"""
C{pop3svc import} and C{pop3svc export}: move whole mailboxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from twisted.application.service import IService

from pop3svc.awaiting import maybeAwait
from pop3svc.delivery.recipients import Recipient
from pop3svc.files import longWork
from pop3svc.providers.mbox.text import VARIANTS
from pop3svc.service.destinations import addStoreOptions, recipientsOf, settingsFrom
from pop3svc.service.foreground import complete, endWith, makeReport, mustEnd, say
from pop3svc.service.parser import Parser
from pop3svc.service.settings import Settings
from pop3svc.transfer.exporting import Export
from pop3svc.transfer.failures import NotPossible
from pop3svc.transfer.importing import Import
from pop3svc.transfer.maildirtarget import MaildirTarget
from pop3svc.transfer.mboxtarget import MboxTarget
from pop3svc.transfer.session import MailboxSession
from pop3svc.transfer.sources import KINDS, Choice, makeSources
from pop3svc.transfer.target import Target

__all__ = ["main", "makeParser"]


def main(argv: Sequence[str]) -> NoReturn:
    """
    Run C{pop3svc import} or C{pop3svc export}, and end the process.  The exit status is 0 if all
    messages are stored, 75 if a later attempt may succeed, and otherwise 1.

    @param argv: the arguments, with the name of the command first.
    """

    def run() -> int:
        arguments = makeParser(argv[0]).parse_args(list(argv[1:]))
        settings = settingsFrom(arguments)
        work = _import if argv[0] == "import" else _export
        return complete(lambda: work(arguments, settings))

    endWith(run)


# --- the command line ------------------------------------------------------------------


def makeParser(command: str) -> Parser:
    """
    @param command: C{import} or C{export}.
    @return: the parser of the command.
    """
    parser = Parser(prog=f"pop3svc {command}", allow_abbrev=False)
    addStoreOptions(parser)
    parser.add_argument("user", metavar="USER", help="name or address of the user")
    if command == "import":
        parser.description = "Store the messages of files and directories in a user's mailbox."
        parser.add_argument("--kind", choices=KINDS, help="kind of the paths (default: detected)")
        parser.add_argument(
            "--variant", choices=VARIANTS, default="mboxo", help="form of an mbox (default: mboxo)"
        )
        parser.add_argument(
            "--uidl",
            metavar="dovecot|courier|x-uidl|FORMAT",
            help="keep the unique-ids of another server",
        )
        parser.add_argument(
            "--folders", action="store_true", help="also import the other folders of a Maildir++"
        )
        parser.add_argument("paths", metavar="PATH", nargs="+", help="file or directory to import")
    else:
        parser.description = "Write the messages of a user's mailbox to a Maildir or an mbox."
        parser.add_argument("--format", choices=("maildir", "mbox"), default="maildir")
        parser.add_argument(
            "--x-uidl", action="store_true", help="add the field X-UIDL to messages in an mbox"
        )
        parser.add_argument("path", metavar="PATH", help="new file or directory to write")
    return parser


# --- the work --------------------------------------------------------------------------


async def _import(arguments: Any, settings: Settings) -> int:
    choice = Choice(arguments.kind, arguments.variant, arguments.uidl, arguments.folders)
    sources, leftOut = await longWork().run(makeSources, arguments.paths, choice)
    recipient = await recipientsOf(settings).find(arguments.user)

    async def work(clock: Any) -> int:
        return await Import(
            *(recipient, sources, longWork(), clock, settings.policy.answerTimeout),
            *(settings.policy.maxMessageSize, makeReport(), mustEnd),
        ).run()

    status = await _withStore(recipient, work)
    if leftOut:
        folders = "1 other folder was" if leftOut == 1 else f"{leftOut} other folders were"
        say(f"{folders} left out; --folders imports them")
    return status


async def _export(arguments: Any, settings: Settings) -> int:
    if arguments.x_uidl and arguments.format != "mbox":
        raise NotPossible("--x-uidl needs --format mbox")
    recipient = await recipientsOf(settings).find(arguments.user, isReading=True)
    username, store = recipient
    target: Target = MaildirTarget(arguments.path, username)
    if arguments.format == "mbox":
        target = MboxTarget(arguments.path, username, arguments.x_uidl)

    async def work(clock: Any) -> int:
        session = MailboxSession(store, username, clock, settings.policy.answerTimeout)
        return await Export(session, username, target, longWork(), makeReport(), mustEnd).run()

    return await _withStore(recipient, work)


async def _withStore(recipient: Recipient, work: Callable[[Any], Any]) -> int:
    """
    Do the work of a command.  If the store is a service of Twisted, start it before the work, and
    stop it afterwards.
    """
    from twisted.internet import reactor

    service = IService(recipient.store, None)
    if service is not None:
        service.privilegedStartService()
        service.startService()
    try:
        status: int = await work(reactor)
        return status
    finally:
        if service is not None:
            await maybeAwait(service.stopService)
