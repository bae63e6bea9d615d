"""
Find the unique-ids of the messages in a directory that another server has served.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from pop3svc.files import openDirectory, openRegular, readReplaceable
from pop3svc.migration import cyrus
from pop3svc.migration.headers import HEADER, valueInHeader
from pop3svc.migration.records import DamagedFile, Kept, OldMessage, keep
from pop3svc.migration.schemes import LARGEST, parseScheme

__all__ = ["uniqueIDsOf"]

_CYRUS = re.compile(r"cyrus:([1-9][0-9]{0,9})(?::([a-z]+))?")
# A mailbox that is a Maildir has its messages in these directories.
_FOLDERS = ("new", "cur")


def uniqueIDsOf(
    path: str,
    uidl: str,
    control: str | None = None,
    duplicates: str = "allow",
    xuidl: bool = False,
) -> Mapping[str, tuple[str, int]]:
    """
    Find the unique-ids that another server sent to its clients.  This function blocks.

    @param path: the directory of one mailbox.
    @param uidl: C{dovecot}, C{courier} or a format of Dovecot.  C{xuidl} stands for the headers
        C{X-UIDL} of the messages.  C{cyrus:UIDVALIDITY} is for a spool directory of Cyrus.  The
        value of C{uidl_format} may follow, as in C{cyrus:1700000000:uidonly}.
    @param control: the directory that contains the server's file; L{None} if C{path} contains it.
    @param duplicates: C{rename} if Dovecot had C{pop3_uidl_duplicates = rename}.
    @param xuidl: whether Dovecot had C{pop3_reuse_xuidl = yes}.
    @return: by base name (up to the first C{:}), the unique-id of each file, and the file's
        position in the old order, from 0.  Each unique-id is legal and occurs once.  A file that is
        missing from the result needs a new unique-id.
    @raise ValueError: C{uidl} is not known, or the server's file is damaged (L{DamagedFile}).  The
        text is a sentence for the operator.
    @raise OSError: the server's file cannot be read.
    """
    kept = _kept(path, uidl, control, duplicates, xuidl)
    return {
        base: (uniqueID, order) for order, (base, uniqueID) in enumerate(kept.uniqueIDs.items())
    }


def _kept(path: str, uidl: str, control: str | None, duplicates: str, xuidl: bool) -> Kept:
    spool = _CYRUS.fullmatch(uidl)
    if spool is not None:
        return keep(cyrus.messagesOf(os.listdir(path), int(spool[1]), spool[2] or "cyrus"))
    if uidl == "cyrus":
        raise ValueError(
            "uidl=cyrus needs the UIDVALIDITY of the mailbox, such as uidl=cyrus:1700000000"
        )
    places = {name.partition(":")[0]: (folder, name) for folder, name in _places(path)}
    if uidl == "xuidl":
        names = sorted(places, key=lambda base: places[base][1])
        found = ((base, _valueIn(*places[base])) for base in names)
        return keep([OldMessage(base, each, base) for base, each in found if each is not None])
    scheme = parseScheme(uidl, duplicates, xuidl)
    file = os.path.join(path if control is None else control, scheme.file)

    def inHeader(base: str) -> str | None:
        return _valueIn(*places[base]) if base in places else None

    try:
        return scheme.read(readReplaceable(file, LARGEST), places, inHeader)
    except DamagedFile as error:
        raise DamagedFile(f"{file} is damaged: {error}")


def _places(path: str) -> Iterator[tuple[str, str]]:
    """
    @return: the directory and the name of each file that may be a message.
    """
    folders = [os.path.join(path, each) for each in _FOLDERS]
    for folder in [each for each in folders if os.path.isdir(each)] or [path]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] != "." and entry.is_file(follow_symlinks=False):
                    yield folder, entry.name


def _valueIn(folder: str, name: str) -> str | None:
    """
    @return: the value of the header C{X-UIDL} of a file; L{None} if the header or the file does not
        exist.
    """
    try:
        directory = openDirectory(folder)
        try:
            file = openRegular(name, directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        return None
    with open(file, "rb") as opened:
        return valueInHeader(opened.read(HEADER))
