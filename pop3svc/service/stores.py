"""
Make providers, stores and checkers from the settings of stores and accounts.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import InvalidAuthType, makeChecker
from twisted.python.reflect import ObjectNotFound, namedAny

from pop3svc.fileuser import checkMayChangeUser
from pop3svc.interfaces import (
    IBearerAccounts,
    IMailboxStore,
    IPOP3MailboxProvider,
    IPOP3ProviderPlugin,
    IUsesUserFacts,
)
from pop3svc.providers.owners import FIRST_UID
from pop3svc.service.factory import checkName
from pop3svc.service.options import providerPlugins
from pop3svc.service.settings import SettingError, Store

__all__ = ["checkRights", "makeAccounts", "makeProvider", "makeStore"]


def makeProvider(store: Store) -> Any:
    """
    Make the provider or the store of mailboxes that a setting names.

    @return: an L{IPOP3MailboxProvider} or an L{IMailboxStore}.  The caller has to check the
        interface.
    @raise SettingError: the provider or the store cannot be made.
    """
    kind, argument = store.kind or "", store.argument
    plugin = providerPlugins().get(kind)
    try:
        if plugin is None:
            if "." not in kind:
                known = ", ".join(sorted(providerPlugins()))
                raise ValueError(
                    f"there is no provider {kind}; there are {known}, "
                    "and classes of your own, such as module.Class"
                )
            plugin = _named(kind)
            if not IPOP3ProviderPlugin.providedBy(plugin):
                if callable(plugin) and not (
                    IPOP3MailboxProvider.providedBy(plugin) or IMailboxStore.providedBy(plugin)
                ):
                    plugin = plugin() if argument is None else plugin(argument)
                return plugin
        return plugin.makeProvider(argument or "")
    except Exception as error:
        if isinstance(error, ValueError | OSError):
            raise SettingError(f"{store.where}: {error}")
        raise SettingError(f"{store.where}: {type(error).__name__}: {error}")


def _named(name: str) -> Any:
    try:
        return namedAny(name)
    except ObjectNotFound:
        module = name.partition(".")[0]
        raise ValueError(f"there is no module {module}; PYTHONPATH names directories to search")
    except Exception as error:
        raise ValueError(f"cannot be imported ({type(error).__name__}: {error})")


def makeAccounts(store: Store) -> list[Any]:
    """
    Make the checkers of a store's sources of accounts.

    @return: L{twisted.cred.checkers.ICredentialsChecker}s
    @raise SettingError: a checker cannot be made.
    """
    checkers = []
    for description in store.auth:
        kind = description.partition(":")[0]
        where = f"{store.authWhere} {kind}"
        try:
            checker = makeChecker(description)
        except InvalidAuthType:
            raise SettingError(f"{where}: unknown kind")
        except Exception as error:
            raise SettingError(f"{where}: {error or type(error).__name__}")
        isForTokens = IBearerAccounts.providedBy(checker)
        if not isForTokens and IUsernamePassword not in checker.credentialInterfaces:
            raise SettingError(f"{where} does not check passwords")
        if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
            # The plugin of Twisted has names and passwords as text.  Encode them, because the
            # service compares octets.
            users: Any = checker.users
            checker.users = {
                each.encode("utf-8"): password.encode("utf-8") for each, password in users.items()
            }
        checkers.append(checker)
    return checkers


def makeStore(store: Store) -> tuple[Any, list[Any]]:
    """
    Make a provider or a store of mailboxes, and the checkers of its accounts, and check that they
    can be used together.

    @param store: a setting whose C{kind} is not L{None}.
    @return: a pair of the results of L{makeProvider} and L{makeAccounts}.
    @raise SettingError: the parts cannot be made, or cannot be used together.
    """
    checkers, provider = makeAccounts(store), makeProvider(store)
    if IPOP3MailboxProvider.providedBy(provider):
        if checkers:
            raise SettingError(
                f"{store.where} authenticates users itself, so {store.authWhere} cannot be "
                "combined with it"
            )
    elif not IMailboxStore.providedBy(provider):
        raise SettingError(f"{store.where} is neither a provider nor a store")
    elif not checkers:
        raise SettingError(f"{store.where} needs {store.authWhere}, such as passwd:FILE")
    try:
        checkName(provider.name)
    except ValueError as error:
        raise SettingError(f"{store.where}: {error}")
    return provider, checkers


def checkRights(provider: Any, store: Store, uid: int | None) -> None:
    """
    If a store accesses files with the rights of its users, check that this process can take these
    rights.

    @param provider: the store that the setting C{store} names.
    @param uid: the user that the process will run as; L{None} if it keeps its user.
    @raise SettingError: the process cannot take these rights.
    """
    if not (IUsesUserFacts.providedBy(provider) and provider.isOwnedByUsers):
        return
    if uid not in (None, os.geteuid()):
        raise SettingError(
            f"{store.where}: owner=user cannot be combined with --uid, because the service would "
            "give up CAP_SETUID; start it as that user with CAP_SETUID and CAP_SETGID"
        )
    try:
        checkMayChangeUser(FIRST_UID)
    except ValueError as error:
        raise SettingError(f"{store.where}: {error}")
