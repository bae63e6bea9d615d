"""
Build a service from settings.  Each part of the service is made when it is needed.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.logger import Logger

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.domains import DomainProvider
from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.strikes import BanEngine, UserThrottle
from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.admin.activity import Activity
from pop3svc.admin.operations import Handler, ProcessOperations
from pop3svc.admin.server import AdminFactory, AdminSocket
from pop3svc.admin.status import partsOf
from pop3svc.admin.traces import Traces
from pop3svc.admin.workers import WorkersOperations
from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.interfaces import (
    IHousekeeping,
    IPasswordComparing,
    IPOP3MailboxProvider,
    IReloading,
    IVerifierAdding,
)
from pop3svc.logrecords import JournalLog
from pop3svc.logs import Log
from pop3svc.metrics.meter import Meter
from pop3svc.metrics.numbers import ProcessNumbers, ServiceNumbers, WorkersNumbers
from pop3svc.policy import Policy
from pop3svc.providers.maildir import MaildirStore
from pop3svc.service.certificates import Certificates
from pop3svc.service.collector import relieveCollector
from pop3svc.service.configfile import readText
from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.endpoints import InheritedPortReactor, serverEndpoint, tlsEndpoint
from pop3svc.service.factory import ListenerFactory, POP3Factory
from pop3svc.service.loop import Loop
from pop3svc.service.mailin import (
    UNIXPorts,
    destinationOf,
    makeMailEndpoints,
    makeRecipients,
)
from pop3svc.service.notifying import Notifier
from pop3svc.service.operating import Operated, makeLog
from pop3svc.service.options import Options
from pop3svc.service.precautions import Precautions
from pop3svc.service.privileged import Opener
from pop3svc.service.proxy import ProxyFactory
from pop3svc.service.running import (
    HousekeepingService,
    KnownNetworksService,
    POP3Service,
    exitInOrder,
    lookAfter,
)
from pop3svc.service.settings import Listener, SettingError, Settings, Store
from pop3svc.service.storage import Storage
from pop3svc.service.stores import checkRights, makeAccounts, makeStore
from pop3svc.service.workers import Shared, Supervisor

__all__ = ["Assembly", "Configured", "makeEndpoint"]

log = Logger(namespace="pop3svc")


def makeEndpoint(
    reactor: Any,
    listener: Listener,
    creator: Any,
    wrap: Callable[[Any, Any], Any] | None,
    loop: Loop | None = None,
) -> Any:
    """
    Make the endpoint of a listener.  The endpoint does not listen yet.

    @param creator: makes the TLS connections with the listener's certificate.
    @param wrap: makes a factory that reads PROXY headers; L{None} without trusted proxies.
    @param loop: see L{serverEndpoint}.
    @return: L{twisted.internet.interfaces.IStreamServerEndpoint}
    @raise SettingError: the endpoint cannot be made, or cannot be combined with another setting.
    """
    make = tlsEndpoint if listener.tls else serverEndpoint
    try:
        endpoint = make(reactor, listener.endpoint, creator, wrap, loop)
    except ValueError as error:
        raise SettingError(f"{listener.where}: {error}")
    return endpoint


class Configured:
    """
    The settings of a running service.  The class also reads the configuration file again, and
    applies changed settings.
    """

    def __init__(self, options: Options, settings: Settings, text: str | None) -> None:
        """
        @param text: the text of the configuration file; L{None} if there is no file.
        """
        self._options = options
        self.settings = settings
        self.text = text
        # Whether the service has workers.  If so, fewer settings need a restart, because a reload
        # starts new workers.
        self.hasWorkers = False
        # A function that applies a changed policy.
        self.apply: Callable[[Policy], object] = lambda policy: None

    def reload(self) -> None:
        """
        Read the configuration file again.  Apply the changed settings that need no restart, and log
        the names of the changed settings that need one.

        @raise SettingError: the file cannot be used.  The service keeps all its settings.
        """
        path = self._options.configFile
        assert path is not None
        text = readText(path)
        other = self._options.settings(text)
        policy, rest = self.settings.changesTo(other, self.hasWorkers)
        self.text = text
        if policy != self.settings.policy:
            self.settings = replace(self.settings, policy=policy)
            self.apply(policy)
        if rest:
            log.warn(
                "{path}: restart the service to change {names}", path=path, names=", ".join(rest)
            )


class Assembly:
    """
    Makes the parts of a service from its settings.  The class has many short methods: each method
    makes one part, and all of them use the same settings and the same reactor.
    """

    def __init__(
        self, reactor: Any, options: Options, shared: Shared | None = None, parent: Any = None
    ) -> None:
        """
        @param shared: in a worker, the values that its parent process gave it.
        @param parent: in a worker, the object that sends events to the other workers through the
            parent process.
        @raise SettingError: the settings cannot be used.
        """
        text = None if shared is None else shared.config
        if text is None and options.configFile is not None:
            text = readText(options.configFile)
        settings = options.settings(text)
        if shared is not None and shared.firstConfig != text:
            # Some settings of a worker must be those with which the parent has started, because the
            # parent still uses them, for example for its ports and its certificates.
            settings = settings.withThoseOfParent(options.settings(shared.firstConfig))
        self._reactor = reactor
        self._options = options
        self._twistd: Mapping[str, Any] | None = options.parent
        self._shared = shared
        self._parent = parent
        self.settings: Settings = settings
        self._configured = Configured(options, settings, text)
        self._owner = _ownerOf(self._twistd)
        self._storage = Storage(
            settings.data, self._owner, None if shared is None else shared.state
        )
        self._announcements: list[str] = []
        self._warnings: list[str] = []
        self._usesEmbeddedDefault = False
        self._checkers: list[Any] = []
        self._started: list[Any] = []
        # The destination of the mail of each domain.
        self._destinations: dict[str | None, Destination] = {}
        # In the parent of workers, the sockets of the ports that the workers share.
        self._sockets: list[Any] = []
        self._unixPorts: list[Any] = []
        self._notifier: Notifier | None = None
        # Counts the work of this process, if the service has a port for HTTP and this process
        # serves clients.
        self._meter: Meter | None = None
        # The object that opens the ports.  It is the reactor, or in a worker an object that takes
        # the parent's ports.
        self._on: Any = reactor
        if shared is not None:
            self._on = InheritedPortReactor(reactor, shared.ports)
        self._loop = None
        if settings.policy.ownTransport and Loop.isPossible:
            self._loop = Loop(reactor)
        self._certificates = Certificates(
            settings, self._storage.directory, None if shared is None else shared.certificates
        )

    # --- parts --------------------------------------------------------------------

    def _log(self) -> Log | JournalLog | None:
        """
        @return: the log that twistd's options name; L{None} in a worker, which uses the log of its
            parent.
        """
        if self._shared is not None or self._twistd is None:
            return None
        settings = self.settings
        return makeLog(
            *(self._twistd, self._reactor, self._owner),
            *(settings.logFormat, settings.policy.logDelay),
        )

    def _provider(self) -> Any:
        """
        @return: the provider that the settings of stores and accounts name.
        """
        stores = self.settings.stores
        if not stores:
            self._usesEmbeddedDefault = True
            stores = (Store("--provider", "--auth", None),)
        providers = {each.domain: self._providerOf(each) for each in stores}
        if list(providers) == [None]:
            return providers[None]
        return DomainProvider(providers, next(iter(providers.values())).name)

    def _providerOf(self, store: Store) -> Any:
        if store.kind is None:
            data = self._storage.directory()
            data.makeAccounts()
            provider: Any = MaildirStore(data.mail)
            checkers = makeAccounts(store) or [PasswordFile(data.passwordFile)]
        else:
            provider, checkers = makeStore(store)
            checkRights(provider, store, None if self._owner is None else self._owner[0])
        for each in checkers:
            if IPasswordComparing.providedBy(each):
                each.rememberChecks(self.settings.rememberChecks)
            if IVerifierAdding.providedBy(each):
                each.addVerifiers(self.settings.addVerifiers)
        self._started.append(provider)
        self._destinations[store.domain] = destinationOf(provider, checkers)
        if IPOP3MailboxProvider.providedBy(provider):
            return provider
        self._checkers += checkers
        return AccountsProvider(provider, checkers, self.settings.policy.loginWait)

    def _precautions(self) -> Opener | None:
        path = self._options.configFile
        cautious = Precautions(self.settings, path, self._certificates, self._checkers, self._owner)
        opener = cautious.openReplaced()
        cautious.warn()
        self._warnings += cautious.warnings
        return opener

    def _knownNetworks(self) -> KnownNetworks:
        """
        @return: the networks that users have logged in from.  If the service has a data directory,
            the networks are stored in it, so that they survive a restart.  With workers, the parent
            process stores them.
        """
        if not self._storage.isPermanent:
            self._announcements.append(
                "without --data, a restart forgets the networks that users have logged in from"
            )
            return KnownNetworks()
        state = self._storage.state()
        assert state is not None
        return KnownNetworks(state, isWriter=self._shared is None)

    # --- the whole ------------------------------------------------------------------

    @property
    def isSupervisor(self) -> bool:
        """
        Whether this process starts workers instead of serving clients itself.
        """
        return self._shared is None and self.settings.workers > 1

    def make(self) -> Operated:
        """
        Make the service and open its ports.

        @return: the L{POP3Service}, or in the parent of workers the L{Supervisor}.
        @raise SettingError: a setting is wrong, or a port cannot be opened.
        """
        if self._shared is None:
            # Take systemd's variables out of the environment before any other process starts,
            # because it would inherit them.
            self._notifier = Notifier.fromEnvironment(self._reactor)
        try:
            observer = self._log()
            provider = self._provider()
            recipients = makeRecipients(self._destinations, self.settings)
            self._certificates.of()
            for listener in self.settings.listeners:
                self._certificates.of(listener)
            opener = None if self._shared is not None else self._precautions()
            known = self._knownNetworks()
            self._warnings += _rememberMailboxes(
                self._started, self._storage, self._shared is not None
            )
        except OSError as error:
            raise SettingError(f"{error.filename}: {error.strerror}")
        except ValueError as error:
            raise SettingError(str(error))
        service = self._service(provider, known, observer)
        opened = [
            (port, listener.tls or listener.endpoint.startswith("ssl:"))
            for listener in self.settings.listeners
            for port in self._listen(service, listener)
        ]
        if recipients is not None:
            self._listenForMail(service, recipients)
        if self._usesEmbeddedDefault:
            self._announcements += _howToRead(
                self._storage.directory(), self._certificates.of().certificate, opened
            )
        exitInOrder(
            self._reactor,
            [signal.SIGTERM] if self._shared is not None else [signal.SIGTERM, signal.SIGINT],
        )
        relieveCollector(self._reactor, self.settings.policy.collectorThreshold)
        if not self.isSupervisor:
            return self._serving(service)
        return self._supervising(service, known, observer, opener)

    def _service(
        self, provider: Any, known: KnownNetworks, observer: Log | JournalLog | None
    ) -> POP3Service:
        shared = self._shared
        tell = None if shared is None else self._parent.tellStrike
        throttle = _throttleOf(self._reactor, self.settings, known, tell)
        state = self._storage.state()
        secret = None if state is None else state.secret("scram")
        if state is not None:
            # Close the database, because twistd forks later, and a connection of SQLite does not
            # survive a fork.
            state.close()
        if self.settings.web is not None and not self.isSupervisor:
            self._meter = Meter(self._reactor)
        factory = POP3Factory(
            provider,
            _shareOf(self.settings.policy, shared),
            connectionCreator=self._certificates.of(),
            throttle=LoginGuard(self._reactor, throttle),
            secret=secret,
            meter=self._meter,
        )
        if self._shared is not None:
            factory.admission.loginDelayed = self._parent.tellDelay
            throttle.restore(self._shared.strikes)
        service = POP3Service(self._reactor, factory, throttle, self._shared is not None, observer)
        _add(KnownNetworksService(known), service)
        for each in self._started:
            if IService.providedBy(each):
                # Each store gets its own parent service, because the names of the parts of a
                # service must differ, and stores may have the same name.
                parent = MultiService()
                IService(each).setServiceParent(parent)
                _add(parent, service)
            if IHousekeeping.providedBy(each):
                _add(HousekeepingService(each), service)
        return service

    def _listen(self, service: POP3Service, listener: Listener) -> list[Any]:
        factory: Any = service.factory
        creator = self._certificates.of(listener)
        own = (listener.certificate, listener.clientCa, listener.cleartextLogin)
        if any(each is not None for each in (*own, listener.oldTlsFrom)):
            factory = ListenerFactory(
                service.factory, creator, listener.cleartextLogin, listener.oldTlsFrom
            )
        trusted = self.settings.proxyFrom if listener.proxyFrom is None else listener.proxyFrom
        wrap = None
        if trusted:
            wrap = lambda inner, creator: ProxyFactory(  # noqa: E731
                inner, list(trusted), self._reactor, service.factory.admission, creator
            )
        endpoint = makeEndpoint(self._on, listener, creator, wrap, self._loop)
        return self._open(service, listener.where, endpoint, factory)

    def _listenForMail(self, service: POP3Service, recipients: Recipients) -> None:
        """
        Open the ports for LMTP.
        """
        # This module is imported here, because its import of Twisted's SMTP asks the DNS for the
        # name of this machine.
        from pop3svc.delivery.lmtp import LMTPFactory

        factory = LMTPFactory(recipients, self.settings.policy, clock=self._reactor)
        service.takeMail(factory)
        creator = self._certificates.of()
        for where, endpoint in makeMailEndpoints(self._on, self.settings, creator, self._loop):
            self._open(service, where, endpoint, factory)

    def _open(self, service: POP3Service, where: str, endpoint: Any, factory: Any) -> list[Any]:
        ports = service.listen(where, endpoint, factory)
        if self.isSupervisor:
            found = _socketOf(where, ports)
            self._sockets.append(found)
            if found.family == socket.AF_UNIX:
                self._unixPorts += ports
        return ports

    def _reloads(self, service: Operated) -> None:
        if self._shared is None and self._options.configFile is not None:
            service.reloads("the configuration", self._configured.reload)
        for each in self._certificates.creators():
            service.reloads("the certificate", each.reload)

    def _operated(self, service: Operated) -> None:
        service.announcements += self._certificates.announcements + self._announcements
        service.warnings += self._warnings
        _add(lookAfter(self._certificates), service)
        service.hear(self._reactor)

    def _serving(self, service: POP3Service) -> POP3Service:
        configured = self._configured
        configured.apply = lambda policy: service.factory.usePolicy(_shareOf(policy, self._shared))
        self._reloads(service)
        for name, parts in (("the accounts", self._checkers), ("the provider", self._started)):
            for each in parts:
                if IReloading.providedBy(each):
                    service.reloads(name, each.reload)
        facts = partsOf(self._certificates, service)
        number = 0 if self._shared is None else self._shared.number
        numbers = None
        if self._meter is not None:
            numbers = ProcessNumbers(service, self._meter)
            _add(self._meter.timer(self._reactor), service)
        if self._certificates.stapler is not None:
            from pop3svc.service.stapling import StaplingService

            _add(StaplingService(self._certificates.stapler, self._reactor), service)
        traces = Traces(service.factory, self._reactor, number)
        activity = None
        if self._meter is not None:
            activity = Activity(self._meter, self._reactor, number)
        operations = ProcessOperations(
            *(service, facts, self._reactor, number, numbers, traces, activity)
        )
        if self._shared is None:
            self._operated(service)
            self._notifies(service, service.describe)
            self._openAdminSocket(service, operations)
            if numbers is not None:
                whole = ServiceNumbers(service, numbers, self._certificates)
                visited = self._visited(service.factory, traces)
                self._openWebPort(service, whole, operations, service.throttle, visited)
        else:
            self._parent.operations = operations
            self._parent.numbers = numbers
        return service

    def _notifies(self, service: Operated, describe: Callable[[], str]) -> None:
        """
        Report the state of the service to systemd, if systemd has asked for reports.
        """
        notifier = self._notifier
        if notifier is not None:
            notifier.describe = describe
            service.notifier = notifier
            _add(notifier, service)
            if isinstance(service, Supervisor):
                service.whenServing.addCallback(notifier.serves.callback)
            else:
                # The service is ready, because its ports are open already.
                self._reactor.callWhenRunning(notifier.serves.callback, None)

    def _openAdminSocket(self, service: Operated, handler: Handler) -> None:
        path = self.settings.admin
        if path is None and self._storage.isPermanent:
            path = self._storage.directory().adminSocket
        if path is not None:
            factory = AdminFactory(handler, self._reactor)
            _add(AdminSocket(self._reactor, os.path.abspath(path), factory), service)

    def _embedded(self) -> DataDirectory | None:
        return self._storage.directory() if self._usesEmbeddedDefault else None

    def _visited(self, factory: POP3Factory, traces: Traces) -> Any:
        from pop3svc.service.visiting import visitedOf

        directory = self._embedded()
        return visitedOf(self._destinations, self.settings, factory, traces, directory)

    def _announceNoPlayground(self) -> None:
        from pop3svc.service.visiting import isToPlayWith

        if isToPlayWith(self.settings, self._embedded()):
            # With workers there is no playground, because the conversations of the playground may
            # be in another process than its page.
            self._announcements.append(
                f"{self.settings.where('web')} has no playground, because it cannot be combined "
                f"with {self.settings.where('workers')}"
            )

    def _openWebPort(
        self,
        service: Operated,
        numbers: Any,
        handler: Handler,
        throttle: SharedThrottle,
        visited: Any = None,
    ) -> None:
        # This module is imported here, because it imports twisted.web, which few services need.
        from pop3svc.service.webport import WebPort

        creator = self._certificates.of()
        _add(
            WebPort(self._reactor, self.settings, creator, numbers, handler, throttle, visited),
            service,
        )

    def _supervising(
        self,
        service: POP3Service,
        known: KnownNetworks,
        observer: Log | JournalLog | None,
        opener: Opener | None,
    ) -> Supervisor:
        supervisor = Supervisor(
            self._reactor,
            self.settings.policy,
            service.throttle,
            self._sockets,
            Shared(
                number=0,
                of=self.settings.workers,
                arguments=self._options.arguments,
                reactor=None if self._twistd is None else self._twistd.get("reactor"),
                directory=os.getcwd(),
                families=[each.family for each in self._sockets],
                certificates={},
                strikes=None,
                opened=[] if opener is None else opener.paths,
                state=self._storage.stateOfWorkers(),
                firstConfig=self._configured.text,
            ),
            self._certificates.contents,
            lambda: self._configured.text,
            observer,
            opener,
        )
        # Keep the storage as long as the supervisor exists.  When Python frees the storage, it
        # removes the workers' temporary directory.
        supervisor.kept = self._storage
        service.throttle.tell = supervisor.tellStrike
        self._configured.apply = supervisor.usePolicy
        self._configured.hasWorkers = True
        self._reloads(supervisor)
        supervisor.reloads("the workers", supervisor.replaceWorkers)
        if self.settings.web is not None:
            self._announceNoPlayground()
        self._operated(supervisor)
        self._notifies(supervisor, supervisor.describe)
        _add(KnownNetworksService(known), supervisor)
        _add(UNIXPorts(self._unixPorts), supervisor)
        facts = partsOf(self._certificates, service)
        numbers = None
        if self.settings.web is not None:
            numbers = supervisor.numbers = WorkersNumbers(supervisor, self._certificates)
        operations = WorkersOperations(supervisor, facts, self._reactor, numbers)
        if numbers is not None:
            self._openWebPort(supervisor, numbers, operations, service.throttle)
        self._openAdminSocket(supervisor, operations)
        return supervisor


def _rememberMailboxes(stores: list[Any], storage: Storage, isWorker: bool) -> list[str]:
    """
    Give each store of Maildirs the database that records which mailboxes have existed.

    @return: warnings for the log.
    """
    warnings = []
    for store in stores:
        if not isinstance(store, MaildirStore):
            continue
        state = storage.state()
        if state is not None:
            store.useState(state)
        warning = None if isWorker else store.looksUnmounted()
        if warning is not None:
            warnings.append(warning)
    return warnings


def _throttleOf(
    reactor: Any, settings: Settings, known: KnownNetworks, tell: Any
) -> SharedThrottle:
    """
    @param tell: in a worker, reports attempts to log in to the parent and to the other workers;
        L{None} in another process.
    """
    policy = settings.policy
    exempt = [str(each) for each in settings.banExempt]
    limits: list[BanEngine | UserThrottle] = [
        BanEngine(reactor, known, policy.banStrikes, policy.banTime, exempt),
        UserThrottle(
            reactor, known, policy.userStrikes, policy.unknownNetworkStrikes, policy.strikesTime
        ),
    ]
    return SharedThrottle(reactor, limits, known, tell, policy.loginWait)


def _shareOf(policy: Policy, shared: Shared | None) -> Policy:
    """
    @return: the policy of this process.  A worker gets its share of the connections.  The limits
        for an address and for a user are not divided, because chance decides which worker accepts a
        connection.  With divided limits, a worker could refuse clients that are within the limits.
    """
    if shared is None:
        return policy
    workers = shared.of
    return replace(
        policy,
        maxConnections=-(-policy.maxConnections // workers),
        maxUnauthenticated=-(-policy.maxUnauthenticated // workers),
    )


def _ownerOf(twistd: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """
    @return: the user and the group that twistd's options name.  The number -1 stands for the user's
        own group.  L{None} if the service keeps its user.
    """
    if twistd is None or twistd.get("uid") is None:
        return None
    gid = twistd.get("gid")
    return twistd["uid"], -1 if gid is None else gid


def _howToRead(data: DataDirectory, certificate: str, opened: list[tuple[Any, bool]]) -> list[str]:
    """
    @return: instructions to read the message of the user C{demo} with curl.
    """
    if not os.path.exists(data.demoLogin):
        return []
    lines = [f"the user demo has a message; the password is in {data.demoLogin}"]
    for port, isSecure in opened:
        number = getattr(port.getHost(), "port", None)
        if number is None:
            continue
        if isSecure:
            lines.append(
                f"read it over TLS:  curl --netrc-file {data.demoLogin} "
                f"--cacert {certificate} pop3s://127.0.0.1:{number}/1"
            )
        else:
            lines.append(
                f"read it:  curl --netrc-file {data.demoLogin} pop3://127.0.0.1:{number}/1"
            )
    return lines


def _socketOf(where: str, ports: list[Any]) -> Any:
    """
    @return: the socket of a port that workers will share.  This process accepts no connections on
        it.
    """
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if (
        len(ports) != 1
        or getattr(getattr(ports[0], "socket", None), "family", None) not in families
    ):
        raise SettingError(f"{where}: workers cannot share this port")
    ports[0].stopReading()
    return ports[0].socket


def _add(part: Any, service: Operated) -> None:
    """
    Add a part that starts and stops with the service.
    """
    part.setServiceParent(service)
