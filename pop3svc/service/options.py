"""
Read settings from the command line, and exit with one sentence on an error.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import AuthOptionMixin
from twisted.plugin import getPlugins
from twisted.python import usage

from pop3svc.credentials import IBearerToken
from pop3svc.interfaces import IPOP3ProviderPlugin
from pop3svc.logs import escaped
from pop3svc.service.configfile import Configuration, readConfiguration
from pop3svc.service.operating import signals
from pop3svc.service.settings import (
    LIMITS,
    SERVICE,
    Faults,
    Listener,
    Setting,
    Settings,
    Store,
    makeSettings,
)
from pop3svc.service.versions import versions

__all__ = ["Options", "addOptions", "providerPlugins", "refuse"]


def refuse(sentence: str) -> NoReturn:
    """
    End the process with exit status 1.

    @param sentence: a sentence for the operator, to print on the standard error.
    """
    raise SystemExit(f"pop3svc: {escaped(' '.join(sentence.split()))}")


def providerPlugins() -> dict[str, Any]:
    """
    @return: the plugins of the kinds of providers, by the prefixes of these kinds.
    """
    return {plugin.prefix: plugin for plugin in getPlugins(IPOP3ProviderPlugin)}


class Options(usage.Options, AuthOptionMixin):
    """
    The options of C{twistd pop3svc} and C{pop3svc serve}.  The code below the class adds the
    options of L{SERVICE}.

    @ivar arguments: the command line, which workers also get.
    """

    synopsis = "[options]"
    longdesc = (
        "A POP3 service.  Without any option it serves an embedded default: "
        "accounts and Maildirs in a directory of your own, on loopback."
    )
    supportedInterfaces = (IUsernamePassword, IBearerToken)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: list[str] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._limits: dict[str, int] = {}
        self._listeners: list[Listener] = []
        self._provider: str | None = None
        self._auth: list[str] = []
        self._config: str | None = None

    def parseOptions(self, options: Any = None) -> None:
        """
        See L{usage.Options.parseOptions}.  If an option is wrong, print one sentence instead of a
        page of help.
        """
        # Install the handlers before any other part of the service runs, so that an early SIGHUP
        # does not end the process.
        signals.hold()
        self.arguments = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            refuse(str(error))

    def parseArgs(self, *arguments: str) -> None:
        """
        Refuse arguments, because all settings are options.
        """
        if arguments:
            refuse(f"{arguments[0]!r} is not an option")

    def settings(self, text: str | None = None) -> Settings:
        """
        Combine the command line and the configuration file.  If the command line and the file have
        the same setting, the command line counts.

        @param text: the text of the file; L{None} to read the file.
        @raise SettingError: the settings cannot be used.
        """
        faults = Faults()
        settings = self.read(faults, text)
        faults.check()
        return settings

    @property
    def configFile(self) -> str | None:
        """
        The path of the configuration file.
        """
        return self._config

    def read(self, faults: Faults, text: str | None = None) -> Settings:
        """
        Read the settings as L{settings} does, but collect all faults of the file instead of raising
        the first.

        @raise SettingError: the file cannot be read.
        """
        if self._config is None:
            configuration = Configuration("")
        else:
            configuration = readConfiguration(self._config, faults, text)
        stores = configuration.stores
        if self._provider is not None or self._auth:
            kind, colon, argument = (self._provider or "").partition(":")
            where = f"--provider {kind}" if kind else "--auth"
            stores = [
                Store(where, "--auth", kind or None, argument if colon else None, tuple(self._auth))
            ]
        return makeSettings(
            configuration.values | self._values,
            configuration.limits | self._limits,
            self._listeners or configuration.listeners,
            stores,
            configuration.certificates,
            configuration.secretFiles,
            configuration.origins | self._origins,
            faults,
        )

    def opt_config(self, path: str) -> None:
        """Configuration file (TOML); options on the command line override it."""
        # Make the path absolute, because the process may change its directory before it reads the
        # file again.
        self._config = os.path.abspath(path)

    def opt_tls_endpoint(self, text: str) -> None:
        """Endpoint string like --endpoint, for implicit TLS with the service's certificate."""
        self._listeners.append(Listener(f"--tls-endpoint {text}", text, tls=True))

    def opt_endpoint(self, text: str) -> None:
        """Endpoint string to listen on, such as tcp:110 or ssl:995; may be repeated."""
        self._listeners.append(Listener(f"--endpoint {text}", text))

    def opt_provider(self, text: str) -> None:
        """Provider of the mailboxes, such as maildir:/srv/mail; see --help-providers."""
        self._provider = text

    def opt_auth(self, text: str) -> None:
        """Source of accounts, such as passwd:FILE; may be repeated; see --help-auth."""
        self._auth.append(text)

    def opt_set(self, text: str) -> None:
        """Set a limit, as NAME=VALUE; see --help-settings."""
        name, equals, value = text.partition("=")
        setting = next((each for each in LIMITS if each.name == name), None)
        if not equals or setting is None:
            near = get_close_matches(name, [each.name for each in LIMITS], 1) if equals else []
            hint = f"; did you mean {near[0]}?" if near else ""
            refuse(f"--set {text}: use NAME=VALUE with a name from --help-settings{hint}")
        try:
            self._limits[name] = setting.kind.fromText(value)
        except ValueError as error:
            refuse(f"--set {name} {error}")

    def opt_help_settings(self) -> NoReturn:
        """List the limits that --set can set, with their reasons."""
        for each in LIMITS:
            print(f"{each.name}={each.default}\n    {each.help}")
        raise SystemExit(0)

    def opt_help_providers(self) -> NoReturn:
        """List the kinds of providers."""
        for prefix, plugin in sorted(providerPlugins().items()):
            print(f"{prefix}:{plugin.argumentFormat}\n    {plugin.help}")
        print("or the dotted name of your own class or object, followed by :ARGUMENTS")
        raise SystemExit(0)

    def opt_version(self) -> NoReturn:
        """Show the versions of pop3svc, Twisted, Python and OpenSSL."""
        print(versions())
        raise SystemExit(0)

    def set(self, setting: Setting, text: str) -> None:
        """
        Record an option of the command line.
        """
        try:
            value = setting.kind.fromText(text)
        except ValueError as error:
            refuse(f"--{setting.name} {text}: {error}")
        if setting.isRepeated and setting.name in self._values:
            before = self._values[setting.name]
            value = before | value if isinstance(value, frozenset) else before + value
        self._values[setting.name] = value
        self._origins[setting.name] = f"--{setting.name}"


