"""
Read the public keys of an issuer of tokens from a file, or fetch them from the issuer's server.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.claims import unavailable
from pop3svc.accounts.httprequests import (
    HTTPExchange,
    HTTPUnavailable,
    bodyOf,
    checkURL,
    withoutQuery,
)
from pop3svc.accounts.tokens import KeySet
from pop3svc.awaiting import CallTimeout, Shielded, settled
from pop3svc.errors import POP3ResponseError
from pop3svc.files import FileStamp, readReplaceable, stampOf
from pop3svc.health import Health
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = ["FetchedKeys", "FileKeys", "fetchedKeys", "reading", "theClock"]

log = Logger(namespace="pop3svc")

# A separate thread reads the files of keys and secrets, because other threads may hang on a disk
# with mail.
reading = BoundedThreadPool("pop3svc-keys", threads=1, waiting=100)

# The most octets of a key set.  A typical set has some 10 KiB.
_LARGEST = 512 << 10
# Seconds that a fetch may take.
_TIMEOUT = 10


def theClock() -> Any:
    """
    @return: the global reactor.  It is imported here and not at the top of the module, because
        C{twistd} and the tests must be able to install a reactor first.
    """
    from twisted.internet import reactor

    return reactor


def _read(path: str) -> tuple[FileStamp | None, KeySet | str]:
    """
    @return: the stamp of the file before it was read.  The second value is the keys; if they cannot
        be read, it is a sentence with the reason.
    """
    stamp = stampOf(path)
    try:
        return stamp, KeySet(readReplaceable(path, _LARGEST))
    except OSError as error:
        return stamp, f"{path}: {error.strerror}"
    except ValueError as error:
        return stamp, f"{path} cannot be used: {_reason(error)}"


def _reason(error: ValueError) -> str:
    # A subclass of ValueError, such as JSONDecodeError, means that the text is not JSON.
    return "it is not JSON" if type(error) is not ValueError else str(error)


class FileKeys:
    """
    The keys in a file.  If the file has changed, a thread reads it again.  If the file cannot be
    read, the previous keys stay in use.
    """

    # Seconds that a login waits until a changed file has been read again.
    PATIENCE = 5.0
    # Seconds between two attempts to read a file that cannot be read.
    RETRY = 1.0

    def __init__(
        self, path: str, runner: Executor | None = None, clock: IReactorTime | None = None
    ) -> None:
        """
        @param runner: runs the function that reads the file.
        @param clock: used for time limits and pauses; the reactor if not given.
        @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
        """
        self._path = os.path.abspath(path)
        self._reader = reading if runner is None else runner
        self._clock = clock
        self._seen, keys = _read(self._path)
        if isinstance(keys, str):
            raise ValueError(keys)
        self._keys = keys
        self._rereading: Shielded | None = None
        self._tried: float | None = None
        self._fault = ""
        _report(self._path, keys)

    async def find(self, name: str | None) -> Any:
        """
        @param name: the name of the key in a token (C{kid}); L{None} if the token contains no name.
        @return: the key; L{None} if there is no such key.
        """
        stamp = stampOf(self._path)
        if stamp is None or stamp != self._seen:
            await self._refresh()
        return self._keys.pick(name)

    async def findAgain(self, name: str | None) -> Any:
        """
        Find a key again, because the key with this name has not verified a token.

        @param name: see L{find}.
        @return: the key with this name in the file as it is now; L{None} if there is no such key.
        """
        return await self.find(name)

    async def _refresh(self) -> None:
        clock = self._clock or theClock()
        if self._rereading is None or self._rereading.done:
            now = clock.seconds()
            if self._fault and self._tried is not None and now - self._tried < self.RETRY:
                return
            self._tried = now
            self._rereading = Shielded(self._reread)
        try:
            await settled(self._rereading.outcome(clock, self.PATIENCE))
        except CallTimeout:
            # Go on with the previous keys, because the disk is too slow.
            pass

    async def _reread(self) -> None:
        try:
            stamp, keys = await self._reader.run(_read, self._path)
        except POP3ResponseError:
            stamp, keys = None, f"{self._path} cannot be read now, for lack of threads"
        if not isinstance(keys, str):
            self._seen, self._keys, self._fault = stamp, keys, ""
            _report(self._path, keys)
        elif keys != self._fault:
            self._fault = keys
            log.error("keeping the previous keys: {error}", error=keys)

    async def reload(self) -> None:
        """
        Read the file again.
        """
        self._seen, self._tried, self._fault = None, None, ""
        await self._refresh()


def _report(source: str, keys: KeySet) -> None:
    if keys.dropped:
        log.warn("{source}: {count} keys cannot be used", source=source, count=keys.dropped)


class FetchedKeys:
    """
    The keys that the issuer publishes.  The service fetches them at the first login.  It fetches
    them again if they are old, if a token names an unknown key, or if a token has a wrong
    signature.
    """

    # Seconds after which keys are fetched again.  During the fetch the old keys stay in use.
    REFRESH = 3600.0
    # Seconds after which old keys are not used any more if no fetch has succeeded.  The issuer may
    # have withdrawn one of these keys.
    OLDEST = 86_400.0
    # The least number of seconds between two attempts to fetch keys.  Without this limit, each
    # token with an invented key name would cause a request to the issuer.
    PAUSE = 60.0
    # The number that replaces PAUSE while there are no usable keys.  It is smaller, because nobody
    # can log in without keys.
    RETRY = 5.0

    def __init__(
        self, source: str, fetch: Callable[[], Awaitable[bytes]], clock: IReactorTime | None = None
    ) -> None:
        """
        @param source: the address of the key set, for the log.
        @param fetch: fetches the key set and returns its JSON, or raises L{HTTPUnavailable}.
        @param clock: measures the age of the keys, and the pauses between fetches; the reactor if
            not given.
        """
        self._source = source
        self._health = Health(f"the key set at {source}")
        self._fetch = fetch
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched = 0.0
        self._tried: float | None = None
        self._fetching: Shielded | None = None

    @property
    def _time(self) -> IReactorTime:
        if self._clock is None:
            self._clock = IReactorTime(theClock())
        return self._clock

    @property
    def _now(self) -> float:
        return float(self._time.seconds())

    async def find(self, name: str | None) -> Any:
        """
        @param name: the name of the key in a token (C{kid}); L{None} if the token contains no name.
        @return: the key; L{None} if there is no such key.
        @raise POP3ResponseError: C{SYS/TEMP}: there are no keys, the keys are too old, or there is
            no such key and new keys could not be fetched.
        """
        if not self._isUsable():
            await self._refreshed(self.RETRY)
            if not self._isUsable():
                raise unavailable()
        elif self._now - self._fetched > self.REFRESH:
            self._begin(self.PAUSE)
        assert self._keys is not None
        key = self._keys.pick(name)
        if key is None:
            await self._refreshed(self.PAUSE)
            key = self._keys.pick(name)
            if key is None and not self._health.isAvailable:
                # The fetch has failed, and the issuer may have a new key.
                raise unavailable()
        return key

    async def findAgain(self, name: str | None) -> Any:
        """
        Find a key again, because the key with this name has not verified a token.  The issuer may
        have replaced the key.  Therefore fetch the keys again, unless a fetch was tried less than
        L{PAUSE} seconds ago.

        @param name: see L{find}.
        @return: the key with this name; L{None} if there is no such key.
        """
        await self._refreshed(self.PAUSE)
        return None if self._keys is None else self._keys.pick(name)

    def _isUsable(self) -> bool:
        return self._keys is not None and self._now - self._fetched <= self.OLDEST

    def _begin(self, pause: float) -> None:
        """
        Begin to fetch the keys, unless a fetch is running or was tried less than C{pause} seconds
        ago.
        """
        if self._fetching is not None and not self._fetching.done:
            return
        if self._tried is not None and self._now - self._tried < pause:
            return
        self._tried = self._now
        self._fetching = Shielded(self._fetchOnce)

    async def _refreshed(self, pause: float) -> None:
        self._begin(pause)
        if self._fetching is not None:
            await settled(self._fetching.outcome())

    async def _fetchOnce(self) -> None:
        try:
            keys = KeySet(await self._fetch())
        except HTTPUnavailable as error:
            self._health.failed(str(error))
        except ValueError as error:
            self._health.failed(_reason(error))
        else:
            self._health.succeeded()
            self._keys, self._fetched = keys, self._now
            _report(self._source, keys)

    async def reload(self) -> None:
        """
        Fetch the keys again.  The old keys stay in use until the fetch has succeeded.
        """
        self._tried = None
        self._begin(0)


def fetchedKeys(
    url: str, authorities: str | None, reactor: Any = None, endpoints: Any = None
) -> FetchedKeys:
    """
    @param url: the address of a key set.
    @param authorities: the path of a PEM file with the certificates of the authorities; L{None} for
        the authorities of the system.
    @param reactor: the reactor; the global reactor if not given.
    @param endpoints: an L{twisted.web.iweb.IAgentEndpointFactory} that replaces the connections in
        tests.
    @return: an object that fetches the keys from the address.
    @raise ValueError: the address or the file of authorities cannot be used.  The text is a
        sentence for the operator.
    """
    source = withoutQuery(checkURL(url))
    exchange = HTTPExchange(url, _TIMEOUT, _LARGEST, authorities, reactor, endpoints)

    async def fetch() -> bytes:
        # Do not check the media type, because issuers use several types for a key set.
        return bodyOf(await exchange.ask("GET"))

    return FetchedKeys(source, fetch, reactor)
