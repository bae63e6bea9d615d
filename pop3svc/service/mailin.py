"""
Make the parts of a service that receive mail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import gatherResults, maybeDeferred

from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.interfaces import IAccountNames, IDelivery
from pop3svc.service.endpoints import lmtpEndpoint
from pop3svc.service.settings import SettingError, Settings

__all__ = ["UNIXPorts", "destinationOf", "makeMailEndpoints", "makeRecipients"]


def destinationOf(provider: Any, checkers: Sequence[Any]) -> Destination:
    """
    @param provider: the store or the provider of mailboxes.
    @param checkers: the checkers of the store's accounts; empty for a provider, which checks logins
        itself.
    @return: the destination of mail for the users of the provider.
    """
    if not checkers and IAccountNames.providedBy(provider):
        checkers = [provider]
    return Destination(provider, checkers)


def makeRecipients(
    destinations: Mapping[str | None, Destination], settings: Settings
) -> Recipients | None:
    """
    @param destinations: the destination of mail for each domain.
    @return: the users who get mail by LMTP; L{None} if the service has no port for LMTP.
    @raise SettingError: no store takes mail.
    """
    if not settings.lmtp:
        return None
    if not any(IDelivery.providedBy(each.store) for each in destinations.values()):
        raise SettingError(
            f"{settings.where('lmtp')}: no store takes mail, because "
            "the stores are read-only or cannot store mail"
        )
    return Recipients(
        destinations,
        settings.recipientDelimiter,
        settings.localDomain,
        settings.policy.nameCase == "mapped",
    )


def makeMailEndpoints(
    reactor: Any, settings: Settings, creator: Any, loop: Any = None
) -> list[tuple[str, Any]]:
    """
    Make the endpoints for LMTP.  The endpoints do not listen yet.

    @param creator: makes TLS connections with the service's certificate.
    @return: a list of pairs: the option or the key that names an endpoint, and this endpoint.
    @raise SettingError: an endpoint cannot be made.
    """
    made = []
    for text in settings.lmtp:
        where = f"{settings.where('lmtp')} {text}"
        try:
            made.append((where, lmtpEndpoint(reactor, text, settings.lmtpMode, creator, loop)))
        except ValueError as error:
            raise SettingError(f"{where}: {error}")
    return made


class UNIXPorts(Service):
    """
    Removes the files of sockets that workers share, after the workers have ended.
    """

    def __init__(self, ports: list[Any]) -> None:
        self._ports = ports

    def stopService(self) -> Any:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return gatherResults([maybeDeferred(each.stopListening) for each in self._ports])
