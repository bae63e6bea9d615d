"""
The admin socket: a UNIX socket on which the operator's commands ask a running service.

A client sends one request, a JSON object in one line: C{{"do": "who", "arguments": {}}}.  The
answer consists of lines: C{{"items": [...]}} with parts of a long answer, then one
C{{"result": ...}} or C{{"error": "a sentence"}}.  After the answer the connection ends.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorUNIX
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.admin.operations import OPERATIONS, Handler, OperationError, checkArguments
from pop3svc.unixsockets import removeStale

__all__ = ["AdminFactory", "AdminSocket"]

log = Logger(namespace="pop3svc")


def _isAllowed(transport: Any) -> bool:
    """
    @return: whether the client's process belongs to this process's user, or to root; true if the
        system cannot say.  The mode of the socket also keeps out other users, but they may connect
        between the creation of the socket and the change of its mode.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    handle = getattr(transport, "socket", None)
    if option is None or handle is None:
        return True
    _, uid, _ = struct.unpack("3i", handle.getsockopt(socket.SOL_SOCKET, option, 12))
    return uid in (0, os.geteuid())


@implementer(IPushProducer)
class AdminProtocol(LineReceiver):
    """
    One request of the operator.  If a client does not read the items of a lasting operation, it is
    disconnected.
    """

    delimiter = b"\n"
    # No request is longer, because a request consists of an operation and a few names.
    MAX_LENGTH = 4096
    # The most octets that wait for a client of a lasting operation.  The number is enough for a
    # terminal that is stopped for some seconds.
    BOUND = 1_048_576

    def __init__(self, factory: AdminFactory) -> None:
        self._factory = factory
        self._running: Deferred[Any] | None = None
        self._timer: Any = None
        self._isPaused = self._isLasting = self._isOver = False
        self._held = 0

    def connectionMade(self) -> None:
        """
        See L{twisted.internet.protocol.BaseProtocol.connectionMade}.
        """
        transport: Any = self.transport
        if not _isAllowed(transport):
            transport.abortConnection()
            return
        self._timer = self._factory.clock.callLater(self._factory.TIMEOUT, self._late)

    def _late(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def lineReceived(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineReceived}.
        """
        if self._running is None and not self._isOver:
            self._running = Deferred.fromCoroutine(self._answer(line))

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineLengthExceeded}.
        """
        # Ignore further input, because it is the rest of the long line, and not a request.
        self._isOver = True
        self._end({"error": "The request is too long."})

    async def _answer(self, line: bytes) -> None:
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                request = None
            if not isinstance(request, dict):
                raise OperationError("The request must be a JSON object.")
            name = request.get("do")
            arguments = checkArguments(name, request.get("arguments", {}))
            if OPERATIONS[str(name)].isLasting:
                self._last()
            result = await self._factory.handler.do(str(name), arguments, self._sendItems)
            self._end({"result": result})
        except OperationError as error:
            self._end({"error": str(error)})
        except CancelledError:
            # The client has disconnected, for example after Ctrl-C.
            return
        except Exception:
            log.failure("an operation of the admin socket failed")
            self._end({"error": "The operation failed; the log of the service says why."})

    def _last(self) -> None:
        """
        Prepare the connection for a lasting operation, which sends items until it ends.  The
        operation has its own time limit, so the time limit of a request does not apply.
        """
        transport: Any = self.transport
        self._timer.cancel()
        self._isLasting = True
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer.pauseProducing}.
        """
        self._isPaused = True

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer.resumeProducing}.
        """
        self._isPaused, self._held = False, 0

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer.stopProducing}.
        """
        self._isPaused = True

    def _send(self, answer: dict[str, Any]) -> None:
        transport: Any = self.transport
        data = json.dumps(answer).encode("ascii") + b"\n"
        if self._isPaused:
            self._held += len(data)
            if self._held > self.BOUND:
                transport.abortConnection()
                return
        transport.write(data)

    def _sendItems(self, items: list[Any]) -> None:
        self._send({"items": items})

    def _end(self, answer: dict[str, Any]) -> None:
        self._send(answer)
        transport: Any = self.transport
        if self._isLasting:
            transport.unregisterProducer()
            # From now on, the time limit of a request applies again.
            self._timer = self._factory.clock.callLater(self._factory.TIMEOUT, self._late)
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{twisted.internet.protocol.Protocol.connectionLost}.
        """
        self._factory.connections.discard(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._running is not None:
            self._running.cancel()


class AdminFactory(ServerFactory):
    """
    Makes the connections of the admin socket.

    @ivar handler: carries out the operations.
    """

    noisy = False
    # The most connections at the same time.  An operator needs a few connections.
    MOST = 32
    # The seconds within which a client must have sent a request and read the answer.
    TIMEOUT = 60

    def __init__(self, handler: Handler, clock: Any) -> None:
        self.handler = handler
        self.clock = clock
        self.connections: set[AdminProtocol] = set()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        if len(self.connections) >= self.MOST:
            return None
        protocol = AdminProtocol(self)
        self.connections.add(protocol)
        return protocol


class AdminSocket(Service):
    """
    Opens the admin socket when the service starts, and removes the socket when the service stops.
    """

    def __init__(self, reactor: Any, path: str, factory: AdminFactory) -> None:
        self._reactor: Any = IReactorUNIX(reactor)
        self._path = path
        self._factory = factory
        self._port: Any = None

    def startService(self) -> None:
        """
        Open the socket.  The service works without the socket, so a failure is only logged.
        """
        super().startService()  # type: ignore[no-untyped-call]
        try:
            removeStale(self._path)
            self._port = self._reactor.listenUNIX(self._path, self._factory, mode=0o600)
        except (CannotListenError, OSError) as error:
            cause = getattr(error, "socketError", error)
            log.error(
                "cannot open the admin socket {path}: {reason}",
                path=self._path,
                reason=getattr(cause, "strerror", None) or str(cause),
            )

    def stopService(self) -> Any:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        for each in list(self._factory.connections):
            transport: Any = each.transport
            transport.abortConnection()
        return None if self._port is None else maybeDeferred(self._port.stopListening)
