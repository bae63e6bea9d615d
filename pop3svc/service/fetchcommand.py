"""
C{pop3svc fetch}: fetch mail from other POP3 servers.
"""

from __future__ import annotations

import getpass
import netrc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from urllib.parse import unquote

from twisted.internet.defer import Deferred, gatherResults

from pop3svc.client.address import Address, TLSOptions
from pop3svc.client.connecting import connect
from pop3svc.client.logins import CertificateLogin, Login, PasswordLogin, TokenLogin
from pop3svc.client.protocol import POP3Client
from pop3svc.fetching.fetcher import Fetcher, Recorder
from pop3svc.fetching.record import FetchRecord
from pop3svc.fetching.targets import CommandTarget, LMTPTarget, StoreTarget, Target
from pop3svc.fetching.watching import Ending, Visit, Watch, unexpected
from pop3svc.files import longWork, readReplaceable
from pop3svc.service.configfile import Configuration, readConfiguration
from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory
from pop3svc.service.foreground import TEMPORARY, complete, endWith, makeReport, mustEnd, say
from pop3svc.service.parser import Parser
from pop3svc.service.settings import (
    BOOLEAN,
    FETCH,
    Faults,
    Fetch,
    SettingError,
    Settings,
    makeSettings,
)
from pop3svc.threadpool import BoundedThreadPool
from pop3svc.transfer.failures import NotPossible, TryAgain
from pop3svc.transfer.report import Report

__all__ = ["main", "makeParser", "prepare"]

# The most octets of a file with a password or a token.
_LARGEST_SECRET = 65_536
# The threads that wait for the programs of mda and for LMTP servers.  They are separate from the
# other threads, because a program or a server that hangs must not stop the other mailboxes.
_deliveries = BoundedThreadPool("pop3svc-delivery", threads=32, waiting=10_000)


def main(argv: Sequence[str]) -> NoReturn:
    """
    Run the command C{pop3svc fetch}, and end the process.  The exit status is 0 if all mail was
    fetched, 75 if a later attempt may succeed, and otherwise 1.

    @param argv: the arguments after the name of the command.
    """

    def run() -> int:
        arguments = makeParser().parse_args(list(argv))
        settings, accounts = prepare(arguments)
        path = arguments.state
        if path is None:
            data = DataDirectory(settings.data or defaultDataDirectory())
            data.make()
            path = data.fetchRecord
        work = _Work(accounts, settings, FetchRecord(path))
        return complete(lambda: work.run(arguments.watch), work.end)

    endWith(run)


def prepare(arguments: Any) -> tuple[Settings, list[_Account]]:
    """
    Read the settings, and ask for passwords.  Call this function before the reactor runs, because a
    question on the terminal would block the reactor.

    @param arguments: the arguments of the command line.
    @raise SettingError: a setting cannot be used.
    """
    settings, fetches = _settings(arguments)
    accounts = [_Account.make(each) for each in fetches]
    names = [each.name for each in accounts]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"{name} is named twice")
    return settings, [each.withLogin() for each in accounts]


