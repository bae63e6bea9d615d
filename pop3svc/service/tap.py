"""
Options to a service: endpoints, a provider by name, accounts, a certificate.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from ipaddress import ip_network
from typing import Any, NoReturn

from twisted.application.internet import TimerService
from twisted.application.service import IService
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import (
    AuthOptionMixin,
    InvalidAuthType,
    UnsupportedInterfaces,
    makeChecker,
)
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.reflect import namedAny

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.hashing import startHashing
from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.strikes import BanEngine, UserThrottle
from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.awaiting import useMonotonicClock
from pop3svc.files import disk, longWork, setPrivileged
from pop3svc.interfaces import (
    IMailboxStore,
    IPOP3MailboxProvider,
    IPOP3ProviderPlugin,
    IReloading,
)
from pop3svc.logs import Log, escaped
from pop3svc.networks import LOOPBACK
from pop3svc.policy import Policy
from pop3svc.providers.maildir import MaildirStore
from pop3svc.service.accepting import AcceptLimiter, raiseLimit
from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory
from pop3svc.service.endpoints import InheritedPortReactor, serverEndpoint, tlsEndpoint
from pop3svc.service.factory import POP3Factory, checkName
from pop3svc.service.keepalive import keepAlive, socketOf
from pop3svc.service.operating import Operated, makeLog, signals
from pop3svc.service.privileged import Opener, changeableBy, openTo, startOpener, unreadable
from pop3svc.service.proxy import ProxyFactory
from pop3svc.service.tls import RenewableCertificate
from pop3svc.service.workers import Shared, Supervisor
from pop3svc.state import State

__all__ = ["Options", "POP3Service", "makeService"]

log = Logger(namespace="pop3svc")

_DEFAULT_ENDPOINTS = ("tcp:1110:interface=127.0.0.1", "ssl:1995:interface=127.0.0.1")


def _refuse(sentence: str) -> NoReturn:
    """
    One sentence and exit status 1.
    """
    raise SystemExit(f"pop3svc: {escaped(' '.join(sentence.split()))}")


def _makers() -> dict[str, Any]:
    return {maker.prefix: maker for maker in getPlugins(IPOP3ProviderPlugin)}


class Options(usage.Options, AuthOptionMixin):
    """
    The options of C{twistd pop3svc}.
    """

    synopsis = "[options]"
    longdesc = (
        "A POP3 service.  Without any option it serves an embedded default: "
        "accounts and Maildirs in a directory of your own, on loopback."
    )
    supportedInterfaces = (IUsernamePassword,)

    optParameters = [
        ["certificate", None, None, "PEM file of the TLS certificate and its chain"],
        ["private-key", None, None, "PEM file of its key, if not in the same file"],
        ["cleartext-login", None, "loopback", "logins without TLS: never, loopback or always"],
        ["data", None, None, "directory for what the service keeps itself"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["endpoints"] = []
        self["tls-endpoints"] = []
        self["settings"] = {}
        self["without"] = set()
        self["ban-exempt"] = list(LOOPBACK)
        self["proxy-from"] = []
        self["provider"] = None
        self["credCheckers"] = []
        self["workers"] = 1
        self["auth-kinds"] = set()
        # The command line, for workers.
        self.arguments: list[str] = []

    def parseOptions(self, options: Any = None) -> None:
        """
        See L{usage.Options.parseOptions}.  A bad option is one sentence, not a
        page of help.
        """
        # As early as anything of ours runs: whoever asks for a reload then ends nothing.
        signals.hold()
        self.arguments = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _refuse(str(error))

    def parseArgs(self, *arguments: str) -> None:
        """
        There are no arguments.
        """
        if arguments:
            _refuse(f"{arguments[0]!r} is not an option")

    def opt_endpoint(self, text: str) -> None:
        """
        Listen here (an endpoint string; may be given more than once): tcp:110,
        ssl:995 with the service's certificate, ...
        """
        self["endpoints"].append(text)

    def opt_tls_endpoint(self, text: str) -> None:
        """
        Listen here, any endpoint string, with implicit TLS by the service's
        certificate around it.
        """
        self["tls-endpoints"].append(text)

    def opt_provider(self, text: str) -> None:
        """
        Where the mail is, such as maildir:/srv/mail; see --help-providers.
        """
        self["provider"] = text

    def opt_auth(self, description: str) -> None:
        """
        Who may log in, such as passwd:FILE (may be given more than once); see
        --help-auth.
        """
        self["auth-kinds"].add(description.partition(":")[0])
        try:
            checker = makeChecker(description)
            if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
                # Names and passwords are octets; the plugin of Twisted keeps text.
                users: Any = checker.users
                checker.users = {
                    each.encode("utf-8"): password.encode("utf-8")
                    for each, password in users.items()
                }
            self.addChecker(checker)
        except InvalidAuthType:
            _refuse(f"--auth {description.partition(':')[0]}: unknown kind")
        except Exception as error:
            kind = description.partition(":")[0]
            if isinstance(error, UnsupportedInterfaces):
                _refuse(f"--auth {kind} does not check passwords")
            _refuse(f"--auth {kind}: {error or type(error).__name__}")

    def opt_without(self, name: str) -> None:
        """
        Switch an extension off, such as DELI (may be given more than once).
        """
        self["without"].add(name.upper())

    def opt_ban_exempt(self, text: str) -> None:
        """
        Networks that are never banned, with commas between them, in place of
        loopback: 127.0.0.0/8,::1/128,192.0.2.0/24
        """
        try:
            self["ban-exempt"] = [str(ip_network(each)) for each in text.split(",") if each]
        except ValueError as error:
            _refuse(f"--ban-exempt {text}: {error}")

    def opt_proxy_from(self, text: str) -> None:
        """
        Networks of proxies, with commas between them: their connections begin
        with a PROXY header (version 1 or 2), before TLS.
        """
        try:
            self["proxy-from"] += [ip_network(each) for each in text.split(",") if each]
        except ValueError as error:
            _refuse(f"--proxy-from {text}: {error}")

    def opt_workers(self, text: str) -> None:
        """
        How many processes serve; as many as there are cores use all of them.
        Default: 1
        """
        if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text)):
            _refuse(f"--workers {text}: that is not a whole number from 1 to 999")
        self["workers"] = int(text)

    def opt_set(self, text: str) -> None:
        """
        Set one of the limits, as NAME=VALUE; see --help-settings.
        """
        name, equals, value = text.partition("=")
        numbers = {item.name for item in fields(Policy) if "least" in item.metadata}
        if not equals or name not in numbers:
            _refuse(f"--set {text}: use NAME=VALUE with a name from --help-settings")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            _refuse(f"--set {text}: that is not a whole number")
        self["settings"][name] = int(value)

    def opt_help_settings(self) -> NoReturn:
        """
        List what --set can set, with the reasons.
        """
        for item in fields(Policy):
            if "least" in item.metadata:
                print(f"{item.name}={item.default}\n    {item.metadata['reason']}")
        raise SystemExit(0)

    def opt_help_providers(self) -> NoReturn:
        """
        List the kinds of providers.
        """
        for prefix, maker in sorted(_makers().items()):
            print(f"{prefix}:{maker.argumentFormat}\n    {maker.help}")
        print("or the dotted name of a class or object of your own, :ARGUMENTS behind it")
        raise SystemExit(0)


class POP3Service(Operated):
    """
    Listens, serves, and ends in order.
    """

    def __init__(
        self,
        reactor: Any,
        factory: POP3Factory,
        throttle: SharedThrottle,
        takesTurns: bool = False,
        observer: Log | None = None,
    ) -> None:
        """
        @param throttle: what counts failed logins.
        @param takesTurns: see L{AcceptLimiter}.
        @param observer: see L{Operated}.
        """
        super().__init__(observer)
        self._reactor = reactor
        self.factory = factory
        self.throttle = throttle
        self.ports: list[Any] = []
        raiseLimit()
        self._accepting = AcceptLimiter(reactor, takesTurns=takesTurns, inUse=lambda: factory.inUse)
        factory.accepted = self._accepting.accepted
        factory.mayServe = self._accepting.mayServe

    def listen(self, name: str, endpoint: Any) -> None:
        """
        Open a port now, while there are the privileges to.

        @param name: for the operator: the option that asks for it.
        """
        listening: Deferred[Any] = endpoint.listen(self.factory)
        failures: list[Failure] = []
        listening.addCallbacks(self._opened, failures.append)
        if failures:
            self._refusePort(name, failures[0])
        if not listening.called:
            listening.addErrback(self._lateFailure, name)

    def _opened(self, port: Any) -> None:
        self.ports.append(port)
        self._accepting.add(port)
        found = socketOf(port)
        handsOn = found is not None and keepAlive(found, self.factory.policy)
        # All ports have to, because a connection does not tell from which one it came.
        self.factory.portsKeepAlive = handsOn and (
            len(self.ports) == 1 or self.factory.portsKeepAlive
        )

    def _refusePort(self, name: str, failure: Failure) -> NoReturn:
        error = failure.value
        if isinstance(error, CannotListenError):
            cause = error.socketError
            _refuse(f"{name}: {getattr(cause, 'strerror', None) or cause}")
        _refuse(f"{name}: {error}")

    def _lateFailure(self, failure: Failure, name: str) -> None:
        log.failure("{name}: cannot listen", failure, name=name)
        self._reactor.stop()

    def startService(self) -> None:
        """
        See L{IService.startService}.
        """
        super().startService()
        # Now, because there may be no thread to be had later.
        disk().start()
        longWork().start()
        startHashing()

    def stopService(self) -> Deferred[Any]:
        """
        No new connections; sessions may finish what they do; then the rest.
        See L{IService.stopService}.
        """
        self._accepting.stop()
        stopping: list[Deferred[Any]] = []
        for port in self.ports:
            stopped = port.stopListening()
            if isinstance(stopped, Deferred):
                stopping.append(stopped)
        stopping.append(Deferred.fromCoroutine(self.factory.shutdown()))

        def others(_: object) -> Any:
            return super(POP3Service, self).stopService()  # type: ignore[no-untyped-call]

        return gatherResults(stopping).addBoth(others)


def _exitInOrder(reactor: Any, signals: Sequence[int]) -> None:
    """
    End with status 0 on SIGTERM and SIGINT, say: twistd re-raises a signal that
    the reactor's own handlers took, once everything has ended in order.
    """

    def stop(*_: object) -> None:
        def once() -> None:
            try:
                reactor.stop()
            except ReactorNotRunning:
                pass

        reactor.callFromThread(once)

    def install() -> None:
        for number in signals:
            signal.signal(number, stop)

    reactor.callWhenRunning(install)


def _provider(text: str) -> Any:
    """
    What C{--provider} names.
    """
    kind, colon, argument = text.partition(":")
    maker = _makers().get(kind)
    try:
        if maker is None:
            if "." not in kind:
                known = ", ".join(sorted(_makers()))
                raise ValueError(f"there is no provider {kind}; there are {known}")
            maker = _named(kind)
            if not IPOP3ProviderPlugin.providedBy(maker):
                if callable(maker) and not (
                    IPOP3MailboxProvider.providedBy(maker) or IMailboxStore.providedBy(maker)
                ):
                    maker = maker(argument) if colon else maker()
                return maker
        return maker.makeProvider(argument)
    except Exception as error:
        if isinstance(error, ValueError | OSError):
            _refuse(f"--provider {kind}: {error}")
        _refuse(f"--provider {kind}: {type(error).__name__}: {error}")


def _named(name: str) -> Any:
    try:
        return namedAny(name)
    except Exception as error:
        raise ValueError(f"cannot be imported ({type(error).__name__}: {error})")


class _Keeping(TimerService):
    """
    Reads the known networks at the start, writes them now and then, and at the end.
    """

    # Seconds: only what has changed is written, and a crash loses no more than this.
    EVERY = 60

    def __init__(self, known: KnownNetworks) -> None:
        super().__init__(self.EVERY, self._save)  # type: ignore[no-untyped-call]
        self._known = known

    def _save(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._known.save())

    def startService(self) -> None:
        """
        See L{IService.startService}.
        """
        super().startService()  # type: ignore[no-untyped-call]
        loaded = Deferred.fromCoroutine(self._known.load())
        loaded.addErrback(lambda failure: log.failure("cannot read the known networks", failure))

    def stopService(self) -> Any:
        """
        See L{IService.stopService}.
        """
        stopped = super().stopService()  # type: ignore[no-untyped-call]
        saved = self._save()
        saved.addErrback(lambda failure: log.failure("cannot keep the known networks", failure))
        return gatherResults([maybeDeferred(lambda: stopped), saved])


def _looking(creator: RenewableCertificate) -> TimerService:
    """
    Look after the certificate at the start, and every hour.
    """
    return TimerService(3600, creator.look)


class ServiceBuilder:
    """
    Makes the parts of a service from its options, each when it is needed.
    """

    def __init__(self, options: Options, shared: Shared | None) -> None:
        self._options = options
        self._shared = shared
        self._data: DataDirectory | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.announcements: list[str] = []
        self.usesEmbeddedDefault = False
        # Those of --auth, and of the embedded default.
        self.checkers: list[Any] = []
        self.warnings: list[str] = []

    def data(self) -> DataDirectory:
        """
        The data directory.
        """
        if self._data is None:
            path = self._options["data"]
            if path is None and self._owner() is not None:
                _refuse("--data is needed with --uid, a directory for the user it names")
            self._data = DataDirectory(path or defaultDataDirectory(), self._owner())
        return self._data

    def log(self, reactor: Any) -> Log | None:
        """
        The log that twistd's options ask for; a worker's is its parent's.
        """
        if self._shared is not None or self._options.parent is None:
            return None
        return makeLog(self._options.parent, reactor, self._owner())

    def opener(self, creator: RenewableCertificate) -> Opener | None:
        """
        Keep what the service will not be allowed to read when it has given up its
        privileges, or say that it will not be read.
        """
        owner = self._owner()
        if self._shared is not None or owner is None or os.geteuid() != 0:
            return None
        uid, gid = owner[0], None if owner[1] == -1 else owner[1]
        files = [*creator.files, *self.passwordFiles()]
        kept = []
        for path in unreadable(files, uid, gid):
            others = changeableBy(path)
            if others is None:
                kept.append(path)
            elif path in creator.files:
                self.warnings.append(
                    f"{path} cannot be read by user {uid}, and others than root may change "
                    f"{others}: a renewed certificate will not be seen; let that user read it, "
                    "or start the service again after each renewal"
                )
            else:
                _refuse(
                    f"--auth passwd:{path}: user {uid} of --uid cannot read it, so that a "
                    "removed user would stay in; let that user read it"
                )
        if not kept:
            return None
        made = startOpener(kept)
        setPrivileged(made.open)
        return made

    def warn(self, creator: RenewableCertificate) -> None:
        """
        Say what is not as it should be, though it works.
        """
        options, owner = self._options, self._owner()
        if self._shared is not None:
            return
        if os.geteuid() == 0 and (owner is None or owner[0] == 0):
            self.warnings.append("the service runs as root; twistd's --uid names another user")
        if "memory" in options["auth-kinds"]:
            self.warnings.append(
                "--auth memory: shows its passwords to everybody who may list processes"
            )
        for what, path in [
            ("the private key", creator.files[-1]),
            *(("the password file", each) for each in self.passwordFiles()),
        ]:
            who = openTo(path)
            if who is not None:
                self.warnings.append(f"{what} {path} can be {who}; chmod 600 keeps it")

    def passwordFiles(self) -> list[str]:
        """
        The files that say who may log in.
        """
        return [each.path for each in self.checkers if isinstance(each, PasswordFile)]

    def _owner(self) -> tuple[int, int] | None:
        parent = self._options.parent
        if parent is None or parent.get("uid") is None:
            return None
        gid = parent.get("gid")
        return parent["uid"], -1 if gid is None else gid

    def knownNetworks(self) -> KnownNetworks:
        """
        From where users have logged in; kept if there is a data directory, and written by
        the process that twistd has started.
        """
        if self._data is None and self._options["data"] is None:
            self.announcements.append(
                "the networks that users have logged in from are forgotten at a restart, because "
                "there is no --data"
            )
            return KnownNetworks()
        state = self.state()
        assert state is not None
        return KnownNetworks(state, isWriter=self._shared is None)

    def state(self) -> State | None:
        """
        What has to survive a restart, or at least a worker: in the data directory, or in
        one that lives as long as the workers; L{None} without either.
        """
        if self._data is not None or self._options["data"] is not None:
            data = self.data()
            data.make()
            return State(data.state, self._owner())
        if self._shared is not None and self._shared.state is not None:
            return State(self._shared.state)
        return None

    def stateOfWorkers(self) -> str | None:
        """
        @return: where workers keep what all of them have to know, without a data directory.
        """
        if self._data is not None or self._options["data"] is not None:
            return None
        # It is removed at the end of this process.
        self._temporary = tempfile.TemporaryDirectory(prefix="pop3svc-", ignore_cleanup_errors=True)
        path = os.path.join(self._temporary.name, "state.db")
        owner = self._owner()
        State(path, owner)
        if owner is not None:
            os.chown(self._temporary.name, *owner)
        return path

    def remember(self, store: Any) -> None:
        """
        Have a store of Maildirs know which of them have been there.
        """
        if not isinstance(store, MaildirStore):
            return
        state = self.state()
        if state is not None:
            store.useState(state)
        warning = None if self._shared is not None else store.looksUnmounted()
        if warning is not None:
            self.warnings.append(warning)

    def provider(self, policy: Policy) -> Any:
        """
        The provider that --provider and --auth make.
        """
        options = self._options
        checkers = options["credCheckers"]
        if options["provider"] is not None:
            provider = _provider(options["provider"])
            kind = options["provider"].partition(":")[0]
            if IPOP3MailboxProvider.providedBy(provider):
                if checkers:
                    _refuse(
                        f"--provider {kind} authenticates users itself, so --auth cannot be "
                        "combined with it"
                    )
            elif not IMailboxStore.providedBy(provider):
                _refuse(f"--provider {kind} is neither a provider nor a store")
            elif not checkers:
                _refuse(f"--provider {kind} needs --auth, such as --auth passwd:FILE")
        else:
            data = self.data()
            if not checkers:
                self.usesEmbeddedDefault = True
            data.makeAccounts()
            provider = MaildirStore(data.mail)
            checkers = checkers or [PasswordFile(data.passwordFile)]
        try:
            checkName(provider.name)
        except ValueError as error:
            _refuse(f"--provider: {error}")
        if IPOP3MailboxProvider.providedBy(provider):
            return provider, provider
        self.checkers = list(checkers)
        return AccountsProvider(provider, checkers, policy.loginWait), provider

    def certificate(self) -> RenewableCertificate:
        """
        The service's certificate, for STLS if for nothing else; a self-signed
        one is made if none is named.
        """
        path, key = self._options["certificate"], self._options["private-key"]
        if path is None:
            if key is not None:
                _refuse("--private-key requires --certificate")
            path, key, isNew = self.data().makeCertificate()
            if isNew:
                self.announcements.append(f"made a self-signed certificate: {path}")
        handed = None
        if self._shared is not None:
            chain, itsKey = self._shared.certificate
            handed = chain.encode("latin-1"), itsKey.encode("latin-1")
        try:
            return RenewableCertificate(path, key or path, handed)
        except ValueError as error:
            _refuse(f"--certificate: {error}")


def _policy(options: Options) -> Policy:
    try:
        return replace(
            Policy(),
            cleartextLogin=options["cleartext-login"],
            without=frozenset(options["without"]),
            **options["settings"],
        )
    except ValueError as error:
        sentence = str(error).replace("cleartextLogin", "--cleartext-login")
        for name in options["settings"]:
            if sentence.startswith(name):
                sentence = f"--set {sentence}"
        _refuse(sentence.replace("without ", "--without ", 1))


def _throttle(
    reactor: Any, policy: Policy, known: KnownNetworks, exempt: list[str], tell: Any
) -> SharedThrottle:
    limits: list[BanEngine | UserThrottle] = [
        BanEngine(reactor, known, policy.banStrikes, policy.banTime, exempt),
        UserThrottle(
            reactor, known, policy.userStrikes, policy.unknownNetworkStrikes, policy.strikesTime
        ),
    ]
    return SharedThrottle(reactor, limits, known, tell, policy.loginWait)


def _howToRead(data: DataDirectory, ports: list[Any], certificate: str) -> list[str]:
    """
    How the first user's message is read with curl.
    """
    if not os.path.exists(data.demoLogin):
        return []
    lines = [f"the user demo has a message; the login stands in {data.demoLogin}"]
    for port, isSecure in ports:
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


def _share(policy: Policy, workers: int) -> Policy:
    """
    What one of some workers allows: its share of what all may hold.  Clients
    come to whichever has time, so what is counted by address and user cannot
    be divided without refusing some who are within the limits.
    """
    return replace(
        policy,
        maxConnections=-(-policy.maxConnections // workers),
        maxUnauthenticated=-(-policy.maxUnauthenticated // workers),
    )


def _socketOf(name: str, ports: list[Any]) -> Any:
    """
    The socket of a port that workers are to share; nothing is accepted here.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    if (
        len(ports) != 1
        or getattr(getattr(ports[0], "socket", None), "family", None) not in families
    ):
        _refuse(f"{name}: it cannot be shared by workers")
    ports[0].stopReading()
    return ports[0].socket


