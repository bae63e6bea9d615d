"""
Faults that a test asks of a server, as values.
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

# Where a fault can strike, beside the commands by their verbs.
GREETING = "greeting"
HANDSHAKE = "handshake"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    What all faults have in common.

    @ivar command: the verb of the command that it strikes, or C{"greeting"};
        L{None}: every command the fault is made for, but not the greeting.
        The lines that follow AUTH count as AUTH.
    @ivar nth: strikes the nth time only, counted from 1 over all connections
        since it was set; L{None}: each time.
    @raise ValueError: it could never strike; a sentence says why.
    """

    command: str | None = None
    nth: int | None = None

    # None: every verb there is.
    verbs: ClassVar[frozenset[str] | None] = None
    # What else it can strike, if named.
    moments: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.nth is not None and (not isinstance(self.nth, int) or self.nth < 1):
            raise ValueError(f"{name}: nth counts from 1, {self.nth!r} does not")
        if self.command is None:
            return
        known = (frozenset(COMMANDS) if self.verbs is None else self.verbs) | self.moments
        if self.command not in known:
            raise ValueError(
                f"{name} cannot strike {self.command!r}, only {', '.join(sorted(known))}"
            )

    def concerns(self, moment: str) -> bool:
        """
        @param moment: a verb in upper case, known or not, or C{"greeting"} or
            C{"handshake"}.
        """
        if self.command is not None:
            return moment == self.command
        if moment in (GREETING, HANDSHAKE):
            return False
        return self.verbs is None or moment in self.verbs


@dataclass(frozen=True)
class Slow(Fault):
    """
    The reply begins late, or trickles.

    @ivar seconds: from when it could begin until it does.
    @ivar octetsPerSecond: of the reply; L{None}: as fast as it can be read.
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
    The connection closes in the midst of a reply; what the command does has
    been done.  A reply that is shorter passes, and the connection stays.

    @ivar after: octets of the reply that still arrive.
    """

    after: int = 0

    moments = frozenset([GREETING])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after < 0:
            raise ValueError("CutOff: after is a number of octets, 0 or more")


@dataclass(frozen=True)
class WrongSize(Fault):
    """
    LIST and STAT give sizes that RETR does not keep.

    @ivar by: octets that each message seems larger than it is; negative:
        smaller, but none smaller than nothing.
    """

    by: int = 1

    verbs = frozenset(["LIST", "STAT"])


@dataclass(frozen=True)
class NoFinalDot(Fault):
    """
    The dot that ends a multi-line reply does not come; the connection stays.
    """

    verbs = frozenset(["AUTH", "CAPA", "LIST", "RETR", "TOP", "UIDL"])


@dataclass(frozen=True)
class TempFail(Fault):
    """
    The command is not carried out, but answered C{-ERR [SYS/TEMP]} (RFC 3206).
    """


@dataclass(frozen=True)
class NoAnswer(Fault):
    """
    The command is not carried out, and the connection is silent from there on,
    but stays open.  C{command} may also be C{"greeting"}, or C{"handshake"}: TLS
    begins and is never answered, on the TLS port and behind STLS.
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
    TLS begins with a certificate that was valid until yesterday.
    """


@dataclass(frozen=True)
class WrongNameCertificate(_CertificateFault):
    """
    TLS begins with a certificate for another host.
    """


@dataclass
class _Set:
    fault: Fault
    seen: int = 0


class Faults:
    """
    The faults of one server, and how often each could have struck.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._set: list[_Set] = []
        self.add(faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """
        @raise TypeError: one is no fault.
        """
        for fault in faults:
            if not isinstance(fault, Fault):
                raise TypeError(f"{fault!r} is no fault")
            self._set.append(_Set(fault))

    def clear(self) -> None:
        """
        Nothing strikes any more.
        """
        self._set.clear()

    def striking(self, moment: str) -> list[Fault]:
        """
        A moment has come: see L{Fault.concerns}.

        @return: the faults that strike now.
        """
        found = []
        for each in self._set:
            if each.fault.concerns(moment):
                each.seen += 1
                if each.fault.nth in (None, each.seen):
                    found.append(each.fault)
        return found
