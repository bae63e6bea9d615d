"""
A proxy that disturbs the connections to a server.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

__all__ = ["Proxy"]


class Proxy:
    """
    Passes connections on to a port of this machine, in threads.

    @ivar port: where it listens.
    @ivar delay: the seconds by which each piece of an answer is late.
    @ivar isSilent: whether it discards all answers.
    @ivar cutAt: it closes a connection after this many octets of answers; L{None} for never.
    @ivar lie: if not empty, it sends this in place of the next answer on a connection, and closes
        the connection.
    @ivar connections: how many connections it has accepted.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.delay = 0.0
        self.isSilent = False
        self.cutAt: int | None = None
        self.lie = b""
        self.connections = 0
        self._isOver = threading.Event()
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._isOver.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()
        self.disconnect()

    def disconnect(self) -> None:
        """
        Close all connections.
        """
        while self._open:
            _close(self._open.pop())

    def _accept(self) -> None:
        while not self._isOver.is_set():
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _close(client)
                continue
            self._open += [client, server]
            for work in (self._ask, self._answer):
                threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        _close(client)
        _close(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self._isOver.wait(self.delay):
                    break
                if self.isSilent:
                    continue
                if self.lie:
                    client.sendall(self.lie)
                    break
                if self.cutAt is not None and sent + len(data) > self.cutAt:
                    client.sendall(data[: max(self.cutAt - sent, 0)])
                    break
                client.sendall(data)
                sent += len(data)
        _close(client)
        _close(server)


def _close(each: socket.socket) -> None:
    # Another thread waits in recv(), and closing alone would not wake it up.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
