"""
The operations of the admin socket, carried out in one process that serves clients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from pop3svc.admin.sessions import countStates, describe, numberIn, stateOf
from pop3svc.awaiting import isAwaitable
from pop3svc.interfaces import Eventual
from pop3svc.policy import Policy
from pop3svc.preparation import prepareName
from pop3svc.timing import TimeSlice

__all__ = [
    "OPERATIONS",
    "Handler",
    "Operation",
    "OperationError",
    "ProcessOperations",
    "Send",
    "checkArguments",
]


# The number of sessions or bans that one step describes.  A step takes less than a millisecond.
AT_ONCE = 50


class OperationError(ValueError):
    """
    An operation cannot be carried out.  The text is one sentence for the operator.
    """


@dataclass(frozen=True)
class Operation:
    """
    The declaration of one operation.

    @ivar required: the names of the arguments that a request must have.
    @ivar optional: the names of the arguments that a request may have.
    @ivar isLasting: whether the operation sends items for some time, until it ends.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    isLasting: bool = False


# The declarations of all operations, by name.  Each argument of an operation is a string.
OPERATIONS: Mapping[str, Operation] = {
    "who": Operation(optional=("user",)),
    # The argument "only" has the value "session" if the target can only be a session.
    "kick": Operation(required=("target",), optional=("only",)),
    "bans": Operation(),
    "ban": Operation(required=("address",)),
    "lift": Operation(required=("target",)),
    "status": Operation(),
    "reload": Operation(),
    "drain": Operation(),
    "metrics": Operation(),
    "activity": Operation(optional=("seconds",), isLasting=True),
    "trace": Operation(required=("target",), optional=("seconds",), isLasting=True),
}


def checkArguments(name: Any, arguments: Any) -> dict[str, str]:
    """
    Check a request.

    @return: the arguments of the request.
    @raise OperationError: the operation does not exist, an argument is missing, or an argument is
        not allowed.
    """
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is None:
        raise OperationError("There is no such operation.")
    if not isinstance(arguments, dict):
        raise OperationError("The arguments must be a JSON object.")
    for each in operation.required:
        if each not in arguments:
            raise OperationError(f"The operation {name} needs the argument {each}.")
    for each, value in arguments.items():
        if each not in operation.required + operation.optional or not isinstance(value, str):
            raise OperationError(f"The operation {name} has an unknown argument.")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise OperationError(
                f"The argument {each} of the operation {name} is not Unicode text."
            )
    return arguments


# A function that takes items of an answer, such as descriptions of sessions, before the result.
# The function may return a Deferred, which fires when there is room for more items.
Send = Callable[[list[Any]], "Deferred[None] | None"]


class Handler(Protocol):
    """
    Carries out operations.
    """

    async def do(self, name: str, arguments: Mapping[str, str], send: Send) -> Any:
        """
        @param name: the name of one of L{OPERATIONS}.
        @param arguments: the result of L{checkArguments}.
        @param send: called repeatedly, each time with the next items of the answer.  JSON can
            represent each item.  The answer is sent in parts, because an answer about 100,000
            sessions as a whole would block the reactor for a second.
        @return: the result, which JSON can represent.
        @raise OperationError: the operation failed.
        """


def addressIn(text: str) -> str:
    """
    @return: the IP address in C{text}.  The prefix length of a banned network may follow the
        address.
    @raise OperationError: C{text} is not an address.
    """
    address = text.removesuffix("/32").removesuffix("/64")
    try:
        return str(ip_address(address))
    except ValueError:
        raise OperationError(f"{text} is not an IP address.")


def preparedName(user: str, policy: Policy) -> str:
    """
    @param policy: tells whether names that differ only in upper and lower case are the same.
    @return: the prepared name of a user (RFC 8265); C{user} if the name cannot be prepared.
    """
    try:
        return prepareName(user, policy.nameCase == "mapped")
    except ValueError:
        # No session has such a name.
        return user


