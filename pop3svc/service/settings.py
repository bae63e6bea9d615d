"""
Declare every setting of the service once.

The declarations are the source of the options of the command line, C{--help}, C{--help-settings},
the keys of the configuration file, error messages, and the page of the documentation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from pop3svc.client.logins import MECHANISMS
from pop3svc.files import openReplaceable
from pop3svc.networks import LOOPBACK
from pop3svc.policy import (
    CLEARTEXT_LOGIN,
    NAME_CASES,
    OPTIONAL_MECHANISMS,
    SWITCHES,
    UTF8_HEADERS,
    Policy,
)
from pop3svc.protocol.clientcertificate import CLIENT_NAMES
from pop3svc.service.servernames import isHostName
from pop3svc.service.tlsrules import (
    MINIMUM_VERSIONS,
    TLSRules,
    checkCiphers,
    checkCiphersuites,
)

__all__ = [
    "CERTIFICATE",
    "FETCH",
    "GROUPS",
    "LIMITS",
    "LISTENER",
    "SERVICE",
    "STORE",
    "TEXT",
    "CertificatePair",
    "Faults",
    "Fetch",
    "Kind",
    "Listener",
    "Secret",
    "Setting",
    "SettingError",
    "Settings",
    "Store",
    "defaultListeners",
    "makeSettings",
    "readTable",
    "secretPath",
]

_Network = IPv4Network | IPv6Network


class SettingError(ValueError):
    """
    The service cannot use a setting.  The text is one sentence for the operator, which names the
    option, or the file and the key.
    """


# A secret in a separate file has at most this number of octets.
_LARGEST_SECRET = 65_536


class Secret(str):
    """
    A secret value, which the service never shows.
    """


# --- kinds of values ----------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """
    A kind of values of settings, such as file names or networks.

    @ivar name: stands for a value in help texts, such as C{FILE}.
    @ivar words: all allowed values; empty if the values cannot be listed.
    @ivar fromText: reads a value from the command line.
    @ivar fromFile: reads a value from the configuration file.  C{fromText} and C{fromFile} raise
        L{ValueError} with the end of a sentence that begins with the name of the setting.
    """

    name: str
    fromText: Callable[[str], Any]
    fromFile: Callable[[Any], Any]
    words: tuple[str, ...] = ()


def _string(value: Any) -> str:
    """
    Read a string, or a table that names the file of a secret.
    """
    if isinstance(value, dict):
        path = secretPath(value)
        try:
            with open(openReplaceable(path), "rb") as file:
                data = file.read(_LARGEST_SECRET + 1)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}")
        if len(data) > _LARGEST_SECRET:
            raise ValueError(f"{path} is larger than {_LARGEST_SECRET} octets")
        return Secret(data.removesuffix(b"\n").decode("utf-8", "surrogateescape"))
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def secretPath(value: dict[str, Any]) -> str:
    """
    @param value: a table instead of a string.
    @return: the path of the file that the table names.
    @raise ValueError: the table names no file.
    """
    if set(value) == {"file"} and isinstance(value["file"], str):
        return os.path.abspath(value["file"])
    if set(value) == {"credential"} and isinstance(value["credential"], str):
        name, directory = value["credential"], os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise ValueError("needs systemd's credentials: CREDENTIALS_DIRECTORY is not set")
        if not name or "/" in name:
            raise ValueError('the name of a credential must not be empty or contain "/"')
        return os.path.join(directory, name)
    raise ValueError('must be a string, { file = "..." } or { credential = "..." }')


def _path(value: Any) -> str:
    return secretPath(value) if isinstance(value, dict) else _string(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _booleanFromText(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _choice(*words: str) -> Kind:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return Kind("|".join(words), read, read, words)


def _wholeNumber(least: int, most: int) -> Kind:
    bounds = f"from {least} to {most}" if most < 999_999_999 else f"{least} or more"

    def fromFile(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number, {bounds}")
        return value

    def fromText(text: str) -> int:
        isNumber = text.isascii() and text.isdigit() and len(text) < 12
        return fromFile(int(text) if isNumber else None)

    return Kind("NUMBER", fromText, fromFile)


def _networks(texts: Iterable[Any]) -> tuple[_Network, ...]:
    found = []
    for each in texts:
        if not isinstance(each, str):
            raise ValueError("must be an array of networks, such as 192.0.2.0/24")
        try:
            found.append(ip_network(each))
        except ValueError as error:
            raise ValueError(f"must be networks: {error}")
    return tuple(found)


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("must be an array")
    return value


def _namesOf(allowed: Sequence[str]) -> Kind:
    """
    Make a L{Kind} whose values are sets of names.
    """

    def read(names: Iterable[Any]) -> frozenset[str]:
        found = set()
        for name in names:
            if not isinstance(name, str) or name.upper() not in allowed:
                raise ValueError(f"must be one or more of {', '.join(allowed)}")
            found.add(name.upper())
        return frozenset(found)

    return Kind(
        "NAME", lambda text: read([text]), lambda value: read(_array(value)), tuple(allowed)
    )


def _secret(value: Any) -> Secret:
    text = _string(value)
    if not text:
        raise ValueError("must not be empty")
    return Secret(text)


TEXT = Kind("TEXT", _string, _string)
SECRET = Kind("TEXT", _secret, _secret)
FILE = Kind("FILE", _string, _path)
BOOLEAN = Kind("yes|no", _booleanFromText, _boolean, ("yes", "no"))
NETWORKS = Kind(
    "NETWORKS",
    lambda text: _networks(each for each in text.split(",") if each),
    lambda value: _networks(_array(value)),
)
TEXTS = Kind(
    "KIND:ARGUMENT",
    lambda text: (text,),
    lambda value: tuple(_string(each) for each in _array(value)),
)
ENDPOINTS = replace(TEXTS, name="STRING")


def _mode(value: Any) -> str:
    isMode = isinstance(value, str) and re.fullmatch("0?[0-7]{3}", value)
    if not isMode:
        raise ValueError("must be an octal mode in quotation marks, such as 660")
    return str(value)


def _delimiter(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!#$%&*+/=?^_|~.-]{0,3}", value):
        raise ValueError("must be up to three characters such as + and -, or empty")
    return value


def _domains(value: Any) -> tuple[str, ...]:
    for each in value:
        if not isinstance(each, str) or not re.fullmatch(r"[^\s@]{1,255}", each):
            raise ValueError("must be domains, such as example.org")
    return tuple(each.lower() for each in value)


def _checked(check: Callable[[str], None]) -> Kind:
    """
    Make a L{Kind} whose values are texts that a function checks.
    """

    def read(value: Any) -> str:
        text = _string(value)
        check(text)
        return text

    return Kind("LIST", read, read)


def _hostName(value: Any) -> str:
    if not isinstance(value, str) or not isHostName(value.lower()):
        raise ValueError("must be a host name in ASCII, such as mail.example.org")
    return value.lower()


def _hostNames(value: Any) -> tuple[str, ...]:
    return tuple(map(_hostName, _array(value)))


HOST_NAME = Kind("NAME", _hostName, _hostName)
HOST_NAMES = Kind("NAMES", lambda text: _hostNames([text]), _hostNames)
MODE = Kind("MODE", _mode, _mode)
DELIMITER = Kind("CHARACTERS", _delimiter, _delimiter)
DOMAINS = Kind("DOMAIN", lambda text: _domains([text]), lambda value: _domains(_array(value)))


# --- declarations ---------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """
    The declaration of a setting.

    @ivar name: the key in the configuration file, and the option after C{--}.
    @ivar help: the help text, usually one sentence.
    @ivar reason: the reason for the default, if the help does not give it.
    @ivar isLive: whether a running service accepts a new value (SIGHUP).  Existing sessions keep
        the old value.
    @ivar isRepeated: whether the option may be given more than once.
    @ivar isOption: whether the command line has an option with this name.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    reason: str = ""
    isLive: bool = False
    isRepeated: bool = False
    isOption: bool = True

    @property
    def attribute(self) -> str:
        """
        The name of the attribute that holds the value, such as C{privateKey} for C{private-key}.
        """
        first, *rest = self.name.split("-")
        return first + "".join(each.capitalize() for each in rest)


