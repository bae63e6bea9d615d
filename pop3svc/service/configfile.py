"""
Read settings from a configuration file in TOML.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from pop3svc.files import openReplaceable
from pop3svc.service.settings import (
    CERTIFICATE,
    FETCH,
    LIMITS,
    LISTENER,
    SERVICE,
    STORE,
    TEXT,
    CertificatePair,
    Faults,
    Fetch,
    Listener,
    Secret,
    SettingError,
    Store,
    readTable,
    secretPath,
)

__all__ = ["Configuration", "readConfiguration", "readText"]

# The most octets of a configuration file.  A usual configuration is a page of text.  The parent
# keeps the text in memory, and sends it to each worker.
_LARGEST = 131_072


class Configuration:
    """
    The settings of one file.

    @ivar values: the values of settings, by the names in L{SERVICE}.
    @ivar limits: the limits, by the names in L{LIMITS}.
    @ivar fetches: the mailboxes that C{pop3svc fetch} reads.  The service ignores them.
    @ivar secretFiles: the paths of files that contain a single secret.
    @ivar origins: for each value its file and its key, for messages.
    """

    def __init__(self, path: str) -> None:
        """
        @param path: the path of the file, for messages.
        """
        self.path = path
        self.values: dict[str, Any] = {}
        self.limits: dict[str, int] = {}
        self.listeners: list[Listener] = []
        self.stores: list[Store] = []
        self.certificates: list[CertificatePair] = []
        self.fetches: list[Fetch] = []
        self.secretFiles: list[str] = []
        self.origins: dict[str, str] = {}

    def read(self, text: str, faults: Faults) -> None:
        """
        Read the settings from the text of the file.

        @param text: the file's text.
        @param faults: a list that gets an error for each setting that cannot be used.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            faults.add(f"{self.path}: not valid TOML: {error}")
            return
        except RecursionError:
            faults.add(f"{self.path}: not valid TOML: too many nested arrays or tables")
            return
        self.secretFiles = list(_secretFiles(document))
        tables = ("limits", "listener", "store", "tls", "fetch")
        self.values = readTable(document, SERVICE, self._where, faults, tables)
        limits = document.get("limits", {})
        if not isinstance(limits, dict):
            faults.add(f"{self._where('limits')}: must be a table, [limits]")
        else:
            self.limits = readTable(
                limits, LIMITS, lambda key: self._where(f"limits.{key}"), faults
            )
        for key in self.values:
            self.origins[key] = self._where(key)
        for number, table in self._tables(document, "listener", faults):
            self._listener(f"listener[{number}]", table, faults)
        for number, table in self._tables(document, "store", faults):
            self._store(f"store[{number}]", table, faults)
        self._tls(document, faults)
        for number, table in self._tables(document, "fetch", faults):
            self._fetch(f"fetch[{number}]", table, faults)

    def _tls(self, document: Mapping[str, Any], faults: Faults) -> None:
        """
        Read the tables [[tls.certificate]].
        """
        table = document.get("tls", {})
        if not isinstance(table, dict):
            faults.add(f"{self._where('tls')}: must be tables, [[tls.certificate]]")
            return
        readTable(table, (), lambda key: self._where(f"tls.{key}"), faults, ("certificate",))
        for number, each in self._tables(table, "certificate", faults, "tls."):
            self._certificate(f"tls.certificate[{number}]", each, faults)

    def _certificate(self, name: str, table: dict[str, Any], faults: Faults) -> None:
        values = readTable(table, CERTIFICATE, lambda key: self._where(f"{name}.{key}"), faults)
        if "certificate" not in table:
            faults.add(f"{self._where(name)}: needs a certificate")
        elif "certificate" in values:
            own = {each.attribute: values[each.name] for each in CERTIFICATE if each.name in values}
            self.certificates.append(CertificatePair(self._where(name), **own))

    def _where(self, key: str) -> str:
        return f"{self.path}: {key}"

    def _tables(
        self, document: Mapping[str, Any], key: str, faults: Faults, prefix: str = ""
    ) -> list[tuple[int, dict[str, Any]]]:
        tables = document.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            name = prefix + key
            faults.add(f"{self._where(name)}: must be an array of tables, [[{name}]]")
            return []
        return list(enumerate(tables, 1))

    def _listener(self, name: str, table: dict[str, Any], faults: Faults) -> None:
        values = readTable(table, LISTENER, lambda key: self._where(f"{name}.{key}"), faults)
        if "endpoint" not in table:
            faults.add(f"{self._where(name)}: needs an endpoint")
        if "private-key" in values and "certificate" not in values:
            faults.add(f"{self._where(name)}.private-key requires certificate")
        if values.get("old-tls-from") == ():
            faults.add(f"{self._where(name)}.old-tls-from: must name a network")
        elif "old-tls-from" in values and values.get("endpoint", "").startswith("unix:"):
            faults.add(
                f"{self._where(name)}.old-tls-from: clients of a unix: socket have no address"
            )
        self.listeners.append(
            Listener(
                f"{self._where(name)}.endpoint",
                values.get("endpoint", ""),
                **{
                    each.attribute: values[each.name]
                    for each in LISTENER
                    if each.name in values and each.name != "endpoint"
                },
            )
        )

    def _fetch(self, name: str, table: dict[str, Any], faults: Faults) -> None:
        values = readTable(table, FETCH, lambda key: self._where(f"{name}.{key}"), faults)
        if "url" not in table:
            faults.add(f"{self._where(name)}: needs a url, such as pop3s://mail.example.org")
        own = {each.attribute: values[each.name] for each in FETCH if each.name in values}
        self.fetches.append(Fetch(self._where(name), **{"url": "", **own}))

    def _store(self, name: str, table: dict[str, Any], faults: Faults) -> None:
        where = self._where(name)
        known = {each.name for each in STORE}
        own = {key: value for key, value in table.items() if key not in known}
        values = readTable(
            {key: value for key, value in table.items() if key in known},
            STORE,
            lambda key: f"{where}.{key}",
            faults,
        )
        argument = values.get("argument")
        if "kind" not in table:
            faults.add(f"{where}: needs a kind, such as maildir")
        elif own and "argument" in table:
            faults.add(f"{where}.{next(iter(own))}: cannot be combined with argument")
        elif own:
            argument = _argument(where, own, faults)
        domain = values.get("domain")
        self.stores.append(
            Store(
                where,
                f"{where}.auth",
                values.get("kind", ""),
                argument,
                values.get("auth", ()),
                domain.lower() if isinstance(domain, str) else None,
            )
        )


