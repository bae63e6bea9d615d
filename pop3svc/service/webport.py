"""
Open the port for HTTP, if its address and its password keep other machines from misusing it.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from pop3svc.accounts.throttle import LoginGuard
from pop3svc.admin.operations import Handler
from pop3svc.metrics.exposition import requireLibrary
from pop3svc.networks import isLoopback
from pop3svc.service.arguments import parseArguments
from pop3svc.service.endpoints import serverEndpoint, withMode
from pop3svc.service.settings import SettingError, Settings
from pop3svc.web.guard import Guard
from pop3svc.web.markup import tag
from pop3svc.web.operator import OperatorPage
from pop3svc.web.passwords import Passwords
from pop3svc.web.playground import Playground, Visited
from pop3svc.web.recent import Recent
from pop3svc.web.resources import makeRoot
from pop3svc.web.server import BoundedSite

__all__ = ["WebPort", "checkPlace"]

# The mode of a UNIX socket whose endpoint string has no mode.  Other users must not connect,
# because every client can act as the operator.
_MODE = "660"
# The host names that a request may contain if the port listens on loopback.
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def checkPlace(settings: Settings) -> frozenset[str] | None:
    """
    Check that other machines cannot use the port without a password and TLS.

    @return: the host names that a request may contain; L{None} if it may contain any name.
    @raise SettingError: other machines could use the port.
    """
    text = settings.web
    assert text is not None
    where = f"{settings.where('web')} {text}"
    try:
        positional, named = parseArguments(text)
    except ValueError as error:
        raise SettingError(f"{where}: {error}")
    kind = positional[0] if positional else ""
    interface = named.get("interface", "")
    if not interface:
        # The position of the interface in an endpoint string of each kind, such as
        # tcp:PORT:INTERFACE.
        place = {"tcp": 2, "tcp6": 3}.get(kind, 99)
        interface = positional[place] if len(positional) > place else ""
    if interface == "localhost":
        interface = "127.0.0.1"
    if kind == "unix":
        return None
    if kind in ("tcp", "tcp6", "ssl") and interface and isLoopback(interface):
        return frozenset([*_LOCAL_NAMES, f"[{interface}]" if ":" in interface else interface])
    if kind != "ssl":
        raise SettingError(
            f"{where}: other machines could read it, so use ssl: and web-password, or unix:, or "
            "interface=127.0.0.1"
        )
    if not settings.webPassword:
        raise SettingError(f"{where}: other machines could read it, so set web-password")
    return None


def _hasMetrics(where: str, isOptional: bool) -> bool:
    """
    @param isOptional: whether the port has a use without metrics.
    @return: whether the service can answer C{/metrics}.
    @raise SettingError: the service cannot answer C{/metrics}, and the port has no other use.
    """
    try:
        requireLibrary()
    except ValueError as error:
        if isOptional:
            return False
        raise SettingError(f"{where}: {error}")
    return True


class WebPort(MultiService):
    """
    The port for HTTP, with the operator's page.  The port is opened at the start of the program,
    while the program still has its privileges, and is closed at the end of the service.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        creator: Any,
        numbers: Any,
        handler: Handler,
        throttle: Any,
        visited: Visited | None = None,
    ) -> None:
        """
        Open the port.

        @param creator: makes TLS connections with the service's certificate, for C{ssl:}.
        @param numbers: L{pop3svc.metrics.numbers.ServiceNumbers} or
            L{pop3svc.metrics.numbers.WorkersNumbers}
        @param handler: carries out the operations of the page.
        @param throttle: L{pop3svc.interfaces.ILoginThrottle}, which counts wrong passwords.
        @param visited: the parts that the playground uses; L{None} for no playground.
        @raise SettingError: the port is not safe, or cannot be opened.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        hosts = checkPlace(settings)
        where = f"{settings.where('web')} {settings.web}"
        hasMetrics = _hasMetrics(where, visited is not None)
        try:
            endpoint = serverEndpoint(reactor, withMode(str(settings.web), _MODE), creator)
        except ValueError as error:
            raise SettingError(f"{where}: {error}")
        passwords = None
        if settings.webPassword:
            passwords = Passwords(
                settings.webPassword,
                LoginGuard(reactor, throttle),
                reactor,
                settings.webProxyFrom,
            )
        guard = Guard(passwords, hosts)
        recent = Recent(numbers.collect, reactor)
        root = makeRoot(numbers, guard, recent, reactor, hasMetrics)
        self._playground = None if visited is None else Playground(visited, guard, reactor)
        links = None if visited is None else tag("a", "Playground", href="playground")
        page = OperatorPage(handler, recent.get, guard, reactor, links)
        page.addTo(root)
        page.history.setServiceParent(self)  # type: ignore[no-untyped-call]
        self._site = BoundedSite(root, reactor)
        if self._playground is not None:
            self._playground.addTo(root)
            self._site.largeBodies = self._playground.largeBodies
        self._port: Any = None
        failures: list[Failure] = []
        listening: Deferred[Any] = endpoint.listen(self._site)
        listening.addCallbacks(self._opened, failures.append)
        if failures:
            reason = failures[0].value
            cause = reason.socketError if isinstance(reason, CannotListenError) else reason
            raise SettingError(f"{where}: {getattr(cause, 'strerror', None) or cause}")

    def _opened(self, port: Any) -> None:
        self._port = port

    def stopService(self) -> Any:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        if self._playground is not None:
            self._playground.stop()
        self._site.abortAll()
        stopping = [maybeDeferred(super().stopService)]
        if self._port is not None:
            stopping.append(maybeDeferred(self._port.stopListening))
        return gatherResults(stopping)
