"""
Run the examples unchanged, each in a process of its own.
"""

from __future__ import annotations

import os
import poplib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.running import CHECKOUT, PATIENCE, Running, environment, freePort, script

EXAMPLES = CHECKOUT / "examples"


def addUser(home: Path, name: str, password: str) -> None:
    """
    Write an account into the file C{users}.
    """
    subprocess.run(
        [script("pop3svc"), "user", "add", name, "--file", "users"],
        input=f"{password}\n",
        text=True,
        cwd=home,
        env=environment(home),
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )


@contextmanager
def service(home: Path, *options: str) -> Iterator[int]:
    """
    Run twistd with a provider from the examples.

    @return: the port of the service.
    """
    before = os.environ.get("PYTHONPATH", "")
    port = freePort()
    os.environ["PYTHONPATH"] = os.pathsep.join([before, str(EXAMPLES)])
    try:
        running = Running(home, *options, "--endpoint", f"tcp:{port}:interface=127.0.0.1")
    finally:
        os.environ["PYTHONPATH"] = before
    with running:
        yield running.up() and port


@contextmanager
def program(home: Path, name: str, *arguments: str) -> Iterator[Program]:
    """
    Run a program of the examples, and kill it at the end.
    """
    running = Program(home, name, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


class Program:
    """
    A running program of the examples.
    """

    def __init__(self, home: Path, name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", EXAMPLES / name, *arguments],
            cwd=home,
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # If a shell has started the tests in the background, they ignore SIGINT.  Without this
            # line the program would ignore it, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def end(self, number: int) -> tuple[int, str]:
        """
        Send a signal, and wait for the end of the process.

        @return: the exit status, and all that was printed.
        """
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        said = []
        while line := self._lines.get(timeout=PATIENCE):
            said.append(line)
        return status, "".join(said)


def untilOpen(port: int) -> None:
    """
    Wait until something listens on a port.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def logIn(port: int, user: str, password: str) -> poplib.POP3:
    """
    @return: a client that has logged in.
    """
    client = poplib.POP3("127.0.0.1", port, PATIENCE)
    client.user(user)
    client.pass_(password)
    return client


def messages(client: poplib.POP3) -> list[bytes]:
    """
    @return: all messages, with LF as line ends.
    """
    numbers = range(1, client.stat()[0] + 1)
    return [b"\n".join(client.retr(number)[1]) + b"\n" for number in numbers]
