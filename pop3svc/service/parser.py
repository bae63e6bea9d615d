"""
The parser of the command C{pop3svc} and of its parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from pop3svc.logs import escaped

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """
    Exits with one sentence if an option is wrong, instead of a page of help.

    @ivar addPassedOn: adds the options that the command passes on to another parser, so that
        completion and the manual have them; L{None} if there are no such options.
    """

    addPassedOn: Callable[[argparse.ArgumentParser], None] | None = None

    def error(self, message: str) -> NoReturn:
        """
        Exit with a sentence.

        @raise SystemExit: always.
        """
        raise SystemExit(f"pop3svc: {escaped(message)}")
