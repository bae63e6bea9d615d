"""
The parser of the command C{pop3svc} and of its parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pop3svc.logs import escaped

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """
    Exits with one sentence if an option is wrong, instead of a page of help.

    @ivar addPassedOn: for completion and the manual: adds the options that the command passes on to
        another parser; L{None} if there are no such options.
    """

    addPassedOn: Callable[[argparse.ArgumentParser], None] | None = None

    def print_help(self, file: Any = None) -> None:
        """
        Print the help.  argparse would ignore that it cannot be written.

        @raise OSError: it cannot be written.
        """
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """
        Exit with a sentence.

        @raise SystemExit: always.
        """
        raise SystemExit(f"pop3svc: {escaped(message)}")
