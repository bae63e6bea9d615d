"""
The commands C{pop3svc config check} and C{pop3svc config show}.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from pop3svc.logs import escaped
from pop3svc.service.assembly import makeEndpoint
from pop3svc.service.certificates import staplerFor
from pop3svc.service.certificateset import CertificateDirectory, CertificateSet
from pop3svc.service.mailin import destinationOf, makeMailEndpoints, makeRecipients
from pop3svc.service.options import Options, addOptions
from pop3svc.service.parser import Parser
from pop3svc.service.settings import (
    CERTIFICATE,
    LIMITS,
    LISTENER,
    SERVICE,
    STORE,
    CertificatePair,
    Faults,
    Secret,
    Setting,
    SettingError,
    Settings,
)
from pop3svc.service.stores import makeStore
from pop3svc.service.tls import ClientAuthority, RenewableCertificate

__all__ = ["DEFAULT", "main", "makeParser", "toTOML"]

DEFAULT = "/etc/pop3svc/pop3svc.toml"
_LEFT_OUT = "(left out)"
# The sources of accounts whose argument is a path.  The arguments of other sources are not shown,
# because they may contain passwords.
_PATHS = ("passwd", "file")


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc config}.  This parser leaves the options of C{show} to
        L{Options}.
    """
    parser = Parser(prog="pop3svc config")
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|show")
    check = actions.add_parser("check", help="summarise a configuration, or list its faults")
    check.add_argument(
        "file", metavar="FILE", nargs="?", default=DEFAULT, help="default: %(default)s"
    )
    show = actions.add_parser(
        "show", add_help=False, help="print the effective settings of a command line as TOML"
    )
    show.addPassedOn = addOptions
    return parser


def main(argv: Sequence[str]) -> None:
    """
    Run the command C{pop3svc config}.

    @raise SystemExit: with status 1, if the configuration has a fault.
    """
    parser = makeParser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.action == "show":
        options = Options()
        options.parseOptions(list(argv[1:]))
        print(toTOML(_read(options)), end="")
    elif rest:
        parser.error(f"{rest[0]!r} is not an option")
    else:
        _check(arguments.file)


def _read(options: Options) -> Settings:
    faults = Faults()
    try:
        settings = options.read(faults)
    except SettingError as error:
        faults.add(str(error))
    if faults.sentences:
        _end(faults)
    return settings


def _end(faults: Faults) -> NoReturn:
    for sentence in faults.sentences:
        print(f"pop3svc: {escaped(sentence)}", file=sys.stderr)
    raise SystemExit(1)


def _check(path: str) -> None:
    options = Options()
    options.parseOptions(["--config", path])
    settings = _read(options)
    faults = Faults()
    _try(faults, settings)
    if faults.sentences:
        _end(faults)
    for line in _summary(settings):
        print(line)


def _try(faults: Faults, settings: Settings) -> None:
    """
    Make all parts of the service, as far as they can be made without serving.
    """
    from twisted.internet import reactor

    for listener in settings.listeners:
        trusted = settings.proxyFrom if listener.proxyFrom is None else listener.proxyFrom
        if listener.endpoint.startswith("systemd:"):
            # This endpoint cannot be made here, because systemd passes its sockets only to the
            # service.
            continue
        try:
            # Any certificate and any wrapper will do here, because the endpoint does not listen.
            makeEndpoint(reactor, listener, object(), (lambda inner, _: inner) if trusted else None)
        except SettingError as error:
            faults.add(str(error))
    _tryCertificates(faults, settings)
    authorities = [(settings.where("client-ca"), settings.clientCa)]
    for listener in settings.listeners:
        authorities.append(
            (listener.where.removesuffix("endpoint") + "client-ca", listener.clientCa)
        )
    for where, clientCa in authorities:
        if clientCa is None:
            continue
        authority = ClientAuthority(clientCa, settings.clientName)
        try:
            authority.certificates(authority.load())
        except ValueError as error:
            faults.add(f"{where}: {error}")
    try:
        others = tuple(each for each in settings.lmtp if not each.startswith("systemd:"))
        makeMailEndpoints(reactor, replace(settings, lmtp=others), object())
    except SettingError as error:
        faults.add(str(error))
    destinations = {}
    for store in settings.stores:
        try:
            if store.kind is not None:
                destinations[store.domain] = destinationOf(*makeStore(store))
        except SettingError as error:
            faults.add(str(error))
    if destinations and not faults.sentences:
        try:
            makeRecipients(destinations, settings)
        except SettingError as error:
            faults.add(str(error))


