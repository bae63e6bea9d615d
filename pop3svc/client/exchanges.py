"""
Keep the commands that wait for replies, and limit the time for replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

__all__ = ["WINDOW", "Command", "Patience", "Queue"]

# The most commands that are sent before the reply to the first of them.  A server may read no
# commands while it waits until the client reads a reply (RFC 2449 section 6.6).  This number of
# commands fits into the buffers of the network, so that the client never waits for such a server.
WINDOW = 32


@dataclass(eq=False)
class Command:
    """
    A command that is sent, or that waits to be sent.

    @ivar line: the line to send, with its line end.  The line may contain a password, so repr()
        leaves it out.
    @ivar reply: a Deferred of the text after C{+OK}, or of the C{Message} if the command retrieves
        one.  With L{mayContinue}, the result is L{None} for C{+OK}, and the octets of a challenge
        otherwise.
    @ivar begun: called with the text after C{+OK}, before the octets that follow are read.  The
        function may change this command.
    @ivar consume: called with each line of a multi-line reply; L{None} for a reply of one line.
    @ivar mayContinue: whether the reply may be a challenge of SASL.
    @ivar isAlone: whether no other command may be sent before the reply to this command has
        arrived.
    """

    line: bytes = field(repr=False)
    reply: Deferred[Any]
    begun: Callable[[bytes], object] | None = None
    consume: Callable[[bytes], object] | None = None
    mayContinue: bool = False
    isAlone: bool = False


class Queue:
    """
    The commands of a connection, in order.

    @ivar isPipelining: whether the server accepts a command before it has answered the previous one
        (RFC 2449 section 6.6).
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: deque[Command] = deque()
        self._sent: deque[Command] = deque()
        self.isPipelining = False

    @property
    def first(self) -> Command | None:
        """
        The command to which the next reply belongs.
        """
        return self._sent[0] if self._sent else None

    @property
    def isEmpty(self) -> bool:
        """
        Whether there is no command, sent or waiting.
        """
        return not (self._sent or self._waiting)

    def add(self, command: Command) -> None:
        """
        Add a command.  The command is sent now, or later when the server is ready for it.
        """
        self._waiting.append(command)
        self.send()

    def send(self) -> None:
        """
        Send the commands for which the server is ready, as one piece.
        """
        lines = []
        while self._waiting and self._maySend(self._waiting[0]):
            command = self._waiting.popleft()
            self._sent.append(command)
            lines.append(command.line)
        if lines:
            self._write(b"".join(lines))

    def _maySend(self, command: Command) -> bool:
        if not self._sent:
            return True
        if not self.isPipelining or command.isAlone or self._sent[-1].isAlone:
            return False
        return len(self._sent) < WINDOW

    def answered(self) -> Command:
        """
        Remove the first sent command, because its reply is complete.
        """
        return self._sent.popleft()

    def takeAll(self) -> list[Command]:
        """
        Remove all commands, because the connection has ended.
        """
        found = [*self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        return found


class Patience:
    """
    Limits the time for each reply.  The server may be silent for some seconds.  A long reply must
    also reach an average rate, because a server that sends an octet now and then could otherwise
    keep the connection forever.
    """

    # After LONG seconds, a reply must have brought RATE octets for each further second.
    LONG, RATE = 600, 100

    def __init__(self, clock: Any, seconds: float, late: Callable[[str], object]) -> None:
        """
        @param seconds: the seconds until a reply must begin, and between two pieces of a long
            reply.
        @param late: called if the server is too slow.  The argument is the reason, as a predicate
            whose subject is the server's address, such as C{sends too slowly}.
        """
        self._clock = clock
        self._seconds = seconds
        self._late = late
        self._timer: IDelayedCall | None = None
        self._began = 0.0
        self._octets = 0

    def begin(self) -> None:
        """
        Begin to wait for a reply.
        """
        self.end()
        self._began = self._clock.seconds()
        self._octets = 0
        self._start()

    def _start(self) -> None:
        text = f"did not answer within {self._seconds:g} s"
        self._timer = self._clock.callLater(self._seconds, self._late, text)

    def progressed(self, octets: int) -> None:
        """
        Record that a part of the reply has arrived.
        """
        if self._timer is None or not self._timer.active():
            return
        self._octets += octets
        if self._clock.seconds() - self._began > self.LONG + self._octets / self.RATE:
            self.end()
            self._late("sends too slowly")
        else:
            self._timer.reset(self._seconds)

    def pause(self) -> None:
        """
        Stop counting the time, because this client does not read now.
        """
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            # Now this value is the negative of the time that has passed.
            self._began -= self._clock.seconds()

    def resume(self) -> None:
        """
        Count the time again after L{pause}.
        """
        if self._timer is not None and not self._timer.active():
            self._began += self._clock.seconds()
            self._start()

    def end(self) -> None:
        """
        Stop waiting for a reply.
        """
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
