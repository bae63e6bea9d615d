"""
The errors of a connection to another mail server.
"""

from __future__ import annotations

import re

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError

__all__ = ["ClientError", "CommandRefused", "LoginRefused", "ServerUnavailable", "reasonOfLoss"]

# The form of a response code (RFC 2449 section 8).
_CODE = re.compile(rb"\[([A-Za-z/-]{1,30})\]")


class ClientError(Exception):
    """
    An error of a connection to another mail server.
    """


class ServerUnavailable(ClientError):
    """
    The server cannot be used now.  The text follows the server's address, as in "mail.example.org
    closed the connection".
    """


class CommandRefused(ClientError):
    """
    The server refused a command.  The connection can still be used.

    @ivar text: the server's words, which may contain any octets.
    """

    def __init__(self, text: bytes) -> None:
        super().__init__("refused a command")
        self.text = text

    @property
    def code(self) -> str | None:
        """
        The response code in capitals and without brackets, such as C{SYS/TEMP}; L{None} if the text
        has no code.
        """
        found = _CODE.match(self.text)
        return None if found is None else found[1].decode("ascii").upper()


class LoginRefused(ClientError):
    """
    The server refused a login.

    @ivar code: C{IN-USE}, C{LOGIN-DELAY}, C{SYS/TEMP} or C{SYS/PERM} (RFC 2449, RFC 3206); L{None}
        for any other refusal, such as that of a wrong password.
    """

    def __init__(self, code: str | None) -> None:
        super().__init__(code)
        self.code = code


def reasonOfLoss(error: BaseException | None) -> str:
    """
    @param error: the reason with which Twisted reports the end of a connection.
    @return: if TLS has failed, the reason in words that follow the server's address in a sentence,
        and otherwise an empty text.
    """
    if isinstance(error, VerificationError):
        return "has a certificate for another name"
    if isinstance(error, TLSError):
        try:
            detail = str(error.args[0][0][2])
        except (IndexError, TypeError):
            detail = "no reason is known"
        return f"cannot be verified: TLS failed: {detail}"
    return ""
