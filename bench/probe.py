"""
Run a session that sends NOOP every 10 milliseconds: C{python probe.py PORT USER PASSWORD}.

The program prints a line when it has logged in.  When its standard input ends, it prints the
milliseconds of each NOOP as a JSON list.  The session does not wait for a reply before it sends the
next NOOP.  The time of a NOOP begins when the NOOP is due, and not when it is sent.  A long stall
therefore counts for every NOOP that it delays.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections import deque

# Seconds between two NOOPs.
PACE = 0.01
# Seconds within which a reply must arrive.
PATIENCE = 120


def main() -> None:
    """
    Send NOOPs until the standard input ends.
    """
    port, user, password = sys.argv[1:]
    gc.disable()
    # Raise the priority, because the program must run when a NOOP is due, even if other programs
    # use all processors.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    connection = socket.create_connection(("127.0.0.1", int(port)), PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read() -> bytes:
        said = b""
        while not said.endswith(b"\r\n"):
            data = connection.recv(4096)
            if not data:
                sys.exit("the server has closed the connection")
            said += data
        if not said.startswith(b"+OK"):
            sys.exit(f"the server has said {said!r}")
        return said

    read()
    for line in (f"USER {user}", f"PASS {password}"):
        connection.sendall(line.encode() + b"\r\n")
        read()
    print("ready", flush=True)
    times: list[float] = []
    sent: deque[float] = deque()
    due = time.monotonic()
    isOver = False
    while sent or not isOver:
        readable, _, _ = select.select(
            [connection, *([] if isOver else [0])],
            *([], []),
            PATIENCE if isOver else max(due - time.monotonic(), 0),
        )
        if 0 in readable:
            isOver = True
        if connection in readable:
            said = read()
            now = time.monotonic()
            times += [(now - sent.popleft()) * 1000 for _ in range(said.count(b"\n"))]
        elif isOver and not readable:
            sys.exit("the server does not answer")
        while not isOver and due <= time.monotonic():
            connection.sendall(b"NOOP\r\n")
            sent.append(due)
            due += PACE
    connection.sendall(b"QUIT\r\n")
    read()
    print(json.dumps(times))


if __name__ == "__main__":
    main()
