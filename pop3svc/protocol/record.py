"""
The counters of one login, and the line of the log that contains them.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from pop3svc.summaries import informOf

__all__ = ["SessionRecord"]

log = Logger(namespace="pop3svc")


class SessionRecord:
    """
    The figures of one session for the line of the log at its end.

    @ivar began: the time of the connection or of the last logout; seconds of the clock.
    @ivar user: the name of the user for the log; L{None} if nobody has logged in.
    @ivar loginMethod: the command, and the mechanism of AUTH.
    @ivar messagesSent: the number of messages that were sent completely.
    @ivar messageOctets: octets of these messages, as LIST counts them.
    @ivar octetsSent: the octets of all replies.
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
        Start to count at the beginning of the connection, and again after a logout.

        @param now: seconds of the clock.
        """
        self.began = now
        self.user: str | None = None
        self.loginMethod = ""
        self.messagesSent = self.messageOctets = self.messagesDeleted = self.octetsSent = 0

    def tell(self, info: Any, tls: str | None, now: float, reason: str) -> None:
        """
        Write the line of the log, and start to count again.

        @param info: L{pop3svc.interfaces.IPOP3ConnectionInfo}
        @param tls: the version of TLS, or L{None} without TLS.
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