# --- the command line ------------------------------------------------------------------


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc fetch}.
    """
    parser = Parser(
        prog="pop3svc fetch",
        description="Fetch new mail from POP3 servers, and store each message once.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="configuration file with [[fetch]]")
    parser.add_argument("--data", metavar="DIRECTORY", help="the same value as for pop3svc serve")
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="record of fetched messages (default: fetch.db in the data directory)",
    )
    parser.add_argument("--watch", action="store_true", help="fetch regularly, until interrupted")
    parser.add_argument("--password-file", metavar="FILE", help="file with the password")
    for setting in FETCH:
        if not setting.isOption:
            continue
        option, help = f"--{setting.name}", setting.help.replace("%", "%%")
        if setting.kind is BOOLEAN:
            parser.add_argument(option, action="store_true", default=None, help=help)
        else:
            parser.add_argument(option, metavar=setting.kind.name, help=help)
    parser.add_argument("urls", metavar="URL", nargs="*", help="such as pop3s://USER@HOST")
    return parser


def _settings(arguments: Any) -> tuple[Settings, list[Fetch]]:
    faults = Faults()
    configuration = Configuration("")
    if arguments.config is not None:
        if arguments.urls:
            raise SettingError("a URL cannot be combined with --config")
        configuration = readConfiguration(os.path.abspath(arguments.config), faults)
    values = dict(configuration.values)
    if arguments.data is not None:
        values["data"] = arguments.data
    settings = makeSettings(
        *(values, configuration.limits, configuration.listeners, configuration.stores),
        *(configuration.certificates, configuration.secretFiles, configuration.origins, faults),
    )
    faults.check()
    given = _given(arguments)
    if arguments.config is not None:
        if given:
            name = next(each for each in FETCH if each.attribute in given).name
            raise SettingError(f"--{name} cannot be combined with --config")
        fetches = configuration.fetches
        if not fetches:
            raise SettingError(f"--config {arguments.config}: there is no [[fetch]]")
    else:
        fetches = [Fetch("", each, **given) for each in arguments.urls]
        if not fetches:
            raise SettingError("a URL such as pop3s://USER@HOST is needed, or --config FILE")
    return settings, fetches


def _given(arguments: Any) -> dict[str, Any]:
    """
    @return: the settings of the command line for the mailboxes, by the attributes of L{Fetch}.
    """
    given: dict[str, Any] = {}
    for setting in FETCH:
        value = getattr(arguments, setting.name.replace("-", "_"), None)
        if setting.isOption and value is not None:
            try:
                given[setting.attribute] = (
                    value if setting.kind is BOOLEAN else setting.kind.fromText(value)
                )
            except ValueError as error:
                raise SettingError(f"--{setting.name}: {error}")
    if arguments.password_file is not None:
        given["password"] = _secretIn(arguments.password_file, "--password-file")
    return given


def _secretIn(path: str, where: str) -> str:
    """
    @return: the text of a file, without the line end after the text.
    """
    try:
        data = readReplaceable(path, _LARGEST_SECRET)
    except OSError as error:
        raise SettingError(f"{where} {path}: {error.strerror}")
    text = data.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
    if not text:
        raise SettingError(f"{where} {path}: is empty")
    return text


# --- the accounts ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Account:
    """
    A mailbox whose mail the command fetches.

    @ivar name: the name of the account, in messages and in the record.
    @ivar login: the credentials; L{None} before L{withLogin}.  For a login with a token it stays
        L{None}, because the token is read again at each login.
    """

    setting: Fetch
    address: Address
    user: str
    name: str
    tls: TLSOptions | None
    login: Login | None = None

    @classmethod
    def make(cls, setting: Fetch) -> _Account:
        """
        @raise SettingError: a setting cannot be used.
        """
        where = f"{setting.where}: " if setting.where else ""
        user, url = _split(setting.url, where)
        if user and setting.user:
            raise SettingError(f"{where}the URL has a user already, so leave out user")
        user = user or setting.user or ""
        try:
            address = Address.parse(url)
            if address.isIMAP:
                raise ValueError("pop3svc fetch needs a URL such as pop3s://HOST")
            if setting.insecure and address.isTLS:
                raise ValueError("insecure is for pop3:// only")
            if setting.privateKey and not setting.certificate:
                raise ValueError("private-key requires certificate")
            if setting.insecure and (setting.ca or setting.certificate):
                raise ValueError("ca and certificate cannot be combined with insecure")
            if setting.token and (setting.password or setting.certificate):
                raise ValueError("token cannot be combined with a password or a certificate")
            if setting.password and setting.certificate:
                raise ValueError("a password cannot be combined with a certificate")
            if not user and not setting.certificate:
                raise ValueError(f"{url} needs a user, such as pop3s://USER@HOST")
            if bool(setting.to) == bool(setting.mda):
                raise ValueError("either to or mda is needed; to may be maildir:PATH, for example")
            tls = None
            if not setting.insecure:
                tls = TLSOptions(address.host, setting.ca, setting.certificate, setting.privateKey)
        except ValueError as error:
            raise SettingError(f"{where}{error}")
        return cls(setting, address, user, f"{user}@{address}" if user else str(address), tls)

    def withLogin(self) -> _Account:
        """
        Make L{login}, unless the login needs a token.  A password comes from the settings or from
        the file C{.netrc}, or this method asks for it.

        @return: the account with L{login}.
        @raise SettingError: the password cannot be found or used.
        """
        setting = self.setting
        if setting.token:
            return self
        try:
            if setting.certificate:
                return replace(self, login=CertificateLogin(self.user))
            password = setting.password or _ofNetrc(self.address.host, self.user) or self._ask()
            return replace(self, login=PasswordLogin(self.user, password))
        except ValueError as error:
            raise SettingError(f"{self.name}: {error}")

    def _ask(self) -> str:
        if not sys.stdin.isatty():
            raise SettingError(
                f"{self.name} needs a password: --password-file FILE, password in the "
                "configuration, or a line of ~/.netrc"
            )
        return getpass.getpass(f"Password of {self.name}: ")

    async def connect(self, clock: Any) -> POP3Client:
        """
        Connect to the server, and log in.
        """
        login = self.login
        if login is None:
            path = self.setting.token or ""
            try:
                token = await longWork().run(_secretIn, path, "token")
                login = TokenLogin(self.user, token.strip())
            except SettingError as error:
                # Another program may be renewing the token, so a later attempt may succeed.
                raise TryAgain(str(error))
            except ValueError as error:
                raise TryAgain(f"token {path}: {error}")
        return await connect(clock, self.address, login, self.tls, self.setting.mechanism)

    def target(self, settings: Settings, clock: Any) -> Target:
        """
        @raise NotPossible: the target cannot be used.
        """
        setting = self.setting
        if setting.mda is not None:
            return CommandTarget(setting.mda, _deliveries)
        kind, _, place = (setting.to or "").partition(":")
        if kind in ("maildir", "mbox") and place:
            return StoreTarget(kind, place, clock, settings.policy.answerTimeout)
        if kind == "lmtp" and place:
            return LMTPTarget(place, setting.recipient or self.user, _deliveries)
        raise NotPossible("to must be maildir:PATH, mbox:PATH, lmtp:PATH or lmtp:HOST:PORT")


def _split(url: str, where: str) -> tuple[str, str]:
    """
    @return: the user that a URL names, and the URL without the user.
    """
    scheme, colon, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if not at:
        return "", url
    if ":" in user:
        raise SettingError(
            f"{where}a password in a URL is visible to others: use --password-file, password in "
            "the configuration, or ~/.netrc"
        )
    return unquote(user, errors="surrogateescape"), f"{scheme}{colon}{host}"


def _ofNetrc(host: str, user: str) -> str | None:
    """
    @return: the password in the file that C{$NETRC} names, or in C{~/.netrc}; L{None} if the file
        does not exist, or has no password for this user.
    @raise SettingError: the file cannot be used.
    """
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except netrc.NetrcParseError as error:
        # The message does not contain the text of the error, because that might contain a password.
        raise SettingError(f"{path}: line {error.lineno} cannot be read")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}")
    if found is None or found[0] not in (user, "") or not found[2]:
        return None
    return found[2]


# --- the work --------------------------------------------------------------------------


class _Work:
    """
    The mailboxes that one command fetches.
    """

    def __init__(
        self, accounts: Sequence[_Account], settings: Settings, record: FetchRecord
    ) -> None:
        self._accounts = accounts
        self._settings = settings
        self._record = record
        self._ending: Ending | None = None

    def end(self) -> None:
        """
        Tell the command to end soon.
        """
        if self._ending is not None:
            self._ending.begin()

    async def run(self, isWatching: bool) -> int:
        """
        @return: the exit status of the command.
        """
        from twisted.internet import reactor

        self._clock: Any = reactor
        self._ending = Ending(reactor)
        if isWatching:
            works = [Deferred.fromCoroutine(self._try(each, True)) for each in self._accounts]
            return _worst(await gatherResults(works))
        statuses = []
        for each in self._accounts:
            statuses.append(await self._try(each, False))
            if mustEnd():
                break
        return _worst(statuses)

    async def _try(self, account: _Account, isWatching: bool) -> int:
        """
        @return: the exit status for one mailbox.
        """
        try:
            return await self._one(account, isWatching)
        except TryAgain as error:
            say(f"{error}; run the command again to continue")
            return TEMPORARY
        except (NotPossible, SettingError) as error:
            say(str(error))
            return 1
        except Exception as error:
            # Report the error and go on with the other mailboxes.
            say(f"{unexpected(account.name, error)}; run the command again to continue")
            return TEMPORARY

    async def _one(self, account: _Account, isWatching: bool) -> int:
        target = account.target(self._settings, self._clock)
        number = await longWork().run(self._record.open, account.name)
        recorder = Recorder(self._record, number, longWork(), account.setting.delete)
        await recorder.load()
        report = makeReport()
        fetcher = Fetcher(
            *(account.name, recorder, target, report, longWork()),
            *(self._settings.policy.maxMessageSize, account.setting.delete, mustEnd),
        )
        visit = Visit(
            *(account.name, lambda: account.connect(self._clock), fetcher),
            isRefusalFinal=account.setting.token is None,
        )
        try:
            if isWatching:
                await self._watch(account, visit, report)
                return 0
            stored = await visit.run()
        finally:
            await target.close()
        report.conclude(f"{account.name}: {_messages(stored)} fetched")
        return report.exitStatus

    async def _watch(self, account: _Account, visit: Visit, report: Report) -> None:
        assert self._ending is not None

        def fetched(stored: int) -> None:
            print(f"{account.name}: {_messages(stored)} fetched", flush=True)

        await Watch(
            *(visit, self._ending, account.setting.interval),
            *(lambda text: say(f"{text}; trying again"), fetched),
        ).run()


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _worst(statuses: Sequence[int]) -> int:
    return 1 if 1 in statuses else max(statuses, default=0)
