"""
Read the arguments of all commands from their parsers, for completion and the manual.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pop3svc.service.command import makeParser
from pop3svc.service.commandtable import COMMANDS
from pop3svc.service.parser import Parser

__all__ = ["Argument", "Synopsis", "readSynopsis"]

# The names of values that are paths.
_PATHS = ("DIRECTORY", "FILE", "PATH", "SOCKET")


@dataclass(frozen=True)
class Argument:
    """
    An option, or a positional argument.

    @ivar flags: the names of an option, such as C{--config}; empty for a positional argument.
    @ivar value: the name of the value, such as C{FILE}; empty for an option without a value.
    @ivar words: all allowed values; empty if the values cannot be listed.
    @ivar isOptional: whether a positional argument may be left out.
    @ivar isRepeated: whether the argument may be given more than once.
    """

    flags: tuple[str, ...]
    value: str
    help: str
    words: tuple[str, ...] = ()
    isOptional: bool = False
    isRepeated: bool = False

    @property
    def isPath(self) -> bool:
        """
        Whether the value is the path of a file or of a directory.
        """
        return self.value in _PATHS


@dataclass(frozen=True)
class Synopsis:
    """
    A command with its arguments and its subcommands.

    @ivar name: the full name, such as C{pop3svc user add}.
    @ivar help: a few words that say what the command does.
    @ivar description: some sentences about the command, or an empty text.
    """

    name: str
    help: str
    description: str
    options: tuple[Argument, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Synopsis, ...]

    @property
    def lastName(self) -> str:
        """
        The last word of the command's name.
        """
        return self.name.rpartition(" ")[2]

    def everyCommand(self) -> list[Synopsis]:
        """
        @return: this command, its subcommands, and all their subcommands.
        """
        return [self, *(each for command in self.commands for each in command.everyCommand())]


def readSynopsis() -> Synopsis:
    """
    @return: the command C{pop3svc}.
    """
    top = _read(makeParser(), "pop3svc", "a POP3 service")
    commands = tuple(
        _read(each.makeParser(), f"pop3svc {each.name}", each.help) for each in COMMANDS.values()
    )
    return Synopsis(top.name, top.help, top.description, top.options, top.arguments, commands)


def _read(parser: argparse.ArgumentParser, name: str, help: str) -> Synopsis:
    # Use a private attribute, because argparse has no public way to list the arguments of a parser.
    options, arguments, commands = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for word, each in action.choices.items():
                commands.append(_read(each, f"{name} {word}", helps[word]))
        elif action.option_strings:
            options.append(_argument(parser, action))
        else:
            arguments.append(_argument(parser, action))
    if isinstance(parser, Parser) and parser.addPassedOn is not None:
        other = Parser(add_help=False)
        parser.addPassedOn(other)
        options += [_argument(other, each) for each in other._actions]
    return Synopsis(
        *(name, help, parser.description or ""),
        *(tuple(options), tuple(arguments), tuple(commands)),
    )


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    words = tuple(map(str, action.choices or ()))
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or "|".join(words) or action.dest.upper())
    return Argument(
        tuple(action.option_strings),
        value,
        parser._get_formatter()._expand_help(action) if action.help else "",
        words,
        isOptional=action.nargs in ("?", "*"),
        isRepeated=action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction),
    )
