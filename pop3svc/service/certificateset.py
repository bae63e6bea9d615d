"""
Serve one of several certificates, by the host name that a client asks for (SNI, RFC 6066).
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.files import FileStamp, areStampsTrustworthy, listReplaceable, stampOf
from pop3svc.service.servernames import ServerNames
from pop3svc.service.tls import ClientAuthority, RenewableCertificate

__all__ = ["CHAIN", "KEY", "CertificateDirectory", "CertificateSet"]

log = Logger(namespace="pop3svc")

# The names that certbot gives to the files of each certificate.
CHAIN, KEY = "fullchain.pem", "privkey.pem"
# The most certificates of a directory.  Each certificate takes some 32 KiB of memory, and takes 3
# ms to load.
_MOST = 1000
# The most certificates that a running service loads in one step.  The number is small, because the
# service serves nobody during the step.
_AT_ONCE = 10
# The least seconds between two checks of a directory, unless the operator asks for a check.
_LOOK_EVERY = 1.0
# The number of certificates whose files are checked before a handshake.  The next handshake goes on
# with the certificates after them.  The files of the default certificate, and of certificates that
# clients have asked for since the last handshake, are checked before every handshake.
_IN_TURN = 4

Make = Callable[[str, str], RenewableCertificate]


class CertificateDirectory:
    """
    The certificates in the subdirectories of a directory. certbot keeps certificates in this way.
    """

    def __init__(
        self,
        path: str,
        make: Make,
        handed: Iterable[str] = (),
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param path: the directory, such as C{/etc/letsencrypt/live}.
        @param make: makes a certificate from the paths of its chain and its key.
        @param handed: in a worker, the paths of all files that the parent has read.  The worker
            uses these paths if it may not list the directory itself.
        @param seconds: a monotonic clock in seconds.
        @raise ValueError: the directory cannot be used.  The text is a sentence for the operator.
        """
        self.path = os.path.abspath(path)
        self._make = make
        self._handed = frozenset(handed)
        self._seconds = seconds
        self._certificates: dict[str, RenewableCertificate] = {}
        # The subdirectories whose files could not be used, with the stamps that the files had at
        # that time.
        self._unusable: dict[str, tuple[FileStamp | None, ...]] = {}
        self._seen: FileStamp | None = None
        self._isIncomplete = False
        self._looked = -float("inf")
        self._fault = ""
        self._hasLooked = False
        # The faults that the last check has found, for C{pop3svc config check}.
        self.faults: list[str] = []
        self.look(isForced=True)
        self._hasLooked = True
        if not self._certificates:
            reason = self._fault or (f"{self.path}: no subdirectory has a usable {CHAIN} and {KEY}")
            raise ValueError("; ".join([reason, *self.faults]))

    @property
    def certificates(self) -> list[RenewableCertificate]:
        """
        The certificates, in the order of their subdirectories.
        """
        return [self._certificates[name] for name in sorted(self._certificates)]

    def look(self, isForced: bool = False) -> bool:
        """
        Load new certificates, and drop each certificate whose subdirectory is gone.

        @param isForced: whether to check the directory even if it seems unchanged.
        @return: whether the certificates have changed.
        """
        now = self._seconds()
        if not isForced:
            stamp = stampOf(self.path)
            if stamp is not None and stamp == self._seen and not self._isIncomplete:
                return False
            if now - self._looked < _LOOK_EVERY:
                return False
        else:
            # Log the present fault again, because the operator who asked for the check needs to
            # know it.
            self._fault = ""
        self._looked = now
        stamp = stampOf(self.path)
        found = self._list()
        if found is None:
            return False
        isTrustworthy = stamp is not None and areStampsTrustworthy([stamp])
        self._seen = stamp if isTrustworthy else None
        before = dict(self._certificates)
        self._isIncomplete = False
        self.faults = []
        known = () if isForced else found
        self._unusable = {each: self._unusable[each] for each in known if each in self._unusable}
        loaded = 0
        for name in found:
            if name in self._certificates:
                continue
            if self._hasLooked and loaded == _AT_ONCE:
                self._isIncomplete = True
                break
            loaded += self._add(name)
        gone = self._certificates.keys() - set(found)
        if len(gone) == len(self._certificates):
            # The subdirectories of all certificates are gone.  Keep these certificates, because
            # they are better than none.
            gone = set()
        for name in gone:
            log.info("no longer serving {path}", path=self._certificates.pop(name).certificate)
        return self._certificates != before

    def _list(self) -> list[str] | None:
        """
        @return: the names of the subdirectories; L{None} if they cannot be listed.
        """
        try:
            names = sorted(listReplaceable(self.path, 2 * _MOST))
        except OSError as error:
            ours = [path for path in self._handed if path.startswith(f"{self.path}/")]
            if ours:
                return sorted({os.path.basename(os.path.dirname(path)) for path in ours})
            self._report(f"{self.path}: {error.strerror}")
            return None
        # Leave out the README that certbot keeps in the directory.
        names = [each for each in names if not each.startswith(".") and each != "README"]
        if len(names) > _MOST:
            self._report(f"{self.path} has more than {_MOST} subdirectories; the rest is not used")
        else:
            self._fault = ""
        return names[:_MOST]

    def _report(self, fault: str) -> None:
        if self._fault != fault:
            self._fault = fault
            log.error("{fault}", fault=fault)

    def _add(self, name: str) -> bool:
        """
        Load a new certificate, and add it if it can be used.

        @return: whether this method has tried to load the files.
        """
        chain, key = (os.path.join(self.path, name, each) for each in (CHAIN, KEY))
        stamps = stampOf(chain), stampOf(key)
        if None in stamps and not {chain, key} <= self._handed:
            # Another program may be writing the files at this moment.
            self._isIncomplete = self._isIncomplete or _mayBeDirectory(os.path.dirname(chain))
            return False
        if self._unusable.get(name) == stamps:
            self._isIncomplete = True
            return False
        try:
            made = self._make(chain, key)
        except ValueError as error:
            self._isIncomplete = True
            self.faults.append(str(error))
            self._unusable[name] = stamps
            log.error("not serving a certificate: {error}", error=str(error))
            return True
        self._unusable.pop(name, None)
        if self._hasLooked:
            log.info("serving another certificate: {path}", path=made.certificate)
        self._certificates[name] = made
        return True


