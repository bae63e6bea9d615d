"""
The stores for the commands that deliver, import and export mail.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.interfaces import IUsesUserFacts
from pop3svc.service.configfile import Configuration, readConfiguration
from pop3svc.service.settings import Faults, SettingError, Settings, Store, makeSettings

__all__ = ["addStoreOptions", "recipientsOf", "settingsFrom"]


def addStoreOptions(parser: argparse.ArgumentParser) -> None:
    """
    Add to a parser the options that choose the stores.
    """
    parser.add_argument("--config", metavar="FILE", help="the service's configuration file")
    parser.add_argument(
        "--provider", metavar="KIND:ARGUMENTS", help="the same value as for pop3svc serve"
    )
    parser.add_argument(
        "--auth",
        metavar="KIND:ARGUMENTS",
        action="append",
        default=[],
        help="the same value as for pop3svc serve",
    )
    parser.add_argument("--data", metavar="DIRECTORY", help="the same value as for pop3svc serve")


def settingsFrom(arguments: Any) -> Settings:
    """
    @param arguments: the parsed arguments, with the values of the options that L{addStoreOptions}
        adds.
    @raise SettingError: the configuration cannot be used.
    """
    faults = Faults()
    configuration = Configuration("")
    if arguments.config is not None:
        configuration = readConfiguration(os.path.abspath(arguments.config), faults)
    stores = configuration.stores
    if arguments.provider is not None or arguments.auth:
        kind, colon, argument = (arguments.provider or "").partition(":")
        where = f"--provider {kind}" if kind else "--auth"
        auth = tuple(arguments.auth)
        stores = [Store(where, "--auth", kind or None, argument if colon else None, auth)]
    values = dict(configuration.values)
    if arguments.data is not None:
        values["data"] = arguments.data
    settings = makeSettings(
        *(values, configuration.limits, configuration.listeners, stores),
        configuration.certificates,
        *(configuration.secretFiles, configuration.origins, faults),
    )
    faults.check()
    return settings


def recipientsOf(settings: Settings) -> Recipients:
    """
    @return: an object that finds the users of all stores.  The object makes a store when it first
        looks up a user in this store.
    """
    return Recipients(
        _Destinations(settings),
        settings.recipientDelimiter,
        settings.localDomain,
        settings.policy.nameCase == "mapped",
    )


class _Destinations(Mapping[str | None, Destination]):
    """
    The stores of a configuration.  Each store is made when one of its users is first looked up.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stores: dict[str | None, Store] = {
            each.domain: each for each in settings.stores or (Store("--provider", "--auth", None),)
        }
        self._made: dict[str | None, Destination] = {}

    def __getitem__(self, domain: str | None) -> Destination:
        if domain not in self._made:
            self._made[domain] = _destination(self._stores[domain], self._settings)
        return self._made[domain]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)


def _destination(store: Store, settings: Settings) -> Destination:
    """
    @raise SettingError: the store or its accounts cannot be made.
    """
    from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory

    data = DataDirectory(settings.data or defaultDataDirectory())
    auth = store.auth
    if store.kind is None:
        store = Store(store.where, store.authWhere, "maildir", f"path={_escape(data.mail)}")
        auth = auth or (f"passwd:{data.passwordFile}",)
    provider: Any
    if store.kind in ("maildir", "folder"):
        # Use a bundled kind without a search for plugins, because the search takes longer than all
        # other work.
        from pop3svc.service.plugins import makeFolder, makeMaildir

        make = makeMaildir if store.kind == "maildir" else makeFolder
        try:
            provider = make(store.argument or "")
        except (ValueError, OSError) as error:
            raise SettingError(f"{store.where}: {error}")
    else:
        from pop3svc.service.stores import makeProvider

        provider = makeProvider(store)
    hasState = store.kind == "maildir" and os.access(data.state, os.R_OK | os.W_OK)
    if hasState and (settings.data or not settings.stores):
        from pop3svc.state import State

        provider.useState(State(data.state))
    accounts = [_accounts(store, each) for each in auth]
    if IUsesUserFacts.providedBy(provider):
        from pop3svc.accounts.checkers import AccountFacts

        provider.useFacts(AccountFacts(accounts))
    return Destination(provider, accounts or [provider])


def _escape(text: str) -> str:
    for special in ("\\", ":", "="):
        text = text.replace(special, f"\\{special}")
    return text


def _accounts(store: Store, description: str) -> Any:
    from pop3svc.accounts.passwordfile import PasswordFileNames

    kind, _, argument = description.partition(":")
    if kind == "passwd":
        return PasswordFileNames(argument)
    from pop3svc.service.stores import makeAccounts

    [checker] = makeAccounts(Store(store.where, store.authWhere, None, None, (description,)))
    return checker