_CERTIFICATE = Setting(
    "certificate",
    FILE,
    "PEM file with the TLS certificate and its chain (default: a self-signed certificate).",
)
_PRIVATE_KEY = Setting(
    "private-key", FILE, "PEM file of the certificate's key, if the key is in a separate file."
)
_CERTIFICATE_OF_NAMES = replace(_CERTIFICATE, help="PEM file of a certificate and its chain.")
_OCSP_RESPONSE = Setting(
    "ocsp-response",
    FILE,
    "File with the OCSP response for the certificate (DER); another program has to update this "
    "file.",
)
_CLIENT_CA = Setting(
    "client-ca",
    FILE,
    "PEM file with the authorities that sign the certificates of clients, for logins by EXTERNAL.",
)
_CLEARTEXT = Setting(
    "cleartext-login",
    _choice(*CLEARTEXT_LOGIN),
    "Accept logins without TLS: never, from loopback, or always (default: loopback).",
    Policy.cleartextLogin,
    "A password in clear text crosses no network if the client is on the same machine.",
    isLive=True,
)
_PROXY_FROM = Setting(
    "proxy-from",
    NETWORKS,
    "Networks of proxies, whose connections begin with a PROXY header (version 1 or 2).",
    (),
    isRepeated=True,
)

SERVICE = (
    Setting("data", FILE, "Directory for the files that the service itself keeps."),
    Setting(
        "admin",
        FILE,
        "UNIX socket on which pop3svc who, kick, ban, status, trace, reload and drain ask the "
        "service (default: admin.sock in the data directory, if there is one).",
    ),
    Setting(
        "web",
        TEXT,
        "Endpoint string of a port for HTTP with the operator's page, metrics and health, such as "
        "tcp:8110:interface=127.0.0.1 or unix:/run/pop3svc/web (default: no such port).",
    ),
    Setting(
        "web-password",
        SECRET,
        "Password that the operator's page and /metrics ask for, with any user name.",
        isOption=False,
    ),
    Setting(
        "web-proxy-from",
        NETWORKS,
        "Networks of proxies in front of --web, which name their clients in X-Forwarded-For; a "
        "client of a UNIX socket counts as 127.0.0.1.",
        (),
        isOption=False,
    ),
    Setting(
        "log-format",
        _choice("text", "json", "journal"),
        "Form of the log: text (the default), json (one object in each line), or journal (fields "
        "for the journal of systemd).",
        "text",
        "Text is for people and for fail2ban.",
    ),
    Setting(
        "workers",
        _wholeNumber(1, 999),
        "Number of worker processes (default: 1).",
        1,
        "One process uses one core.",
    ),
    _CERTIFICATE,
    _PRIVATE_KEY,
    _CLIENT_CA,
    Setting(
        "client-name",
        _choice(*CLIENT_NAMES),
        "Field of a client's certificate that contains the user's name: email (the default; an "
        "email address in subjectAltName) or cn (the common name of the subject).",
        "email",
        "The common name is often the name of a person, which need not be unique.",
    ),
    Setting(
        "certificate-directory",
        FILE,
        "Directory of certificates as certbot keeps them, such as /etc/letsencrypt/live: "
        "fullchain.pem and privkey.pem in each subdirectory.",
    ),
    _OCSP_RESPONSE,
    Setting(
        "ocsp-fetch",
        BOOLEAN,
        "Ask the OCSP responder for the status of each certificate, and send the status to clients "
        "(default: no).",
        False,
        "Many authorities no longer run OCSP responders.",
    ),
    Setting(
        "tls-default-name",
        HOST_NAME,
        "Host name whose certificate clients get if they ask for an unknown name, or for no name "
        "(default: the name of the first certificate).",
    ),
    Setting(
        "tls-minimum-version",
        _choice(*MINIMUM_VERSIONS),
        "Lowest version of TLS: 1.2 or 1.3 (default: 1.2).",
        "1.2",
        "RFC 8996 forbids older versions, and some clients do not support TLS 1.3.",
    ),
    Setting(
        "tls-ciphers",
        _checked(checkCiphers),
        "Ciphers for TLS 1.2, as a list of openssl ciphers (default: the list of Twisted).",
    ),
    Setting(
        "tls-ciphersuites",
        _checked(checkCiphersuites),
        "Ciphers for TLS 1.3, separated by colons (default: the list of OpenSSL).",
    ),
    _CLEARTEXT,
    Setting(
        "utf8-headers",
        _choice(*UTF8_HEADERS),
        "Convert messages with UTF-8 in header fields for clients that have not sent UTF8, or "
        "refuse to send them: convert or refuse (default: convert).",
        Policy.utf8Headers,
        "Most clients never send UTF8, so with refuse their users would not see the messages.",
        isLive=True,
    ),
    Setting(
        "name-case",
        _choice(*NAME_CASES),
        "Whether the case of letters in user names is preserved, so that Alice and alice are two "
        "users, or mapped to lower case (default: preserved).",
        Policy.nameCase,
        "Existing accounts and mailboxes may have capital letters in their names.",
    ),
    Setting(
        "without",
        _namesOf(SWITCHES),
        "Switch off an extension or a SASL mechanism; the service then neither announces "
        "nor accepts it.",
        frozenset(),
        isLive=True,
        isRepeated=True,
    ),
    Setting(
        "enable",
        _namesOf(OPTIONAL_MECHANISMS),
        f"Switch on a login method that is off by default: {', '.join(OPTIONAL_MECHANISMS)}.",
        frozenset(),
        "If the service announces SCRAM, a client that supports SCRAM uses it, and cannot log in "
        "if the accounts have a hash of the password, but no verifier for SCRAM.",
        isLive=True,
        isRepeated=True,
    ),
    Setting(
        "ban-exempt",
        NETWORKS,
        "Networks that are never banned for failed logins, separated by commas "
        f"(default: {','.join(LOOPBACK)}).",
        _networks(LOOPBACK),
    ),
    Setting(
        "add-verifiers",
        _namesOf(("SCRAM-SHA-256", "SCRAM-SHA-1")),
        "Add a verifier of this mechanism to the password file when a user logs in with the "
        "password; repeatable.",
        frozenset(),
        "A thief of a verifier can try passwords faster than with a slow hash.",
        isRepeated=True,
    ),
    Setting(
        "remember-checks",
        _wholeNumber(0, 300),
        "Seconds for which the service remembers that a password was right, so that the "
        "next login needs no slow hash (default: 0, not at all).",
        0,
        "An attacker who can read the memory of the service could try passwords quickly.",
    ),
    _PROXY_FROM,
    Setting(
        "lmtp",
        ENDPOINTS,
        "Endpoint string at which a mail server delivers by LMTP, such as "
        "unix:/run/pop3svc/lmtp; repeatable.",
        (),
        "Everybody who can connect can send mail to every user, so use a unix: socket or a "
        "loopback address.",
        isRepeated=True,
    ),
    Setting(
        "lmtp-mode",
        MODE,
        "Mode of the unix: sockets for LMTP (default: 666).",
        "666",
        "Every program on this machine can send mail in other ways.  To exclude "
        "programs, restrict access to the socket's directory.",
    ),
    Setting(
        "recipient-delimiter",
        DELIMITER,
        "Characters that begin an extension in a recipient; with + (the default), alice "
        "gets the mail for alice+work, unless a user alice+work exists.",
        "+",
    ),
    Setting(
        "local-domain",
        DOMAINS,
        "Domain whose mail goes to the users without a domain in their names; repeatable.",
        (),
        isRepeated=True,
    ),
)

