"""
The certificates of a service and of its listeners.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from pop3svc.service.certificateset import CertificateDirectory, CertificateSet
from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.settings import Listener, SettingError, Settings
from pop3svc.service.tls import ClientAuthority, ClientAuthorityError, Prepare, RenewableCertificate
from pop3svc.service.tlsrules import TLSRules

__all__ = ["Certificates"]

# What makes the TLS connections of a listener.
Creator = RenewableCertificate | CertificateSet


class Certificates:
    """
    Loads each certificate that settings name, once.

    @ivar announcements: lines for the log.
    """

    def __init__(
        self,
        settings: Settings,
        data: Callable[[], DataDirectory],
        handed: Mapping[str, str] | None,
    ) -> None:
        """
        @param data: returns the data directory, for a self-signed certificate.
        @param handed: in a worker, the PEM texts of the files of all certificates, by path.
        """
        self._settings = settings
        self._data = data
        texts = {} if handed is None else handed
        self._handed = {path: text.encode("latin-1") for path, text in texts.items()}
        # By the paths of the certificate, its key and the client CA, and by the rules.  None stands
        # for the service's own certificates.
        self._loaded: dict[tuple[str | TLSRules | None, ...], Creator] = {}
        self.announcements: list[str] = []

    def of(self, listener: Listener | None = None) -> Creator:
        """
        Load the certificate of a listener, or the certificates of the service, which STLS uses.
        Make a self-signed certificate if the settings name none.

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
            load = _Loader(clientCa, settings.clientName, rules, self._handed)
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
            return load(settings.where("certificate"), *self._own())
        made = CertificateSet(settings.tlsDefaultName)
        given = []
        if settings.certificate is not None:
            where = settings.where("certificate")
            given.append(
                load(where, settings.certificate, settings.privateKey, prepare=made.prepare)
            )
        for each in settings.certificates:
            found = load(
                each.where, each.certificate, each.privateKey, each.names, made.prepare, True
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
        self.announcements.append(f"the default certificate is {made.default.certificate}")
        return made

    def _own(self) -> tuple[str, str | None]:
        path, privateKey = self._settings.certificate, self._settings.privateKey
        if path is None:
            path, privateKey, isNew = self._data().makeCertificate()
            if isNew:
                self.announcements.append(f"made a self-signed certificate: {path}")
        return path, privateKey

    def creators(self) -> list[Creator]:
        """
        @return: what was loaded, in the order in which it was asked for.
        """
        return list(self._loaded.values())

    def all(self) -> list[RenewableCertificate]:
        """
        @return: the certificates that are served now, each once.
        """
        found: dict[str, RenewableCertificate] = {}
        for each in self._loaded.values():
            for one in each.all if isinstance(each, CertificateSet) else [each]:
                found.setdefault(one.certificate, one)
        return list(found.values())

    def directories(self) -> list[str]:
        """
        @return: the paths of the directories of certificates.
        """
        path = self._settings.certificateDirectory
        found = {
            each.directory.path
            for each in self._loaded.values()
            if isinstance(each, CertificateSet) and each.directory is not None
        }
        return [] if path is None else sorted(found)

    def files(self) -> list[str]:
        """
        @return: the paths of all files, each once.
        """
        return list(self.contents())

    def contents(self) -> dict[str, bytes]:
        """
        @return: the contents of the files of all certificates, by path.
        """
        found: dict[str, bytes] = {}
        for each in self._loaded.values():
            found.update(each.contents())
        return found


class _Loader:
    """
    Loads certificates that have the same authorities of clients and the same rules.
    """

    def __init__(
        self,
        clientCa: str | None,
        clientName: str,
        rules: TLSRules,
        handed: Mapping[str, bytes],
    ) -> None:
        self._clients = None if clientCa is None else ClientAuthority(clientCa, clientName)
        self._rules = rules
        self._handed = handed

    def checkClients(self) -> None:
        """
        @raise ClientAuthorityError: the file of the authorities cannot be used.
        """
        clients = self._clients
        if clients is not None and os.path.abspath(clients.path) not in self._handed:
            clients.certificates(clients.load())

    def __call__(
        self,
        where: str,
        certificate: str,
        privateKey: str | None,
        names: Sequence[str] = (),
        prepare: Prepare | None = None,
        needsNames: bool = False,
    ) -> RenewableCertificate:
        """
        @param where: the option or the key, for messages.
        @param needsNames: refuse a certificate without names, because nobody would get it.
        @raise ClientAuthorityError: the file of the authorities cannot be used.
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
                prepare=prepare,
            )
            if needsNames and not made.names:
                raise ValueError(f"{certificate} has no host names, so it needs names")
        except ClientAuthorityError:
            raise
        except ValueError as error:
            raise SettingError(f"{where}: {error}" if where else str(error))
        return made
