"""
A real server on ports of this machine, for tests of clients.  It has the users and messages of the
test, and faults on demand.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from pop3svc.policy import EXTENSIONS, Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.session import Session
from pop3svc.providers.memory import MemoryMaildrop, MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.tls import RenewableCertificate
from pop3svc.testing.certificates import Authority
from pop3svc.testing.faults import (
    HANDSHAKE,
    ExpiredCertificate,
    Fault,
    Faults,
    NoAnswer,
    WrongNameCertificate,
)
from pop3svc.testing.reactorthread import reactorThread
from pop3svc.testing.transcript import Transcript
from pop3svc.testing.wire import WireFactory

__all__ = ["POP3Server"]

_HOST = "127.0.0.1"
# The capabilities that stand neither for a command nor for an extension.
_OWN = frozenset(["AUTH-RESP-CODE", "EXPIRE", "IMPLEMENTATION", "PIPELINING", "RESP-CODES"])
# The capabilities whose commands have names that differ from the tag of the capability.
_COMMANDS_OF = {"SASL": ("AUTH",), "USER": ("USER", "PASS")}
# The response codes for which each capability stands (RFC 2449 section 6.4, RFC 3206).
_CODES_OF = {"AUTH-RESP-CODE": "AUTH|SYS/.*", "RESP-CODES": ".*"}


@cache
def _authority() -> Authority:
    return Authority()


class SilentTLS(SSL.Connection):
    """
    Reads the client's part of the TLS handshake, and sends nothing.
    """

    def do_handshake(self) -> None:
        raise SSL.WantReadError()

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        raise SSL.WantReadError()


@implementer(IOpenSSLServerConnectionCreator)
class _Certificates:
    """
    Serves a valid certificate, unless a fault requests another.
    """

    def __init__(self, directory: Path, faults: Faults) -> None:
        self._faults = faults
        self._kinds = {}
        for kind, names, days in (
            (Fault, ["localhost", _HOST], 1),
            (ExpiredCertificate, ["localhost", _HOST], -1),
            (WrongNameCertificate, ["elsewhere.invalid"], 1),
        ):
            path = directory / f"{kind.__name__}.pem"
            _authority().issue(path, names, days)
            self._kinds[kind] = RenewableCertificate(str(path), str(path))

    def serverConnectionForTLS(self, tlsProtocol: Any) -> Any:
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        kind = Fault
        for fault in self._faults.striking(HANDSHAKE):
            if isinstance(fault, NoAnswer):
                return SilentTLS(SSL.Context(SSL.TLS_METHOD), None)
            kind = type(fault)
        return self._kinds[kind].serverConnectionForTLS(tlsProtocol)


def _commands(without: frozenset[str]) -> dict[str, Command]:
    """
    @return: the table of commands without those that are switched off.
    """
    off = {verb for name in without for verb in _COMMANDS_OF.get(name, (name,))}
    table = {verb: each for verb, each in COMMANDS.items() if verb not in off}
    announced = table.get("CAPA")
    if announced is not None:

        def announce(session: Session) -> list[str]:
            lines = announced.capability
            assert callable(lines)
            return [line for line in lines(session) if line.partition(" ")[0] not in without]

        table["CAPA"] = replace(announced, capability=announce)
    return table


class POP3Server:
    """
    A POP3 server for tests.  Use it in a C{with} statement.  It runs this package's protocol engine
    on two free ports of the loopback interface, with mailboxes in memory.  It needs neither pytest
    nor a running reactor, and its methods may be called from any thread but the reactor's.

    Twisted's reactor runs in its own thread while any of these servers runs.  A program that runs
    the reactor itself cannot use this class, but can serve a L{pop3svc.POP3Factory}.

    @ivar host: the address of the ports.
    @ivar port: the port without implicit TLS; it offers STLS.
    @ivar tlsPort: the port with implicit TLS (RFC 8314).
    @ivar caFile: the path of the PEM certificate that a client has to trust.  The file exists
        while the server runs.
    """

    host = _HOST

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        *,
        without: Iterable[str] = (),
        faults: Iterable[Fault] = (),
        policy: Policy | None = None,
    ) -> None:
        """
        @param users: a dictionary from the names of users to their passwords; L{addUser} adds
            further users.
        @param without: features that the server neither announces nor accepts, in capitals: verbs
            (C{"TOP"}, C{"STLS"}, C{"CAPA"}), capabilities of CAPA (C{"PIPELINING"}, C{"SASL"},
            C{"RESP-CODES"}) and extensions (C{"SLEE-WAKE"}, C{"UID-PARAM"}).
        @param faults: the first faults; L{fault} adds further faults.
        @param policy: the limits of the service; the server sets C{shutdownTimeout} to 0.
        @raise ValueError: C{without} contains an unknown name.
        """
        self._without = frozenset(without)
        # The server never offers APOP, because its provider has no shared secrets.
        known = {*COMMANDS, *EXTENSIONS, *_OWN, *_COMMANDS_OF} - {"APOP"}
        unknown = sorted(self._without - known)
        if unknown:
            raise ValueError(f"without {unknown[0]}: known are {', '.join(sorted(known))}")
        policy = Policy() if policy is None else policy
        self._policy = replace(
            policy,
            without=policy.without | (self._without & frozenset(EXTENSIONS)),
            # Do not wait for sessions that are open when a test ends.
            shutdownTimeout=0,
        )
        self._provider = MemoryProvider({} if users is None else users)
        self._faults = Faults(faults)
        self._transcript = Transcript()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._listening: list[Any] = []

    # --- running ---------------------------------------------------------------

    def start(self) -> POP3Server:
        """
        Listen on the ports.

        @raise RuntimeError: the program itself already runs the reactor, or the reactor cannot run;
            the text is a sentence with the reason.
        """
        assert self._directory is None, "the server runs already"
        reactor = reactorThread.hold()
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="pop3svc-")
            directory = Path(self._directory.name)
            self.caFile = str(directory / "ca.pem")
            _authority().write(Path(self.caFile))
            certificates = _Certificates(directory, self._faults)
            self.port, self.tlsPort = reactorThread.call(self._listen, reactor, certificates)
        except BaseException:
            self._cleanUp()
            raise
        return self

    def _listen(self, reactor: Any, certificates: _Certificates) -> tuple[int, int]:
        self._factory = POP3Factory(
            self._provider,
            self._policy,
            connectionCreator=certificates,
            commands=_commands(self._without),
            clock=reactor,
        )
        codes = [_CODES_OF[name] for name in sorted(self._without & set(_CODES_OF))]
        self._wires = WireFactory(
            self._factory,
            self._faults,
            self._transcript,
            reactor,
            withoutCodes="|".join(codes) or None,
            oneAtATime="PIPELINING" in self._without,
        )
        secure = TLSMemoryBIOFactory(certificates, False, self._wires, clock=reactor)
        secure.noisy = False
        for factory in (self._wires, secure):
            self._listening.append(reactor.listenTCP(0, factory, interface=_HOST))
        plain, tls = (each.getHost().port for each in self._listening)
        return plain, tls

    def stop(self) -> None:
        """
        Abort all connections and stop listening.  The transcript and the mailboxes can still
        be read.
        """
        try:
            reactorThread.call(self._end)
        finally:
            self._cleanUp()

    async def _endAll(self) -> None:
        listening, self._listening = self._listening, []
        for port in listening:
            await port.stopListening()
        for wire in list(self._wires.protocols):
            wire.abortConnection()
        await self._factory.shutdown()

    def _end(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._endAll())

    def _cleanUp(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.cleanup()
        reactorThread.release()

    def __enter__(self) -> POP3Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _call(self, call: Any, *arguments: Any) -> Any:
        # While the server does not run, no other thread uses its data, so call the function in this
        # thread.
        if self._directory is None:
            return call(*arguments)
        return reactorThread.call(call, *arguments)

    def sslContext(self) -> ssl.SSLContext:
        """
        @return: a context for clients, which trusts this server's authority and makes the usual
            checks.
        """
        return ssl.create_default_context(cafile=self.caFile)

    # --- users and messages -----------------------------------------------------

    def addUser(self, name: str, password: str) -> None:
        """
        Add a user with a mailbox, or replace the password of a user.
        """
        self._call(self._provider.passwords.__setitem__, name, password)

    def _maildrop(self, user: str) -> MemoryMaildrop:
        if user not in self._provider.passwords:
            raise ValueError(f"there is no user {user!r}; addUser() adds one")
        return self._provider.store.maildrop(user)

    def deliver(self, user: str, message: bytes) -> str:
        """
        Deliver a message.

        @param message: octets with line ends LF or CRLF.
        @return: the unique-id of the message.
        @raise ValueError: the user does not exist.
        """
        uniqueID: str = self._call(lambda: self._maildrop(user).add(message))
        return uniqueID

    def messages(self, user: str) -> dict[str, bytes]:
        """
        @return: the messages in a mailbox by unique-id, in the order of their arrival.
        @raise ValueError: the user does not exist.
        """
        found: dict[str, bytes] = self._call(lambda: dict(self._maildrop(user).messages))
        return found

    # --- faults -----------------------------------------------------------------

    def fault(self, *faults: Fault) -> None:
        """
        Set further faults, which take effect at the next command, connection or handshake.

        @param faults: values of the classes in L{pop3svc.testing.faults}.
        """
        self._call(self._faults.add, faults)

    def clearFaults(self) -> None:
        """
        Remove all faults before the next command.  A connection that L{NoAnswer} has silenced stays
        silent.
        """
        self._call(self._faults.clear)

    # --- transcripts ------------------------------------------------------------

    @property
    def transcript(self) -> list[list[tuple[str, str]]]:
        """
        The lines of each connection so far: C{("C", line)} and C{("S", line)}, without line ends
        and unencrypted.  The connections are in the order in which they were made.  The server adds
        its own line to the transcript before the client can read the line.  B{The transcript
        contains the passwords of the test.}  It ends after 16 MiB.
        """
        talks: list[list[tuple[str, str]]] = self._call(
            lambda: [each.lines for each in self._transcript.talks]
        )
        return talks

    def transcriptText(self) -> str:
        """
        @return: L{transcript} as C{C: } and C{S: } lines, with an empty line between
            connections.
        """
        text: str = self._call(self._transcript.text)
        return text