LISTENER = (
    Setting("endpoint", TEXT, "Endpoint string to listen on: tcp:110, ssl:995, unix:PATH, ..."),
    Setting(
        "tls",
        BOOLEAN,
        "Use implicit TLS on this endpoint with the listener's certificate.",
        False,
        isOption=False,
    ),
    replace(_CERTIFICATE, isOption=False),
    replace(_PRIVATE_KEY, isOption=False),
    replace(_CLIENT_CA, isOption=False),
    replace(_CLEARTEXT, isOption=False, default=None),
    replace(_PROXY_FROM, isOption=False, default=None),
    Setting(
        "old-tls-from",
        NETWORKS,
        "Networks of old devices: this listener accepts TLS 1.0 and 1.1 from these "
        "networks, and refuses all other clients.",
        None,
        isOption=False,
    ),
)

CERTIFICATE = (
    replace(_CERTIFICATE_OF_NAMES, isOption=False),
    replace(_PRIVATE_KEY, isOption=False),
    Setting(
        "names",
        HOST_NAMES,
        "Host names for which the service uses this certificate, such as *.example.org (default: "
        "the names in its subjectAltName).",
        (),
        isOption=False,
    ),
    replace(_OCSP_RESPONSE, isOption=False),
)

STORE = (
    Setting(
        "domain",
        TEXT,
        "Domain whose users this store serves; a store without a domain serves all other users.",
        isOption=False,
    ),
    Setting(
        "kind",
        TEXT,
        "Kind of the provider, such as maildir, mbox or sql, or the dotted name of a class or "
        "object; see --help-providers.",
        isOption=False,
    ),
    Setting(
        "argument",
        TEXT,
        "Argument of the provider, as on the command line, instead of separate keys.",
        isOption=False,
    ),
    Setting(
        "auth",
        TEXTS,
        "Source of accounts, such as passwd:FILE; see --help-auth.",
        (),
        isRepeated=True,
    ),
)

