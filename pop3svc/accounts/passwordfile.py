"""
A file of names and hashed passwords.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.calling import Runner, Workers, begin
from pop3svc.files import writeWhole
from pop3svc.interfaces import IAccountStatus, IPOP3ConnectionInfo

__all__ = [
    "PasswordFile",
    "addUser",
    "checkUserName",
    "readPasswordFile",
    "removeUser",
    "setPassword",
]

log = Logger(namespace="pop3svc")

_hasher = PasswordHasher()

# A hash takes a tenth of a second of a core and 64 MiB; a queue of fifty is a
# few seconds' wait, and whoever comes behind that is told so at once.
_hashing = Workers("pop3svc-hash", threads=2, waiting=50)

# Octets of a password: more than anybody types, and what all kinds of hashes
# take.
_LONGEST = 1024

Entries = dict[str, str]


# --- kinds of hashes ----------------------------------------------------------


def _verifyArgon2(stored: str, password: bytes) -> bool:
    try:
        return _hasher.verify(stored, password)
    except VerificationError:
        return False


def _checkArgon2(stored: str) -> None:
    try:
        extract_parameters(stored)
    except InvalidHashError:
        raise ValueError("a malformed argon2 hash")


def _missing(package: str) -> ValueError:
    return ValueError(f"a hash that needs {package}: pip install 'pop3svc[hashes]'")


def _verifyBcrypt(stored: str, password: bytes) -> bool:
    import bcrypt

    # More than 72 octets never counted.
    return bcrypt.checkpw(password[:72], stored.encode("ascii"))


def _checkBcrypt(stored: str) -> None:
    try:
        import bcrypt  # noqa: F401
    except ImportError:
        raise _missing("bcrypt")
    if not re.fullmatch(r"\$2[aby]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}", stored):
        raise ValueError("a malformed bcrypt hash")


def _verifySHA512(stored: str, password: bytes) -> bool:
    from passlib.hash import sha512_crypt

    return bool(sha512_crypt.verify(password, stored))


def _checkSHA512(stored: str) -> None:
    try:
        from passlib.hash import sha512_crypt
    except ImportError:
        raise _missing("libpass")
    try:
        isWhole = sha512_crypt.from_string(stored).checksum is not None
    except ValueError:
        isWhole = False
    if not isWhole:
        raise ValueError("a malformed sha512-crypt hash")


_SCRYPT = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{2,88})\$([A-Za-z0-9+/]{22,88})"
)


def _scryptFields(stored: str) -> tuple[int, int, int, bytes, bytes]:
    found = _SCRYPT.fullmatch(stored)
    if found is None:
        raise ValueError("a malformed scrypt hash")
    ln, r, p = (int(found[index]) for index in (1, 2, 3))
    if not (1 <= ln <= 20 and 1 <= r <= 32 and 1 <= p <= 16):
        raise ValueError("a scrypt hash with parameters out of bounds")
    salt, key = (b64decode(text + "=" * (-len(text) % 4)) for text in (found[4], found[5]))
    return ln, r, p, salt, key


def _verifyScrypt(stored: str, password: bytes) -> bool:
    ln, r, p, salt, key = _scryptFields(stored)
    memory = 128 * r * ((1 << ln) + p + 2)
    made = hashlib.scrypt(
        password, salt=salt, n=1 << ln, r=r, p=p, maxmem=memory + 1048576, dklen=len(key)
    )
    return hmac.compare_digest(made, key)


def _checkScrypt(stored: str) -> None:
    _scryptFields(stored)


_PLAIN = "{PLAIN}"


def _verifyPlain(stored: str, password: bytes) -> bool:
    known = stored.removeprefix(_PLAIN).encode("utf-8", "surrogateescape")
    return hmac.compare_digest(known, password)


def _checkPlain(stored: str) -> None:
    if stored == _PLAIN:
        raise ValueError("an empty password")


# prefix: (check what stands in the file, verify a password against it)
_KINDS: dict[str, tuple[Callable[[str], None], Callable[[str, bytes], bool]]] = {
    "$argon2": (_checkArgon2, _verifyArgon2),
    "$2": (_checkBcrypt, _verifyBcrypt),
    "$6$": (_checkSHA512, _verifySHA512),
    "$scrypt$": (_checkScrypt, _verifyScrypt),
    _PLAIN: (_checkPlain, _verifyPlain),
}


def _kindOf(stored: str) -> tuple[Callable[[str], None], Callable[[str, bytes], bool]]:
    for prefix, kind in _KINDS.items():
        if stored.startswith(prefix):
            return kind
    raise ValueError("a hash of no known kind")


def _verify(stored: str, password: bytes) -> bool:
    return _kindOf(stored)[1](stored, password)


# --- the file -----------------------------------------------------------------


def checkUserName(name: str) -> str:
    """
    @return: the name, if it can stand in the file.
    @raise ValueError: it cannot; a sentence for the operator.
    """
    if not name or not name.isprintable() or any(c in ":#" or c.isspace() for c in name):
        raise ValueError("a user name is printable, without spaces, ':' and '#'")
    return name


def _parse(text: str, path: str) -> Entries:
    entries: Entries = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, stored = line.partition(":")
        try:
            if not colon:
                raise ValueError("no colon")
            checkUserName(name)
            if name in entries:
                raise ValueError("a name that stands there already")
            _kindOf(stored)[0](stored)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}")
        entries[name] = stored
    return entries


def _read(path: str) -> str:
    try:
        # A FIFO would be waited for, a device read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise ValueError(f"{path} is not a file")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


def readPasswordFile(path: str) -> Entries:
    """
    @return: hashes by name.
    @raise ValueError: a sentence that names the file and the line.
    """
    return _parse(_read(path), path)


@implementer(ICredentialsChecker, IAccountStatus)
class PasswordFile:
    """
    A checker for a file with a line C{name:hash} for each user.  It is read
    again when it has changed; what cannot be read then leaves what was.

    Hashes: argon2, C{$2b$} and C{$6$} with the extra C{hashes}, C{$scrypt$}
    (C{$scrypt$ln=,r=,p=$salt$key}), and C{{PLAIN}} followed by the password.
    """

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, path: str, runner: Runner | None = None) -> None:
        """
        @raise ValueError: the file cannot be read; a sentence that names the
            file and the line.
        """
        self._path = os.path.abspath(path)
        self._runner = _hashing if runner is None else runner
        self._said = ""
        self._secret = secrets.token_bytes(16)
        self._standIn = _hasher.hash(secrets.token_hex(16))
        self._seen = self._stamp()
        self._entries = readPasswordFile(self._path)
        self._warn()

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns

    def _warn(self) -> None:
        plain = sum(stored.startswith(_PLAIN) for stored in self._entries.values())
        if plain:
            log.warn(
                "{path} holds {count} passwords that are not hashed", path=self._path, count=plain
            )

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen and stamp is not None:
            return
        try:
            self._entries = readPasswordFile(self._path)
        except ValueError as error:
            # It may be readable the next time; what is said once is enough.
            if self._said != str(error):
                self._said = str(error)
                log.error("the accounts stay as they were: {error}", error=str(error))
            return
        self._seen, self._said = stamp, ""
        self._warn()

    def _stored(self, name: str) -> tuple[str, bool]:
        """
        What to verify a password against: for a name that is not there
        another's hash, always the same one, so that it costs what a user's
        costs.
        """
        known = self._entries.get(name)
        if known is not None:
            return known, True
        stored = list(self._entries.values())
        if not stored:
            return self._standIn, False
        return stored[int.from_bytes(self._digest(name)[:8]) % len(stored)], False

    def _digest(self, text: str) -> bytes:
        octets = text.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(octets, key=self._secret, digest_size=16).digest()

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name, as octets.
        @raise POP3ResponseError: C{SYS/TEMP}, too many passwords wait to be
            hashed.
        """
        return begin(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes | tuple[()]:
        self._refresh()
        name = credentials.username.decode("utf-8", "surrogateescape")
        stored, isKnown = self._stored(name)
        password = credentials.password
        if stored.startswith(_PLAIN):
            # To compare is no work for a thread.
            matches = _verify(stored, password[:_LONGEST])
        else:
            matches = await self._runner.run(_verify, stored, password[:_LONGEST])
        if not (matches and isKnown) or len(password) > _LONGEST:
            raise UnauthorizedLogin()
        username: bytes = credentials.username
        return username

    def loginMark(self, info: IPOP3ConnectionInfo, username: str) -> str:
        """
        See L{IAccountStatus.loginMark}: of what stands in the file for the
        user, as it was read last.
        """
        stored = self._entries.get(username, "")
        return self._digest(stored).hex()

    def mayStay(self, info: IPOP3ConnectionInfo, username: str, mark: str) -> bool:
        """
        See L{IAccountStatus.mayStay}.
        """
        self._refresh()
        now = self.loginMark(info, username)
        return username in self._entries and hmac.compare_digest(now, mark)


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
        text = "" if isNew else _read(path)
        _parse(text, path)
        lines = [line + "\n" for line in text.removesuffix("\n").split("\n")] if text else []
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


def _find(lines: list[str], name: str) -> int | None:
    for index, line in enumerate(lines):
        if not line.startswith("#") and line.partition(":")[0] == name:
            return index
    return None


def _checkPassword(password: str) -> str:
    if not password:
        raise ValueError("an empty password lets nobody in")
    if len(password.encode("utf-8", "surrogateescape")) > _LONGEST:
        raise ValueError(f"a password has at most {_LONGEST} octets")
    if any(ord(character) < 32 or ord(character) == 127 for character in password):
        raise ValueError("a password holds no control characters")
    return password


def addUser(path: str, name: str, password: str, owner: tuple[int, int] | None = None) -> None:
    """
    Add a user; the file is made if it is not there.

    @param owner: user and group of a file that is made.
    @raise ValueError: a sentence that says why not.
    """
    stored = _hasher.hash(_checkPassword(password).encode("utf-8", "surrogateescape"))
    with _changing(path, mayBeNew=True, owner=owner) as lines:
        if _find(lines, checkUserName(name)) is not None:
            raise ValueError(f"there is a user {name} already")
        lines.append(f"{name}:{stored}\n")


def setPassword(path: str, name: str, password: str) -> None:
    """
    Give a user another password.

    @raise ValueError: a sentence that says why not.
    """
    stored = _hasher.hash(_checkPassword(password).encode("utf-8", "surrogateescape"))
    with _changing(path) as lines:
        index = _find(lines, name)
        if index is None:
            raise ValueError(f"there is no user {name}")
        lines[index] = f"{name}:{stored}\n"


def removeUser(path: str, name: str) -> None:
    """
    Remove a user.

    @raise ValueError: a sentence that says why not.
    """
    with _changing(path) as lines:
        index = _find(lines, name)
        if index is None:
            raise ValueError(f"there is no user {name}")
        del lines[index]
