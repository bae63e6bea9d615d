"""
The faults that a test can request from a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pop3svc.protocol.commands import COMMANDS

__all__ = [
    "GREETING",
    "HANDSHAKE",
    "CutOff",
    "ExpiredCertificate",
    "Fault",
    "Faults",
    "NoAnswer",
    "NoFinalDot",
    "Slow",
    "TempFail",
    "WrongNameCertificate",
    "WrongSize",
]

# Moments at which a fault can happen, in addition to the verbs of commands.
GREETING = "greeting"
HANDSHAKE = "handshake"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    Base class of faults.

    @ivar command: the verb of the command at which the fault happens.  Some classes also accept
        C{"greeting"} or C{"handshake"}.  L{None} means every command to which this class of fault
        applies; for a fault of the certificate it means every TLS handshake.  The lines that follow
        AUTH count as AUTH.
    @ivar nth: the fault happens only at the nth of these commands, where the first is 1.  L{None}
        means each of these commands.  The server counts the commands of all connections after the
        fault was set.
    @raise ValueError: an argument is invalid; the text is a sentence with the reason.
    """

    command: str | None = None
    nth: int | None = None

    # The verbs to which the fault applies; None for all verbs.
    verbs: ClassVar[frozenset[str] | None] = None
    # The moments besides commands that the argument "command" may name.
    moments: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.nth is not None and (not isinstance(self.nth, int) or self.nth < 1):
            raise ValueError(f"{name}: nth is a number from 1, not {self.nth!r}")
        if self.command is None:
            return
        known = (frozenset(COMMANDS) if self.verbs is None else self.verbs) | self.moments
        if self.command not in known:
            raise ValueError(
                f"{name} cannot happen at {self.command!r}, only at {', '.join(sorted(known))}"
            )

    def concerns(self, moment: str) -> bool:
        """
        @param moment: a verb in upper case, known or not, or C{"greeting"} or
            C{"handshake"}.
        @return: whether the fault applies to the moment.
        """
        if self.command is not None:
            return moment == self.command
        if moment in (GREETING, HANDSHAKE):
            return False
        return self.verbs is None or moment in self.verbs


@dataclass(frozen=True)
class Slow(Fault):
    """
    The reply begins late, or arrives slowly.

    @ivar seconds: how long the reply is delayed.
    @ivar octetsPerSecond: the rate of the reply; L{None} if the rate has no limit.
    """

    seconds: float = 0
    octetsPerSecond: float | None = None

    moments = frozenset([GREETING])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds < 0 or (self.octetsPerSecond is not None and self.octetsPerSecond <= 0):
            raise ValueError("Slow: seconds are 0 or more, octetsPerSecond is more than 0")


@dataclass(frozen=True)
class CutOff(Fault):
    """
    The server carries out the command, and closes the connection after C{after} octets of the
    reply.  If the reply has fewer octets, the server sends the whole reply, and the connection
    stays open.

    @ivar after: the number of octets of the reply that the server sends.
    """

    after: int = 0

    moments = frozenset([GREETING])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after < 0:
            raise ValueError("CutOff: the argument after must be a number of octets, 0 or more")


@dataclass(frozen=True)
class WrongSize(Fault):
    """
    LIST and STAT give sizes that differ from the number of octets that RETR sends.

    @ivar by: the number of octets that the server adds to the size of each message.  It may be
        negative, but a size is never less than 0.
    """

    by: int = 1

    verbs = frozenset(["LIST", "STAT"])


@dataclass(frozen=True)
class NoFinalDot(Fault):
    """
    The final dot of a multi-line reply is missing, and the connection stays open.
    """

    verbs = frozenset(["AUTH", "CAPA", "LANG", "LIST", "RETR", "TOP", "UIDL"])


@dataclass(frozen=True)
class TempFail(Fault):
    """
    The server does not carry out the command, and answers C{-ERR [SYS/TEMP]} (RFC 3206).
    """


@dataclass(frozen=True)
class NoAnswer(Fault):
    """
    The server does not carry out the command.  It sends nothing more on this connection, which
    stays open.  C{command} may also be C{"greeting"} or C{"handshake"}.  With C{"handshake"} the
    server does not answer a TLS handshake, on the TLS port or after STLS.
    """

    moments = frozenset([GREETING, HANDSHAKE])


@dataclass(frozen=True)
class _CertificateFault(Fault):
    verbs = frozenset()
    moments = frozenset([HANDSHAKE])

    def concerns(self, moment: str) -> bool:
        """
        See L{Fault.concerns}.
        """
        return moment == HANDSHAKE


@dataclass(frozen=True)
class ExpiredCertificate(_CertificateFault):
    """
    The server's certificate expired yesterday.
    """


@dataclass(frozen=True)
class WrongNameCertificate(_CertificateFault):
    """
    The server's certificate is for another host.
    """


@dataclass
class _ActiveFault:
    fault: Fault
    seen: int = 0


class Faults:
    """
    The faults of one server.  For each fault this object counts the moments to which the fault
    applied.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._active: list[_ActiveFault] = []
        self.add(faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """
        Set further faults.

        @raise TypeError: an argument is not a fault.
        """
        for fault in faults:
            if not isinstance(fault, Fault):
                raise TypeError(f"{fault!r} is not a fault")
            self._active.append(_ActiveFault(fault))

    def clear(self) -> None:
        """
        Remove all faults.
        """
        self._active.clear()

    def striking(self, moment: str) -> list[Fault]:
        """
        Count a moment (see L{Fault.concerns}) for the faults that apply to it.

        @return: the faults that happen at this moment.
        """
        found = []
        for each in self._active:
            if each.fault.concerns(moment):
                each.seen += 1
                if each.fault.nth in (None, each.seen):
                    found.append(each.fault)
        return found