FETCH = (
    Setting(
        "url",
        TEXT,
        "Mailbox to fetch: pop3s://[USER@]HOST[:PORT], or pop3:// in the same form.",
        isOption=False,
    ),
    Setting("user", TEXT, "Name of the user, if the URL has none."),
    Setting(
        "password",
        SECRET,
        "Password of the user (default: from the file .netrc, or else from the terminal).",
        isOption=False,
    ),
    Setting(
        "token",
        FILE,
        "File with a bearer token for OAUTHBEARER or XOAUTH2; the command reads it at each login.",
    ),
    Setting("certificate", FILE, "PEM file of a certificate for a login by EXTERNAL."),
    Setting(
        "private-key",
        FILE,
        "PEM file of the certificate's key, if the key is in a separate file.",
    ),
    Setting(
        "ca",
        FILE,
        "PEM file of the authorities that sign the server's certificate (default: the authorities "
        "of the system).",
    ),
    Setting(
        "insecure",
        BOOLEAN,
        "Whether to send the password without TLS; only for pop3://.",
        False,
    ),
    Setting(
        "mechanism",
        _choice(*MECHANISMS, "USER"),
        "Login method (default: the best one that the server offers).",
    ),
    Setting(
        "to",
        TEXT,
        "Where to store messages: maildir:PATH, mbox:PATH, lmtp:PATH of a UNIX socket, "
        "or lmtp:HOST:PORT.",
    ),
    Setting(
        "mda",
        TEXT,
        "Command that gets each message on its standard input; use either mda or to.  The "
        "command runs without a shell.",
    ),
    Setting("recipient", TEXT, "Recipient of the messages, with lmtp: (default: the user)."),
    Setting(
        "delete",
        BOOLEAN,
        "Whether to delete messages from the server after storing them.",
        False,
        "A message that stays on the server can be fetched again.",
    ),
    Setting(
        "interval",
        _wholeNumber(1, 86_400),
        "Seconds from one poll to the next, with --watch (default: 60).",
        60,
    ),
)

