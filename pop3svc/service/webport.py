"""
Open the port for HTTP, with the precautions that its place needs.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from pop3svc.metrics.exposition import requireLibrary
from pop3svc.networks import isLoopback
from pop3svc.service.arguments import parseArguments
from pop3svc.service.endpoints import serverEndpoint
from pop3svc.service.settings import SettingError, Settings
from pop3svc.web.resources import makeRoot
from pop3svc.web.server import BoundedSite

__all__ = ["WebPort", "checkPlace"]


def checkPlace(settings: Settings) -> None:
    """
    Check that other machines cannot use the port without a password and TLS.

    @raise SettingError: they could.
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
        # The positions of the interface after the kind: tcp:PORT:INTERFACE, ssl:PORT:KEY:CERT:...
        place = {"tcp": 2, "tcp6": 3}.get(kind, 99)
        interface = positional[place] if len(positional) > place else ""
    if interface == "localhost":
        interface = "127.0.0.1"
    if kind == "unix" or (kind in ("tcp", "tcp6", "ssl") and interface and isLoopback(interface)):
        return
    if kind != "ssl":
        raise SettingError(
            f"{where}: other machines could read it, so use ssl: and web-password, or unix:, or "
            "interface=127.0.0.1"
        )
    if not settings.webPassword:
        raise SettingError(f"{where}: other machines could read it, so set web-password")


class WebPort(Service):
    """
    The port for HTTP.  It is open from the start of the program, while the program has the
    privileges for it, to the end of the service.
    """

    def __init__(self, reactor: Any, settings: Settings, creator: Any, numbers: Any) -> None:
        """
        Open the port.

        @param creator: the service's certificate, for C{ssl:}.
        @param numbers: L{pop3svc.metrics.numbers.ServiceNumbers} or
            L{pop3svc.metrics.numbers.WorkersNumbers}
        @raise SettingError: the port is not possible.
        """
        checkPlace(settings)
        where = f"{settings.where('web')} {settings.web}"
        try:
            requireLibrary()
            endpoint = serverEndpoint(reactor, str(settings.web), creator)
        except ValueError as error:
            raise SettingError(f"{where}: {error}")
        self._site = BoundedSite(makeRoot(numbers, settings.webPassword or "", reactor), reactor)
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
        super().stopService()  # type: ignore[no-untyped-call]
        self._site.abortAll()
        return None if self._port is None else maybeDeferred(self._port.stopListening)
