"""
A real server on ports of this machine, for tests of clients: users and messages
as the test wants them, and faults on demand.
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
# Capabilities of the service itself: no command is theirs.
_OWN = frozenset(["AUTH-RESP-CODE", "EXPIRE", "IMPLEMENTATION", "PIPELINING", "RESP-CODES"])
# Capabilities that go by another name than their commands.
_COMMANDS_OF = {"SASL": ("AUTH",), "USER": ("USER", "PASS")}
# The response codes that each stands for (RFC 2449 section 6.4, RFC 3206).
_CODES_OF = {"AUTH-RESP-CODE": "AUTH|SYS/.*", "RESP-CODES": ".*"}


@cache
def _authority() -> Authority:
    return Authority()


class SilentTLS(SSL.Connection):
    """
    Takes what the client says of its handshake, and says nothing.
    """

    def do_handshake(self) -> None:
        raise SSL.WantReadError()

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        raise SSL.WantReadError()


@implementer(IOpenSSLServerConnectionCreator)
class _Certificates:
    """
    Serves a good certificate, unless a fault wants another.
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
    The table of commands, less those that are switched off.
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
    A POP3 server for tests, to be used with C{with}: this package's engine on
    two free ports of the loopback interface, mailboxes in memory.  Needs
    neither pytest nor a running reactor; its methods may be called from any
    thread.

    Twisted's reactor runs in a thread of its own while any of these servers
    does.  A program that runs the reactor itself gives it a
    L{pop3svc.POP3Factory} to serve.

    @ivar host: the address it listens on.
    @ivar port: without TLS at first; STLS is offered.
    @ivar tlsPort: with implicit TLS (RFC 8314).
    @ivar caFile: path of the certificate, PEM, that a client has to trust.  It
        is there while the server runs.
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
        @param users: passwords by name; see L{addUser}.
        @param without: what is neither announced nor accepted: verbs
            (C{"TOP"}, C{"STLS"}, C{"CAPA"}), capabilities of CAPA
            (C{"PIPELINING"}, C{"SASL"}, C{"RESP-CODES"}) and extensions
            (C{"SLEE-WAKE"}, C{"UID-PARAM"}), in capitals.
        @param faults: see L{fault}.
        @param policy: the limits of the service.
        @raise ValueError: something in C{without} is unknown.
        """
        self._without = frozenset(without)
        known = {*COMMANDS, *EXTENSIONS, *_OWN, *_COMMANDS_OF}
        unknown = sorted(self._without - known)
        if unknown:
            raise ValueError(f"without {unknown[0]}: there are {', '.join(sorted(known))}")
        policy = Policy() if policy is None else policy
        self._policy = replace(
            policy,
            without=policy.without | (self._without & frozenset(EXTENSIONS)),
            # What is left when a test ends is not waited for.
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
        Listen.

        @raise RuntimeError: the reactor runs here already, or cannot run; a
            sentence says which.
        """
        assert self._directory is None, "it runs already"
        reactor = reactorThread.hold()
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="pop3svc-")
            directory = Path(self._directory.name)
            self.caFile = str(directory / "ca.pem")
            _authority().write(Path(self.caFile))
            certificates = _Certificates(directory, self._faults)
            self.port, self.tlsPort = reactorThread.call(self._listen, reactor, certificates)
        except BaseException:
            self._letGo()
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
        Cut all connections and listen no more.  What was said and what is left
        in the mailboxes can still be looked at.
        """
        try:
            reactorThread.call(self._end)
        finally:
            self._letGo()

    async def _endAll(self) -> None:
        listening, self._listening = self._listening, []
        for port in listening:
            await port.stopListening()
        for wire in list(self._wires.protocols):
            wire.abortConnection()
        await self._factory.shutdown()

    def _end(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._endAll())

    def _letGo(self) -> None:
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
        # Before and after it runs there is nobody to be in the way of.
        if self._directory is None:
            return call(*arguments)
        return reactorThread.call(call, *arguments)

    def sslContext(self) -> ssl.SSLContext:
        """
        @return: what a client needs to trust this server, and checks all that
            a careful client does.
        """
        return ssl.create_default_context(cafile=self.caFile)

    # --- users and messages -----------------------------------------------------

    def addUser(self, name: str, password: str) -> None:
        """
        Somebody may log in, and has a mailbox; or has another password now.
        """
        self._call(self._provider.passwords.__setitem__, name, password)

    def _maildrop(self, user: str) -> MemoryMaildrop:
        if user not in self._provider.passwords:
            raise ValueError(f"there is no user {user!r}; addUser() makes one")
        return self._provider.store.maildrop(user)

    def deliver(self, user: str, message: bytes) -> str:
        """
        A message arrives.

        @param message: octets; line ends LF or CRLF.
        @return: its unique-id.
        @raise ValueError: there is no such user.
        """
        uniqueID: str = self._call(lambda: self._maildrop(user).add(message))
        return uniqueID

    def messages(self, user: str) -> dict[str, bytes]:
        """
        @return: what is in a mailbox now: messages by unique-id, in the order
            they arrived.
        @raise ValueError: there is no such user.
        """
        found: dict[str, bytes] = self._call(lambda: dict(self._maildrop(user).messages))
        return found

    # --- faults -----------------------------------------------------------------

    def fault(self, *faults: Fault) -> None:
        """
        From the next command (connection, handshake) on, this goes wrong; the
        faults that are set already stay.

        @param faults: values of the classes in L{pop3svc.testing.faults}.
        """
        self._call(self._faults.add, faults)

    def clearFaults(self) -> None:
        """
        From the next command on nothing goes wrong.  What has gone wrong stays
        so: a connection that is silent says nothing any more.
        """
        self._call(self._faults.clear)

    # --- what was said ----------------------------------------------------------

    @property
    def transcript(self) -> list[list[tuple[str, str]]]:
        """
        What was said so far: for each connection, in the order they came, the
        lines as C{("C", line)} and C{("S", line)}, without line ends, as they
        went over the connection, inside TLS.  What a client has read is in it.
        B{Passwords are in it as they were sent:} they are a test's.  It ends
        after 16 MiB.
        """
        talks: list[list[tuple[str, str]]] = self._call(
            lambda: [each.lines for each in self._transcript.talks]
        )
        return talks

    def transcriptText(self) -> str:
        """
        @return: L{transcript} as C{C: } and C{S: } lines, an empty line between
            connections.
        """
        text: str = self._call(self._transcript.text)
        return text