LIMITS = tuple(
    Setting(
        item.name,
        _wholeNumber(item.metadata["least"], 999_999_999),
        item.metadata["reason"],
        item.default,
        isLive=item.metadata["isLive"],
        isOption=False,
    )
    for item in fields(Policy)
    if "least" in item.metadata
)

# The tables of the configuration file, for the pages that describe them.
GROUPS = {
    "service": SERVICE,
    "listener": LISTENER,
    "certificate": CERTIFICATE,
    "store": STORE,
    "fetch": FETCH,
    "limits": LIMITS,
}


# --- values -------------------------------------------------------------------------


@dataclass(frozen=True)
class Listener:
    """
    A place to listen.

    @ivar where: the option or the key that declares the listener; error messages contain it.
    @ivar tls: whether to add implicit TLS to the endpoint.
    @ivar certificate: the file of the certificate; L{None} for the service's certificate.
    @ivar clientCa: the file of the authorities that sign the certificates of clients; L{None} for
        the service's setting.
    @ivar cleartextLogin: when to accept logins without TLS; L{None} for the service's setting.
    @ivar proxyFrom: the networks of proxies; L{None} for the service's setting.
    @ivar oldTlsFrom: the networks of old devices.  Only clients in these networks may connect, and
        they may use old versions of TLS.  If it is L{None}, all clients may connect, but not with
        old versions of TLS.
    """

    where: str
    endpoint: str
    tls: bool = False
    certificate: str | None = None
    privateKey: str | None = None
    clientCa: str | None = None
    cleartextLogin: str | None = None
    proxyFrom: tuple[_Network, ...] | None = None
    oldTlsFrom: tuple[_Network, ...] | None = None


