"""
C{pop3svc check HOST}: run the rules on a server.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from getpass import getpass
from typing import Any, NoReturn

from OpenSSL import SSL
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import react
from twisted.logger import globalLogBeginner
from zope.interface import implementer

from pop3svc.check import (
    basics,
    capabilities,
    deletion,
    extensions,
    login,
    messages,
    replies,
    tls,
)
from pop3svc.check.client import Broken
from pop3svc.check.report import asJSON, asLine, asTable, summary
from pop3svc.check.table import Outcome, Result, check, inOrder
from pop3svc.check.target import CannotLogIn, NotApplicable, Target

__all__ = ["RULES", "main"]

# The modules that declare rules.
RULES = (basics, capabilities, deletion, extensions, login, messages, replies, tls)

_PORTS = {"tls": 995, "stls": 110, "plain": 110}
_LONGEST = 65536
# The largest value of --timeout, in seconds.
_MAX_TIMEOUT = 600


class _Parser(argparse.ArgumentParser):
    """
    An argument parser that answers a bad option with one sentence.
    """

    def print_help(self, file: Any = None) -> None:
        # Write the text here, because argparse ignores an error of the output.
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f"pop3svc: {message}")


class _ListRules(argparse.Action):
    """
    Print the rules and exit.
    """

    def __call__(self, *arguments: object, **options: object) -> None:
        print(asTable())
        raise SystemExit(0)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= _MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"seconds, more than 0 and at most {_MAX_TIMEOUT}")
    return seconds


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return int(text)


def _hostAndPort(text: str) -> tuple[str, int | None]:
    """
    @return: the host, and the port if the text has one.
    @raise ValueError: the text is malformed; the error is a sentence for the user.
    """
    found = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?|([^:]*):([^:]*)", text)
    host, port = text, None
    if found is not None:
        host, port = (found[1], found[2]) if found[3] is None else (found[3], found[4])
    if not host or any(each.isspace() or not each.isprintable() for each in host):
        raise ValueError(f"{text!a} does not name a host")
    try:
        return host, None if port is None else _port(port)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{text!a}: {error}")


def makeParser() -> argparse.ArgumentParser:
    """
    @return: the parser of C{pop3svc check}.
    """
    parser = _Parser(
        prog="pop3svc check",
        description="Test a POP3 server for conformance to the RFCs.  Only --destructive deletes "
        "messages.  Exit status: 0 no rule failed, 1 the server could not be checked, 2 "
        "a rule failed.",
    )
    parser.add_argument(
        "host", metavar="HOST[:PORT]", help="name or address of the server; [ADDRESS]:PORT for IPv6"
    )
    parser.add_argument("--port", type=_port, metavar="N", help="default: 995 with --tls, else 110")
    modes = parser.add_mutually_exclusive_group()
    for mode, help in (
        ("tls", "TLS from the first octet (the default)"),
        ("stls", "TLS by STLS"),
        ("plain", "log in without TLS: the password is sent in clear text"),
    ):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=help)
    parser.add_argument("--user", required=True, metavar="U", help="account to log in with")
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="read the password from the first line of FILE (default: ask at the terminal, or "
        "else read standard input)",
    )
    parser.add_argument("--ca", metavar="FILE", help="trust only the PEM certificates in FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--destructive", action="store_true", help="also run the rules that delete messages"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds to wait for an answer (10)",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="RULE", help="run only this rule; repeatable"
    )
    parser.add_argument(
        "--list-rules", action=_ListRules, nargs=0, help="print the table of rules and exit"
    )
    parser.set_defaults(mode="tls")
    return parser


def _password(path: str | None) -> bytes:
    """
    @return: the password from a file, a terminal without echo, or a pipe.
    """
    if path is not None:
        with open(path, "rb") as file:
            line = file.readline(_LONGEST)
    elif sys.stdin.isatty():
        line = getpass("Password: ").encode("utf-8", "surrogateescape")
    else:
        line = sys.stdin.buffer.readline(_LONGEST)
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _creator(host: str, path: str | None) -> Callable[[], Any]:
    """
    @return: a function that returns an argument for a client's C{startTLS}.  This argument verifies
        the certificate, and the host name in the certificate.
    @raise ValueError: the file of certificates cannot be used; the error is a sentence for the
        user.
    """
    trustRoot: Any = None
    if path is not None:
        with open(path, "rb") as file:
            blocks = file.read().split(b"-----BEGIN CERTIFICATE-----")[1:]
        if not blocks:
            raise ValueError(f"{path} contains no PEM certificate")
        try:
            trustRoot = trustRootFromCertificates(
                [Certificate.loadPEM(b"-----BEGIN CERTIFICATE-----" + each) for each in blocks]
            )
        except Exception:
            raise ValueError(f"{path} contains an invalid PEM certificate")
    return lambda: optionsForClientTLS(host, trustRoot)


@implementer(IOpenSSLClientConnectionCreator)
class AnyCertificate:
    """
    Connects by TLS without verifying the certificate.
    """

    def __init__(self, host: str) -> None:
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """
        See L{IOpenSSLClientConnectionCreator}.
        """
        connection = SSL.Connection(CertificateOptions().getContext(), None)
        if not isIPAddress(self._host) and not isIPv6Address(self._host):
            try:
                connection.set_tlsext_host_name(self._host.encode("idna"))
            except UnicodeError:
                # Connect without SNI.
                pass
        return connection


def _print(text: str) -> None:
    """
    Print while the reactor runs.  An exception in the reactor would not reach the user, so this
    function itself reports an error.

    @raise SystemExit: the output cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SystemExit(f"pop3svc: cannot write the output: {error.strerror}")


