"""
Accounts in a database.  A query that the operator has written finds the account of a user.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.apppasswords import AppPassword, secretIn
from pop3svc.accounts.comparison import PasswordComparison, UsualCost
from pop3svc.accounts.hashes import HASHES, KINDS, HashReader
from pop3svc.accounts.restrictions import Restrictions, networksOf, reasonOf
from pop3svc.accounts.scramkeys import KeyForms, ScramSource
from pop3svc.accounts.sqlapppasswords import BadQuery, SQLAppPasswords, valuesOf
from pop3svc.awaiting import startNow
from pop3svc.credentials import IPasswordAttempt, PasswordAttempt
from pop3svc.database import Database, DatabaseRefused, DatabaseUnavailable, Transaction
from pop3svc.drivers import isUnencodable, parametersOf
from pop3svc.errors import POP3ResponseError
from pop3svc.health import Health
from pop3svc.interfaces import (
    IAccountNames,
    IAccountStatus,
    IPasswordComparing,
    IPOP3ConnectionInfo,
    IProvenAccounts,
    IReloading,
    IScramAccounts,
    ISharedSecrets,
    ScramKeys,
    SharedSecret,
)
from pop3svc.once import Once
from pop3svc.threadpool import Executor

__all__ = ["COLUMNS", "PARAMETERS", "SQLAccounts"]

log = Logger(namespace="pop3svc")

PARAMETERS = ("user", "local", "domain")
COLUMNS = ("password", "user", "nologin", "allow_nets")
# The most octets of a name that is looked up.  A mail address has at most 254 octets (RFC 5321
# section 4.5.3.1).
_LONGEST_NAME = 512

# The first characters of the credentialsVersion of a session that has logged in with an application
# password.
_APP = "app:"


class _BadAccount(Exception):
    """
    The row of a user cannot be used.  The text of the exception is the reason.  It does not contain
    the stored password.
    """


class _Row(NamedTuple):
    """
    The row of a user.

    @ivar user: the name of the mailbox; L{None} if it is the name of the login.
    """

    password: str
    user: str | None
    restrictions: Restrictions


# --- the query ------------------------------------------------------------------


def _columnsOf(cursor: Any) -> list[str]:
    """
    @return: the names of the columns that a query has returned.
    @raise BadQuery: a required column is missing, or a column is unknown.
    """
    if cursor.description is None:
        raise BadQuery("the query returns no rows")
    columns = [str(each[0]).lower() for each in cursor.description]
    allowed = f"a query must return password, and may return {', '.join(COLUMNS[1:])}"
    if len(set(columns)) != len(columns):
        raise BadQuery(f"the query returns a column twice; {allowed}")
    if "password" not in columns:
        raise BadQuery(f"the query returns no column password; {allowed}")
    others = sorted(set(columns) - set(COLUMNS))
    if others:
        raise BadQuery(f"the query returns a column {others[0]}; {allowed}")
    return columns


def _look(transaction: Transaction, query: str, name: str) -> list[dict[str, Any]]:
    """
    @return: the rows of a user, at most two of them.
    """
    cursor = transaction.execute(query, **valuesOf(name))
    columns = _columnsOf(cursor)
    return [dict(zip(columns, each, strict=True)) for each in cursor.fetchmany(2)]


def _textOf(value: Any) -> str:
    """
    @raise _BadAccount: the value cannot be converted to a text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        # The value may have been a text, because SQLite converts a text in a column of numbers.
        return str(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    raise _BadAccount("a column that is no text")


def _rowOf(values: dict[str, Any]) -> _Row:
    try:
        networks = networksOf(_textOf(values.get("allow_nets")))
    except ValueError as error:
        raise _BadAccount(str(error))
    return _Row(
        _textOf(values["password"]),
        _textOf(values.get("user")) or None,
        Restrictions(reasonOf(_textOf(values.get("nologin"))), networks),
    )


# --- the checker ------------------------------------------------------------------


@implementer(
    ICredentialsChecker,
    IAccountNames,
    IAccountStatus,
    IPasswordComparing,
    IProvenAccounts,
    IReloading,
    IScramAccounts,
    ISharedSecrets,
)
class SQLAccounts:
    """
    A checker that finds each account by a query.  The query has the parameter C{:user} or
    C{:local}, and perhaps C{:domain}.  The driver binds their values.  The query returns one row or
    none, with these columns:

      - C{password}: a stored password of L{pop3svc.accounts.hashes}.
      - C{user}: the name of the mailbox, if it is not the name of the login.
      - C{nologin}: empty or false (such as 0 or C{no}) if the user may log in.  If it is not a
        truth value, it is the reason for the client.
      - C{allow_nets}: the networks from which the user may log in, separated by commas or spaces.

    The transaction is read-only.  A user whose account cannot be used cannot log in.  The log names
    the account once.
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    def __init__(
        self,
        database: Database,
        query: str,
        reader: HashReader = HASHES,
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
        apps: SQLAppPasswords | None = None,
    ) -> None:
        """
        @param reader: decides which kinds of stored passwords can be used.
        @param runner: runs the comparisons of passwords.
        @param clock: used for time limits; the reactor if not given.
        @param apps: the application passwords of the users; L{None} if there are none.
        @raise ValueError: the query has neither C{:user} nor C{:local}, or has an unknown
            parameter.  The text is a sentence for the operator.
        """
        used = parametersOf(query)
        others = sorted(used - set(PARAMETERS))
        if others:
            raise ValueError(
                f"the query has a parameter :{others[0]}; there are :user, :local and :domain"
            )
        if not used & {"user", "local"}:
            raise ValueError("the query has no parameter :user or :local, so it finds no user")
        self._database = database
        self._query = query
        self._reader = reader
        self._name = f"accounts in {database.name}"
        self._comparison = PasswordComparison(self._name, reader, runner, clock)
        self._usual = UsualCost()
        self._scram = ScramSource(reader, runner, clock)
        self._keyForms = KeyForms(reader)
        # The query has its own Health, because the query may fail while the database works.
        self._health = Health(f"the query for {self._name}")
        self._reported = Once()
        self._secret = secrets.token_bytes(16)
        self._apps = apps
        # For each connection of a client: the version of the row that provenMailbox() has used.
        # The version is kept until the session asks for it.
        self._versions: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def check(self) -> None:
        """
        Try the query.  This method blocks for a limited time.

        @raise DatabaseUnavailable: the database cannot work now.
        @raise ValueError: the query is wrong, or a setting of the database is wrong.  The text is a
            sentence for the operator.
        """
        try:
            self._database.check(_look, self._query, "nobody@example.invalid")
            if self._apps is not None:
                self._apps.check()
        except BadQuery as error:
            raise ValueError(str(error))
        except DatabaseRefused as error:
            raise ValueError(str(error))
        except DatabaseUnavailable as error:
            self._database.health.failed(str(error).removeprefix(f"{self._database.name}: "))
            raise
        except Exception as error:
            raise ValueError(f"the query fails: {' '.join(str(error).split())}")

    @property
    def databasePath(self) -> str | None:
        """
        The path of an SQLite database; L{None} for other databases.
        """
        return self._database.path

    # --- asking the database ------------------------------------------------------------

    async def _rows(self, name: str) -> list[dict[str, Any]]:
        """
        @return: the rows of a user, at most two of them.
        @raise POP3ResponseError: C{SYS/TEMP}: the database or the query has failed.
        """
        if not _mayBeInDatabase(name):
            return []
        try:
            rows = await self._database.run(_look, self._query, name, isReading=True)
        except DatabaseUnavailable:
            # The class Database has already logged the failure.
            raise _unavailable()
        except Exception as error:
            if isUnencodable(error):
                # There is no such user, because the name has a character that the encoding of the
                # database cannot represent.
                return []
            self._health.failed(" ".join(str(error).split()) or type(error).__name__)
            raise _unavailable()
        self._health.succeeded()
        return rows

    async def _find(self, name: str) -> _Row | None:
        """
        @return: the row of a user; L{None} if there is no row, or if it cannot be used.
        """
        rows = await self._rows(name)
        if not rows:
            return None
        try:
            if len(rows) > 1:
                raise _BadAccount("the query returns more than one row")
            row = _rowOf(rows[0])
            self._usual.add(self._costOf(row), row.password)
            self._keyForms.add(row.password)
            self._scram.hasPlain = self._scram.hasPlain or self._reader.isPlain(row.password)
        except _BadAccount as error:
            self._report(name, str(error))
            return None
        return row

    def _costOf(self, row: _Row) -> float:
        try:
            return self._reader.costOf(row.password)
        except ValueError as error:
            raise _BadAccount(f"{error} (supported kinds: {KINDS})")

    def _report(self, name: str, fault: str) -> None:
        if self._reported.isFirst((name, fault)):
            log.error(
                "{source}: {name} cannot log in: {fault}", source=self._name, name=name, fault=fault
            )

    # --- for the service ------------------------------------------------------------------

    def rememberChecks(self, seconds: int) -> None:
        """
        See L{IPasswordComparing.rememberChecks}.
        """
        self._comparison.remember(seconds)
        if self._apps is not None:
            self._apps.comparison.remember(seconds)

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name of the mailbox in UTF-8.
        @raise POP3ResponseError: C{SYS/TEMP} if the database or the comparison has failed;
            C{SYS/PERM} if the password is right but the user may not log in.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        username: bytes = credentials.username
        name = username.decode("utf-8", "surrogateescape")
        row = await self._find(name)
        secret = None if self._apps is None else secretIn(credentials.password)
        if secret is not None:
            app = await self._app(name, secret[0])
            if app is not None and row is not None:
                return await self._checkedByApp(credentials, row, app, secret)
        # Compare the password with a hash of the usual cost if the user does not exist, so that the
        # time is the same as for a user who exists.
        stored = None if row is None else row.password
        isRight = await self._comparison.isRight(
            credentials,
            stored,
            self._usual.example() or "",
            row is not None and row.restrictions.mayLogIn(credentials),
        )
        if row is None or not isRight or not row.restrictions.allows(credentials):
            raise UnauthorizedLogin()
        if row.restrictions.nologin is not None:
            # Do not use the code AUTH, because the attempt would count as a wrong guess, and the
            # client would not get the reason.
            raise POP3ResponseError(row.restrictions.nologin, "SYS/PERM")
        if isinstance(credentials, PasswordAttempt):
            credentials.version = self._versionOf(row)
        return _mailboxOf(username, row)

    async def _app(self, name: str, selector: str) -> AppPassword | None:
        if self._apps is None or not _mayBeInDatabase(name):
            return None
        return await self._apps.find(name, selector)

    async def _checkedByApp(
        self, credentials: Any, row: _Row, app: AppPassword, secret: tuple[str, bytes]
    ) -> bytes:
        """
        Check an application password.
        """
        assert self._apps is not None
        username: bytes = credentials.username
        now = time.time()
        mayBeUsed = row.restrictions.allows(credentials) and app.mayBeUsed(credentials, now)
        isRight = await self._apps.comparison.isRight(
            credentials,
            app.stored,
            mayLogIn=mayBeUsed and row.restrictions.nologin is None,
            secret=secret[1],
        )
        if not isRight or not mayBeUsed:
            raise UnauthorizedLogin()
        if row.restrictions.nologin is not None:
            raise POP3ResponseError(row.restrictions.nologin, "SYS/PERM")
        if isinstance(credentials, PasswordAttempt):
            credentials.version = self._appVersion(row, app, secret[0])
        self._apps.used(username.decode("utf-8", "surrogateescape"), secret[0], now)
        return _mailboxOf(username, row)

    def _appVersion(self, row: _Row, app: AppPassword, selector: str) -> str:
        """
        @return: the credentialsVersion of a session that has logged in with an application
            password.
        """
        return f"{_APP}{selector}:{self._digestOf((app, row.user, row.restrictions))}"

    async def scramKeys(
        self, info: IPOP3ConnectionInfo, username: str, algorithm: str, salt: bytes
    ) -> ScramKeys | None:
        """
        See L{IScramAccounts.scramKeys}.  A user who may not log in has no keys.
        """
        row = await self._find(username)
        stored = None if row is None else row.password
        keys = await self._scram.keysOf(stored, algorithm, salt)
        if (
            keys is None
            or row is None
            or row.restrictions.nologin is not None
            or not row.restrictions.allows(info)
        ):
            return None
        return replace(keys, mailbox=row.user or "", version=self._versionOf(row))

    async def sharedSecret(self, info: IPOP3ConnectionInfo, username: str) -> SharedSecret | None:
        """
        See L{ISharedSecrets.sharedSecret}.  A user who may not log in has no secret.
        """
        row = await self._find(username)
        if row is None or not row.restrictions.mayLogIn(info):
            return None
        password = self._reader.passwordOf(row.password)
        if password is None:
            return None
        return SharedSecret(password, row.user or "", self._versionOf(row))

    def exampleScramKeys(self, username: str, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        See L{IScramAccounts.exampleScramKeys}.  The example has the form of the keys of users who
        have tried to log in.
        """
        return self._keyForms.example(algorithm, seed)

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}.
        """
        row = await self._find(username)
        if row is None or not row.restrictions.allows(info):
            return None
        if row.restrictions.nologin is not None:
            raise POP3ResponseError(row.restrictions.nologin, "SYS/PERM")
        self._versions[info] = self._versionOf(row)
        return row.user or username

    def _versionOf(self, row: _Row) -> str:
        return self._digestOf(row)

    def _digestOf(self, values: Iterable[Any]) -> str:
        fields = "\0".join(str(each) for each in values)
        octets = fields.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(octets, key=self._secret, digest_size=16).hexdigest()

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}.  The version is a keyed digest of the user's row
        at the time of the login.
        """
        known = self._versions.pop(info, None)
        if known is not None:
            return known
        return startNow(self._currentVersion(info.userNameAtLogin or username))

    async def _currentVersion(self, name: str) -> str:
        row = await self._find(name)
        return "" if row is None or row.restrictions.nologin is not None else self._versionOf(row)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}.
        """
        # Search for the name of the login, because the mailbox may have another name.
        return startNow(self._isStillValid(info.userNameAtLogin or username, version))

    async def _isStillValid(self, name: str, version: str) -> bool:
        if version.startswith(_APP):
            return await self._isAppStillValid(name, version)
        now = await self._currentVersion(name)
        return now != "" and hmac.compare_digest(now, version)

    async def _isAppStillValid(self, name: str, version: str) -> bool:
        selector = version.split(":")[1]
        row = await self._find(name)
        app = await self._app(name, selector)
        if row is None or row.restrictions.nologin is not None or app is None:
            return False
        now = self._appVersion(row, app, selector)
        return not app.isExpired(time.time()) and hmac.compare_digest(now, version)

    def hasAccount(self, username: str) -> Any:
        """
        See L{IAccountNames.hasAccount}.  If the mailbox of this user has another name, the result
        is False.  Nobody would read mail that is delivered to this name.  A user who may not log in
        has an account as well.
        """
        return startNow(self._hasAccount(username))

    async def _hasAccount(self, username: str) -> bool:
        for each in await self._rows(username):
            try:
                user = _textOf(each.get("user"))
            except _BadAccount:
                continue
            if user in ("", username):
                return True
        return False

    def reload(self) -> None:
        """
        See L{IReloading.reload}.  Log each error again, even if it was logged before.
        """
        self._reported = Once()
        self._comparison.forget()
        if self._apps is not None:
            self._apps.forget()


def _unavailable() -> POP3ResponseError:
    return POP3ResponseError("Accounts are not available now.", "SYS/TEMP")


def _mayBeInDatabase(name: str) -> bool:
    return "\0" not in name and len(name) <= _LONGEST_NAME and _isUTF8(name)


def _mailboxOf(username: bytes, row: _Row) -> bytes:
    return username if row.user is None else row.user.encode("utf-8", "surrogateescape")


def _isUTF8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
