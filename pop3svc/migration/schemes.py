"""
Find the unique-ids of the previous server, as the operator's settings say.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from pop3svc.migration import courier, dovecot
from pop3svc.migration.formats import DEFAULT, UIDLFormat
from pop3svc.migration.records import Kept, keep

__all__ = ["LARGEST", "Scheme", "parseScheme"]

# The most octets that are read of another server's file.  The number is enough for some 800,000
# messages.
LARGEST = 67_108_864


@dataclass(frozen=True)
class Scheme:
    """
    A way to find the unique-ids of another server.

    @ivar file: the name of the server's file.
    @ivar format: the format of Dovecot's unique-ids; L{None} for Courier.
    @ivar renames: see L{keep<pop3svc.migration.records.keep>}.
    @ivar usesHeaders: whether a message with a header C{X-UIDL} has the header's value instead of
        the format's, as with Dovecot's C{pop3_reuse_xuidl = yes}.
    """

    file: str
    format: UIDLFormat | None = None
    renames: bool = False
    usesHeaders: bool = False

    @property
    def text(self) -> str:
        """
        A text that identifies the scheme.  Schemes that give different unique-ids have different
        texts.
        """
        format = "" if self.format is None else self.format.text
        words = ["rename"] if self.renames else []
        words += ["xuidl"] if self.usesHeaders else []
        return " ".join([self.file, format, *words])

    def read(
        self,
        data: bytes,
        present: Container[str] | None = None,
        inHeader: Callable[[str], str | None] | None = None,
    ) -> Kept:
        """
        Parse the server's file.

        @param data: the octets of the whole file.
        @param present: the base names of the files that exist; L{None} if all files exist.
        @param inHeader: takes the base name of a file that exists, and returns the value of the
            file's header C{X-UIDL}.  The function is needed if C{usesHeaders} is true.
        @raise DamagedFile: the file is damaged.
        """
        if self.format is None:
            return keep(courier.readSizeList(data), present)
        messages = dovecot.readUIDList(data).messages(
            self.format, inHeader if self.usesHeaders else None
        )
        return keep(messages, present, self.renames)


def parseScheme(uidl: str, duplicates: str = "allow", xuidl: bool = False) -> Scheme:
    """
    @param uidl: C{dovecot}, C{courier}, or the value of Dovecot's C{pop3_uidl_format}.
    @param duplicates: the value of Dovecot's C{pop3_uidl_duplicates}.
    @param xuidl: whether Dovecot's C{pop3_reuse_xuidl} was on.
    @raise ValueError: a value is not known.  The text is a sentence for the operator.
    """
    if duplicates not in ("allow", "rename"):
        raise ValueError("duplicates is allow or rename")
    if uidl == "courier":
        if duplicates == "rename" or xuidl:
            raise ValueError("uidl=courier has neither duplicates=rename nor xuidl=yes")
        return Scheme(courier.FILE)
    if uidl != "dovecot" and "%" not in uidl:
        raise ValueError("uidl is dovecot, courier or a format such as %v.%u")
    format = UIDLFormat(DEFAULT if uidl == "dovecot" else uidl)
    return Scheme(dovecot.FILE, format, duplicates == "rename", xuidl)
