"""
Find the parts of a service for demonstration that its playground may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pop3svc.accounts.passwordfile import readPasswordFile
from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.settings import Settings
from pop3svc.web.playground import Visited

__all__ = ["isToPlayWith", "visitedOf"]


def isToPlayWith(settings: Settings, directory: DataDirectory | None) -> bool:
    """
    @param directory: the data directory of the embedded default; L{None} for other services.
    @return: whether a service has only mail for demonstration.  Everybody who can open the page of
        such a service may read all its mail.
    """
    if directory is None:
        return all(each.kind == "memory" for each in settings.stores)
    login = directory.readDemoLogin()
    return login is not None and not _hasOtherUsers(directory.passwordFile, login[0])


def visitedOf(
    destinations: Mapping[str | None, Destination],
    settings: Settings,
    factory: Any,
    traces: Any,
    directory: DataDirectory | None,
) -> Visited | None:
    """
    @param destinations: the store and the accounts of each domain.
    @param factory: L{pop3svc.service.factory.POP3Factory}
    @param traces: L{pop3svc.admin.traces.Traces}
    @param directory: the data directory of the embedded default; L{None} for other services.
    @return: the parts that the playground uses; L{None} if the service has real mail.
    """
    if not isToPlayWith(settings, directory):
        return None
    login = None if directory is None else directory.readDemoLogin()
    first = destinations.get(None) or next(iter(destinations.values()))
    users: tuple[str, ...] = ()
    if login is not None:
        users = (login[0],)
    else:
        # The kind "memory" of --auth is a checker of Twisted, which has its users in a dictionary.
        known = [
            (name.decode("utf-8", "replace"), password.decode("utf-8", "replace"))
            for each in first.accounts
            for name, password in getattr(each, "users", {}).items()
        ]
        users = tuple(name for name, _ in known)
        login = known[0] if known else None
    recipients = Recipients(
        destinations,
        settings.recipientDelimiter,
        settings.localDomain,
        settings.policy.nameCase == "mapped",
    )
    return Visited(factory, traces, recipients, first.store, users, login)


def _hasOtherUsers(path: str, name: str) -> bool:
    """
    @return: whether an operator has added users to the accounts of the embedded default.
    """
    try:
        return bool(set(readPasswordFile(path).hashes) - {name})
    except ValueError:
        return True
