"""
A real twistd in a process of its own, on free ports of this machine.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

__all__ = [
    "CHECKOUT",
    "SCRIPTS",
    "Connection",
    "Running",
    "checkCopy",
    "childrenOf",
    "environment",
    "forEverybody",
    "freePort",
    "replyToLogin",
    "script",
    "withCheckout",
]

CHECKOUT = Path(__file__).parent.parent.parent.absolute()
SCRIPTS = Path(sys.executable).parent
# Seconds that any step may take; a busy machine needs long.
PATIENCE = 60


def script(name: str) -> str:
    """
    @return: the path of a script in the directory of this Python.
    """
    return str(SCRIPTS / name)


@cache
def checkCopy(path: str) -> None:
    """
    Fail if a process with this C{PYTHONPATH} imports another copy of pop3svc than the one beside
    these tests, because the tests would then test that copy.
    """
    done = subprocess.run(
        [sys.executable, "-c", "import pop3svc; print(pop3svc.__file__)"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    found = done.stdout.strip()
    wanted = CHECKOUT / "pop3svc" / "__init__.py"
    assert found and os.path.samefile(found, wanted), (
        f"a process that the tests start imports {found or done.stderr}, not {wanted}"
    )


def environment(home: Path | str) -> dict[str, str]:
    """
    @return: the environment for a process that runs the pop3svc of this checkout, even if another
        copy is installed.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    path = withCheckout()
    checkCopy(path)
    return clean | {"HOME": str(home), "PYTHONPATH": path}


def withCheckout() -> str:
    """
    @return: the C{PYTHONPATH} with this checkout in front.
    """
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(CHECKOUT), *(each for each in others if each)])


@contextmanager
def forEverybody() -> Iterator[Path]:
    """
    Make a directory that every user may enter.  pytest's own directories cannot be used, because
    each other pytest of the same user makes them private again.
    """
    path = Path(tempfile.mkdtemp(prefix="pop3svc-"))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


def childrenOf(process: int) -> list[int]:
    """
    @return: the ids of the processes that the first thread of a process has started; none if that
        process has ended.
    """
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except OSError:
        return []


# These sockets reserve the ports.  The kernel gives a port to which a socket is bound neither to a
# bind to port 0 nor to an outgoing connection.  A service can still listen there, because both
# sockets have SO_REUSEADDR and the reserving one never listens.  The oldest sockets are closed,
# because a run of all tests needs hundreds of ports.
_held: deque[socket.socket] = deque()
_HELD = 100


def freePort() -> int:
    """
    @return: a port that is free on every address of this machine, and reserved for a service that
        these tests start.
    """
    # Bind to every address, because a service may listen on all of them, and another program may
    # use the port on one.
    each = socket.socket(socket.AF_INET6)
    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    each.bind(("::", 0))
    _held.append(each)
    if len(_held) > _HELD:
        _held.popleft().close()
    port = each.getsockname()[1]
    assert isinstance(port, int)
    return port


class Running:
    """
    A process of C{twistd -n pop3svc} with some options.

    @ivar lines: the lines logged so far.
    """

    def __init__(
        self,
        home: Path,
        *options: str,
        twistd: tuple[str, ...] = (),
        command: list[str] | None = None,
    ) -> None:
        """
        @param command: the command to run instead of twistd.
        """
        home.mkdir(exist_ok=True)
        self.home = home
        if os.environ.get("POP3SVC_OWN_TRANSPORT"):
            options += ("--set", f"ownTransport={os.environ['POP3SVC_OWN_TRANSPORT']}")
        self.process = subprocess.Popen(
            command or [script("twistd"), "-n", "--pidfile=", *twistd, "pop3svc", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=home,
            env=environment(home),
            text=True,
        )
        self.lines: list[str] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    def waitFor(self, text: str) -> str:
        """
        @return: the next line of the log that contains this text.
        """
        while True:
            line = self._coming.get(timeout=PATIENCE)
            assert line is not None, f"it ended without {text!r}: {self.lines}"
            self.lines.append(line)
            if text in line:
                return line

    def up(self) -> Running:
        """
        Wait until the service has started.
        """
        self.waitFor("starting up")
        self.waitFor("reactor class")
        return self

    def end(self, number: int | None = None) -> int:
        """
        Send a signal and wait for the end.

        @return: the exit status.
        """
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        while (line := self._coming.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return status

    def finish(self, *secrets: str) -> list[str]:
        """
        Stop the service.

        @param secrets: texts that the log must not contain.
        @return: the log.
        """
        assert self.end(signal.SIGTERM) == 0
        for text in ("Traceback", *secrets):
            assert not any(text in line for line in self.lines), self.lines
        return self.lines

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Connection:
    """
    A plain connection to a port, read line by line.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket: socket.socket = socket.create_connection((host, port), PATIENCE)
        self._buffer = b""

    def startTLS(self, context: ssl.SSLContext) -> None:
        """
        Begin TLS.
        """
        assert not self._buffer
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def line(self) -> bytes:
        """
        @return: the next line with its end, or the rest at the end of the connection.
        """
        while b"\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                line, self._buffer = self._buffer, b""
                return line
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def lines(self) -> list[bytes]:
        """
        @return: the lines before the single dot that ends a reply.
        """
        # Read all lines before splitting them, because line() would copy the buffer for each line.
        end = b"\r\n.\r\n"
        data = bytearray(b"\r\n" + self._buffer)
        looked = 0
        while (found := data.find(end, looked)) < 0:
            looked = max(len(data) - len(end), 0)
            more = self.socket.recv(1 << 20)
            if not more:
                found, self._buffer = len(data), b""
                break
            data += more
        else:
            self._buffer = bytes(data[found + len(end) :])
        return re.findall(rb"[^\n]*\n|[^\n]+", bytes(data[2 : found + 2]))

    def say(self, text: bytes) -> bytes:
        """
        Send a line.

        @return: the first line of the reply.
        """
        self.socket.sendall(text + b"\r\n")
        return self.line()

    def logIn(self, name: bytes, password: bytes) -> None:
        """
        Log in by USER and PASS.  The greeting must have been read.
        """
        assert self.say(b"USER " + name).startswith(b"+OK")
        reply = self.say(b"PASS " + password)
        assert reply.startswith(b"+OK"), reply


def replyToLogin(port: int, name: str, password: str) -> bytes:
    """
    Log in, sleep and wake, in a session of its own.

    @return: the reply to PASS.  If it is C{+OK}, the user must have one message of 11 octets.
    """
    connection = Connection(port)
    try:
        assert connection.line().startswith(b"+OK")
        assert connection.say(b"USER " + name.encode()).startswith(b"+OK")
        reply = connection.say(b"PASS " + password.encode())
        if reply.startswith(b"+OK"):
            assert connection.say(b"STAT") == b"+OK 1 11\r\n"
            for command in (b"SLEE", b"WAKE", b"QUIT"):
                assert connection.say(command).startswith(b"+OK")
        return reply
    finally:
        connection.socket.close()
