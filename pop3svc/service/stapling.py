"""
Send the status of a certificate to clients in the TLS handshake (OCSP stapling, RFC 6066 section
8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pop3svc.accounts.httprequests import HTTPExchange, HTTPUnavailable, bodyOf, checkURL
from pop3svc.awaiting import CallTimeout, awaitWithTimeout
from pop3svc.errors import POP3ResponseError
from pop3svc.files import disk, readReplaceable
from pop3svc.service.ocsp import (
    CertificateStatus,
    checkResponse,
    issuerOf,
    requestFor,
    responderOf,
)

__all__ = ["Stapler", "StaplingService", "readStatus"]

log = Logger(namespace="pop3svc")

# The most octets of a response.  Real responses have 500 to 3,000 octets.
_LARGEST = 65_536
# Seconds within which a request must be answered, or a file must be read.
_PATIENCE = 10.0
# Seconds between two checks of the files and of the times of the responses.
_LOOK_EVERY = 60.0
# Seconds until a failed request is repeated: after the first failure, and at most.  Each further
# failure doubles the time.
_FIRST_WAIT, _LONGEST_WAIT = 60.0, 3600.0
# The most requests at the same time.
_AT_ONCE = 4


def readStatus(path: str, chain: Sequence[x509.Certificate], now: float) -> CertificateStatus:
    """
    Read and check a file with a response.  This function blocks.

    @raise ValueError: the response cannot be sent.  The text is a sentence.
    """
    try:
        data = readReplaceable(path, _LARGEST)
        return checkResponse(data, chain[0], issuerOf(chain), now)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}")


class _Staple:
    """
    Has the OCSP response for one certificate, and obtains new responses.
    """

    def __init__(
        self,
        place: str,
        chain: Sequence[x509.Certificate],
        file: str | None,
        now: Callable[[], float],
    ) -> None:
        """
        @param place: the path of the certificate, for the log.
        @param file: the file whose response the operator keeps up to date; L{None} to ask the
            responder.
        """
        self.place = place
        self.file = file
        self._chain = chain
        self._now = now
        self._status: CertificateStatus | None = None
        self._fault = ""
        # The time of the next request to the responder.
        self.due = 0.0
        self._wait = _FIRST_WAIT

    def respond(self, connection: SSL.Connection, data: object = None) -> bytes:
        """
        The callback for C{OpenSSL.SSL.Context.set_ocsp_server_callback}.

        @return: the response; empty if there is no response that clients would accept.
        """
        status = self._status
        return b"" if status is None or self._now() >= status.ends else status.data

    def read(self) -> CertificateStatus:
        """
        Read the file.  This method blocks.

        @raise ValueError: the response in the file cannot be sent.  The text is a sentence.
        """
        assert self.file is not None
        return readStatus(self.file, self._chain, self._now())

    async def readInThread(self, reactor: Any) -> CertificateStatus:
        """
        Read the file in a thread.

        @raise ValueError: the response in the file cannot be sent.  The text is a sentence.
        """
        try:
            status: CertificateStatus = await awaitWithTimeout(
                disk().run(self.read), reactor, _PATIENCE
            )
        except CallTimeout:
            raise ValueError(f"{self.file}: cannot be read within {_PATIENCE:g} s")
        except POP3ResponseError:
            raise ValueError(f"{self.file}: too much other work waits for the disk")
        return status

    async def fetch(self, reactor: Any) -> CertificateStatus:
        """
        Ask the responder for a new response.

        @raise ValueError: the responder gave no response that can be sent.  The text is a sentence.
        """
        url = responderOf(self._chain[0])
        if url is None:
            raise ValueError("the certificate names no OCSP responder")
        checkURL(url)
        issuer = issuerOf(self._chain)
        exchange = HTTPExchange(url, _PATIENCE, _LARGEST, reactor=reactor)
        body = requestFor(self._chain[0], issuer)
        try:
            answer = await exchange.ask("POST", body, "application/ocsp-request", accept="*/*")
            return checkResponse(bodyOf(answer), self._chain[0], issuer, self._now())
        except HTTPUnavailable as error:
            raise ValueError(f"the OCSP responder {url}: {error}")

    def succeeded(self, status: CertificateStatus) -> None:
        """
        Send a new response to clients from now on.
        """
        if self._status is None or self._fault:
            log.info("stapling the OCSP response of {path}", path=self.place)
        self._status, self._fault, self._wait = status, "", _FIRST_WAIT
        # Ask again after half of the time for which the response is valid, so that the other half
        # is left for further attempts.
        self.due = max((status.begins + status.ends) / 2, self._now() + _FIRST_WAIT)

    def failed(self, fault: str) -> None:
        """
        Keep the present response as long as clients accept it, and note the fault.
        """
        self.due = self._now() + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        if fault != self._fault:
            self._fault = fault
            log.error("no new OCSP response for {path}: {fault}", path=self.place, fault=fault)

    def expire(self) -> None:
        """
        Drop the present response if clients do not accept it any more.
        """
        if self._status is not None and self._now() >= self._status.ends:
            self._status = None
            log.error("the OCSP response of {path} is out of date", path=self.place)


class Stapler:
    """
    Has the OCSP responses for all certificates of a process.  A handshake never waits for a
    response.

    @ivar isStopping: whether the service stops, so that no more responses are requested.
    """

    def __init__(self, fetches: bool, now: Callable[[], float] = time.time) -> None:
        """
        @param fetches: whether to ask the responder of each certificate for which the operator
            keeps no file with a response.
        @param now: returns the time in seconds since the epoch.
        """
        self._fetches = fetches
        self._now = now
        # The values are weak references.  The contexts of a certificate refer to its C{_Staple}, so
        # the C{_Staple} exists as long as one of these contexts.
        self._staples: WeakValueDictionary[tuple[str | bytes | None, ...], _Staple] = (
            WeakValueDictionary()
        )
        # A function that is called for each new certificate whose responder has to be asked.
        self.isWanted: Callable[[], object] = lambda: None
        self.isStopping = False

    def prepare(
        self,
        place: str,
        file: str | None,
        context: SSL.Context,
        chain: Sequence[x509.Certificate],
    ) -> None:
        """
        Prepare a context of a certificate; see L{pop3svc.service.tls.RenewableCertificate}.

        @param place: the path of the certificate, for the log.
        @param file: the file whose response the operator keeps up to date; L{None} to ask the
            responder.
        """
        if file is None and not self._fetches:
            return
        # The key has the whole chain, because the operator may add the issuer to a file that lacked
        # it.
        key = file, *(each.fingerprint(SHA256()) for each in chain)
        staple = self._staples.get(key)
        if staple is None:
            staple = self._staples[key] = _Staple(place, chain, file, self._now)
            if file is None:
                self.isWanted()
            else:
                # Read the file now, because the certificate is new or renewed.
                self._read(staple)
        context.set_ocsp_server_callback(staple.respond)

    def _read(self, staple: _Staple) -> None:
        try:
            staple.succeeded(staple.read())
        except ValueError as error:
            staple.failed(str(error))

    async def look(self, reactor: Any) -> None:
        """
        Read the files again.  For each response that is due to be renewed, ask its responder.
        """
        staples = list(self._staples.values())
        for each in staples:
            each.expire()
            if each.file is not None and not self.isStopping:
                await self._update(each, partial(each.readInThread, reactor))
        due = [each for each in staples if each.file is None and each.due <= self._now()]
        for start in range(0, len(due), _AT_ONCE):
            if self.isStopping:
                break
            asked = [
                Deferred.fromCoroutine(self._update(each, partial(each.fetch, reactor)))
                for each in due[start : start + _AT_ONCE]
            ]
            await gatherResults(asked)

    async def _update(
        self, staple: _Staple, get: Callable[[], Coroutine[Any, Any, CertificateStatus]]
    ) -> None:
        try:
            staple.succeeded(await get())
        except Exception as error:
            if self.isStopping:
                # The service has cancelled the request, so this error is not a fault of the
                # responder.
                return
            if isinstance(error, ValueError):
                staple.failed(str(error))
                return
            log.failure("cannot get an OCSP response for {path}", path=staple.place)
            staple.failed("the log says why")


class StaplingService(Service):
    """
    Keeps the OCSP responses up to date while the service runs.
    """

    def __init__(self, stapler: Stapler, reactor: Any) -> None:
        """
        @param stapler: has the OCSP responses of this process.
        """
        self._stapler = stapler
        self._reactor = reactor
        self._timer: IDelayedCall | None = None
        self._looking: Deferred[None] | None = None
        # Whether a certificate was added after the last check had begun.
        self._isWanted = False

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()  # type: ignore[no-untyped-call]
        self._stapler.isStopping = False
        self._stapler.isWanted = self._want
        self._lookIn(0)

    def _want(self) -> None:
        self._isWanted = True
        if self._looking is None:
            self._lookIn(0)

    def _lookIn(self, seconds: float) -> None:
        if not self.running:
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        self._isWanted = False
        looking = Deferred.fromCoroutine(self._stapler.look(self._reactor))
        self._looking = looking
        looking.addErrback(lambda failure: log.failure("cannot look after OCSP", failure))
        looking.addBoth(self._looked)

    def _looked(self, _: object) -> None:
        self._looking = None
        self._lookIn(0 if self._isWanted else _LOOK_EVERY)

    def stopService(self) -> None:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stapler.isStopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
