"""
Derive the unique-ids of Cyrus IMAP from the names of its files, which are the UIDs of the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pop3svc.migration.formats import MessageNames, UIDLFormat
from pop3svc.migration.records import OldMessage

__all__ = ["FORMATS", "messagesOf"]

# For each value of Cyrus' setting uidl_format, the equivalent format of Dovecot.
FORMATS = {"cyrus": "%v.%u", "uidonly": "%u", "dovecot": "%08Xu%08Xv", "courier": "%v-%u"}
_NAME = re.compile(r"([1-9][0-9]{0,9})\.")


def messagesOf(names: Iterable[str], uidValidity: int, format: str = "cyrus") -> list[OldMessage]:
    """
    Derive the unique-ids of the messages in a spool directory.

    @param names: the names of the directory's files.  Files that are not messages are left out.
    @param uidValidity: the mailbox's UIDVALIDITY, as IMAP's STATUS returns it.
    @param format: the value of C{uidl_format}.
    @return: the messages in the order of their UIDs.
    @raise ValueError: the format is not known.  The text is a sentence for the operator.
    """
    if format not in FORMATS:
        raise ValueError(f"the format of Cyrus is one of {', '.join(FORMATS)}")
    expand = UIDLFormat(FORMATS[format]).expand
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            uid = int(match[1])
            uniqueID = expand(MessageNames(uid, uidValidity, name, name))
            found.append(OldMessage(name, uniqueID, uid))
    found.sort(key=lambda each: int(each.rank))
    return found
