"""
A source of accounts: a file with names and hashed passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.apppasswordfile import AppPasswordFile
from pop3svc.accounts.apppasswordlines import Entry, fileOf
from pop3svc.accounts.apppasswords import secretIn
from pop3svc.accounts.comparison import PasswordComparison, UsualCost
from pop3svc.accounts.hashes import HASHES, KINDS
from pop3svc.accounts.linefiles import linesOf
from pop3svc.accounts.passwordlines import checkUserName, extrasOf, nameIn, verifierIn
from pop3svc.accounts.restrictions import BARRED, Restrictions, networksOf, reasonOf
from pop3svc.accounts.scramkeys import ALGORITHMS, KeyForms, ScramSource
from pop3svc.accounts.verifiers import VerifierAdder
from pop3svc.awaiting import CallTimeout, Shielded, settled, startNow
from pop3svc.credentials import IPasswordAttempt, PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.files import FileStamp, stampOf
from pop3svc.interfaces import (
    IAccountNames,
    IAccountStatus,
    IPasswordComparing,
    IPOP3ConnectionInfo,
    IProvenAccounts,
    IReloading,
    IScramAccounts,
    ISharedSecrets,
    IUserFacts,
    IVerifierAdding,
    ScramKeys,
    SharedSecret,
    UserFacts,
)
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = [
    "Accounts",
    "BadLine",
    "PasswordFile",
    "PasswordFileNames",
    "readPasswordFile",
]

log = Logger(namespace="pop3svc")

# A separate thread reads password files, because other threads may hang on a disk with mail.
_reading = BoundedThreadPool("pop3svc-accounts", threads=1, waiting=100)

# The most unusable lines that the log lists one by one.  A file with more unusable lines probably
# has another format.
_MOST_NAMED = 1000


class BadLine(NamedTuple):
    """
    A line that cannot be used.

    @ivar number: the number of the line.  The first line has the number 1.
    @ivar name: the user who cannot log in because of this line; empty if the line has no valid
        name, or has the name of an earlier line.
    @ivar fault: a short reason.  It does not contain the content of the line.
    """

    number: int
    name: str
    fault: str

    def __str__(self) -> str:
        whom = f"{self.name} cannot log in" if self.name else "ignored"
        return f"line {self.number}: {whom}: {self.fault}"


class Accounts(NamedTuple):
    """
    The content of a password file.

    @ivar hashes: the hash of each user, by the name of the user.
    @ivar restrictions: the restrictions, by the name of the user.  Users without restrictions are
        left out.
    @ivar verifiers: the verifiers for SCRAM in the extra fields, by the name of the user and by
        algorithm (C{"sha1"}, C{"sha256"}).
    @ivar facts: the fields uid, gid, gecos and home, by the name of the user.  Users whose fields
        are empty are left out.
    @ivar badLines: the lines that cannot be used, at most L{_MOST_NAMED} of them.
    @ivar badCount: the number of all lines that cannot be used.
    @ivar plainCount: the number of passwords that are stored without a hash.
    @ivar standIn: a hash of the median cost.  The password of an unknown user is compared with this
        hash.
    @ivar keyForms: the forms of the users' keys for SCRAM.
    """

    hashes: Mapping[str, str]
    restrictions: Mapping[str, Restrictions]
    verifiers: Mapping[str, Mapping[str, str]]
    facts: Mapping[str, str]
    badLines: Sequence[BadLine]
    badCount: int
    plainCount: int
    standIn: str
    keyForms: KeyForms

    def complaints(self) -> list[str]:
        """
        @return: a sentence for the operator about each line that cannot be used.
        """
        sentences = [str(each) for each in self.badLines]
        if self.badCount > len(sentences):
            sentences.append(f"{self.badCount - len(sentences)} more lines cannot be used")
        return sentences


# --- the file -----------------------------------------------------------------


class _Extras(NamedTuple):
    """
    The extra fields of a line.

    @ivar restrictions: the restrictions of the user; L{None} if there are none.
    @ivar verifiers: the verifiers that belong to the hash, by algorithm.
    """

    restrictions: Restrictions | None = None
    verifiers: Mapping[str, str] = {}


_NO_EXTRAS = _Extras()


def _extrasIn(stored: str, fields: str) -> _Extras:
    """
    Read the extra fields.  They are C{nologin} and C{allow_nets} of Dovecot, and fields with
    verifiers.

    @param stored: the hash of the line.
    @param fields: the part of a line after the hash and its colon.
    @raise ValueError: a field is malformed.  The text is a short reason.
    """
    nologin: str | None = None
    networks: Sequence[Any] = ()
    verifiers: dict[str, str] = {}
    for each in (extrasOf(fields) or "").split():
        key, _, value = each.partition("=")
        if key == "nologin":
            # The field forbids the login whatever its value is, as in Dovecot.
            nologin = reasonOf(value) or BARRED
        elif key == "allow_nets":
            networks = networksOf(value)
            if not networks:
                raise ValueError("allow_nets is no list of networks")
        elif (verifier := verifierIn(stored, key, value)) is not None:
            HASHES.costOf(verifier[1])
            verifiers[verifier[0]] = verifier[1]
    restrictions = Restrictions(nologin, networks) if nologin or networks else None
    return _Extras(restrictions, verifiers)


# The number of fields with facts about a user: uid, gid, gecos and home.
_FACTS = 4
# This value replaces a uid or a gid that is not a number.  No user has it.
_INVALID = -1
_LONGEST_NUMBER = 10


def _factsIn(fields: str) -> UserFacts:
    """
    Read the fields uid, gid and home, which have the same meaning as in Dovecot's passwd-file.

    @param fields: the fields uid, gid, gecos and home, with their colons.
    """
    uid, gid, _, home, *_ = [*fields.split(":"), "", "", "", ""]
    return UserFacts(home, _numberIn(uid), _numberIn(gid))


def _numberIn(field: str) -> int | None:
    if not field:
        return None
    isNumber = field.isascii() and field.isdigit() and len(field) <= _LONGEST_NUMBER
    return int(field) if isNumber else _INVALID


def _parse(lines: Iterable[str]) -> Accounts:
    hashes: dict[str, str] = {}
    restrictions: dict[str, Restrictions] = {}
    verifiers: dict[str, Mapping[str, str]] = {}
    facts: dict[str, str] = {}
    bad: list[BadLine] = []
    excluded: set[str] = set()
    badCount = plainCount = 0
    costs, keyForms = UsualCost(), KeyForms()
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, stored = line.partition(":")
        valid = ""
        try:
            if not colon:
                raise ValueError("no colon")
            name = valid = checkUserName(name)
            if name in hashes or name in excluded:
                # Use the first line of a user, as Dovecot does.
                valid = ""
                raise ValueError("the user name is listed twice")
            stored, _, fields = stored.partition(":")
            cost = HASHES.costOf(stored)
            extras = _extrasIn(stored, fields) if fields else _NO_EXTRAS
        except ValueError as error:
            badCount += 1
            if valid:
                excluded.add(valid)
            if len(bad) < _MOST_NAMED:
                bad.append(BadLine(number, valid, str(error)))
            continue
        hashes[name] = stored
        if extras.restrictions is not None:
            restrictions[name] = extras.restrictions
        if extras.verifiers:
            verifiers[name] = extras.verifiers
            for each in extras.verifiers.values():
                keyForms.add(each)
        between = ":".join(fields.split(":", _FACTS)[:_FACTS])
        if between.strip(":"):
            facts[name] = between
        costs.add(cost, stored)
        plainCount += HASHES.isPlain(stored)
        if stored.startswith("{"):
            keyForms.add(stored)
    standIn = costs.example() or ""
    return Accounts(
        hashes, restrictions, verifiers, facts, bad, badCount, plainCount, standIn, keyForms
    )


# The first characters of the credentialsVersion of a session that has logged in with an application
# password.
_APP = "app:"
# The restrictions of a user who has none.
_FREE = Restrictions()


def readPasswordFile(path: str) -> Accounts:
    """
    Read a password file.  Blocks.

    @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
    """
    return _parse(linesOf(path))


def _readStamped(path: str) -> tuple[FileStamp | None, Accounts | str]:
    """
    Read a password file and the stamp of the file.

    @return: the stamp of the file before it was read, and the accounts.  If the file cannot be
        read, the second value is a text with the reason.
    """
    stamp = stampOf(path)
    try:
        return stamp, readPasswordFile(path)
    except ValueError as error:
        return stamp, str(error)


@implementer(
    ICredentialsChecker,
    IAccountNames,
    IAccountStatus,
    IPasswordComparing,
    IProvenAccounts,
    IReloading,
    IScramAccounts,
    ISharedSecrets,
    IUserFacts,
    IVerifierAdding,
)
class PasswordFile:
    """
    A checker that finds users in a file.  The file has a line C{name:hash} for each user.  Further
    fields may follow, as in Dovecot's passwd-file: C{name:hash:uid:gid:gecos:home:shell:extra}.
    The extra fields C{nologin} and C{allow_nets} have the same effect as in Dovecot.  Further extra
    fields contain verifiers; see L{pop3svc.accounts.passwordlines}.  Stores with mail in the home
    directories of users use the fields uid, gid and home.  The other fields are not used.

    If the file has changed, a thread reads it again.  If a line cannot be used, the user of this
    line cannot log in.  Other users are not affected.  If the file cannot be read, the previous
    accounts stay in use.

    L{pop3svc.accounts.hashes} defines the kinds of hashes.
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    # Seconds that a login waits until a changed file has been read again.  After this time the
    # login is checked with the old accounts.
    PATIENCE = 5.0
    # Seconds between two attempts to read a file that cannot be read.
    RETRY = 1.0

    def __init__(
        self, path: str, runner: Executor | None = None, clock: IReactorTime | None = None
    ) -> None:
        """
        @param runner: runs slow comparisons and the reading of the file.
        @param clock: used for time limits; the reactor if not given.
        @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
        """
        self._path = os.path.abspath(path)
        self._comparison = PasswordComparison(self._path, HASHES, runner, clock)
        self._scram = ScramSource(HASHES, runner, clock)
        self._reader = _reading if runner is None else runner
        self._runner = runner
        self._adder: VerifierAdder | None = None
        self._apps = AppPasswordFile(self._path, runner, clock)
        self._clock = clock
        self._rereading: Shielded | None = None
        self._tried = 0.0
        self._fault = ""
        self._reported: set[tuple[str, str]] = set()
        self._plainReported = 0
        self._secret = secrets.token_bytes(16)
        self._seen, accounts = _readStamped(self._path)
        if isinstance(accounts, str):
            raise ValueError(accounts)
        self._accounts = accounts
        self._report()

    @property
    def path(self) -> str:
        """
        The absolute path of the file.
        """
        return self._path

    @property
    def appPasswordPath(self) -> str:
        """
        The absolute path of the file of application passwords.  The file need not exist.
        """
        return fileOf(self._path)

    # --- reading ------------------------------------------------------------------

    def _report(self) -> None:
        """
        Log each line that cannot be used, and the number of passwords without a hash.  Log nothing
        that is the same as in the previous reading.  Forget what was computed from the previous
        accounts.
        """
        accounts = self._accounts
        reported: set[tuple[str, str]] = set()
        for line in accounts.badLines:
            key = line.name or str(line.number), line.fault
            reported.add(key)
            if key not in self._reported:
                log.error(
                    "{path}, {line} (supported kinds: {kinds})",
                    path=self._path,
                    line=str(line),
                    kinds=KINDS,
                )
        more = accounts.badCount - len(accounts.badLines)
        if more:
            reported.add(("", str(more)))
            if ("", str(more)) not in self._reported:
                log.error("{path}: {count} more lines cannot be used", path=self._path, count=more)
        self._reported = reported
        self._comparison.forget()
        self._scram.forget()
        self._scram.hasPlain = accounts.plainCount > 0
        if accounts.plainCount and accounts.plainCount != self._plainReported:
            log.warn(
                "{path} contains {count} passwords that are not hashed",
                path=self._path,
                count=accounts.plainCount,
            )
        self._plainReported = accounts.plainCount

    def _isStale(self) -> bool:
        stamp = stampOf(self._path)
        return stamp is None or stamp != self._seen

    async def _refresh(self) -> None:
        """
        If the file has changed, wait for a limited time until it has been read again.
        """
        # Check twice, because a thread may have begun to read the file before it was changed.
        for _ in range(2):
            if not self._isStale() or not await self._readAgain():
                return

    async def _readAgain(self) -> bool:
        """
        Wait for a limited time until the file has been read again.

        @return: whether an attempt to read the file has ended in time, successfully or not.
        """
        if self._rereading is None or self._rereading.done:
            if time.monotonic() - self._tried < self.RETRY and self._fault:
                return False
            self._rereading = Shielded(self._reread)
        if self._rereading.done:
            return True
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        try:
            await settled(self._rereading.outcome(self._clock, self.PATIENCE))
        except CallTimeout:
            # Use the old accounts, because the disk is slow and otherwise nobody could log in.
            return False
        return True

    async def _reread(self) -> None:
        self._tried = time.monotonic()
        fault = ""
        try:
            stamp, accounts = await self._reader.run(_readStamped, self._path)
        except POP3ResponseError:
            accounts = f"{self._path} cannot be read now, for lack of threads"
        if isinstance(accounts, str):
            # Do not log the same error at each attempt.
            fault = accounts
            if fault != self._fault:
                log.error("keeping the previous accounts: {error}", error=fault)
        else:
            self._seen, self._accounts = stamp, accounts
            self._report()
        self._fault = fault

    def reload(self) -> Any:
        """
        See L{IReloading.reload}.
        """
        self._comparison.forget()
        self._apps.forget()
        self._seen, self._tried = None, 0.0
        self._reported, self._fault = set(), ""
        return startNow(self._refresh())

    # --- checking -----------------------------------------------------------------

    def rememberChecks(self, seconds: int) -> None:
        """
        See L{IPasswordComparing.rememberChecks}.
        """
        self._comparison.remember(seconds)

    def addVerifiers(self, mechanisms: Iterable[str]) -> None:
        """
        See L{IVerifierAdding.addVerifiers}.
        """
        algorithms = [ALGORITHMS[each] for each in mechanisms]
        self._adder = (
            VerifierAdder(self._path, algorithms, self._runner, self._clock) if algorithms else None
        )

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the user name in UTF-8.
        @raise POP3ResponseError: C{SYS/TEMP} if the check would have to wait too long, or if the
            comparison has failed, for example for lack of memory.  C{SYS/PERM} if the password is
            right, but the user may not log in.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes | tuple[()]:
        if self._isStale():
            await self._refresh()
        username: bytes = credentials.username
        name = username.decode("utf-8", "surrogateescape")
        known, version = self._accounts.hashes.get(name), self._versionOf(name)
        restrictions = self._accounts.restrictions.get(name, _FREE)
        secret = secretIn(credentials.password)
        if secret is not None:
            entry = await self._apps.find(name, secret[0])
            if entry is not None and known is not None:
                return await self._checkedByApp(credentials, entry, secret[1], restrictions)
        # If the user does not exist, compare the password with a hash of the median cost, so that
        # the time is the same as for a user who exists.
        isRight = await self._comparison.isRight(
            credentials, known, self._accounts.standIn, restrictions.mayLogIn(credentials)
        )
        if not isRight or not restrictions.allows(credentials):
            raise UnauthorizedLogin()
        if restrictions.nologin is not None:
            # Do not use the code AUTH, because the attempt would count as a wrong guess, and the
            # client would not get the reason.
            raise POP3ResponseError(restrictions.nologin, "SYS/PERM")
        if isinstance(credentials, PasswordAttempt):
            credentials.version = version
        if self._adder is not None and known is not None:
            has = self._accounts.verifiers.get(name, ())
            self._adder.proved(name, credentials.password, known, has)
        return username

    async def _checkedByApp(
        self, credentials: Any, entry: Entry, secret: bytes, restrictions: Restrictions
    ) -> bytes:
        """
        Check an application password.
        """
        username: bytes = credentials.username
        now = time.time()
        mayBeUsed = restrictions.allows(credentials) and entry.password.mayBeUsed(credentials, now)
        isRight = await self._comparison.isRight(
            credentials,
            entry.password.stored,
            mayLogIn=mayBeUsed and restrictions.nologin is None,
            secret=secret,
        )
        if not isRight or not mayBeUsed:
            raise UnauthorizedLogin()
        if restrictions.nologin is not None:
            raise POP3ResponseError(restrictions.nologin, "SYS/PERM")
        if isinstance(credentials, PasswordAttempt):
            credentials.version = self._appVersion(entry, restrictions)
        self._apps.used(entry, now)
        return username

    def _appVersion(self, entry: Entry, restrictions: Restrictions) -> str:
        """
        @return: the credentialsVersion of a session that has logged in with an application
            password.
        """
        digest = self._digest(f"{entry.password}\0{restrictions}").hex()
        return f"{_APP}{entry.selector}:{digest}"

    async def scramKeys(
        self, info: IPOP3ConnectionInfo, username: str, algorithm: str, salt: bytes
    ) -> ScramKeys | None:
        """
        See L{IScramAccounts.scramKeys}.  A user who may not log in has no keys.
        """
        if self._isStale():
            await self._refresh()
        restrictions = self._accounts.restrictions.get(username, _FREE)
        stored, version = self._accounts.hashes.get(username), self._versionOf(username)
        # Do not use a verifier if the password is stored in clear text, because the keys are
        # computed from the password.
        beside = self._accounts.verifiers.get(username)
        if beside is not None and stored is not None and not HASHES.isPlain(stored):
            stored = beside.get(algorithm, stored)
        keys = await self._scram.keysOf(stored, algorithm, salt)
        if keys is None or not restrictions.mayLogIn(info):
            return None
        return replace(keys, version=version)

    async def sharedSecret(self, info: IPOP3ConnectionInfo, username: str) -> SharedSecret | None:
        """
        See L{ISharedSecrets.sharedSecret}.  A user who may not log in has no secret.
        """
        if self._isStale():
            await self._refresh()
        if not self._accounts.restrictions.get(username, _FREE).mayLogIn(info):
            return None
        stored = self._accounts.hashes.get(username)
        password = None if stored is None else HASHES.passwordOf(stored)
        if password is None:
            return None
        return SharedSecret(password, version=self._versionOf(username))

    def exampleScramKeys(self, username: str, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        See L{IScramAccounts.exampleScramKeys}.
        """
        return self._accounts.keyForms.example(algorithm, seed)

    def _digest(self, text: str) -> bytes:
        octets = text.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(octets, key=self._secret, digest_size=16).digest()

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> str:
        """
        See L{IAccountStatus.credentialsVersion}.  The version is a keyed digest of the user's entry
        at the time when the file was last read.
        """
        return self._versionOf(username)

    def _versionOf(self, username: str) -> str:
        stored = self._accounts.hashes.get(username, "")
        restrictions = self._accounts.restrictions.get(username)
        return self._digest(stored if restrictions is None else f"{stored}\0{restrictions}").hex()

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}.
        """
        return startNow(self._isStillValid(info, username, version))

    async def _isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> bool:
        if self._isStale():
            await self._refresh()
        restrictions = self._accounts.restrictions.get(username, _FREE)
        if username not in self._accounts.hashes or restrictions.nologin is not None:
            return False
        if version.startswith(_APP):
            entry = await self._apps.find(username, version.split(":")[1])
            if entry is None or entry.password.isExpired(time.time()):
                return False
            now = self._appVersion(entry, restrictions)
        else:
            now = self._versionOf(username)
        return hmac.compare_digest(now, version)

    async def hasAccount(self, username: str) -> bool:
        """
        See L{IAccountNames.hasAccount}.
        """
        if self._isStale():
            await self._refresh()
        return username in self._accounts.hashes

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}.
        """
        if not await self.hasAccount(username):
            return None
        restrictions = self._accounts.restrictions.get(username, _FREE)
        if not restrictions.allows(info):
            return None
        if restrictions.nologin is not None:
            raise POP3ResponseError(restrictions.nologin, "SYS/PERM")
        return username

    async def factsOf(self, username: str) -> UserFacts | None:
        """
        See L{IUserFacts.factsOf}.
        """
        if self._isStale():
            await self._refresh()
        fields = self._accounts.facts.get(username)
        return None if fields is None else _factsIn(fields)


@implementer(IAccountNames, IUserFacts)
class PasswordFileNames:
    """
    Finds names in a password file.  This class is for a program that ends soon and compares no
    passwords.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def hasAccount(self, username: str) -> bool:
        """
        See L{IAccountNames.hasAccount}.  Blocks.

        @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
        """
        return self._find(username) is not None

    def factsOf(self, username: str) -> UserFacts | None:
        """
        See L{IUserFacts.factsOf}.  Blocks.

        @raise ValueError: see L{hasAccount}.
        """
        found = self._find(username)
        return _factsIn(found.facts[username]) if found and username in found.facts else None

    def _find(self, username: str) -> Accounts | None:
        for line in linesOf(self._path):
            # Use the first line of a user only, as _parse does.
            isUser = line.startswith(username) and line[len(username) : len(username) + 1] == ":"
            if isUser or (not line.isascii() and nameIn(line) == username):
                found = _parse([line])
                return found if username in found.hashes else None
        return None
