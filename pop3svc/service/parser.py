"""
The class of the parsers of C{pop3svc} and its commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pop3svc.logs import escaped

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """
    A parser that exits with one sentence if an option is wrong, and not with a page of help.

    @ivar addPassedOn: a function for completion and the manual.  The function gets a parser, and
        adds the options that the command itself does not parse, but passes on, for example to
        twistd.  L{None} if the command passes on no options.
    """

    addPassedOn: Callable[[argparse.ArgumentParser], None] | None = None

    def print_help(self, file: Any = None) -> None:
        """
        Print the help.  Unlike argparse, do not ignore an error of writing.

        @raise OSError: the help cannot be written.
        """
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """
        Exit with a sentence.

        @raise SystemExit: always.
        """
        raise SystemExit(f"pop3svc: {escaped(message)}")