def _secretFiles(value: Any) -> Iterator[str]:
    """
    @return: the paths that the tables C{{ file = "..." }} and C{{ credential = "..." }} name.  The
        tables may be at any place in the value.
    """
    if isinstance(value, list):
        for each in value:
            yield from _secretFiles(each)
    elif isinstance(value, dict):
        try:
            yield secretPath(value)
        except ValueError:
            for each in value.values():
                yield from _secretFiles(each)


def _argument(where: str, keys: Mapping[str, Any], faults: Faults) -> str:
    """
    @return: the keys of a store in the form of a provider's argument on the command line:
        C{path=/srv/mail:readonly=yes}.
    """
    parts, isSecret = [], False
    for key, value in keys.items():
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, int):
            text = str(value)
        else:
            try:
                text = TEXT.fromFile(value)
            except ValueError as error:
                faults.add(f"{where}.{key}: {error}")
                continue
            isSecret = isSecret or isinstance(text, Secret)
        for special in ("\\", ":", "="):
            text = text.replace(special, f"\\{special}")
        parts.append(f"{key}={text}")
    argument = ":".join(parts)
    return Secret(argument) if isSecret else argument


def readText(path: str) -> str:
    """
    @return: the text of a configuration file.
    @raise SettingError: the file cannot be read.
    """
    try:
        with open(openReplaceable(path), "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingError(f"--config {path}: {error.strerror}")
    if len(data) > _LARGEST:
        raise SettingError(f"--config {path}: is larger than {_LARGEST} octets")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise SettingError(f"--config {path}: is not UTF-8")


def readConfiguration(path: str, faults: Faults, text: str | None = None) -> Configuration:
    """
    Read a configuration file.

    @param text: the text of the file; L{None} to read the file.
    @raise SettingError: the file cannot be read.
    """
    configuration = Configuration(path)
    configuration.read(readText(path) if text is None else text, faults)
    return configuration