def makeService(options: Options, shared: Shared | None = None, parent: Any = None) -> Any:
    """
    Make the service and open its ports.

    @param shared: in a worker, what it is given by its parent.
    @param parent: in a worker, who is told what the others are to know.
    @return: L{POP3Service}, or where there are to be workers, what starts
        them.
    @raise SystemExit: with one sentence, if anything is wrong.
    """
    from twisted.internet import reactor

    useMonotonicClock(reactor)
    policy = _policy(options)
    setup = ServiceBuilder(options, shared)
    isParent = shared is None and options["workers"] > 1
    if isParent and options.parent is not None and options.parent.get("chroot") is not None:
        _refuse("--workers cannot be used with --chroot: the chroot has no Python interpreter")
    plain, secure = options["endpoints"], options["tls-endpoints"]
    if not plain and not secure:
        plain = list(_DEFAULT_ENDPOINTS)
    try:
        observer = setup.log(reactor)
        provider, started = setup.provider(policy)
        creator = setup.certificate()
        opener = setup.opener(creator)
        setup.warn(creator)
        known = setup.knownNetworks()
        setup.remember(started)
    except ValueError as error:
        _refuse(str(error))
    throttle = _throttle(
        reactor, policy, known, options["ban-exempt"], None if shared is None else parent.tellStrike
    )
    factory = POP3Factory(
        provider,
        policy if shared is None else _share(policy, shared.of),
        connectionCreator=creator,
        throttle=LoginGuard(reactor, throttle),
    )
    on: Any = reactor
    if shared is not None:
        factory.loginDelayed = parent.tellDelay
        throttle.restore(shared.strikes)
        on = InheritedPortReactor(reactor, shared.ports)
    service = POP3Service(reactor, factory, throttle, shared is not None, observer)
    _Keeping(known).setServiceParent(service)
    if IService.providedBy(started):
        IService(started).setServiceParent(service)
    trusted = options["proxy-from"]
    wrap = (lambda inner: ProxyFactory(inner, trusted, reactor, factory)) if trusted else None
    opened: list[tuple[Any, bool]] = []
    sockets: list[Any] = []
    for option, texts, make in (
        ("--endpoint", plain, serverEndpoint),
        ("--tls-endpoint", secure, tlsEndpoint),
    ):
        for text in texts:
            name = f"{option} {text}"
            try:
                endpoint = make(on, text, creator, wrap)
            except ValueError as error:
                _refuse(f"{name}: {error}")
            if isParent and text.startswith("unix:"):
                _refuse(f"{name}: it cannot be shared by workers")
            before = len(service.ports)
            service.listen(name, endpoint)
            isSecure = make is tlsEndpoint or text.startswith("ssl:")
            opened += [(port, isSecure) for port in service.ports[before:]]
            if isParent:
                sockets.append(_socketOf(name, service.ports[before:]))
    announcements = setup.announcements
    if setup.usesEmbeddedDefault:
        announcements += _howToRead(setup.data(), opened, creator.certificate)
    _exitInOrder(
        reactor, [signal.SIGTERM] if shared is not None else [signal.SIGTERM, signal.SIGINT]
    )
    service.reloads("the certificate", creator.reload)
    if not isParent:
        for each in [*setup.checkers, started]:
            if IReloading.providedBy(each):
                service.reloads(
                    "the accounts" if each is not started else "the provider", each.reload
                )
        if shared is None:
            service.announcements += announcements
            service.warnings += setup.warnings
            _looking(creator).setServiceParent(service)
            service.hear(reactor)
        return service
    supervisor = Supervisor(
        reactor,
        policy,
        throttle,
        sockets,
        Shared(
            number=0,
            of=options["workers"],
            arguments=options.arguments,
            reactor=None if options.parent is None else options.parent.get("reactor"),
            directory=os.getcwd(),
            families=[each.family for each in sockets],
            certificate=("", ""),
            strikes=None,
            opened=[] if opener is None else opener.paths,
            state=setup.stateOfWorkers(),
        ),
        creator.pair,
        observer,
        opener,
    )
    supervisor.kept = setup
    supervisor.announcements += announcements
    supervisor.warnings += setup.warnings
    _looking(creator).setServiceParent(supervisor)
    supervisor.reloads("the certificate", creator.reload)
    supervisor.reloads("what the workers keep", supervisor.reloadWorkers)
    supervisor.hear(reactor)
    _Keeping(known).setServiceParent(supervisor)
    return supervisor
