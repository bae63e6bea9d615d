"""
Count the work of a session until its user logs out or the connection ends, and write the counts to
the log.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from pop3svc.summaries import informOf

__all__ = ["SessionRecord"]

log = Logger(namespace="pop3svc")


class SessionRecord:
    """
    The counts of one session.  The log event at a logout or at the end of the connection contains
    them.

    @ivar began: the time at which the connection was made or the last user logged out, in seconds
        of the clock.
    @ivar user: the name of the user, for the log; L{None} if nobody has logged in.
    @ivar loginMethod: the command that has logged the user in, and the mechanism of AUTH.
    @ivar messagesSent: the number of messages that were sent completely.
    @ivar messageOctets: the total size of these messages in octets, without dot-stuffing.
    @ivar octetsSent: the number of octets of all replies.
    """

    __slots__ = (
        "began",
        "loginMethod",
        "messageOctets",
        "messagesDeleted",
        "messagesSent",
        "octetsSent",
        "user",
    )

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, now: float) -> None:
        """
        Set all counts to 0, at the beginning of the connection and after a logout.

        @param now: the present time in seconds of the clock.
        """
        self.began = now
        self.user: str | None = None
        self.loginMethod = ""
        self.messagesSent = self.messageOctets = self.messagesDeleted = self.octetsSent = 0

    def tell(self, info: Any, tls: str | None, now: float, reason: str) -> None:
        """
        Write the line of the log, and set all counts to 0.

        @param info: an L{pop3svc.interfaces.IPOP3ConnectionInfo}.
        @param tls: the version of TLS; L{None} if the connection does not use TLS.
        @param reason: the reason for the end of the session.
        """
        user = self.user if self.user is not None else "nobody"
        clientIP = info.clientIP or "this machine"
        method = tls or "no TLS"
        if self.loginMethod:
            method += f", {self.loginMethod}"
        messages, seconds = self.messagesSent, now - self.began
        informOf(
            log,
            f"{user} from {clientIP} ({method}): {messages} "
            f"{'message' if messages == 1 else 'messages'} of {self.messageOctets} octets sent, "
            f"{self.messagesDeleted} deleted, {seconds:.1f} s; {reason}",
            pop3Event="close",
            connectionID=info.connectionID,
            user=user,
            clientIP=clientIP,
            isSecure=info.isSecure,
            tls=tls,
            loginMethod=self.loginMethod,
            messagesSent=messages,
            messageOctets=self.messageOctets,
            octetsSent=self.octetsSent,
            messagesDeleted=self.messagesDeleted,
            seconds=seconds,
            reason=reason,
        )
        self.restart(now)
