"""
The exception a provider or a command raises to answer C{-ERR}.
"""

from __future__ import annotations

import re

__all__ = ["BadArguments", "POP3ResponseError", "ProviderMistake"]

# A first line holds 512 octets (RFC 2449 section 4): "-ERR [", "] " and CRLF
# are ten of them.
_MAX_TEXT = 400
_MAX_CODE = 100
_TEXT = re.compile(r"[ -Z\\^-~]+")
# resp-code of RFC 2449 section 3, without the opening bracket.
_CODE = re.compile(r"[!-.0-Z\\^-~]+(?:/[!-.0-Z\\^-~]+)*")


class POP3ResponseError(Exception):
    """
    Refuses a command: the client gets C{-ERR [code] text}.

    @ivar text: one line of printable ASCII without brackets, at most 400
        octets.
    @ivar code: the response code (RFC 2449 section 8, RFC 3206) without its
        brackets, such as C{"AUTH"}, C{"IN-USE"} or C{"SYS/TEMP"}, or L{None}.
    @ivar critical: whether the connection is closed after the reply.
    """

    def __init__(self, text: str, code: str | None = None, critical: bool = False) -> None:
        """
        @raise ValueError: C{text} or C{code} is not allowed in a reply.
        """
        if len(text) > _MAX_TEXT or not _TEXT.fullmatch(text):
            raise ValueError(
                "the text of a POP3ResponseError must be one line of printable ASCII "
                f"without brackets, 1 to {_MAX_TEXT} octets"
            )
        if code is not None and (len(code) > _MAX_CODE or not _CODE.fullmatch(code)):
            raise ValueError(
                "the code of a POP3ResponseError must be printable ASCII without spaces "
                f"and brackets, 1 to {_MAX_CODE} octets"
            )
        super().__init__(text)
        self.text = text
        self.code = code
        self.critical = critical


class BadArguments(POP3ResponseError):
    """
    The arguments of a command do not match its grammar.
    """


class ProviderMistake(Exception):
    """
    A provider breaks its contract.  The text is one sentence for the log.  It names the
    author's class and method, and explains the correction.  It contains no part of a
    message.
    """
