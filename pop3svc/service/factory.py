"""
Build connections, count them, and close them when the service stops.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger

from pop3svc.interfaces import IPOP3MailboxProvider
from pop3svc.languages import languages
from pop3svc.networks import addressOf, networkOf
from pop3svc.once import Once
from pop3svc.policy import Policy
from pop3svc.protocol.closing import isTLS
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.connection import Limits, POP3Connection
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.sasl import MECHANISMS, Mechanism
from pop3svc.protocol.session import ConnectionInfo, Session
from pop3svc.service.admission import Admission
from pop3svc.service.keepalive import keepAlive, socketOf

__all__ = ["ListenerFactory", "POP3Factory", "checkName", "clientIP"]

log = Logger(namespace="pop3svc")

_connectionIDs = count(1)

_NAME = re.compile(r"[ -;=?-Z\\^-~]{1,100}")


def checkName(name: object) -> str:
    """
    Check a provider's name, which the greeting and CAPA show.

    @return: the name.
    @raise ValueError: the name is not allowed.  The text says which names are allowed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name != name.strip():
        raise ValueError(
            "the name of a provider is printable ASCII without < > [ ], 1 to 100 octets, "
            f"with no space at its ends: {name!r} is not"
        )
    return name


def clientIP(address: IAddress) -> str | None:
    """
    @return: the IP address of a client; L{None} if the client has no address.  For an IPv4 client
        on an IPv6 socket, it is the IPv4 address.
    """
    host = getattr(address, "host", None)
    if not isinstance(host, str):
        return None
    if host.lower().startswith("::ffff:") and "." in host:
        return host[7:]
    return host


class RejectingProtocol(Protocol):
    """
    Refuses a connection.
    """

    def __init__(self, reply: bytes = b"-ERR [SYS/TEMP] Too many connections.\r\n") -> None:
        """
        @param reply: the reply to send if the connection has no TLS.
        """
        self._reply = reply

    def connectionMade(self) -> None:
        """
        See L{Protocol.connectionMade}.
        """
        transport: Any = self.transport
        if isTLS(transport):
            # Send no reply, because it would need a TLS handshake, which costs too much CPU time
            # for a refusal.
            transport.abortConnection()
        else:
            transport.write(self._reply)
            transport.loseConnection()