@dataclass(frozen=True)
class CertificatePair:
    """
    A certificate that is used for some host names.

    @ivar where: the key that declares the certificate; error messages contain it.
    @ivar names: the host names; empty if they are the names in the certificate.
    @ivar ocspResponse: the file with the status of the certificate, or L{None}.
    """

    where: str
    certificate: str
    privateKey: str | None = None
    names: tuple[str, ...] = ()
    ocspResponse: str | None = None


@dataclass(frozen=True)
class Store:
    """
    A store of mailboxes, and the checkers of its logins.

    @ivar where: the option or the key that declares the store; error messages contain it.
    @ivar kind: the kind of the provider; L{None} for Maildirs in the data directory, which the
        service uses if the settings name no store.
    @ivar argument: the argument of the provider; L{None} if there is none.
    @ivar auth: descriptions for L{twisted.cred.strcred.makeChecker}.
    """

    where: str
    authWhere: str
    kind: str | None
    argument: str | None = None
    auth: tuple[str, ...] = ()
    domain: str | None = None


@dataclass(frozen=True)
class Fetch:
    """
    A mailbox of another server that C{pop3svc fetch} fetches.

    @ivar where: the option or the key that declares the mailbox; error messages contain it.
    """

    where: str
    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = None
    certificate: str | None = None
    privateKey: str | None = None
    ca: str | None = None
    insecure: bool = False
    mechanism: str | None = None
    to: str | None = None
    mda: str | None = None
    recipient: str | None = None
    delete: bool = False
    interval: int = 60


