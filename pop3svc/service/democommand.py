"""
C{pop3svc demo}: a service for demonstration, which uses free ports, and keeps no mail after its
end.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.parser import Parser
from pop3svc.service.servecommand import main as serve

__all__ = ["main", "makeParser"]


def _freePort(stack: ExitStack) -> int:
    """
    Reserve a port by a socket that is bound to it.  The kernel gives the port to no other program.
    The service can still listen on the port, because the socket does not.

    @param stack: closes the socket at its exit, which ends the reservation.
    """
    held = stack.enter_context(socket.socket())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return int(held.getsockname()[1])


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc demo}.
    """
    return Parser(
        prog="pop3svc demo",
        description="Serve a playground on free ports of this machine until Ctrl-C.  Nothing is "
        "kept.",
        allow_abbrev=False,
    )


def main(argv: Sequence[str]) -> None:
    """
    Serve the embedded default from a temporary directory until SIGTERM or SIGINT, with the
    operator's page and the playground.

    @raise SystemExit: when the service has ended, or with one sentence if it cannot serve.
    """
    makeParser().parse_args(list(argv))
    with ExitStack() as stack:
        try:
            plain, secure, web = (_freePort(stack) for _ in range(3))
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pop3svc-demo-"))
        except OSError as error:
            raise SystemExit(f"pop3svc demo: {error.strerror}")
        from twisted.internet import reactor

        ready: object = reactor
        ready.callWhenRunning(_show, directory, plain, secure, web)  # type: ignore[attr-defined]
        serve(
            [
                # The log goes to a file, so that the terminal shows nothing except how to reach the
                # service.
                *("--logfile", os.path.join(directory, "log")),
                *("--data", directory, "--web", f"tcp:{web}:interface=127.0.0.1"),
                *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
                *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
            ]
        )


def _show(directory: str, plain: int, secure: int, web: int) -> None:
    """
    Print the addresses of the service, and how to log in.
    """
    name, password = DataDirectory(directory).readDemoLogin() or ("demo", "?")
    print(
        f"""
    Open this page in a browser:

        http://127.0.0.1:{web}/playground

    Or set up a mail program:

        server    127.0.0.1, port {plain}, or port {secure} with TLS
        user      {name}
        password  {password}

    Ctrl-C ends the service, and removes its mail.  The log is {os.path.join(directory, "log")}.
""",
        # The text goes to the real standard output, because Twisted has replaced sys.stdout by the
        # log.
        file=sys.__stdout__,
        flush=True,
    )