class POP3Factory(ServerFactory):
    """
    Serves POP3 from a provider on any stream endpoint.

    If an endpoint has implicit TLS, such as C{ssl:}, its connections use TLS from the start.  On
    other connections the service offers STLS if there is a C{connectionCreator}.
    """

    noisy = False

    def __init__(
        self,
        provider: Any,
        policy: Policy | None = None,
        *,
        connectionCreator: Any = None,
        commands: Mapping[str, Command] = COMMANDS,
        mechanisms: Mapping[str, Mechanism] = MECHANISMS,
        throttle: Any = None,
        clock: IReactorTime | None = None,
        secret: bytes | None = None,
        meter: Any = None,
    ) -> None:
        """
        @param provider: the L{IPOP3MailboxProvider} that authenticates users and opens mailboxes.
        @param policy: the limits; L{None} for the default limits.
        @param connectionCreator: the argument of C{transport.startTLS} for STLS, such as
            L{twisted.internet.ssl.CertificateOptions}.
        @param commands: the table of commands.
        @param mechanisms: the table of SASL mechanisms.
        @param throttle: the L{pop3svc.interfaces.ILoginThrottle}; L{None} for no throttle.
        @param clock: measures time; L{None} for the reactor.
        @param secret: octets that only this service knows.  Pass the same octets at each start, so
            that SCRAM shows the same salt for a name without an account.  L{None} for new random
            octets.
        @param meter: the L{pop3svc.metrics.meter.Meter} that counts the work; L{None} to count
            nothing.
        @raise TypeError: C{provider} does not provide L{IPOP3MailboxProvider}.
        @raise ValueError: the name of the provider is not allowed; see L{checkName}.
        """
        if not IPOP3MailboxProvider.providedBy(provider):
            raise TypeError(f"{provider!r} does not provide IPOP3MailboxProvider")
        checkName(provider.name)
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.provider = provider
        self.connectionCreator = connectionCreator
        self.throttle = throttle
        self.clock = clock
        self._meter = meter
        self._allCommands = commands if meter is None else meter.commands(commands)
        self._mechanisms = mechanisms
        self._secret = secrets.token_bytes(32) if secret is None else secret
        policy = Policy() if policy is None else policy
        self.admission = Admission(clock, policy)
        self.usePolicy(policy)
        self.connections: set[POP3Connection] = set()
        # Whether accepted connections inherit the keepalive options of their ports.
        self.portsKeepAlive = False
        # The refused networks that are already in the log.  Each network is logged once, because
        # scanners have thousands of addresses.
        self._foreign = Once()
        self._stopping = False
        self._waiting: list[Deferred[None]] = []

    def usePolicy(self, policy: Policy) -> None:
        """
        Use another policy.  Present connections keep the previous policy, but the limits of
        L{Admission} change at once.
        """
        self.policy = self.admission.policy = policy
        self.commands = {
            verb: each
            for verb, each in self._allCommands.items()
            if each.extension is None or policy.has(each.extension)
        }
        if "LANG" in self.commands:
            # Read the catalogues of translations now, because a session must not wait for a disk.
            languages()
        self._limits = Limits(self.clock, policy)

    def buildProtocol(
        self, addr: IAddress | None, listener: ListenerFactory | None = None
    ) -> Protocol | None:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.

        @param listener: the listener that has accepted the connection; L{None} if it has no
            settings of its own.
        """
        admission = self.admission
        admission.accepted()
        if self._stopping:
            return None
        address = None if addr is None else clientIP(addr)
        if listener is not None and not listener.mayConnect(address):
            return self._refuseForeign(address)
        if not admission.mayConnect(address):
            if self._meter is not None:
                self._meter.refused += 1
            return RejectingProtocol()
        policy, connectionCreator = self.policy, self.connectionCreator
        if listener is not None:
            policy, connectionCreator = listener.policy, listener.connectionCreator

        def makeSession(transport: Any) -> Session:
            session = self._makeSession(transport, address, policy, connectionCreator)
            # Count the connection here, and not in buildProtocol().  If TLS cannot be set up,
            # connectionMade() is not called.  The number would then never go down again.
            self.connections.add(connection)
            admission.connected(address)
            return session

        connection = POP3Connection(
            makeSession,
            self.commands,
            self.clock,
            connectionCreator,
            self._ended,
            admission.unauthenticated,
            self._limits,
        )
        connection.factory = self
        connection.address = address
        return connection

    def _refuseForeign(self, address: str | None) -> RejectingProtocol:
        if self._meter is not None:
            self._meter.foreign += 1
        if self._foreign.isFirst(networkOf(address)):
            log.info(
                "refused {clientIP}: old-tls-from does not name it; further connections from there "
                "are refused without a line in the log",
                clientIP=address,
            )
        return RejectingProtocol(b"-ERR [SYS/PERM] This port is for other networks.\r\n")

    def _makeSession(
        self, transport: Any, address: str | None, policy: Policy, connectionCreator: Any
    ) -> Session:
        if not self.portsKeepAlive:
            found = socketOf(transport)
            if found is not None:
                keepAlive(found, self.policy)
        info = ConnectionInfo(next(_connectionIDs), address, isTLS(transport))
        meter = self._meter
        if meter is not None:
            meter.accepted += 1
        return Session(
            info,
            self.provider,
            policy,
            self.clock,
            commands=tuple(self.commands.values()),
            mechanisms=self._mechanisms,
            mayStartTLS=connectionCreator is not None,
            throttle=self.throttle,
            acquireSlot=self.admission.acquireSlot,
            secret=self._secret,
            makeRecord=SessionRecord if meter is None else meter.makeRecord,
            makeCalls=ProviderCalls if meter is None else meter.makeCalls,
        )

    def _ended(self, connection: POP3Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self.admission.disconnected(connection)
        if not self.connections:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.called:
                    waiter.callback(None)

    async def shutdown(self) -> None:
        """
        End all sessions.  Running commands have C{policy.shutdownTimeout} seconds to finish.  Then
        the factory aborts the connections, and waits C{policy.answerTimeout} more seconds for
        running deletions.
        """
        self._stopping = True
        self.admission.stop()
        for connection in list(self.connections):
            connection.stop()
        if not self.connections:
            return
        over: Deferred[None] = Deferred()
        self._waiting.append(over)
        policy = self.policy

        def giveUp() -> None:
            log.error(
                "{count} sessions did not end within {seconds} s: a deletion or a provider hangs",
                count=len(self.connections),
                seconds=policy.shutdownTimeout + policy.answerTimeout,
            )
            if not over.called:
                over.callback(None)

        timers = [
            self.clock.callLater(policy.shutdownTimeout, self._cut),
            self.clock.callLater(policy.shutdownTimeout + policy.answerTimeout, giveUp),
        ]
        await over
        for timer in timers:
            if timer.active():
                timer.cancel()

    def _cut(self) -> None:
        for connection in list(self.connections):
            connection.abort("the service is stopping")


class ListenerFactory(ServerFactory):
    """
    Makes the connections of a listener that has settings of its own, such as a certificate.  The
    main factory does everything else, such as counting connections.
    """

    noisy = False

    def __init__(
        self,
        factory: POP3Factory,
        connectionCreator: Any,
        cleartextLogin: str | None = None,
        networks: Sequence[IPv4Network | IPv6Network] | None = None,
    ) -> None:
        """
        @param connectionCreator: the argument of C{startTLS}; see L{POP3Factory}.
        @param cleartextLogin: see L{Policy}; L{None} to use the value of the main factory.
        @param networks: the networks whose clients may connect; L{None} for all clients.
        """
        self._networks = networks
        self._factory = factory
        self.connectionCreator = connectionCreator
        self._cleartextLogin = cleartextLogin
        # The main factory's policy, and a copy of it with the rule of this listener.
        self._policies: tuple[Policy, Policy] | None = None

    @property
    def policy(self) -> Policy:
        """
        The policy for new connections.
        """
        general = self._factory.policy
        if self._cleartextLogin is None:
            return general
        if self._policies is None or self._policies[0] is not general:
            self._policies = general, replace(general, cleartextLogin=self._cleartextLogin)
        return self._policies[1]

    def mayConnect(self, address: str | None) -> bool:
        """
        @param address: the IP address of a client; L{None} for a client without one.
        @return: whether the client may connect to this listener.
        """
        if self._networks is None:
            return True
        if address is None:
            return False
        found = addressOf(address)
        return any(found in network for network in self._networks)

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        return self._factory.buildProtocol(addr, self)