def _mayBeDirectory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        # The directory may still be usable, because the privileged process may open its files.
        return True
    except OSError:
        return False


@implementer(IOpenSSLServerConnectionCreator)
class CertificateSet:
    """
    Serves the certificate for the host name that a client asks for.  A client that asks for no
    name, or for an unknown name, gets the default certificate.

    Each handshake begins with the context of the default certificate, and the sessions that clients
    resume belong to this context.  Therefore the ticket key of this context changes when any
    certificate changes.  Otherwise a client could resume a session with a certificate that this
    object does not serve any more.  The client and the service would then have different values of
    C{tls-server-end-point}.
    """

    def __init__(self, defaultName: str | None = None) -> None:
        """
        @param defaultName: the host name whose certificate is the default.
        """
        self._defaultName = defaultName
        self.directory: CertificateDirectory | None = None
        # The certificates that were chosen since the start of the last handshake.
        self._asked: set[RenewableCertificate] = set()
        self._turn = 0
        # All contexts have the same session id context, because a client may resume a session
        # before the certificate is chosen.
        self._sessionID = secrets.token_bytes(16)

    def prepare(self, context: SSL.Context, chain: Sequence[x509.Certificate]) -> None:
        """
        Prepare the context of a certificate of this set.  L{RenewableCertificate} calls this method
        for each of its contexts.
        """
        context.set_session_id(self._sessionID)
        context.set_tlsext_servername_callback(self.choose)

    def serve(
        self,
        certificates: Sequence[RenewableCertificate],
        directory: CertificateDirectory | None = None,
    ) -> None:
        """
        Set the certificates.  L{prepare} must have prepared them.  If the settings name no default
        certificate, the first one is the default.

        @param certificates: the certificates that the settings name.  If several have the same host
            name, clients that ask for this name get the first of these certificates.
        @param directory: the directory with further certificates.  If several have the same host
            name, clients that ask for this name get the certificate that expires last.
        @raise ValueError: no certificate has the default host name.  The text is the end of a
            sentence.
        """
        self._given = list(certificates)
        self.directory = directory
        self._arrange()
        name = self._defaultName
        if name is not None and self._names.find(name) is None:
            raise ValueError(f"no certificate is for {name}")

    @property
    def all(self) -> list[RenewableCertificate]:
        """
        All certificates.
        """
        return self._all

    @property
    def default(self) -> RenewableCertificate:
        """
        The default certificate.
        """
        return self._default

    @property
    def certificate(self) -> str:
        """
        The path of the default certificate.
        """
        return self._default.certificate

    @property
    def clients(self) -> ClientAuthority | None:
        """
        The authorities that sign the certificates of clients; L{None} if the service asks clients
        for no certificates.
        """
        return self._default.clients

    def contents(self) -> Mapping[str, bytes]:
        """
        @return: the contents of all files of the certificates, by path.
        """
        self._refresh(self._all)
        found: dict[str, bytes] = {}
        for each in self._all:
            found.update(each.contents())
        return found

    def reload(self) -> None:
        """
        Read all files again, even if their stamps have not changed.
        """
        self._refresh(self._all, isForced=True)

    def _arrange(self) -> None:
        """
        Find the certificate for each host name.
        """
        found = [] if self.directory is None else self.directory.certificates
        self._all = [*self._given, *found]
        byEnd = sorted(found, key=lambda each: each.end, reverse=True)
        self._names = ServerNames((each, each.names) for each in [*self._given, *byEnd])
        named = None if self._defaultName is None else self._names.find(self._defaultName)
        self._default = self._all[0] if named is None else named
        for each in self._all:
            # The default certificate alone makes session tickets.  A change of ticket keys makes a
            # new context, and a thousand new contexts each day would stop the service for seconds.
            each.makesTickets = each is self._default
        self._pairs = {each: each.pair for each in self._all}
        self._authorities = self._default.authorities

    def _refresh(self, some: list[RenewableCertificate], isForced: bool = False) -> None:
        """
        Read the files of some certificates again if they have changed.
        """
        hasOthers = self.directory is not None and self.directory.look(isForced)
        for each in some:
            if isForced:
                each.reload()
            else:
                each.refresh()
        if (
            not hasOthers
            and self._default.authorities == self._authorities
            and all(each.pair == self._pairs[each] for each in some if each in self._pairs)
        ):
            return
        before = self._default
        self._arrange()
        if self._default is not before:
            log.info("the default certificate is {path} now", path=self._default.certificate)
        self._default.renewTickets()

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        return self._connection(None)

    def connectionOn(self, descriptor: int) -> SSL.Connection:
        """
        See L{RenewableCertificate.connectionOn}.
        """
        return self._connection(descriptor)

    def _connection(self, descriptor: int | None) -> SSL.Connection:
        everybody = self._all
        self._turn = (self._turn + _IN_TURN) % len(everybody)
        some = everybody[self._turn : self._turn + _IN_TURN]
        self._refresh(list(dict.fromkeys([self._default, *some, *self._asked])))
        self._asked.clear()
        return self._default.newConnection(descriptor)

    def choose(self, connection: SSL.Connection) -> None:
        """
        Use the certificate for the host name that a client asks for.  This method is the callback
        of C{OpenSSL.SSL.Context.set_tlsext_servername_callback}.
        """
        try:
            name = connection.get_servername()
            found = None if name is None else self._names.find(name.decode("ascii", "replace"))
            if found is not None:
                # All certificates use the authorities of the default one, so that replaced
                # authorities take effect at once for all names.
                found.useAuthorities(self._default.authorities)
            # The default may have changed since the beginning of the handshake.
            if found is None or found.context is connection.get_context():
                return
            # The files of this certificate are checked before the next handshake.  A check now
            # could replace the certificate, although the client may resume a session that belongs
            # to it.
            self._asked.add(found)
            # Keep a reference to the first context, because OpenSSL may still call its callbacks.
            # If a client sends a second hello, the connection no longer has the first context, and
            # the reference is there already.
            holder: Any = connection
            if not hasattr(holder, "firstContext"):
                holder.firstContext = connection.get_context()
            connection.set_context(found.context)
        except Exception:
            log.failure("cannot choose a certificate")

    @property
    def end(self) -> datetime:
        """
        When the default certificate expires.
        """
        return self._default.end
