"""
Every number and switch an operator may set, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["CLEARTEXT_LOGIN", "EXTENSIONS", "Policy"]

CLEARTEXT_LOGIN = ("never", "loopback", "always")

# The extensions beyond the RFCs, by the names they are switched off with.
EXTENSIONS = (
    "UID-PARAM",
    "DELI",
    "CORE",
    "SLEE-WAKE",
    "QAUT",
    "XLOG",
    "MULTI-LINE-IND",
    "X-TLS",
)


def _number(default: int, reason: str, *, least: int = 1, isLive: bool = True) -> Any:
    """
    @param isLive: a running service can take a new value, for sessions that begin then.
    """
    return field(default=default, metadata={"reason": reason, "least": least, "isLive": isLive})


@dataclass(frozen=True)
class Policy:
    """
    What the service allows.  Times are in seconds, sizes in octets.

    @raise ValueError: a value is out of bounds; one sentence that names it.
    """

    cleartextLogin: str = field(
        default="loopback",
        metadata={
            "reason": "Logins without TLS: never, from loopback, or always.  A password "
            "in the clear crosses no network when it stays on the machine."
        },
    )
    without: frozenset[str] = field(
        default=frozenset(),
        metadata={
            "reason": "Extensions that are neither announced nor accepted: what nobody "
            "uses need not be there."
        },
    )
    loginTimeout: int = _number(
        180,
        "From connection to login, the TLS handshake included: a person types a "
        "password in less, and strangers hold a connection no longer.",
    )
    idleTimeout: int = _number(
        600,
        "Waiting for a command after login; RFC 1939 section 3 asks for ten minutes at least.",
        least=600,
    )
    sleepTimeout: int = _number(
        3600,
        "Asleep, until the next command (NOOP will do): a client that polls comes by "
        "more often, and a sleeper costs little.",
        least=600,
    )
    takeoverIdle: int = _number(
        60,
        "A session that has been idle so long gives its mailbox to another of the same "
        "user: phones leave sessions open.",
    )
    takeoverMarked: int = _number(
        600,
        "The same for a session with messages marked for deletion: what it has marked it "
        "means to delete.",
    )
    stallTimeout: int = _number(
        600,
        "A client that takes none of what it asked for; as long as one that asks nothing.  The "
        "kernel, where it has TCP_USER_TIMEOUT, gives up a client that does not answer after "
        "the same time: it cannot tell one that is gone from one that has no room.",
    )
    answerTimeout: int = _number(
        120,
        "A provider that does not answer one call: longer than a slow disk needs, "
        "shorter than a client's patience.",
    )
    closeTimeout: int = _number(
        5,
        "After our end of a connection is closed: time for the client to close its own, "
        "so that nothing on its way to it is lost to a reset.",
    )
    shutdownTimeout: int = _number(
        5, "What a session may still take to finish its command when the service stops.", least=0
    )
    maxLineLength: int = _number(
        255, "A command line with its CRLF (RFC 2449 section 4).", least=255
    )
    maxAuthLineLength: int = _number(
        12288, "A line inside AUTH with its CRLF: bearer tokens are long.", least=255
    )
    maxBadCommands: int = _number(
        20,
        "Unknown, misplaced or malformed commands in a row: no client that speaks POP3 "
        "gets there, one that speaks something else does.",
    )
    banStrikes: int = _number(
        3,
        "Different failed guesses until an address is banned: a person notices a typing error "
        "sooner, and a program that repeats one wrong password counts once.",
        isLive=False,
    )
    banTime: int = _number(
        10_000,
        "Since its last attempt, until a banned address may try again: nearly three hours.  "
        "Refused attempts renew it, up to one day after the first failure.",
        isLive=False,
    )
    userStrikes: int = _number(
        10,
        "Failed logins for one user from one network (IPv4 /24, IPv6 /64) until it is "
        "refused there.",
        isLive=False,
    )
    unknownNetworkStrikes: int = _number(
        30,
        "Failed logins for one user from all networks that the user never came from: these "
        "are refused then, the user's own are not.",
        isLive=False,
    )
    strikesTime: int = _number(
        3600, "Since the last failed login of a user, until these are forgotten.", isLive=False
    )
    loginWait: int = _number(
        30,
        "A login that waits for its turn to be checked, then [SYS/TEMP]: eighty hashes at "
        "once take ten seconds of two cores, and clients give up after a minute.",
        isLive=False,
    )
    maxConnections: int = _number(
        10_000, "Connections in all: an idle one over TLS costs some 30 KiB."
    )
    maxUnauthenticated: int = _number(
        2_000,
        "Connections before login: clients log in within seconds, scanners never.  At the limit "
        "the longest waiting of the network (IPv6: /64) with the most of them makes room.",
    )
    maxPerAddress: int = _number(
        100,
        "Connections from one address (IPv6: one /64; loopback is exempt): an office "
        "behind one address fits in.",
    )
    keepaliveIdle: int = _number(
        300,
        "Nothing has come from a client for so long: then the kernel asks whether it is still "
        "there (TCP keepalive), as routers forget a connection after some minutes; 0: never.",
        least=0,
        isLive=False,
    )
    keepaliveInterval: int = _number(30, "From one such question to the next.")
    keepaliveProbes: int = _number(
        4,
        "Such questions without an answer, until the connection is given up; where there is "
        "TCP_USER_TIMEOUT that ends it after stallTimeout.",
        isLive=False,
    )
    maxAwakePerUser: int = _number(
        100, "Sessions of one user that are not asleep; each may hold a listing.", isLive=False
    )
    loginDelay: int = _number(
        0,
        "From one login of a user to the next (RFC 2449 section 6.5); off, as a client that "
        "polls should rather sleep.",
        least=0,
    )
    maxRestartDelay: int = _number(
        60,
        "With --workers, one that has died is started again after 1, 2, 4, ... seconds, and "
        "after so many at last: what fails each time costs little then, and what passes is over "
        "soon.  After a life of more than this it is 1 again.",
        isLive=False,
    )
    workerStartTimeout: int = _number(
        60,
        "Until a worker that was started serves; one that does not is started again.",
        isLive=False,
    )
    maxFailedLogins: int = _number(
        5, "Failed logins on one connection: a person gives up sooner, a program does not."
    )
    verboseEvents: int = _number(
        0,
        "1: an event for each connection, login and command, beside those for what fails or is "
        "over; they cost more than most commands do.",
        least=0,
    )
    maxInputHeld: int = _number(
        262144,
        "What may wait behind a running command: a few reads of the socket; reading "
        "is paused after the first.",
        least=65536,
    )

    def __post_init__(self) -> None:
        if self.cleartextLogin not in CLEARTEXT_LOGIN:
            raise ValueError(f"cleartextLogin is one of {', '.join(CLEARTEXT_LOGIN)}")
        unknown = sorted(set(self.without) - set(EXTENSIONS))
        if unknown:
            raise ValueError(f"without {unknown[0]}: the extensions are {', '.join(EXTENSIONS)}")
        for item in fields(self):
            least = item.metadata.get("least")
            if least is None:
                continue
            value = getattr(self, item.name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{item.name} is a whole number, {least} or more")
