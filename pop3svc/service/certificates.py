"""
The certificates of a service and of its listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.settings import Listener, SettingError, Settings
from pop3svc.service.tls import ClientAuthority, ClientAuthorityError, RenewableCertificate
from pop3svc.service.tlsrules import TLSRules

__all__ = ["Certificates"]


class Certificates:
    """
    Loads each certificate that settings name, once.

    @ivar announcements: lines for the log.
    """

    def __init__(
        self,
        settings: Settings,
        data: Callable[[], DataDirectory],
        handed: Sequence[Sequence[str]] | None,
    ) -> None:
        """
        @param data: returns the data directory, for a self-signed certificate.
        @param handed: in a worker, the PEM texts of the files of all certificates, in the order
            in which they are asked for.
        """
        self._settings = settings
        self._data = data
        self._handed = handed
        # By the paths of the certificate, its key and the client CA, and by the rules.  None stands
        # for the service's own certificate.
        self._loaded: dict[tuple[str | TLSRules | None, ...], RenewableCertificate] = {}
        self.announcements: list[str] = []

    def of(self, listener: Listener | None = None) -> RenewableCertificate:
        """
        Load the certificate of a listener, or the certificate of the service, which STLS uses.
        Make a self-signed certificate if the settings name none.

        @raise SettingError: the certificate cannot be used.
        """
        settings = self._settings
        where = settings.where("certificate")
        whereClients, clientCa = settings.where("client-ca"), settings.clientCa
        certificate = privateKey = None
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
            try:
                self._loaded[key] = self._load(certificate, privateKey, clientCa, rules)
            except ClientAuthorityError as error:
                raise SettingError(f"{whereClients}: {error}")
            except ValueError as error:
                raise SettingError(f"{where}: {error}")
        return self._loaded[key]

    def _load(
        self,
        certificate: str | None,
        privateKey: str | None,
        clientCa: str | None,
        rules: TLSRules,
    ) -> RenewableCertificate:
        handed = None
        if self._handed is not None:
            handed = tuple(each.encode("latin-1") for each in self._handed[len(self._loaded)])
        if certificate is None:
            certificate, privateKey = self._own()
        clients = clientCa and ClientAuthority(clientCa, self._settings.clientName)
        return RenewableCertificate(
            certificate,
            privateKey or certificate,
            handed,
            clients=clients or None,
            rules=rules,
        )

    def _own(self) -> tuple[str, str]:
        path, privateKey = self._settings.certificate, self._settings.privateKey
        if path is None:
            path, privateKey, isNew = self._data().makeCertificate()
            if isNew:
                self.announcements.append(f"made a self-signed certificate: {path}")
        return path, privateKey or path

    def all(self) -> list[RenewableCertificate]:
        """
        @return: the loaded certificates, in the order in which they were asked for.
        """
        return list(self._loaded.values())

    def contents(self) -> list[tuple[bytes, ...]]:
        """
        @return: the contents of the files of each certificate, in the same order.
        """
        return [each.contents() for each in self._loaded.values()]