@dataclass(frozen=True)
class Settings:
    """
    All settings of a service.
    """

    data: str | None = None
    admin: str | None = None
    web: str | None = None
    webPassword: str | None = None
    webProxyFrom: tuple[_Network, ...] = ()
    logFormat: str = "text"
    workers: int = 1
    certificate: str | None = None
    privateKey: str | None = None
    clientCa: str | None = None
    clientName: str = "email"
    certificateDirectory: str | None = None
    ocspResponse: str | None = None
    ocspFetch: bool = False
    tlsDefaultName: str | None = None
    tlsMinimumVersion: str = "1.2"
    tlsCiphers: str | None = None
    tlsCiphersuites: str | None = None
    banExempt: tuple[_Network, ...] = _networks(LOOPBACK)
    addVerifiers: frozenset[str] = frozenset()
    rememberChecks: int = 0
    proxyFrom: tuple[_Network, ...] = ()
    lmtp: tuple[str, ...] = ()
    lmtpMode: str = "666"
    recipientDelimiter: str = "+"
    localDomain: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    listeners: tuple[Listener, ...] = ()
    stores: tuple[Store, ...] = ()
    certificates: tuple[CertificatePair, ...] = ()
    # The paths of files each of which contains a single secret.
    secretFiles: tuple[str, ...] = field(default=(), compare=False)
    # For each name of a setting, the option or the key that has set it.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def where(self, name: str) -> str:
        """
        @return: the option or the key that has set a setting; error messages contain it.
        """
        return self.origins.get(name, f"--{name}")

    def tlsRules(self, listener: Listener | None = None) -> TLSRules:
        """
        @return: the versions and ciphers of TLS of a listener, or of the service.
        """
        isOld = listener is not None and listener.oldTlsFrom is not None
        return TLSRules(self.tlsMinimumVersion, self.tlsCiphers, self.tlsCiphersuites, isOld)

    def withThoseOfParent(self, first: Settings) -> Settings:
        """
        @param first: the settings with which the service has started.
        @return: these settings, but with the values from C{first} for the settings of the workers'
            parent.
        """
        limits = {name: getattr(first.policy, name) for name in _LIMITS_OF_PARENT}
        kept = {name: getattr(first, name) for name in _OF_PARENT}
        return replace(self, policy=replace(self.policy, **limits), **kept)

    def changesTo(self, other: Settings, hasWorkers: bool = False) -> tuple[Policy, list[str]]:
        """
        Compare these settings with the settings in the changed file.

        @param hasWorkers: whether new workers use the new settings.  In that case only the settings
            of their parent need a restart.
        @return: the policy that a running service can use, and the names of the settings that need
            a restart.
        """
        if hasWorkers:
            changed = [
                _NAMES.get(name, name)
                for name in _OF_PARENT
                if getattr(self, name) != getattr(other, name)
            ]
            changed += [
                name
                for name in _LIMITS_OF_PARENT
                if getattr(self.policy, name) != getattr(other.policy, name)
            ]
            ours = {name: getattr(self.policy, name) for name in _LIMITS_OF_PARENT}
            return replace(other.policy, **ours), changed
        live = {each.name: getattr(other.policy, each.name) for each in LIMITS if each.isLive}
        live["cleartextLogin"] = other.policy.cleartextLogin
        live["utf8Headers"] = other.policy.utf8Headers
        live["without"] = other.policy.without
        live["enable"] = other.policy.enable
        policy = replace(self.policy, **live)
        rest = [
            each.name
            for each in LIMITS
            if getattr(policy, each.name) != getattr(other.policy, each.name)
        ]
        if policy.nameCase != other.policy.nameCase:
            rest.append("name-case")
        for item in fields(self):
            isCompared = item.compare and item.name != "policy"
            if isCompared and getattr(self, item.name) != getattr(other, item.name):
                rest.append(_NAMES.get(item.name, item.name))
        return policy, rest


# Settings that the parent of workers itself uses, for example for its ports and its files.
_OF_PARENT = (
    *("data", "admin", "web", "webPassword", "webProxyFrom", "logFormat", "workers"),
    *("certificate", "privateKey", "certificates", "certificateDirectory", "tlsDefaultName"),
    *("ocspResponse", "ocspFetch"),
    *("clientCa", "clientName"),
    *("lmtp", "lmtpMode", "listeners", "banExempt"),
)
# The parent also counts failed logins, so that new workers know about bans.
_LIMITS_OF_PARENT = (
    "banStrikes",
    "banTime",
    "userStrikes",
    "unknownNetworkStrikes",
    "strikesTime",
)
# Settings of the service that are fields of the policy.
_IN_POLICY = ("cleartext-login", "name-case", "utf8-headers", "without", "enable")
_NAMES = {each.attribute: each.name for each in SERVICE} | {
    "listeners": "listener",
    "stores": "store",
    "certificates": "tls.certificate",
}


# --- reading ------------------------------------------------------------------------


