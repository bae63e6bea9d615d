"""
Find the host names of certificates, and the certificate for the name that a client asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

__all__ = ["ServerNames", "hasAddress", "isHostName", "namesOf"]

Item = TypeVar("Item")

# The most characters of a host name, and of one of its labels (RFC 1035 section 2.3.4).
_LONGEST = 253
_LONGEST_LABEL = 63
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def isHostName(text: str) -> bool:
    """
    @param text: the text, in lower case.
    @return: whether the text is a host name in ASCII, or such a name with C{*} as its first label.
    """
    labels = text.removeprefix("*.").split(".")
    return len(text) <= _LONGEST and all(
        0 < len(each) <= _LONGEST_LABEL and _CHARACTERS.issuperset(each) for each in labels
    )


def namesOf(certificate: Any) -> tuple[str, ...]:
    """
    @param certificate: a C{cryptography.x509.Certificate}
    @return: the host names in the subjectAltName of the certificate, in lower case.  Clients do not
        use the common name (RFC 9525 section 2).
    """
    from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName

    try:
        extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
        found = [each.lower() for each in extension.value.get_values_for_type(DNSName)]
    except (ExtensionNotFound, ValueError):
        return ()
    return tuple(dict.fromkeys(filter(isHostName, found)))


def hasAddress(certificate: Any) -> bool:
    """
    @param certificate: a C{cryptography.x509.Certificate}
    @return: whether the subjectAltName of the certificate has an IP address.
    """
    from cryptography.x509 import ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
        return bool(extension.value.get_values_for_type(IPAddress))
    except (ExtensionNotFound, ValueError):
        return False


class ServerNames(Generic[Item]):
    """
    Finds the item that belongs to a host name.  If both a full name and a wildcard fit, the full
    name counts.  A wildcard stands for one label (RFC 9525 section 6.3).
    """

    def __init__(self, items: Iterable[tuple[Item, Iterable[str]]]) -> None:
        """
        @param items: pairs of an item and its names in lower case.  If several items have the same
            name, L{find} returns the first of these items for that name.
        """
        self._items: dict[str, Item] = {}
        for item, names in items:
            for name in names:
                self._items.setdefault(name, item)

    def find(self, name: str) -> Item | None:
        """
        @param name: a host name.  A dot at its end and the case of its letters do not matter.
        @return: the item; L{None} if no item has the name.
        """
        name = name.lower().removesuffix(".")
        found = self._items.get(name)
        if found is None:
            _, dot, rest = name.partition(".")
            found = self._items.get(f"*.{rest}") if dot else None
        return found
