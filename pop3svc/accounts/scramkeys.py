"""
Find or compute the keys for SCRAM (RFC 5802) that belong to stored passwords.
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
# For each mechanism: the name of its hash algorithm.
ALGORITHMS = {mechanism: algorithm for algorithm, mechanism in _MECHANISMS.items()}
# The number of rounds for keys that are computed at a login from a password in clear text.  RFC
# 7677 section 4 recommends no smaller number.
_LEAST_ROUNDS = 4096
# The number of octets of the salt for keys that are computed at a login.
PLAIN_SALT = 16
# The number of rounds of the verifiers that the service makes.  The program gsasl uses the same
# number.  A client computes these rounds at each login.
ROUNDS = 65_536
# The most passwords in clear text whose keys are remembered.
_REMEMBERED = 10_000
# For each algorithm: a verifier that no password matches.
_STAND_INS = {
    "sha1": "{SCRAM-SHA-1}65536," + "A" * 22 + "==" + ("," + "A" * 27 + "=") * 2,
    "sha256": "{SCRAM-SHA-256}65536," + "A" * 22 + "==" + ("," + "A" * 43 + "=") * 2,
}


def deriveKeys(password: str, algorithm: str, salt: bytes, rounds: int) -> ScramKeys | None:
    """
    Compute keys from a password.  Blocks.

    @return: the keys; L{None} if SASLprep (RFC 4013) does not allow the password, or makes it
        empty.
    """
    from scramp import ScramException, ScramMechanism
    from scramp.utils import saslprep

    try:
        # Skip SASLprep for printable ASCII.  It would not change the password, and it takes 2
        # microseconds for each character.
        isPrepared = password.isascii() and password.isprintable()
        if not (password if isPrepared else saslprep(password)):
            # SASLprep has made the password empty, because it consists of soft hyphens, for
            # example.  Its keys would be the keys of an empty password.
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
    @return: the stored password in Dovecot's form
        C{{SCRAM-SHA-256}rounds,salt,StoredKey,ServerKey}.
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
    Counts the forms of the users' SCRAM keys.  A form is the number of rounds and the length of the
    salt.  For a user who does not exist, L{example} chooses one of the forms.
    """

    # The largest number of different forms that are counted.
    MOST = 100

    def __init__(self, reader: HashReader = HASHES) -> None:
        self._reader = reader
        self._counts: dict[str, dict[tuple[int, int], int]] = {each: {} for each in _MECHANISMS}

    def add(self, stored: str) -> None:
        """
        Count the form of the keys of a stored password.  A stored password without keys is not
        counted.
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
        Choose a form by the seed.  A form that more users have is chosen by more seeds.  A change
        of the counts changes the form for few seeds only (weighted rendezvous hashing).

        @return: keys of the chosen form; L{None} if no form was counted.
        """
        counts = self._counts[algorithm]
        if not counts:
            return None

        def score(form: tuple[int, int]) -> float:
            digest = hashlib.blake2b(b"%d,%d" % form, key=seed[:64], digest_size=6).digest()
            # A number above 0 and below 1.
            part = (int.from_bytes(digest) + 0.5) / 2**48
            return counts[form] / -math.log(part)

        rounds, size = max(counts, key=score)
        return ScramKeys(bytes(size), rounds, b"", b"")


class ScramSource:
    """
    Finds or computes SCRAM keys for the users of one source of accounts.

    @ivar hasPlain: whether the source has passwords in clear text.
    """

    def __init__(
        self,
        reader: HashReader = HASHES,
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param runner: runs the computation of keys; the shared threads if not given.
        @param clock: used for the time limit; the reactor if not given.
        """
        self._reader = reader
        self._queue = hashing() if runner is None else CheckQueue(runner, clock)
        self._derived: BoundedDict[tuple[str, str, bytes], ScramKeys | None] = BoundedDict(
            _REMEMBERED
        )
        # Keys are computed from this text if a user has no password in clear text.
        self._nobody = secrets.token_hex(32)
        self.hasPlain = False

    async def keysOf(self, stored: str | None, algorithm: str, salt: bytes) -> ScramKeys | None:
        """
        @param stored: a stored password that can be used; L{None} if the user does not exist.
        @param salt: see L{pop3svc.interfaces.IScramAccounts.scramKeys}.
        @return: the keys; L{None} if the user has no keys.
        @raise POP3ResponseError: C{SYS/TEMP}: the computation would have to wait too long.
        """
        # Read a verifier for every user, because otherwise the time would reveal which users have a
        # verifier.
        standIn = _STAND_INS[algorithm]
        password = self._reader.passwordOf(standIn if stored is None else stored)
        own = self._reader.scramKeys(standIn if stored is None else stored, algorithm)
        if own is None:
            self._reader.scramKeys(standIn, algorithm)
        derived: ScramKeys | None = None
        if self.hasPlain or password is not None:
            # Also compute keys for a user without a password in clear text, because otherwise the
            # time would reveal which users have one.  SASLprep takes longer for a longer password.
            # Use a text with a usual length, and always the same length for the same name.
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
        Forget all computed keys, because passwords may have changed.
        """
        self._derived.clear()
