"""
C{pop3svc completion} and C{pop3svc manual}: print a completion script for a shell, and write the
manual pages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pop3svc.logs import escaped
from pop3svc.service.completion import SHELLS
from pop3svc.service.manual import makePages
from pop3svc.service.parser import Parser
from pop3svc.service.synopsis import readSynopsis

__all__ = ["main", "makeParser"]


def makeParser(command: str) -> Parser:
    """
    @param command: C{completion} or C{manual}.
    @return: the parser of the command.
    """
    parser = Parser(prog=f"pop3svc {command}", allow_abbrev=False)
    if command == "completion":
        parser.description = "Print a script that completes the command line in a shell."
        parser.add_argument("shell", metavar="|".join(SHELLS), choices=SHELLS)
    else:
        parser.description = (
            "Write pop3svc.1 and pop3svc.toml.5 to man1 and man5 of a directory of manual pages."
        )
        parser.add_argument(
            "directory",
            metavar="DIRECTORY",
            help="such as ~/.local/share/man; it is made if needed",
        )
    return parser


def main(argv: Sequence[str]) -> None:
    """
    Run C{pop3svc completion} or C{pop3svc manual}.

    @param argv: the arguments, with the name of the command first.
    @raise SystemExit: with one sentence, if a page cannot be written.
    """
    arguments = makeParser(argv[0]).parse_args(list(argv[1:]))
    if argv[0] == "completion":
        sys.stdout.write(SHELLS[arguments.shell](readSynopsis()))
        return
    for name, text in makePages().items():
        section = os.path.join(arguments.directory, f"man{name[-1]}")
        path = os.path.join(section, name)
        try:
            os.makedirs(section, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise SystemExit(f"pop3svc: {escaped(str(error.filename or path))}: {error.strerror}")
        print(f"wrote {escaped(path)}")