class Faults:
    """
    Collects the faults of a configuration, each as one sentence.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """
        @param sentence: begins with the option or the key.
        """
        self.sentences.append(sentence)

    def check(self) -> None:
        """
        @raise SettingError: the first fault, if there is any.
        """
        if self.sentences:
            raise SettingError(self.sentences[0])


def defaultListeners() -> tuple[Listener, ...]:
    """
    @return: the listeners of a service whose settings have no listener.  They listen on loopback,
        on ports that need no privileges.
    """
    return tuple(
        Listener(f"--endpoint {text}", text)
        for text in ("tcp:1110:interface=127.0.0.1", "ssl:1995:interface=127.0.0.1")
    )


def readTable(
    table: Mapping[str, Any],
    known: tuple[Setting, ...],
    where: Callable[[str], str],
    faults: Faults,
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """
    Read the keys of a table of the configuration file.

    @param where: takes a key, and returns its name for messages.
    @param others: further keys of the table, which the caller reads.
    @return: a dictionary from the names of settings to their values.
    """
    byName = {each.name: each for each in known}
    values = {}
    for key, value in table.items():
        if key in others:
            continue
        setting = byName.get(key)
        if setting is None:
            near = get_close_matches(key, [*byName, *others], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.add(f"{where(key)}: unknown setting{hint}")
            continue
        try:
            values[key] = setting.kind.fromFile(value)
        except ValueError as error:
            faults.add(f"{where(key)}: {error}")
    return values


def _checkCertificates(own: Mapping[str, Any], origins: Mapping[str, str], faults: Faults) -> None:
    """
    Check that each host name is in C{names} of one certificate at most.  Check that
    C{tls-default-name} is given only with C{[[tls.certificate]]} or C{certificate-directory}.
    """
    seen: set[str] = set()
    for each in own["certificates"]:
        for name in each.names:
            if name in seen:
                faults.add(f"{each.where}.names: a second certificate for {name}")
            seen.add(name)
    if "tlsDefaultName" in own and not own["certificates"] and "certificateDirectory" not in own:
        where = origins.get("tls-default-name", "--tls-default-name")
        faults.add(f"{where} requires certificate-directory or [[tls.certificate]]")


def makeSettings(
    values: Mapping[str, Any],
    limits: Mapping[str, int],
    listeners: Iterable[Listener],
    stores: Iterable[Store],
    certificates: Iterable[CertificatePair],
    secretFiles: Iterable[str],
    origins: Mapping[str, str],
    faults: Faults,
) -> Settings:
    """
    Combine the values from all sources.

    @param values: a dictionary from the names of the settings in L{SERVICE} to their values.
    @param limits: a dictionary from the names of the settings in L{LIMITS} to their values.
    @param origins: a dictionary from the names of the settings to the option or key that has set
        them.
    """
    policy = replace(
        Policy(),
        cleartextLogin=values.get("cleartext-login", Policy.cleartextLogin),
        utf8Headers=values.get("utf8-headers", Policy.utf8Headers),
        nameCase=values.get("name-case", Policy.nameCase),
        without=values.get("without", frozenset()),
        enable=values.get("enable", frozenset()),
        **limits,
    )
    for name in ("private-key", "ocsp-response"):
        if name in values and "certificate" not in values:
            where = origins.get(name, f"--{name}")
            needed = "--certificate" if where.startswith("--") else "certificate"
            faults.add(f"{where} requires {needed}")
    own = {
        each.attribute: values[each.name]
        for each in SERVICE
        if each.name in values and each.name not in _IN_POLICY
    }
    certificates = tuple(certificates)
    own |= {"certificates": certificates}
    _checkCertificates(own, origins, faults)
    stores = tuple(stores)
    seen: set[str | None] = set()
    for each in stores:
        if each.domain in seen:
            faults.add(
                f"{each.where}: a second store for "
                + ("all other users" if each.domain is None else f"the domain {each.domain}")
            )
        seen.add(each.domain)
    return Settings(
        **own,
        policy=policy,
        listeners=tuple(listeners) or defaultListeners(),
        stores=stores,
        secretFiles=tuple(secretFiles),
        origins=dict(origins),
    )
