"""
Ask a running service over its admin socket.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from pop3svc.admin.operations import OperationError

__all__ = ["NotRunning", "ask", "follow"]

# The seconds within which a service must send the next part of its answer, and the most octets of
# an answer.  These octets are enough for the descriptions of 100,000 sessions.
_PATIENCE, _LARGEST = 60, 64_000_000


class NotRunning(Exception):
    """
    No service answers on the socket.  The text is one sentence.
    """


def ask(path: str, name: str, **arguments: str) -> Any:
    """
    Ask a service to carry out an operation.  This function blocks, so it is for programs without a
    reactor.

    @param path: the path of the admin socket.
    @param name: the name of one of L{pop3svc.admin.operations.OPERATIONS}.
    @return: the result of the operation, or the list of the answer's items if the operation has no
        result.
    @raise NotRunning: no service listens on the socket, or the service does not answer in time.
    @raise OperationError: the service refuses the operation.  The text is one sentence.
    """
    items: list[Any] = []
    try:
        with _asking(path, name, arguments) as connection:
            answer = _read(connection)
    except OSError as error:
        raise _notRunning(path, error)
    value: dict[str, Any] = {}
    try:
        for line in answer.splitlines():
            value = json.loads(line)
            items += value.get("items", [])
    except ValueError:
        value = {}
    result = _resultOf(path, value)
    return items if result is None else result


def follow(path: str, name: str, **arguments: str) -> Iterator[Any]:
    """
    Ask a service to carry out an operation, and yield the items of its answer as they come.  This
    function blocks.

    @return: an iterator of the items.
    @raise NotRunning: see L{ask}.
    @raise OperationError: see L{ask}.
    """
    value: dict[str, Any] = {}
    try:
        with _asking(path, name, arguments) as connection, connection.makefile("rb") as lines:
            for line in lines:
                value = json.loads(line)
                yield from value.get("items", ())
    except OSError as error:
        raise _notRunning(path, error)
    except ValueError:
        value = {}
    _resultOf(path, value)


def _asking(path: str, name: str, arguments: dict[str, str]) -> socket.socket:
    """
    @return: a connection that has sent the request.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        request = {"do": name, "arguments": arguments}
        connection.sendall(json.dumps(request).encode("ascii") + b"\n")
    except BaseException:
        connection.close()
        raise
    return connection


def _notRunning(path: str, error: OSError) -> NotRunning:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return NotRunning(f"no service runs with the admin socket {path}")
    if isinstance(error, PermissionError):
        return NotRunning(f"{path}: only the user of the service and root may ask it")
    if isinstance(error, TimeoutError):
        return NotRunning(f"{path}: the service does not answer")
    return NotRunning(f"{path}: {error.strerror or error}")


def _resultOf(path: str, value: dict[str, Any]) -> Any:
    """
    @param value: the last line of an answer.
    """
    if "error" in value:
        raise OperationError(value["error"])
    if "result" not in value:
        raise NotRunning(f"{path}: the service has ended the connection before its answer")
    return value["result"]


def _read(connection: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) < _LARGEST:
        data = connection.recv(65536)
        if not data:
            break
        answer += data
    return bytes(answer)