def secondsIn(text: str | None, default: int, most: int) -> int:
    """
    @param text: the argument C{seconds}, or L{None} for the default.
    @raise OperationError: C{text} is not a whole number from 1 to C{most}.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise OperationError(f"The argument seconds is a whole number, from 1 to {most}.")
    return int(text)


def isAddress(text: str) -> bool:
    """
    @return: whether C{text} is an IP address, or names a network as the list of bans does.
    """
    try:
        addressIn(text)
    except OperationError:
        return False
    return True


class ProcessOperations:
    """
    Carries out operations in a process that serves clients: the one process of a service without
    workers, or a worker.
    """

    def __init__(
        self,
        service: Any,
        parts: Callable[[], Mapping[str, Any]],
        clock: Any,
        worker: int = 0,
        numbers: Any = None,
        traces: Any = None,
        activity: Any = None,
    ) -> None:
        """
        @param service: L{pop3svc.service.running.POP3Service}
        @param parts: returns further facts for C{status}.
        @param worker: the number of this worker; 0 without workers.
        @param numbers: L{pop3svc.metrics.numbers.ProcessNumbers}; L{None} if nothing is counted.
        @param traces: L{pop3svc.admin.traces.Traces}
        @param activity: L{pop3svc.admin.activity.Activity}; L{None} if nothing is counted.
        """
        self._numbers = numbers
        self._activity = activity
        self._service = service
        self._traces = traces
        self._parts = parts
        self._clock = clock
        self._worker = worker
        self._began = clock.seconds()

    @property
    def _connections(self) -> list[Any]:
        return list(self._service.factory.connections)

    async def do(self, name: str, arguments: Mapping[str, str], send: Send) -> Any:
        """
        See L{Handler.do}.
        """
        if name == "who":
            return await self._who(send, **arguments)
        if name == "trace":
            return await self._trace(send, **arguments)
        if name == "activity":
            if self._activity is None:
                raise OperationError("The service counts nothing, because it runs without --web.")
            return await self._activity.run(send, **arguments)
        method: Callable[..., Eventual[Any]] = getattr(self, f"_{name}")
        result = method(**arguments)
        return await result if isAwaitable(result) else result

    async def _who(self, send: Send, user: str | None = None) -> None:
        user = None if user is None else self._prepared(user)
        turn = TimeSlice(self._clock)
        now = turn.restart()
        connections = self._connections
        for start in range(0, len(connections), AT_ONCE):
            await turn.yieldIfDue()
            sessions = [
                describe(each, now, self._worker)
                for each in connections[start : start + AT_ONCE]
                if user is None or each.session.record.user == user
            ]
            room = send(sessions) if sessions else None
            if room is not None:
                await room

    async def _trace(self, send: Send, target: str, seconds: str | None = None) -> None:
        if not isAddress(target):
            target = self._prepared(target)
        await self._traces.run(send, target, seconds)

    def _prepared(self, user: str) -> str:
        return preparedName(user, self._service.factory.policy)

    def _kick(self, target: str, only: str = "") -> int:
        """
        End the session whose id is C{target}, and all sessions of the user whose name is C{target}.

        @param only: C{session} if C{target} can only be the id of a session.  The name of a user
            may look like such an id, because it may be a number.
        @return: the number of sessions that this call has ended.
        """
        user = None if only == "session" else self._prepared(target)
        number = numberIn(target, self._worker)
        found = [
            each
            for each in self._connections
            if each.session.info.connectionID == number
            or (user is not None and each.session.record.user == user)
        ]
        # A session that is closing waits for its client, and has ended already.
        count = sum(stateOf(each) != "closing" for each in found)
        for each in found:
            each.end("ended by the operator")
        return count

    async def _bans(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        turn = TimeSlice(self._clock)
        turn.restart()
        for each in self._service.throttle.eachBan():
            found.append(
                {
                    "network": each.network,
                    "seconds": round(each.seconds),
                    "refused": each.refused,
                    "isByOperator": each.isByOperator,
                }
            )
            if len(found) % AT_ONCE == 0:
                await turn.yieldIfDue()
        return found

    def _ban(self, address: str) -> None:
        self._service.throttle.ban(addressIn(address))

    def _lift(self, target: str) -> bool:
        throttle = self._service.throttle
        if isAddress(target):
            return bool(throttle.lift(addressIn(target)))
        return bool(throttle.lift(None, self._prepared(target)))

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "seconds": round(self._clock.seconds() - self._began),
            "isDraining": self._service.isDraining,
            "sessions": countStates(self._connections),
            **self._parts(),
        }

    async def _metrics(self) -> dict[str, Any]:
        """
        @return: L{pop3svc.metrics.declarations.Numbers}
        """
        if self._numbers is None:
            raise OperationError("The service counts nothing, because it runs without --web.")
        numbers: dict[str, Any] = await self._numbers.collect()
        return numbers

    async def _reload(self) -> list[str]:
        return list(await self._service.reload("by pop3svc reload"))

    def _drain(self) -> None:
        self._service.drain()