def _option(setting: Setting) -> Callable[[Options, str], None]:
    def opt(self: Options, text: str) -> None:
        self.set(setting, text)

    opt.__doc__ = setting.help
    return opt


for _setting in SERVICE:
    if not _setting.isOption:
        continue
    setattr(Options, f"opt_{_setting.name.replace('-', '_')}", _option(_setting))


# For each option that is not a setting, the name of its value, and whether the option may be
# repeated.
_VALUES = {
    "auth": ("KIND:ARGUMENTS", True),
    "config": ("FILE", False),
    "endpoint": ("STRING", True),
    "help-auth-type": ("KIND", False),
    "provider": ("KIND:ARGUMENTS", False),
    "set": ("NAME=VALUE", True),
    "tls-endpoint": ("STRING", True),
}


def addOptions(parser: ArgumentParser) -> None:
    """
    Add the options of L{Options} to a parser, from which help and completion are made.
    """
    settings = {each.name: each for each in SERVICE}
    options = Options()
    for option in options.longOpt:
        name = option.removesuffix("=")
        if f"--{name}" in parser._option_string_actions:
            # Leave out --help, because argparse has added it already.
            continue
        details: dict[str, Any] = {"help": " ".join(options.docs[name].split()).replace("%", "%%")}
        if not option.endswith("="):
            parser.add_argument(f"--{name}", action="store_true", **details)
            continue
        setting = settings.get(name)
        if setting is None:
            value, isRepeated = _VALUES[name]
        else:
            value, isRepeated = setting.kind.name, setting.isRepeated
            details["choices"] = setting.kind.words or None
        action = "append" if isRepeated else "store"
        parser.add_argument(f"--{name}", metavar=value, action=action, **details)
