"""
Explain the extensions of POP3 briefly where they occur in a conversation.
"""

from __future__ import annotations

import re

__all__ = ["explain"]

# The sender of a line (C for the client, S for the server), the pattern of the line, and its
# explanation.
_EXPLANATIONS = (
    (
        "C",
        r"SLEE\b",
        "SLEE: the session sleeps. Marked messages are deleted, the mailbox is free for "
        "others, and the connection stays open.",
    ),
    (
        "C",
        r"WAKE\b",
        "WAKE: the session goes on after SLEE, with a new listing and new message "
        "numbers, without another login.",
    ),
    ("C", r"DELI\b", "DELI: deletes one message at once, without waiting for QUIT."),
    (
        "C",
        r"CORE\b|REFR\b",
        "CORE: deletes the marked messages and lists the mailbox again, in one step.",
    ),
    (
        "C",
        r"QAUT\b",
        "QAUT: ends the session like QUIT, but the connection stays, and another user can log in.",
    ),
    ("C", r"XLOG\b", "XLOG: USER and PASS in one line."),
    (
        "C",
        r".* UID:",
        "UID: a unique-id instead of a number names the message, so the client need not "
        "list the mailbox first.",
    ),
    (
        "C",
        r"UTF8\b",
        "UTF8: the client wants messages with UTF-8 in header fields as they are (RFC 6856).",
    ),
    ("C", r"LANG\b", "LANG: the texts of further replies are in another language (RFC 6856)."),
    ("C", r"CAPA\b", "CAPA: the client asks which commands and extensions there are (RFC 2449)."),
    (
        "S",
        r"\+OK \[ACTIVITY/NEW\]",
        "ACTIVITY/NEW: a message has arrived that this session has not listed before.",
    ),
    ("S", r"\+OK \[ACTIVITY/NONE\]", "ACTIVITY/NONE: there is no new message."),
    ("S", r"-ERR \[UID/NOT-FOUND\]", "UID/NOT-FOUND: no message has this unique-id."),
    ("S", r"-ERR \[IN-USE\]", "IN-USE: another session holds the mailbox (RFC 2449)."),
    ("S", r"-ERR \[AUTH\]", "AUTH: the name or the password is wrong (RFC 3206)."),
    ("S", r"-ERR \[SYS/TEMP\]", "SYS/TEMP: a later attempt may succeed (RFC 3206)."),
    (
        "S",
        r"\+OK.* _$",
        "The mark _ at the end says that more lines follow, up to a line with a dot "
        "(MULTI-LINE-IND).",
    ),
)
_COMPILED = [
    (side, re.compile(pattern, re.IGNORECASE), text) for side, pattern, text in _EXPLANATIONS
]


def explain(side: str, line: str) -> list[str]:
    """
    @param side: C{C} for a line of the client, C{S} for a line of the server.
    @return: the explanations of the extensions that occur in the line.
    """
    return [text for each, pattern, text in _COMPILED if each == side and pattern.match(line)]
