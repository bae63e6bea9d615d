"""
The certificates of a service and of its listeners.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pop3svc.service.certificateset import CertificateDirectory, CertificateSet
from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.settings import Listener, SettingError, Settings
from pop3svc.service.tls import ClientAuthority, ClientAuthorityError, Prepare, RenewableCertificate
from pop3svc.service.tlsrules import TLSRules

if TYPE_CHECKING:
    from cryptography import x509
    from OpenSSL import SSL

    from pop3svc.service.stapling import Stapler

__all__ = ["Certificates", "staplerFor"]

# An object that makes the TLS connections of a listener.
Creator = RenewableCertificate | CertificateSet


class Certificates:
    """
    Loads the certificates that the settings name.  Listeners with the same certificate, client CA
    and rules of TLS share what is loaded.

    @ivar announcements: lines for the log.
    """

    def __init__(
        self,
        settings: Settings,
        data: Callable[[], DataDirectory],
        handed: Mapping[str, str] | None,
    ) -> None:
        """
        @param data: returns the data directory, which contains the self-signed certificate.
        @param handed: in a worker, the PEM texts of the files of all certificates, by path.
        """
        self._settings = settings
        self._data = data
        texts = {} if handed is None else handed
        self._handed = {path: text.encode("latin-1") for path, text in texts.items()}
        # A key consists of the path of the certificate, the path of its private key, the path of
        # the client CA, and the rules of TLS.  None in the place of the first path stands for the
        # service's own certificates.
        self._loaded: dict[tuple[str | TLSRules | None, ...], Creator] = {}
        self.announcements: list[str] = []
        self.stapler = staplerFor(settings)

    def of(self, listener: Listener | None = None) -> Creator:
        """
        Load the certificate of a listener.  Without a listener, or if the listener names no
        certificate, load the service's own certificates.  If the settings name none of these, make
        a self-signed certificate.

        @raise SettingError: a certificate cannot be used.
        """
        settings = self._settings
        whereClients, clientCa = settings.where("client-ca"), settings.clientCa
        certificate = privateKey = None
        where = ""
        if listener is not None:
            place = listener.where.removesuffix("endpoint")
            if listener.certificate is not None:
                where = f"{place}certificate"
                certificate, privateKey = listener.certificate, listener.privateKey
            if listener.clientCa is not None:
                whereClients, clientCa = f"{place}client-ca", listener.clientCa
        rules = settings.tlsRules(listener)
        key = certificate, privateKey, clientCa, rules
        if key not in self._loaded:
            load = _Loader(clientCa, settings.clientName, rules, self._handed, self.stapler)
            try:
                if certificate is not None:
                    self._loaded[key] = load(where, certificate, privateKey)
                else:
                    self._loaded[key] = self._ofService(load)
            except ClientAuthorityError as error:
                raise SettingError(f"{whereClients}: {error}")
        return self._loaded[key]

    def _ofService(self, load: _Loader) -> Creator:
        settings = self._settings
        hasOthers = settings.certificates or settings.certificateDirectory is not None
        if not hasOthers:
            return load(
                settings.where("certificate"), *self._own(), ocspResponse=settings.ocspResponse
            )
        made = CertificateSet(settings.tlsDefaultName)
        given = []
        if settings.certificate is not None:
            where = settings.where("certificate")
            found = load(
                where,
                settings.certificate,
                settings.privateKey,
                prepare=made.prepare,
                ocspResponse=settings.ocspResponse,
            )
            given.append(found)
        for each in settings.certificates:
            found = load(
                each.where,
                each.certificate,
                each.privateKey,
                each.names,
                made.prepare,
                needsNames=True,
                ocspResponse=each.ocspResponse,
            )
            given.append(found)
        directory = None
        if settings.certificateDirectory is not None:
            load.checkClients()
            try:
                directory = CertificateDirectory(
                    settings.certificateDirectory,
                    lambda chain, key: load("", chain, key, prepare=made.prepare),
                    self._handed,
                )
            except ValueError as error:
                raise SettingError(f"{settings.where('certificate-directory')}: {error}")
        try:
            made.serve(given, directory)
        except ValueError as error:
            raise SettingError(f"{settings.where('tls-default-name')}: {error}")
        line = f"the default certificate is {made.default.certificate}"
        if line not in self.announcements:
            self.announcements.append(line)
        return made

    def _own(self) -> tuple[str, str | None]:
        path, privateKey = self._settings.certificate, self._settings.privateKey
        if path is None:
            path, privateKey, isNew = self._data().makeCertificate()
            if isNew:
                self.announcements.append(f"made a self-signed certificate: {path}")
        return path, privateKey

    def look(self) -> None:
        """
        Load renewed certificates.  Log each warning about a certificate that expires once, even if
        several listeners use the certificate.  Call this method regularly.
        """
        for each in self._loaded.values():
            each.contents()
        for certificate in self.all():
            certificate.look()

    def creators(self) -> list[Creator]:
        """
        @return: the objects that L{of} has made, in the order of its calls.
        """
        return list(self._loaded.values())

    def all(self) -> list[RenewableCertificate]:
        """
        @return: the certificates that are served now, without duplicates.
        """
        found: dict[str, RenewableCertificate] = {}
        for each in self._loaded.values():
            for one in each.all if isinstance(each, CertificateSet) else [each]:
                found.setdefault(one.certificate, one)
        return list(found.values())

    def directories(self) -> list[str]:
        """
        @return: the paths of the directories from which certificates are loaded.
        """
        found = {
            each.directory.path
            for each in self._loaded.values()
            if isinstance(each, CertificateSet) and each.directory is not None
        }
        return sorted(found)

    def statusFiles(self) -> list[str]:
        """
        @return: the paths of the files that contain OCSP responses with the status of certificates.
        """
        settings = self._settings
        found = [settings.ocspResponse, *(each.ocspResponse for each in settings.certificates)]
        return [os.path.abspath(each) for each in found if each is not None]

    def files(self) -> list[str]:
        """
        @return: the paths of the files that L{contents} returns.
        """
        return list(self.contents())

    def contents(self) -> dict[str, bytes]:
        """
        @return: the contents of the files of all certificates, keys and client CAs, by path.
        """
        found: dict[str, bytes] = {}
        for each in self._loaded.values():
            found.update(each.contents())
        return found


def staplerFor(settings: Settings) -> Stapler | None:
    """
    @return: the object that keeps the OCSP status of the certificates; L{None} if no setting asks
        for the status.
    @raise SettingError: a library is missing.
    """
    files = [settings.ocspResponse, *(each.ocspResponse for each in settings.certificates)]
    if not (settings.ocspFetch or any(files)):
        return None
    # The module is imported here, because few services need it.
    from pop3svc.service.stapling import Stapler

    if settings.ocspFetch:
        try:
            import treq  # noqa: F401
        except ImportError:
            raise SettingError(
                f"{settings.where('ocsp-fetch')} needs treq: pip install 'pop3svc[http]'"
            )
    return Stapler(settings.ocspFetch)


class _Loader:
    """
    Loads certificates that are served with the same authorities for client certificates and the
    same rules of TLS.
    """

    def __init__(
        self,
        clientCa: str | None,
        clientName: str,
        rules: TLSRules,
        handed: Mapping[str, bytes],
        stapler: Stapler | None,
    ) -> None:
        self._stapler = stapler
        self._clients = None if clientCa is None else ClientAuthority(clientCa, clientName)
        self._rules = rules
        self._handed = handed

    def checkClients(self) -> None:
        """
        @raise ClientAuthorityError: the file with the authorities cannot be used.
        """
        clients = self._clients
        if clients is not None and os.path.abspath(clients.path) not in self._handed:
            clients.certificates(clients.load())

    def _withStapler(
        self, certificate: str, ocspResponse: str | None, prepare: Prepare | None
    ) -> Prepare | None:
        stapler = self._stapler
        if stapler is None:
            return prepare
        file = None if ocspResponse is None else os.path.abspath(ocspResponse)

        def both(context: SSL.Context, chain: Sequence[x509.Certificate]) -> None:
            if prepare is not None:
                prepare(context, chain)
            stapler.prepare(certificate, file, context, chain)

        return both

    def __call__(
        self,
        where: str,
        certificate: str,
        privateKey: str | None,
        names: Sequence[str] = (),
        prepare: Prepare | None = None,
        needsNames: bool = False,
        ocspResponse: str | None = None,
    ) -> RenewableCertificate:
        """
        @param where: the option or the key of the configuration that names the certificate, for
            messages.
        @param ocspResponse: the file that contains an OCSP response with the status of the
            certificate; L{None} without such a file.
        @param needsNames: whether to refuse a certificate without names, because the service would
            choose it for no client.
        @raise ClientAuthorityError: the file with the authorities cannot be used.
        @raise SettingError: the certificate cannot be used.
        """
        try:
            made = RenewableCertificate(
                certificate,
                privateKey or certificate,
                self._handed,
                clients=self._clients,
                rules=self._rules,
                names=names,
                prepare=self._withStapler(certificate, ocspResponse, prepare),
            )
            if needsNames and not made.names:
                raise ValueError(f"{certificate} has no host names, so it needs names")
        except ClientAuthorityError:
            raise
        except ValueError as error:
            raise SettingError(f"{where}: {error}" if where else str(error))
        return made
