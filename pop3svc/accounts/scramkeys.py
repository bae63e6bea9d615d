"""
Keys for SCRAM (RFC 5802) from stored passwords.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from base64 import b64encode
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pop3svc.accounts.hashes import HASHES, HashReader
from pop3svc.accounts.hashing import CheckQueue, hashing
from pop3svc.bounded import BoundedDict
from pop3svc.interfaces import ScramKeys
from pop3svc.threadpool import Executor

__all__ = [
    "ALGORITHMS",
    "PLAIN_SALT",
    "ROUNDS",
    "KeyForms",
    "ScramSource",
    "deriveKeys",
    "makeVerifier",
]

_MECHANISMS = {"sha1": "SCRAM-SHA-1", "sha256": "SCRAM-SHA-256"}
# The algorithm of each mechanism.
ALGORITHMS = {mechanism: algorithm for algorithm, mechanism in _MECHANISMS.items()}
# Rounds for keys that are computed at a login, from a password in clear text: the least that RFC
# 7677 section 4 allows.
_LEAST_ROUNDS = 4096
# Octets of the salt of these keys.
PLAIN_SALT = 16
# Rounds of the verifiers that the service makes: as many as gsasl uses.  A client computes them at
# each login.
ROUNDS = 65_536
# The most passwords in clear text whose keys are remembered.
_REMEMBERED = 10_000
# Verifiers that no password has.
_STAND_INS = {
    "sha1": "{SCRAM-SHA-1}65536," + "A" * 22 + "==" + ("," + "A" * 27 + "=") * 2,
    "sha256": "{SCRAM-SHA-256}65536," + "A" * 22 + "==" + ("," + "A" * 43 + "=") * 2,
}


def deriveKeys(password: str, algorithm: str, salt: bytes, rounds: int) -> ScramKeys | None:
    """
    Compute keys from a password.  Blocks.

    @return: L{None} if SASLprep (RFC 4013) does not allow the password, or makes it empty.
    """
    from scramp import ScramException, ScramMechanism
    from scramp.utils import saslprep

    try:
        # SASLprep does not change such a password, and takes 2 microseconds for each character.
        isPrepared = password.isascii() and password.isprintable()
        if not (password if isPrepared else saslprep(password)):
            # The password is a soft hyphen, for example.  An empty password would have the same
            # keys.
            return None
        made = ScramMechanism(_MECHANISMS[algorithm]).make_auth_info(
            password, iteration_count=rounds, salt=salt
        )
    except ScramException:
        return None
    return ScramKeys(made[0], made[3], made[1], made[2])


def makeVerifier(password: str, algorithm: str = "sha256") -> str:
    """
    Make a stored password that works with SCRAM and with passwords in clear text.  Blocks.

    @param algorithm: C{"sha1"} or C{"sha256"}.
    @return: in Dovecot's form, C{{SCRAM-SHA-256}rounds,salt,StoredKey,ServerKey}.
    @raise ValueError: SASLprep (RFC 4013) does not allow the password.
    """
    keys = deriveKeys(password, algorithm, secrets.token_bytes(16), ROUNDS)
    if keys is None:
        raise ValueError("the password has characters that SCRAM does not allow")
    salt, stored, server = (
        b64encode(each).decode("ascii") for each in (keys.salt, keys.storedKey, keys.serverKey)
    )
    return f"{{{_MECHANISMS[algorithm]}}}{keys.rounds},{salt},{stored},{server}"


class KeyForms:
    """
    Counts the forms of users' keys, and chooses one of them for a made-up user.  A form is the
    number of rounds and the length of the salt.
    """

    # The most different forms that are counted.
    MOST = 100

    def __init__(self, reader: HashReader = HASHES) -> None:
        self._reader = reader
        self._counts: dict[str, dict[tuple[int, int], int]] = {each: {} for each in _MECHANISMS}

    def add(self, stored: str) -> None:
        """
        Count a stored password that has keys.
        """
        isPlain = self._reader.isPlain(stored)
        for algorithm, counts in self._counts.items():
            keys = self._reader.scramKeys(stored, algorithm)
            if isPlain:
                form = _LEAST_ROUNDS, PLAIN_SALT
            elif keys is not None:
                form = keys.rounds, len(keys.salt)
            else:
                continue
            if form in counts or len(counts) < self.MOST:
                counts[form] = counts.get(form, 0) + 1

    def example(self, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        Choose a form by the seed.  The more users have a form, the more seeds choose it.  If the
        counts change, only few seeds get another form (weighted rendezvous hashing).

        @return: keys of that form; L{None} if there are none.
        """
        counts = self._counts[algorithm]
        if not counts:
            return None

        def score(form: tuple[int, int]) -> float:
            digest = hashlib.blake2b(b"%d,%d" % form, key=seed[:64], digest_size=6).digest()
            # This number is above 0 and below 1.
            part = (int.from_bytes(digest) + 0.5) / 2**48
            return counts[form] / -math.log(part)

        rounds, size = max(counts, key=score)
        return ScramKeys(bytes(size), rounds, b"", b"")


class ScramSource:
    """
    Keys for the users of one source of accounts.

    @ivar hasPlain: whether the source has passwords in clear text.
    """

    def __init__(
        self,
        reader: HashReader = HASHES,
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param runner: computes keys; the shared threads if not given.
        @param clock: the reactor if not given.
        """
        self._reader = reader
        self._queue = hashing() if runner is None else CheckQueue(runner, clock)
        self._derived: BoundedDict[tuple[str, str, bytes], ScramKeys | None] = BoundedDict(
            _REMEMBERED
        )
        # The password of users that do not exist.
        self._nobody = secrets.token_hex(32)
        self.hasPlain = False

    async def keysOf(self, stored: str | None, algorithm: str, salt: bytes) -> ScramKeys | None:
        """
        @param stored: a usable stored password; L{None} if there is no such user.
        @param salt: see L{pop3svc.interfaces.IScramAccounts.scramKeys}.
        @return: the keys; L{None} if there are none.
        @raise POP3ResponseError: C{SYS/TEMP} if the computation would have to wait too long.
        """
        # Read a verifier for every user, because otherwise the time would reveal who has one.
        standIn = _STAND_INS[algorithm]
        password = self._reader.passwordOf(standIn if stored is None else stored)
        own = self._reader.scramKeys(standIn if stored is None else stored, algorithm)
        if own is None:
            self._reader.scramKeys(standIn, algorithm)
        derived: ScramKeys | None = None
        if self.hasPlain or password is not None:
            # Also compute keys for a user without a password in clear text, because otherwise the
            # time would reveal which users have one.  The preparation (SASLprep) of a longer
            # password takes longer, so use a password of a usual length, always the same length for
            # a name.
            nobody = self._nobody[: 8 + salt[0] % 17]
            derived = await self._derive(password or nobody, algorithm, salt)
        if stored is None:
            return None
        return derived if password else own

    async def _derive(self, password: str, algorithm: str, salt: bytes) -> ScramKeys | None:
        salt = salt[:PLAIN_SALT]
        key = password, algorithm, salt
        if key not in self._derived:
            made: Any = await self._queue.run(
                deriveKeys,
                password,
                algorithm,
                salt,
                _LEAST_ROUNDS,
            )
            self._derived.put(key, made)
        return self._derived.get(key)

    def forget(self) -> None:
        """
        Forget the keys of passwords that may have changed.
        """
        self._derived.clear()