def _tryCertificates(faults: Faults, settings: Settings) -> None:
    """
    Load all certificates, and find the reasons why clients would refuse them.
    """
    pairs = [
        CertificatePair(
            f"{each.where.removesuffix('endpoint')}certificate",
            each.certificate,
            each.privateKey,
        )
        for each in settings.listeners
        if each.certificate is not None
    ]
    ofListeners = [each.where for each in pairs]
    if settings.certificate is not None:
        where = settings.where("certificate")
        own = CertificatePair(
            where, settings.certificate, settings.privateKey, (), settings.ocspResponse
        )
        pairs.insert(0, own)
    loaded: list[tuple[str, RenewableCertificate]] = []
    for pair in [*pairs, *settings.certificates]:
        try:
            key = pair.privateKey or pair.certificate
            found = RenewableCertificate(pair.certificate, key, names=pair.names)
        except ValueError as error:
            faults.add(f"{pair.where}: {error}")
        else:
            loaded.append((pair.where, found))
            if pair.ocspResponse is not None:
                _tryStatus(faults, pair, found)
    directory = None
    if settings.certificateDirectory is not None:
        where = settings.where("certificate-directory")
        try:
            directory = CertificateDirectory(settings.certificateDirectory, RenewableCertificate)
        except ValueError as error:
            faults.add(f"{where}: {error}")
        else:
            for fault in directory.faults:
                faults.add(f"{where}: {fault}")
            loaded += [(where, each) for each in directory.certificates]
    for where, each in loaded:
        for fault in each.faults():
            faults.add(f"{where}: {fault}")
    try:
        staplerFor(settings)
    except SettingError as error:
        faults.add(str(error))
    if settings.tlsDefaultName is not None and loaded:
        names = CertificateSet(settings.tlsDefaultName)
        try:
            names.serve([each for where, each in loaded if where not in ofListeners])
        except ValueError as error:
            faults.add(f"{settings.where('tls-default-name')}: {error}")


def _tryStatus(faults: Faults, pair: CertificatePair, found: RenewableCertificate) -> None:
    # The module is imported here, because few configurations need it.
    from pop3svc.service.stapling import readStatus

    try:
        readStatus(str(pair.ocspResponse), found.chain, time.time())
    except ValueError as error:
        isTable = pair.where.endswith("]")
        where = f"{pair.where}." if isTable else pair.where.removesuffix("certificate")
        faults.add(f"{where}ocsp-response: {error}")


def _summary(settings: Settings) -> Iterable[str]:
    policy = settings.policy
    for listener in settings.listeners:
        rule = listener.cleartextLogin or policy.cleartextLogin
        tls = " with implicit TLS" if listener.tls or listener.endpoint.startswith("ssl:") else ""
        old = ""
        if listener.oldTlsFrom is not None:
            old = f"; TLS 1.0 and later, only from {', '.join(map(str, listener.oldTlsFrom))}"
        yield f"listen on {listener.endpoint}{tls}; logins without TLS: {rule}{old}"
    for text in settings.lmtp:
        yield f"take mail by LMTP on {text}"
    for store in settings.stores:
        users = f"users of {store.domain}" if store.domain else "all other users"
        accounts = ", ".join(_auth(each) for each in store.auth) or "the provider's own"
        yield f"{users}: {store.kind or 'the embedded default'}; accounts: {accounts}"
    if not settings.stores:
        yield "all users: the embedded default"
    others = [each.certificate for each in settings.certificates]
    if settings.certificateDirectory is not None:
        others.append(f"those in {settings.certificateDirectory}")
    own = "self-signed, in the data directory"
    if settings.certificate is not None or others:
        own = ", ".join([*filter(None, [settings.certificate]), *others])
    yield f"certificate: {own}"
    yield f"data directory: {settings.data or 'the embedded default'}"
    yield f"processes: {settings.workers}"
    changed = [
        f"{each.name}={getattr(policy, each.name)}"
        for each in LIMITS
        if getattr(policy, each.name) != each.default
    ]
    if changed:
        yield f"limits: {', '.join(changed)}"
    if policy.enable:
        yield f"enable: {', '.join(sorted(policy.enable))}"
    if policy.without:
        yield f"without: {', '.join(sorted(policy.without))}"


def _auth(description: str) -> str:
    kind, colon, argument = description.partition(":")
    if isinstance(description, Secret) or (kind not in _PATHS and argument):
        return f"{kind}:{_LEFT_OUT}"
    return kind + colon + argument


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quoted(_LEFT_OUT if isinstance(value, Secret) else value)
    items = sorted(value) if isinstance(value, frozenset) else value
    return f"[{', '.join(_value(str(each)) for each in items)}]"


def _quoted(text: str) -> str:
    """
    @return: a TOML string.  A JSON string is a TOML string, except that JSON writes a character
        above U+FFFF as two surrogates.
    """
    pieces = re.split("([\U00010000-\U0010ffff])", text)
    return f'"{"".join(map(_piece, pieces))}"'


def _piece(text: str) -> str:
    return f"\\U{ord(text):08x}" if text > "\uffff" else json.dumps(text)[1:-1]


def _lines(declared: Iterable[Setting], *values: Any) -> Iterable[str]:
    for setting in declared:
        for each in values:
            value = getattr(each, setting.attribute, None)
            if value is not None:
                yield f"{setting.name} = {_value(value)}"


def toTOML(settings: Settings) -> str:
    """
    @return: settings as a configuration file without secrets.
    """
    lines = list(_lines(SERVICE, settings, settings.policy))
    for listener in settings.listeners:
        lines += ["", "[[listener]]", *_lines(LISTENER, listener)]
    for pair in settings.certificates:
        lines += ["", "[[tls.certificate]]", *_lines(CERTIFICATE, pair)]
    for store in settings.stores:
        shown = replace(store, auth=tuple(map(_auth, store.auth)))
        lines += ["", "[[store]]", *_lines(STORE, shown)]
    lines += ["", "[limits]"]
    lines += _lines(LIMITS, settings.policy)
    return "\n".join(lines) + "\n"
