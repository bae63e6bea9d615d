"""
Describe the sessions of a process.

The description is made from the connections when the operator asks.  Sessions record nothing for
the description, so it costs them no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["countStates", "describe", "idOf", "numberIn", "stateOf"]

# The operator's words for states, by the names of L{pop3svc.protocol.session.State}.
_STATES = {
    "AUTHORIZATION": "login",
    "TRANSACTION": "awake",
    "SLEEPING": "asleep",
    "CLOSED": "closing",
}


def idOf(connection: Any, worker: int) -> str:
    """
    @param worker: the number of the worker; 0 without workers.
    @return: the name of a session for the operator, such as C{17}, or C{2.17} in worker 2.
    """
    number = connection.session.info.connectionID
    return f"{worker}.{number}" if worker else str(number)


def numberIn(text: str, worker: int) -> int | None:
    """
    @param text: the operator's name of a session; see L{idOf}.
    @param worker: see L{idOf}.
    @return: the C{connectionID}; L{None} if C{text} names no session of this worker.
    """
    prefix = f"{worker}." if worker else ""
    number = text.removeprefix(prefix)
    isNumber = text.startswith(prefix) and number.isascii() and number.isdigit()
    return int(number) if isNumber and len(number) < 19 else None


def stateOf(connection: Any) -> str:
    """
    @return: the state of the connection's session: C{login}, C{awake}, C{asleep} or C{closing}.
    """
    return _STATES[connection.session.state.name]


def describe(connection: Any, now: float, worker: int = 0) -> dict[str, Any]:
    """
    Describe the session of a connection.

    @param connection: L{pop3svc.protocol.connection.POP3Connection}
    @param now: the time of the reactor's clock, in seconds.
    @param worker: see L{idOf}.
    @return: a dictionary of facts.  C{session} is the name for the operator (see L{idOf}).  C{user}
        is L{None} before the login, and C{address} is L{None} for a UNIX socket.  C{tls} is the
        version of TLS, or L{None}.  L{stateOf} explains C{state}.
        C{method} is the mechanism of the login.  C{seconds} is the time since the client connected
        or last logged out.  C{messages} and C{messageOctets} count the messages sent so far, and
        their octets.  C{octets} counts the octets of all replies, and C{deleted} counts the deleted
        messages.  L{pop3svc.protocol.connection.POP3Connection.waitsFor} explains C{waitsFor}.
    """
    session = connection.session
    record = session.record
    return {
        "session": idOf(connection, worker),
        "user": record.user,
        "address": session.info.clientIP,
        "tls": connection.tls,
        "state": stateOf(connection),
        "method": record.loginMethod,
        "seconds": round(now - record.began, 3),
        "messages": record.messagesSent,
        "messageOctets": record.messageOctets,
        "octets": record.octetsSent,
        "deleted": record.messagesDeleted,
        "waitsFor": connection.waitsFor,
    }


def countStates(connections: Iterable[Any]) -> dict[str, int]:
    """
    @return: the number of sessions in each state except C{closing}; see L{describe}.
    """
    counts = Counter(map(stateOf, connections))
    return {name: counts[name] for name in ("login", "awake", "asleep")}
