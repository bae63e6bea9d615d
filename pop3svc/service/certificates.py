"""
The certificates of a service and of its listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pop3svc.service.datadirectory import DataDirectory
from pop3svc.service.settings import Listener, SettingError, Settings
from pop3svc.service.tls import RenewableCertificate

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
        handed: Sequence[tuple[str, str]] | None,
    ) -> None:
        """
        @param data: returns the data directory, for a self-signed certificate.
        @param handed: in a worker, the PEM texts of all certificates and their keys, in the
            order in which they are asked for.
        """
        self._settings = settings
        self._data = data
        self._handed = handed
        # By the paths of the certificate and its key; None stands for the service's own.
        self._loaded: dict[tuple[str, str | None] | None, RenewableCertificate] = {}
        self.announcements: list[str] = []

    def of(self, listener: Listener | None = None) -> RenewableCertificate:
        """
        Load the certificate of a listener, or the certificate of the service, which STLS uses.
        Make a self-signed certificate if the settings name none.

        @raise SettingError: the certificate cannot be used.
        """
        key = None
        if listener is not None and listener.certificate is not None:
            key = (listener.certificate, listener.privateKey)
        if key not in self._loaded:
            handed = None
            if self._handed is not None:
                chain, itsKey = self._handed[len(self._loaded)]
                handed = chain.encode("latin-1"), itsKey.encode("latin-1")
            if key is None:
                where = self._settings.where("certificate")
                path, privateKey = self._own()
            else:
                assert listener is not None
                where = listener.where.removesuffix("endpoint") + "certificate"
                path, privateKey = key[0], key[1] or key[0]
            try:
                self._loaded[key] = RenewableCertificate(path, privateKey, handed)
            except ValueError as error:
                raise SettingError(f"{where}: {error}")
        return self._loaded[key]

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

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """
        @return: the octets of each certificate and its key, in the same order.
        """
        return [each.pair() for each in self._loaded.values()]
