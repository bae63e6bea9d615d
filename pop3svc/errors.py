"""
Exceptions with a text for somebody else: for a client, for the author of a provider, or for a
sender of mail.
"""

from __future__ import annotations

import re

__all__ = [
    "BadArguments",
    "DeliveryError",
    "DeliveryRefused",
    "MalformedMessage",
    "MessageTooLarge",
    "NoSuchUser",
    "OverQuota",
    "POP3ResponseError",
    "ProviderMistake",
    "StoreUnavailable",
]

# A first line holds 512 octets (RFC 2449 section 4).  "-ERR [", "] " and CRLF take ten of these
# octets.
_MAX_TEXT = 400
_MAX_CODE = 100
_TEXT = re.compile(r"[ -Z\\^-~]+")
# The rule resp-code of RFC 2449 section 3, without the opening bracket.
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
    A provider does not keep to the rules of its interfaces.  The text is one sentence for the log.
    It names the provider's class and method, and says what to correct.  It contains no part of any
    mail.
    """


class DeliveryError(Exception):
    """
    A message was not delivered.

    @ivar text: one sentence of printable ASCII for the sender, without paths and names.
    @ivar status: the enhanced status code (RFC 3463).
    @ivar exitStatus: the exit status of a program that delivers mail (sysexits.h).
    """

    status = "5.3.0"
    exitStatus = 65

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def isTemporary(self) -> bool:
        """
        Whether the sender should try again.
        """
        return self.status.startswith("4")


class NoSuchUser(DeliveryError):
    """
    No user has this name.
    """

    status, exitStatus = "5.1.1", 67


class OverQuota(DeliveryError):
    """
    The mailbox is full.  The sender tries again, because the user may make room.
    """

    status, exitStatus = "4.2.2", 75


class MessageTooLarge(DeliveryError):
    """
    The message is larger than the mailbox or the service allows.
    """

    status, exitStatus = "5.3.4", 65


class DeliveryRefused(DeliveryError):
    """
    The message is not allowed, for example because it is in a mail loop.
    """

    status, exitStatus = "5.4.6", 77


class MalformedMessage(DeliveryError):
    """
    The message is not valid mail.  For example, it has line ends that programs interpret
    differently.
    """

    status, exitStatus = "5.6.0", 65


class StoreUnavailable(DeliveryError):
    """
    The store cannot accept the message now.
    """

    status, exitStatus = "4.3.0", 75