async def _run(reactor: Any, target: Target, arguments: argparse.Namespace) -> None:
    try:
        await target.begin()
    except Exception as error:
        # Catch every exception, because no caller reports it. Join the lines of its text, because
        # Twisted's texts may have several lines.
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Broken | CannotLogIn | NotApplicable | OSError | ConnectError):
            text = f"{type(error).__name__}: {text}"
        raise SystemExit(f"pop3svc: {target.host} port {target.port}: {text}")

    def printLine(result: Result) -> None:
        _print(asLine(result))

    report = printLine if not arguments.json else lambda result: None
    try:
        results = await check(target, arguments.destructive, arguments.only, report)
    except Exception as error:
        raise SystemExit(f"pop3svc: the check itself failed: {type(error).__name__}: {error}")
    if arguments.json:
        about = {"host": target.host, "port": target.port, "mode": target.mode}
        _print(asJSON(about, results))
    else:
        _print(summary(results))
    if any(result.outcome is Outcome.FAILED for result in results):
        raise SystemExit(2)


def main(argv: Sequence[str]) -> None:
    """
    Run the command C{pop3svc check}.

    @raise SystemExit: always.  The status is 0 or 2 after a run.  If an error prevents or ends the
        run, the status is 1, and the user gets a sentence.
    """
    arguments = makeParser().parse_args(argv)
    known = {rule.name for rule in inOrder()}
    unknown = [name for name in arguments.only if name not in known]
    if unknown:
        raise SystemExit(f"pop3svc: there is no rule {unknown[0]}; --list-rules lists them")
    user = arguments.user.encode("utf-8", "surrogateescape")
    try:
        host, port = _hostAndPort(arguments.host)
        if port is not None and arguments.port is not None:
            raise ValueError("the port is given twice")
        password = _password(arguments.password_file)
        creator = _creator(host, arguments.ca)
    except (ValueError, OSError) as error:
        raise SystemExit(f"pop3svc: {error}")
    for octets, name in ((user, "user name"), (password, "password")):
        if not octets or any(each in octets for each in b"\r\n\0"):
            raise SystemExit(f"pop3svc: the {name} is empty or contains CR, LF or NUL")
    # Discard Twisted's log, because the rules report failed handshakes.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    def run(reactor: Any) -> Deferred[None]:
        target = Target(
            reactor,
            host,
            port or arguments.port or _PORTS[arguments.mode],
            arguments.mode,
            user,
            password,
            creator,
            arguments.timeout,
            anyCertificate=lambda: AnyCertificate(host),
        )
        return Deferred.fromCoroutine(_run(reactor, target, arguments))

    react(run)
