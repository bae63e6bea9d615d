"""
Ask a running service over its admin socket.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from pop3svc.admin.operations import OperationError

__all__ = ["NotRunning", "ask"]

# Seconds that a service has to answer, and the most octets of its answer: a description of each of
# 100,000 sessions.
_PATIENCE, _LARGEST = 60, 64_000_000


class NotRunning(Exception):
    """
    No service answers on the socket; one sentence.
    """


def ask(path: str, name: str, **arguments: str) -> Any:
    """
    Ask a service to carry out an operation.  This blocks, so it is for programs without a reactor.

    @param path: of the admin socket.
    @param name: of L{pop3svc.admin.operations.OPERATIONS}.
    @return: the result; the list of the items if the operation has no result.
    @raise NotRunning: no service runs there, or it does not answer in time.
    @raise OperationError: the service refuses; one sentence.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    try:
        with connection:
            connection.connect(path)
            request = {"do": name, "arguments": arguments}
            connection.sendall(json.dumps(request).encode("ascii") + b"\n")
            answer = _read(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning(f"no service runs with the admin socket {path}")
    except PermissionError:
        raise NotRunning(f"{path}: only the user of the service and root may ask it")
    except TimeoutError:
        raise NotRunning(f"{path}: the service does not answer")
    except OSError as error:
        raise NotRunning(f"{path}: {error.strerror or error}")
    items: list[Any] = []
    value: dict[str, Any] = {}
    try:
        for line in answer.splitlines():
            value = json.loads(line)
            items += value.get("items", [])
    except ValueError:
        value = {}
    if "error" in value:
        raise OperationError(value["error"])
    if "result" not in value:
        raise NotRunning(f"{path}: the service has ended the connection before its answer")
    return items if value["result"] is None else value["result"]


def _read(connection: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) < _LARGEST:
        data = connection.recv(65536)
        if not data:
            break
        answer += data
    return bytes(answer)
