"""
A file of names and hashed passwords.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.credentials import IPasswordAttempt, PasswordAttempt
from pop3svc.accounts.hashes import (
    KINDS,
    LONGEST_PASSWORD,
    costOf,
    hashPassword,
    isPlain,
    verify,
)
from pop3svc.accounts.hashing import HashQueue, hashing
from pop3svc.awaiting import BoundedThreadPool, CallTimeout, Executor, Shielded, startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.files import Stamp, openReplaceable, stampOf, writeWhole
from pop3svc.interfaces import IAccountStatus, IPOP3ConnectionInfo, IReloading

__all__ = [
    "Accounts",
    "BadLine",
    "PasswordFile",
    "addUser",
    "checkUserName",
    "readPasswordFile",
    "removeUser",
    "setPassword",
]

log = Logger(namespace="pop3svc")

# Password files are read here and not where mail is read, because a disk with mail may hang.
_reading = BoundedThreadPool("pop3svc-accounts", threads=1, waiting=100)

# Octets of a file: two million users, and no file that grows without end.
_LARGEST = 256 << 20
# Bad lines that are named one by one: more are a file of another format.
_MOST_NAMED = 1000


class BadLine(NamedTuple):
    """
    A line of which nobody can log in.

    @ivar number: from 1.
    @ivar name: whom it shuts out; empty if it names nobody.
    @ivar fault: what is wrong with it, in a few words without what stands there.
    """

    number: int
    name: str
    fault: str

    def __str__(self) -> str:
        whom = f"{self.name} cannot log in" if self.name else "ignored"
        return f"line {self.number}: {whom}: {self.fault}"


class Accounts(NamedTuple):
    """
    What stands in a file.

    @ivar hashes: by name.
    @ivar badLines: the first of them; the others are only counted.
    @ivar badCount: how many they are.
    @ivar plainCount: how many passwords are not hashed.
    @ivar standIn: a hash that costs what a usual user's costs.
    """

    hashes: Mapping[str, str]
    badLines: Sequence[BadLine]
    badCount: int
    plainCount: int
    standIn: str

    def complaints(self) -> list[str]:
        """
        @return: for the operator, a sentence for each bad line.
        """
        sentences = [str(each) for each in self.badLines]
        if self.badCount > len(sentences):
            sentences.append(f"{self.badCount - len(sentences)} more lines cannot be used")
        return sentences


# --- the file -----------------------------------------------------------------


def checkUserName(name: str) -> str:
    """
    @return: the name, if it can stand in the file.
    @raise ValueError: it cannot; a sentence for the operator.
    """
    if not name or not name.isprintable() or any(c in ":#" or c.isspace() for c in name):
        raise ValueError("a user name is printable, without spaces, ':' and '#'")
    return name


class _Costs:
    """
    What the hashes of a file cost, with an example for each.
    """

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._examples: dict[float, str] = {}

    def add(self, cost: float, stored: str) -> None:
        self._counts[cost] = self._counts.get(cost, 0) + 1
        self._examples.setdefault(cost, stored)

    def usual(self) -> str | None:
        """
        @return: a hash that costs no less than half of them and no more than the others, so
            that a few extreme ones do not count.
        """
        rest = (sum(self._counts.values()) + 1) // 2
        for cost in sorted(self._counts):
            rest -= self._counts[cost]
            if rest <= 0:
                return self._examples[cost]
        return None


def _parse(lines: Iterable[str]) -> Accounts:
    hashes: dict[str, str] = {}
    bad: list[BadLine] = []
    shutOut: set[str] = set()
    badCount = plainCount = 0
    costs = _Costs()
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, stored = line.partition(":")
        valid = ""
        try:
            if not colon:
                raise ValueError("no colon")
            valid = checkUserName(name)
            if name in hashes or name in shutOut:
                # As Dovecot does: the first one counts.
                valid = ""
                raise ValueError("the user name is listed twice")
            cost = costOf(stored)
        except ValueError as error:
            badCount += 1
            if valid:
                shutOut.add(valid)
            if len(bad) < _MOST_NAMED:
                bad.append(BadLine(number, valid, str(error)))
            continue
        hashes[name] = stored
        costs.add(cost, stored)
        plainCount += isPlain(stored)
    return Accounts(hashes, bad, badCount, plainCount, costs.usual() or "")


def _linesOf(path: str) -> Iterator[str]:
    try:
        descriptor = openReplaceable(path)
        with open(descriptor, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            if os.fstat(descriptor).st_size > _LARGEST:
                raise ValueError(f"{path} is larger than {_LARGEST} octets")
            yield from file
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


def readPasswordFile(path: str) -> Accounts:
    """
    Read a file.  Blocks.

    @raise ValueError: it cannot be read; a sentence that names it.
    """
    return _parse(_linesOf(path))


def _readStamped(path: str) -> tuple[Stamp | None, Accounts | str]:
    """
    @return: what the file looked like before it was read, and what stands in it or why it
        cannot be read.
    """
    stamp = stampOf(path)
    try:
        return stamp, readPasswordFile(path)
    except ValueError as error:
        return stamp, str(error)


def _compare(stored: str, password: bytes) -> bool | str:
    """
    @return: whether it matches, or the name of the error that kept it from being compared.
    """
    try:
        return verify(stored, password)
    except Exception as error:
        return type(error).__name__


@implementer(ICredentialsChecker, IAccountStatus, IReloading)
class PasswordFile:
    """
    A checker for a file with a line C{name:hash} for each user.  It is read again, in a
    thread, when it has changed.  A line that cannot be used shuts out its own user only; if
    the file cannot be read, keeping the previous accounts.

    Hashes: argon2, C{$2b$} and C{$6$} with the extra C{hashes}, C{$scrypt$}
    (C{$scrypt$ln=,r=,p=$salt$key}), and C{{PLAIN}} followed by the password.
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    # Seconds: a login that sees that the file has changed waits so long for what stands
    # there now; then the old entries count.
    PATIENCE = 5.0
    # Seconds from one attempt to read a file that cannot be read to the next.
    RETRY = 1.0

    def __init__(
        self, path: str, runner: Executor | None = None, clock: IReactorTime | None = None
    ) -> None:
        """
        @param runner: where passwords are compared and the file is read.
        @param clock: the reactor if not given.
        @raise ValueError: the file cannot be read; a sentence that names it.
        """
        self._path = os.path.abspath(path)
        self._queue = hashing() if runner is None else HashQueue(runner, clock)
        self._reader = _reading if runner is None else runner
        self._clock = clock
        self._rereading: Shielded | None = None
        self._tried = 0.0
        self._fault = ""
        self._said: set[tuple[str, str]] = set()
        self._plainSaid = 0
        self._secret = secrets.token_bytes(16)
        self._standIn = hashPassword(secrets.token_hex(16))
        self._seen, accounts = _readStamped(self._path)
        if isinstance(accounts, str):
            raise ValueError(accounts)
        self._accounts = accounts
        self._report()

    @property
    def path(self) -> str:
        """
        Where the file is.
        """
        return self._path

    # --- what stands in the file --------------------------------------------------

    def _report(self) -> None:
        """
        Log what an operator should know of the file, once.
        """
        accounts = self._accounts
        said: set[tuple[str, str]] = set()
        for line in accounts.badLines:
            key = line.name or str(line.number), line.fault
            said.add(key)
            if key not in self._said:
                log.error(
                    "{path}, {line} (known are {kinds})",
                    path=self._path,
                    line=str(line),
                    kinds=KINDS,
                )
        more = accounts.badCount - len(accounts.badLines)
        if more:
            said.add(("", str(more)))
            if ("", str(more)) not in self._said:
                log.error("{path}: {count} more lines cannot be used", path=self._path, count=more)
        self._said = said
        if accounts.plainCount and accounts.plainCount != self._plainSaid:
            log.warn(
                "{path} holds {count} passwords that are not hashed",
                path=self._path,
                count=accounts.plainCount,
            )
        self._plainSaid = accounts.plainCount

    def _isStale(self) -> bool:
        stamp = stampOf(self._path)
        return stamp is None or stamp != self._seen

    async def _refresh(self) -> None:
        """
        Wait for what stands in the file now, for a limited time.
        """
        if self._rereading is None or self._rereading.done:
            if time.monotonic() - self._tried < self.RETRY and self._fault:
                return
            self._rereading = Shielded(self._reread)
        if self._rereading.done:
            return
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        try:
            await self._rereading.outcome(self._clock, self.PATIENCE)
        except CallTimeout:
            # A slow disk: the old entries are better than nobody.
            pass

    async def _reread(self) -> None:
        self._tried = time.monotonic()
        fault = ""
        try:
            stamp, accounts = await self._reader.run(_readStamped, self._path)
        except POP3ResponseError:
            accounts = f"{self._path} cannot be read now, for lack of threads"
        if isinstance(accounts, str):
            # It may be readable the next time; what is said once is enough.
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
        self._seen, self._tried = None, 0.0
        self._said, self._fault = set(), ""
        return startNow(self._refresh())

    # --- checking -----------------------------------------------------------------

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name, as octets.
        @raise POP3ResponseError: C{SYS/TEMP}, it would take too long, or the password
            cannot be compared for lack of memory.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes | tuple[()]:
        if self._isStale():
            await self._refresh()
        username: bytes = credentials.username
        password: bytes = credentials.password
        name = username.decode("utf-8", "surrogateescape")
        known = self._accounts.hashes.get(name)
        # Somebody who is not there costs what a usual user costs.
        stored = known or self._accounts.standIn or self._standIn
        # NUL cannot be typed, and some kinds of hashes do not take it.
        isUsable = len(password) <= LONGEST_PASSWORD and b"\0" not in password
        password = password[:LONGEST_PASSWORD].replace(b"\0", b"")
        # The quick question first.
        if not isinstance(credentials, PasswordAttempt) and not IPasswordAttempt.providedBy(
            credentials
        ):
            credentials = PasswordAttempt(username, password)
        if isPlain(stored):
            # To compare is no work for a thread.
            credentials.comparing()
            matches = _compare(stored, password)
        else:
            matches = await self._queue.run(
                _compare,
                stored,
                password,
                isUrgent=credentials.isFromKnownNetwork,
                patience=credentials.patience,
                begun=credentials.comparing,
            )
        if isinstance(matches, str):
            self._cannotCompare(matches)
        if not (matches and known is not None and isUsable):
            if known is not None:
                credentials.refused()
            raise UnauthorizedLogin()
        return username

    def _cannotCompare(self, error: str) -> NoReturn:
        # Once for each kind of error until another one comes.
        key = "", error
        if key not in self._said:
            self._said.add(key)
            log.error(
                "a password of {path} cannot be compared: {error}", path=self._path, error=error
            )
        raise POP3ResponseError("Password check is not available now.", "SYS/TEMP")

    def _digest(self, text: str) -> bytes:
        octets = text.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(octets, key=self._secret, digest_size=16).digest()

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> str:
        """
        See L{IAccountStatus.credentialsVersion}: of what stands in the file for the
        user, as it was read last.
        """
        stored = self._accounts.hashes.get(username, "")
        return self._digest(stored).hex()

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}.
        """
        return startNow(self._isStillValid(info, username, version))

    async def _isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> bool:
        if self._isStale():
            await self._refresh()
        now = self.credentialsVersion(info, username)
        return username in self._accounts.hashes and hmac.compare_digest(now, version)


# --- changing it --------------------------------------------------------------


@contextmanager
def _changing(
    path: str, mayBeNew: bool = False, owner: tuple[int, int] | None = None
) -> Iterator[list[str]]:
    """
    The lines of the file, to be changed in place; written back atomically,
    one writer at a time.
    """
    directory = os.path.dirname(os.path.realpath(path))
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"{directory}: {error.strerror}")
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        isNew = mayBeNew and not os.path.exists(path)
        # What cannot be used stays as it is, for whoever has to mend it.
        lines = [] if isNew else list(_linesOf(path))
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        yield lines
        if not isNew and os.geteuid() == 0:
            status = os.stat(path)
            owner = status.st_uid, status.st_gid
        text = "".join(lines)
        writeWhole(os.path.realpath(path), text.encode("utf-8", "surrogateescape"), owner)
        os.fsync(held)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    finally:
        os.close(held)


def _find(lines: list[str], name: str) -> list[int]:
    """
    @return: where a user stands; more than once in a file that somebody else has written.
    """
    return [
        index
        for index, line in enumerate(lines)
        if not line.startswith("#") and ":" in line and line.partition(":")[0] == name
    ]


def _checkPassword(password: str) -> str:
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode("utf-8", "surrogateescape")) > LONGEST_PASSWORD:
        raise ValueError(f"a password has at most {LONGEST_PASSWORD} octets")
    if any(ord(character) < 32 or ord(character) == 127 for character in password):
        raise ValueError("a password must not contain control characters")
    return password


def addUser(path: str, name: str, password: str, owner: tuple[int, int] | None = None) -> None:
    """
    Add a user; the file is made if it is not there.

    @param owner: user and group of a file that is made.
    @raise ValueError: a sentence that says why not.
    """
    stored = hashPassword(_checkPassword(password))
    with _changing(path, mayBeNew=True, owner=owner) as lines:
        if _find(lines, checkUserName(name)):
            raise ValueError(f"there is a user {name} already")
        lines.append(f"{name}:{stored}\n")


def setPassword(path: str, name: str, password: str) -> None:
    """
    Give a user another password, the only one from then on.

    @raise ValueError: a sentence that says why not.
    """
    stored = hashPassword(_checkPassword(password))
    with _changing(path) as lines:
        found = _find(lines, name)
        if not found:
            raise ValueError(f"there is no user {name}")
        lines[found[0]] = f"{name}:{stored}\n"
        for index in reversed(found[1:]):
            del lines[index]


def removeUser(path: str, name: str) -> None:
    """
    Remove a user, with all lines of that name.

    @raise ValueError: a sentence that says why not.
    """
    with _changing(path) as lines:
        found = _find(lines, name)
        if not found:
            raise ValueError(f"there is no user {name}")
        for index in reversed(found):
            del lines[index]
