"""
Run two services on the same Maildirs with many clients, other programs and injected faults,
and report violations with the help of a journal.

C{python -m tests.proofs.model --minutes 30 --report FILE}
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.proofs.journal import Journal, Message, tokenIn
from tests.support.running import childrenOf, freePort, script

__all__ = ["Limits", "Run"]

HERE = Path(__file__).parent
COMPILER = next((each for each in ("cc", "gcc", "clang") if shutil.which(each)), None)

# Times in seconds.  The time limit of a provider's call is short, so that calls that hang time out
# within the run.
ANSWER = 4
# A login needs the lock and the listing, and the machine is busy.
GRACE = 10
LOGIN = 2 * ANSWER + GRACE
# The time limit of any other reply.  Replies that are later are counted.
COMMAND = 60
START = 60
# Time after the record of a kill or a restart in which a connection may still be affected.
SHADOW = 1.5
BALLAST = "ballast"


class Limits:
    """
    Numbers and intervals of a run.
    """

    def __init__(self, isShort: bool) -> None:
        self.users = 8 if isShort else 40
        self.clients = 6 if isShort else 16
        self.messages = 12
        # Seconds between two faults, and between two deliveries.
        self.trouble = 0.7 if isShort else 1.5
        self.outside = 0.02


# --- faults --------------------------------------------------------------------------


class _Named(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("error", ctypes.c_int32), ("name", ctypes.c_char * 120)]


class _Page(ctypes.Structure):
    """
    Shared memory of trouble.c.
    """

    _fields_ = [
        ("ahead", ctypes.c_int64),
        ("isFull", ctypes.c_int64),
        ("isReading", ctypes.c_int64),
        ("struck", ctypes.c_int64 * 4),
        ("names", _Named * 32),
    ]


NO_OPENING, NO_READING, HANGING = 1, 2, 3


class Shim:
    """
    The shared memory that controls the shim of the services.
    """

    def __init__(self, place: Path, below: Path) -> None:
        library = place / "trouble.so"
        assert COMPILER is not None
        options = ("-shared", "-fPIC", "-O1", "-Wall", "-Werror")
        subprocess.run([COMPILER, *options, "-o", library, HERE / "trouble.c", "-ldl"], check=True)
        path = place / "page"
        path.write_bytes(bytes(ctypes.sizeof(_Page)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.page = _Page.from_buffer(self._map)
        self.environment = {
            "LD_PRELOAD": str(library),
            "TROUBLE_PAGE": str(path),
            "TROUBLE_BELOW": str(below),
        }
        self._lock = threading.Lock()

    @contextmanager
    def wrong(self, base: str, kind: int, error: int = 0) -> Iterator[None]:
        """
        Inject a fault into the file of a message.
        """
        with self._lock:
            name = next(each for each in self.page.names if not each.kind)
            name.name, name.error = os.fsencode(base), error
            name.kind = kind
            self.page.isReading += kind != NO_OPENING
        try:
            yield
        finally:
            with self._lock:
                name.kind = 0
                self.page.isReading -= kind != NO_OPENING

    @property
    def struck(self) -> dict[str, int]:
        names = ("calls on a full disk", "opens refused", "reads refused", "reads that hung")
        return dict(zip(names, self.page.struck, strict=True))


def _isRunning(process: int) -> bool:
    """
    @return: whether a process exists and is no zombie.
    """
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class Service:
    """
    A real twistd that is restarted after each kill.

    @ivar down: intervals from a kill to the end of the restart.
    """

    def __init__(self, run: Run, name: str, *options: str) -> None:
        self._run = run
        self._options = options
        self.name = name
        self.port = freePort()
        self.log = run.place / f"{name}.log"
        self.data = run.place / f"data-{name}"
        self.down: list[list[float]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Start the service, and wait for a greeting.
        """
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                self._spawn()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                    if connection.recv(100).startswith(b"+OK"):
                        return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not start: {self.log.read_text()[-2000:]}")

    def _spawn(self) -> None:
        run = self._run
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(script("twistd"), "-n", "--pidfile=", "pop3svc"),
                    *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1"),
                    *("--provider", f"maildir:{run.mail}", "--auth", f"passwd:{run.accounts}"),
                    *("--data", str(self.data), "--ban-exempt", "192.0.2.0/24"),
                    *("--set", f"answerTimeout={ANSWER}", "--set", "shutdownTimeout=1"),
                    *("--set", "takeoverIdle=3", "--set", "takeoverMarked=6"),
                    *("--set", "stallTimeout=10", *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=run.place,
                env=os.environ | run.shim.environment,
            )

    def workers(self) -> list[int]:
        """
        @return: the processes of C{--workers}.
        """
        assert self.process is not None
        return childrenOf(self.process.pid)

    def kill(self) -> None:
        """
        Kill the service, wait for the end of its workers, and start it again.
        """
        assert self.process is not None
        down = [time.monotonic(), float("inf")]
        self.down.append(down)
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + START / 2
        while any(map(_isRunning, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for each in filter(_isRunning, workers):
            self._run.journal.violated("service", f"{self.name}: a worker outlives its parent")
            os.kill(each, signal.SIGKILL)
        self.start()
        down[1] = time.monotonic()

    def killWorker(self, chosen: random.Random) -> bool:
        """
        Kill one of the workers, which the service restarts.

        @return: whether there was a worker.
        """
        workers = self.workers()
        if not workers:
            return False
        self.down.append([time.monotonic(), time.monotonic()])
        os.kill(chosen.choice(workers), signal.SIGKILL)
        return True

    def wasDown(self, began: float) -> bool:
        """
        @return: whether the service was down at some time since C{began}.
        """
        now = time.monotonic()
        return any(begin <= now and began <= end + SHADOW for begin, end in self.down)

    def looksDead(self) -> bool:
        """
        @return: whether the service has ended without a kill.
        """
        isDown = bool(self.down) and self.down[-1][1] == float("inf")
        return not isDown and self.process is not None and self.process.poll() is not None

    def end(self) -> None:
        """
        Stop the service, with SIGTERM if possible.
        """
        if self.process is None:
            return
        workers = self.workers()
        self.process.terminate()
        try:
            self.process.wait(3 * ANSWER)
        except subprocess.TimeoutExpired:
            self._run.journal.count("services that SIGTERM did not end in time")
            self.process.kill()
            self.process.wait()
        for each in workers:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                pass


# --- clients -----------------------------------------------------------------------


class Cut(Exception):
    """
    The connection has ended.
    """


class Late(Exception):
    """
    There was no reply in time.
    """


class Wire:
    """
    A client's connection.
    """

    def __init__(self, port: int, source: str, timeout: float) -> None:
        try:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))
        except OSError as error:
            raise Cut(str(error))
        self._buffer = b""

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise Late()
        except OSError as error:
            raise Cut(str(error))
        if not data:
            raise Cut("end of file")
        self._buffer += data

    def line(self, timeout: float = COMMAND) -> bytes:
        """
        @return: the next line without its end.
        """
        self.socket.settimeout(timeout)
        while b"\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def body(self) -> bytes:
        """
        @return: the octets of a multi-line reply, without dot-stuffing.
        """
        while not self._buffer.startswith(b".\r\n") and b"\r\n.\r\n" not in self._buffer:
            self._more()
        if self._buffer.startswith(b".\r\n"):
            self._buffer = self._buffer[3:]
            return b""
        body, _, self._buffer = self._buffer.partition(b"\r\n.\r\n")
        body += b"\r\n"
        return body.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    def send(self, command: str) -> None:
        try:
            self.socket.sendall(command.encode() + b"\r\n")
        except OSError as error:
            raise Cut(str(error))

    def say(self, command: str, timeout: float = COMMAND) -> bytes:
        """
        @return: the first line of the reply.
        """
        self.send(command)
        return self.line(timeout)

    def fetch(self, command: str) -> tuple[bytes, bytes | None]:
        """
        @return: the first line, and the body if it is C{+OK}.
        """
        first = self.say(command)
        return first, self.body() if first.startswith(b"+OK") else None

    def vanish(self) -> None:
        """
        Reset the connection.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Session:
    """
    One session of one user, from login to its end.
    """

    def __init__(self, run: Run, chosen: random.Random, service: Service, user: str) -> None:
        self._run = run
        self._chosen = chosen
        self._service = service
        self._user = user
        self._journal = run.journal
        self._began = time.monotonic()
        self._listed: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._marked: list[int] = []

    def go(self) -> None:
        """
        Log in, run some commands, and end.
        """
        try:
            self._wire = Wire(self._service.port, self._run.sourceOf(self._user), LOGIN)
        except Cut as error:
            self._cut("before login", error)
            return
        try:
            if self._logIn() and self._list():
                for _ in range(self._chosen.randint(1, 8)):
                    if not self._step():
                        return
                self._end()
        except Cut as error:
            if self._service.wasDown(self._began):
                self._journal.count("sessions cut by a kill")
            elif self._run.isSpoiledFor(self._user):
                self._journal.count("sessions cut as a message could not be read to its end")
            else:
                where = f"{self._user} at {self._service.name}"
                self._journal.violated("cut", f"{where}: {error}, and nothing was wrong")
        except Late:
            self._journal.count(f"commands without an answer within {COMMAND} s")
        finally:
            self._wire.socket.close()

    def _cut(self, when: str, error: object) -> None:
        if self._service.wasDown(self._began):
            self._journal.count("logins while the service was down")
        else:
            self._journal.violated(
                "login", f"{self._user} at {self._service.name}: cut {when}: {error}"
            )

    def _logIn(self) -> bool:
        began = time.monotonic()
        try:
            for command in (None, f"USER {self._user}", "PASS secret"):
                if command is not None:
                    self._wire.send(command)
                left = max(began + LOGIN - time.monotonic(), 0.01)
                reply = self._wire.line(left)
        except Cut as error:
            self._cut("during login", error)
            return False
        except Late:
            self._late(began)
            return False
        self._run.latencies.append(time.monotonic() - began)
        words = reply.split(b" ")
        code = words[1].decode() if len(words) > 1 and words[1].startswith(b"[") else ""
        self._journal.count(f"logins answered {words[0].decode()} {code}".rstrip())
        return reply.startswith(b"+OK")

    def _late(self, began: float) -> None:
        if self._service.wasDown(began):
            self._journal.count("logins while the service was down")
        else:
            where = f"{self._user} at {self._service.name}"
            self._journal.violated("login", f"{where}: no answer within {LOGIN} s")

    def _list(self) -> bool:
        """
        List the messages, and check the listing.
        """
        commands = ["STAT", "LIST", "UIDL"]
        self._chosen.shuffle(commands)
        began, isCalm = self._began, self._run.isCalmFor(self._user)
        answers = {}
        for command in commands:
            first, body = (
                (self._wire.say(command), None) if command == "STAT" else self._wire.fetch(command)
            )
            if not first.startswith(b"+OK"):
                self._journal.count(f"{command} refused")
                # Errors of single messages do not justify a refusal (RFC 1939 section 5).
                if isCalm and self._run.isCalmFor(self._user):
                    self._journal.violated("listing", f"{self._user}: {command}: {first!r}")
                return False
            answers[command] = (first, body or b"")
        lines = [line.split(b" ") for line in answers["UIDL"][1].splitlines()]
        self._listed = {int(number): uniqueID.decode() for number, uniqueID in lines}
        self._sizes = {
            int(number): int(size)
            for number, size in (line.split(b" ")[:2] for line in answers["LIST"][1].splitlines())
        }
        self._marked = []
        self._journal.count("messages listed", len(self._listed))
        self._journal.listed(self._user, list(self._listed.values()), began)
        counted = int(answers["STAT"][0].split(b" ")[1])
        if not counted == len(self._sizes) == len(self._listed):
            self._journal.violated(
                "listing",
                f"{self._user}: STAT counts {counted}, LIST {len(self._sizes)}, UIDL {len(lines)}",
            )
        return True

    # --- commands -------------------------------------------------------------------

    def _step(self) -> bool:
        """
        @return: whether the session goes on.
        """
        steps: list[tuple[int, Callable[[int], bool]]] = [
            (6, self._retrieve),
            (3, self._top),
            (4, self._mark),
            (1, self._deleteNow),
            (1, self._refresh),
            (1, self._sleep),
            (1, self._reset),
            (1, self._vanishes),
        ]
        [body] = self._chosen.choices([each for _, each in steps], [weight for weight, _ in steps])
        present = [each for each in self._listed if each not in self._marked]
        if not present:
            return body(0) if body in (self._vanishes, self._refresh) else False
        return body(self._chosen.choice(present))

    def _retrieve(self, number: int) -> bool:
        first = self._wire.say(f"LIST {number}")
        self._wire.send(f"RETR {number}")
        answer = self._wire.line()
        if answer.startswith(b"+OK"):
            if self._chosen.random() < 0.03:
                return self._vanishes(number)
            said = int(first.split(b" ")[2]) if first.startswith(b"+OK") else None
            content = self._wire.body()
            for size in {said, self._sizes.get(number)}:
                self._journal.read(self._user, self._listed[number], content, self._began, size)
            self._journal.count("messages retrieved")
        else:
            self._journal.count("RETR refused")
        return True

    def _top(self, number: int) -> bool:
        self._identified(number)
        return True

    def _identified(self, number: int) -> Message | None:
        """
        Read a message to identify it.

        @return: the message with this number.
        """
        _, content = self._wire.fetch(f"TOP {number} {self._chosen.choice((0, 1, 10))}")
        if content is None:
            self._journal.count("TOP refused")
            return None
        self._journal.count("tops")
        self._journal.begins(self._user, self._listed[number], content, self._began)
        return self._journal.known(self._user, self._listed[number])

    def _mark(self, number: int) -> bool:
        if self._identified(number) is not None:
            if self._wire.say(f"DELE {number}").startswith(b"+OK"):
                self._marked.append(number)
        return True

    def _reset(self, number: int) -> bool:
        if self._wire.say("RSET").startswith(b"+OK"):
            self._marked = []
        return True

    def _vanishes(self, number: int) -> bool:
        self._journal.count("clients that vanished")
        self._wire.vanish()
        return False

    def _deletes(self, command: str, numbers: list[int]) -> bytes | None:
        """
        Send a command that deletes messages.

        @return: the reply, or L{None} if the connection has ended.
        """
        messages = [self._journal.known(self._user, self._listed[each]) for each in numbers]
        found = [each for each in messages if each is not None]
        wasOpen = {each.token for each in found if each.mayBeDeleted}
        self._journal.deleting(found)
        answer = None
        try:
            if found and self._chosen.random() < 0.05:
                self._wire.send(command)
                self._vanishes(0)
                return None
            answer = self._wire.say(command)
            return answer
        finally:
            isDeleted = None if answer is None else answer.startswith(b"+OK")
            self._journal.answered(found, isDeleted, wasOpen)

    def _deleteNow(self, number: int) -> bool:
        if self._identified(number) is None:
            return True
        answer = self._deletes(f"DELI {number}", [number])
        if answer is not None and answer.startswith(b"+OK"):
            del self._listed[number]
        return answer is not None

    def _refresh(self, number: int) -> bool:
        return self._commits("CORE") and self._list()

    def _commits(self, command: str) -> bool:
        answer = self._deletes(command, self._marked)
        if answer is None or not answer.startswith(b"+OK"):
            self._journal.count(f"{command} refused")
            return False
        self._began = time.monotonic()
        return True

    def _sleep(self, number: int) -> bool:
        if not self._commits("SLEE"):
            return False
        time.sleep(self._chosen.random() / 2)
        self._began = time.monotonic()
        if not self._wire.say("WAKE").startswith(b"+OK"):
            self._journal.count("WAKE refused")
            self._wire.say("QUIT")
            return False
        return self._list()

    def _end(self) -> None:
        if self._chosen.random() < 0.1:
            self._vanishes(0)
        elif self._deletes("QUIT", self._marked) is not None:
            self._journal.count("sessions ended by QUIT")


# --- other programs -------------------------------------------------------------------


class Outsider:
    """
    Delivers, flags and removes messages like delivery agents and IMAP servers.
    """

    def __init__(self, run: Run, name: str, chosen: random.Random) -> None:
        """
        @param name: part of the names of its messages.
        """
        self._run = run
        self._name = name
        self._chosen = chosen
        self._serial = 0

    def act(self) -> None:
        """
        Do one action.
        """
        user = self._chosen.choice(self._run.users)
        there = [
            each
            for each in self._run.journal.messages(user)
            if each.path is not None and not each.mayBeReplaced
        ]
        if len(there) < self._run.limits.messages and self._chosen.random() < 0.6:
            self.deliver(user)
        elif there:
            message = self._chosen.choice(there)
            if self._chosen.random() < 0.85:
                self._flag(message)
            else:
                self._remove(message)

    def _content(self, token: str) -> bytes:
        size = self._chosen.choice((0, 1, 3, 30, 300, 3000))
        line = self._chosen.choice((b".dot\n", b"a line\n", b".\n", b"x" * 76 + b"\n", b"crlf\r\n"))
        end = self._chosen.choice((b"", b"\n", b"no end"))
        return f"Subject: {token}\n\n".encode() + line * size + end

    def deliver(
        self, user: str, before: Callable[[Message], object] = lambda message: None
    ) -> Message | None:
        """
        Deliver a message like a delivery agent, sometimes with a name that was used before.

        @param before: called before the message exists.
        """
        run = self._run
        self._serial += 1
        token = f"token-{user}-{self._name}{self._serial}"
        base = f"{int(time.time())}.M{self._serial}P1.{self._name}"
        gone = [each for each in run.journal.messages(user) if each.mayBeReplaced]
        if gone and self._chosen.random() < 0.02:
            base = self._chosen.choice(gone).base
            try:
                if any(run.mail.glob(f"{user}/**/{base}*")):
                    return None
            except FileNotFoundError:
                # A service has removed a directory meanwhile.
                return None
            run.journal.count("deliveries under a name that was there before")
        message = Message(token, user, base, self._content(token))
        maildir = run.mail / user
        temporary = maildir / "tmp" / f"{self._serial}.{base}"
        run.journal.delivering(message)
        before(message)
        try:
            temporary.write_bytes(message.content)
            place = maildir / "new" / base
            temporary.rename(place)
        except OSError:
            run.journal.withdrawn(message)
            run.journal.count("deliveries that failed")
            temporary.unlink(missing_ok=True)
            return None
        message.path = place
        run.journal.count("delivered")
        return message

    def _flag(self, message: Message) -> None:
        assert message.path is not None
        flags = self._chosen.choice((":2,", ":2,S", ":2,RS", ":2,FS"))
        target = self._run.mail / message.user / "cur" / (message.base + flags)
        try:
            message.path.rename(target)
        except OSError:
            # A client has deleted it, or is deleting it.
            return
        message.path = target
        self._run.journal.count("renamed by others")

    def _remove(self, message: Message) -> None:
        assert message.path is not None
        before, message.removed = message.removed, True
        try:
            message.path.unlink()
        except OSError:
            message.removed = before
        else:
            self._run.journal.count("removed by others")


# --- the run ----------------------------------------------------------------------------


class Run:
    """
    One run, from an empty directory to the final checks.

    @ivar latencies: seconds from connecting to the reply to PASS, for users without failed
        logins.
    """

    def __init__(self, place: Path, seed: int, limits: Limits, mayMount: bool = False) -> None:
        self.place = place
        self.seed = seed
        self.limits = limits
        self.journal = Journal()
        self.latencies: list[float] = []
        self.users = [f"user{number}" for number in range(limits.users)]
        self.accounts = place / "accounts"
        self.accounts.write_text("".join(f"{each}:{{PLAIN}}secret\n" for each in self.users))
        self.mail = place / "mail"
        self.mail.mkdir()
        self.isMounted = mayMount and self._mount()
        for user in self.users:
            for folder in ("new", "cur", "tmp"):
                (self.mail / user / folder).mkdir(parents=True, mode=0o700)
        self.shim = Shim(place, self.mail)
        self.services = [Service(self, "one"), Service(self, "two", "--workers", "2")]
        self._serial = count(1)
        self._over = threading.Event()
        self._troubled: dict[str, float] = {}
        self._spoiled: dict[str, float] = {}
        self._failures: list[BaseException] = []

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "none", str(self.mail)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def sourceOf(self, user: str) -> str:
        """
        @return: the address of a user's programs, in a network of its own.
        """
        return f"127.1.{self.users.index(user)}.1"

    def isCalmFor(self, user: str) -> bool:
        """
        @return: whether the only faults now are single messages that cannot be opened, or
            that other programs rename or remove.
        """
        return time.monotonic() > max(self._troubled.get(user, 0), self._troubled.get("", 0))

    def isSpoiledFor(self, user: str) -> bool:
        """
        @return: whether a message of this user is unreadable, or was until recently.
        """
        return time.monotonic() <= self._spoiled.get(user, 0)

    def _trouble(self, user: str, seconds: float) -> None:
        # The trouble lasts for some time after the fault, because cancelled calls may still run.
        self._troubled[user] = max(
            self._troubled.get(user, 0), time.monotonic() + seconds + 2 * ANSWER
        )

    # --- threads -----------------------------------------------------------------------

    def _thread(self, name: str, step: Callable[[random.Random], object]) -> threading.Thread:
        chosen = random.Random(f"{self.seed} {name}")

        def loop() -> None:
            try:
                while not self._over.is_set():
                    step(chosen)
            except BaseException as error:
                self._failures.append(error)
                self._over.set()

        thread = threading.Thread(target=loop, name=name)
        thread.start()
        return thread

    def _client(self, chosen: random.Random) -> None:
        Session(self, chosen, chosen.choice(self.services), chosen.choice(self.users)).go()
        time.sleep(chosen.random() / 10)

    def _guesser(self, chosen: random.Random) -> None:
        """
        Try wrong passwords, from an unknown address and from a user's own one.
        """
        user = chosen.choice(self.users)
        source = chosen.choice(("127.9.0.1", "127.9.1.1", self.sourceOf(self.users[0])))
        if source == self.sourceOf(self.users[0]):
            user = self.users[0]
        service = chosen.choice(self.services)
        began = time.monotonic()
        try:
            wire = Wire(service.port, source, LOGIN)
            wire.line(LOGIN)
            wire.say(f"USER {user}", LOGIN)
            reply = wire.say(f"PASS guess{chosen.randint(0, 99)}", 4 * LOGIN)
            if reply.startswith(b"+OK"):
                self.journal.violated("login", f"{user}: a wrong password is let in")
            self.journal.count("wrong passwords answered")
            wire.socket.close()
        except Cut:
            self.journal.count("wrong passwords cut")
        except Late:
            if not service.wasDown(began):
                self.journal.count("wrong passwords never answered")
        time.sleep(0.2)

    def _goesWrong(self, chosen: random.Random) -> None:
        self._over.wait(chosen.random() * 2 * self.limits.trouble)
        for service in self.services:
            if service.looksDead():
                self.journal.violated("service", f"{service.name} has ended by itself")
                service.start()
        steps: list[tuple[int, Callable[[random.Random], None]]] = [
            (1, self._kills),
            (1, self._killsAWorker),
            (2, self._setsTheClock),
            (2, self._fillsTheDisk),
            (4, self._spoils),
            (2, self._hangs),
        ]
        [body] = chosen.choices([each for _, each in steps], [weight for weight, _ in steps])
        if not self._over.is_set():
            body(chosen)

    def _kills(self, chosen: random.Random) -> None:
        self.journal.count("fault: kill of a service")
        chosen.choice(self.services).kill()

    def _killsAWorker(self, chosen: random.Random) -> None:
        if self.services[1].killWorker(chosen):
            self.journal.count("fault: kill of a worker")

    def _setsTheClock(self, chosen: random.Random) -> None:
        step = int(chosen.choice((-1, 1)) * 10 ** chosen.uniform(0, 5))
        self.shim.page.ahead = step if chosen.random() < 0.7 else 0
        self.journal.count("fault: clock set")

    def _fillsTheDisk(self, chosen: random.Random) -> None:
        seconds = chosen.uniform(0.3, 2)
        self._trouble("", seconds)
        self.journal.count("fault: disk full")
        ballast = self.mail / BALLAST
        if self.isMounted:
            try:
                with ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(65536)):
                        pass
            except OSError:
                # The expected result.
                pass
        else:
            self.shim.page.isFull = 1
        self._over.wait(seconds)
        ballast.unlink(missing_ok=True)
        self.shim.page.isFull = 0

    def _somethingWrong(self, chosen: random.Random, seconds: float, kind: int, code: int) -> str:
        """
        Inject a fault for some seconds into an existing message, or into one that was not
        read yet.

        @return: the user of the message, empty if there is none.
        """

        def wrong(message: Message) -> None:
            def while_() -> None:
                with self.shim.wrong(message.base, kind, code):
                    isWrong.set()
                    self._over.wait(seconds)

            end = time.monotonic() + seconds + 2 * ANSWER
            self._spoiled[message.user] = max(self._spoiled.get(message.user, 0), end)
            isWrong = threading.Event()
            threading.Thread(target=while_, name="wrong").start()
            isWrong.wait()

        user = chosen.choice(self.users)
        if chosen.random() < 0.6:
            Outsider(self, f"t{next(self._serial)}-", chosen).deliver(user, wrong)
            return user
        found = [each for each in self.journal.messages(user) if not each.mayBeReplaced]
        if not found:
            return ""
        wrong(chosen.choice(found))
        return user

    def _spoils(self, chosen: random.Random) -> None:
        kind = chosen.choice((NO_OPENING, NO_READING))
        code = chosen.choice((errno.EACCES, errno.EIO) if kind == NO_OPENING else (errno.EIO,))
        self._somethingWrong(chosen, chosen.uniform(1, 6), kind, code)
        self.journal.count("fault: message that cannot be opened or read")

    def _hangs(self, chosen: random.Random) -> None:
        seconds = chosen.uniform(0.5, 2.5 * ANSWER)
        user = self._somethingWrong(chosen, seconds, HANGING, 0)
        if user:
            self._trouble(user, seconds)
        self.journal.count("fault: message that hangs when it is read")

    # --- the run ---------------------------------------------------------------------------

    def go(self, seconds: float) -> None:
        """
        Run all threads for some time, and check the result.
        """
        try:
            outsider = Outsider(self, "m", random.Random(f"{self.seed} before"))
            for user in self.users:
                for _ in range(self.limits.messages // 2):
                    outsider.deliver(user)
            for service in self.services:
                service.start()
            self._happens(outsider, seconds)
            self._comesToRest()
            self._judge()
        finally:
            for service in self.services:
                service.end()
            if self.isMounted:
                subprocess.run(["umount", "--lazy", str(self.mail)], check=False)

    def _happens(self, outsider: Outsider, seconds: float) -> None:
        def outside(chosen: random.Random) -> None:
            outsider._chosen = chosen
            outsider.act()
            time.sleep(self.limits.outside)

        threads = [
            self._thread("outside", outside),
            self._thread("guesser", self._guesser),
            self._thread("trouble", self._goesWrong),
            *(self._thread(f"client {each}", self._client) for each in range(self.limits.clients)),
        ]
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()
        for each in threading.enumerate():
            if each.name == "wrong":
                each.join()
        if self._failures:
            raise self._failures[0]

    def _comesToRest(self) -> None:
        """
        End all faults, and restart the services.
        """
        self.shim.page.ahead = self.shim.page.isFull = 0
        for service in self.services:
            service.end()
            service.start()

    def _judge(self) -> None:
        """
        Let one session of each user finish interrupted removals, and then compare the disk
        with the listings of both services.
        """
        for user in self.users:
            shown = [self._shown(service, user) for service in self.services]
            if shown[0] != shown[1]:
                self.journal.violated("listing", f"{user}: the services differ: {shown}")
            files = [
                each for folder in ("new", "cur") for each in (self.mail / user / folder).iterdir()
            ]
            onDisk = [tokenIn(each.read_bytes()) or each.name for each in files]
            if sorted(onDisk) != sorted(shown[0].values()):
                missing = sorted(set(onDisk) ^ set(shown[0].values()))
                self.journal.violated("listing", f"{user}: on disk and shown differ: {missing[:5]}")
            self.journal.judge(user, onDisk)

    def _shown(self, service: Service, user: str) -> dict[str, str]:
        """
        @return: the tokens of a user's messages by unique-id, as a service sends them after
            all activity has ended.
        """
        began = time.monotonic()
        wire = Wire(service.port, self.sourceOf(user), COMMAND)
        wire.line()
        for _ in range(20):
            wire.say(f"USER {user}")
            reply = wire.say("PASS secret")
            if reply.startswith(b"+OK"):
                break
            time.sleep(1)
        else:
            self.journal.violated("login", f"{user} at rest: {reply!r}")
            return {}
        answers = {each: wire.fetch(each) for each in ("UIDL", "LIST")}
        lists = {each: (body or b"").splitlines() for each, (_, body) in answers.items()}
        if any(body is None for _, body in answers.values()):
            self.journal.violated("listing", f"{user} at rest: {answers}")
            return {}
        shown = {}
        self.journal.listed(user, [line.split()[1].decode() for line in lists["UIDL"]], began)
        for uidl, size in zip(lists["UIDL"], lists["LIST"], strict=True):
            number, uniqueID = uidl.decode().split()
            first, content = wire.fetch(f"RETR {number}")
            if content is None:
                self.journal.violated("listing", f"{user} at rest: RETR of {uniqueID}: {first!r}")
                continue
            self.journal.read(user, uniqueID, content, began, int(size.split()[1]))
            shown[uniqueID] = tokenIn(content) or ""
        wire.say("QUIT")
        wire.socket.close()
        return shown

    # --- the report -------------------------------------------------------------------------

    def tracebacks(self) -> int:
        """
        @return: the number of tracebacks that the services have logged.
        """
        return sum(
            each.log.read_text(errors="replace").count("Traceback (") for each in self.services
        )

    def report(self) -> str:
        """
        @return: a report in text.
        """
        lines = [f"seed {self.seed}", ""]
        counts = dict(self.journal.counts) | self.shim.struck
        counts["tracebacks in the logs"] = self.tracebacks()
        lines += [f"{times:9}  {what}" for what, times in sorted(counts.items())]
        times = sorted(self.latencies)
        if times:
            lines += ["", f"logins of users who did nothing wrong: {len(times)}, limit {LOGIN} s"]
            for percent in (50, 90, 99, 100):
                at = min(int(len(times) * percent / 100), len(times) - 1)
                lines.append(f"{times[at]:9.3f}  s, percentile {percent}")
        full = "tmpfs of 48 MiB" if self.isMounted else "the shim's"
        lines += ["", f"full disk: {full}", f"violations: {len(self.journal.violations)}"]
        lines += [f"  {each}" for each in self.journal.violations]
        return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """
    @return: the exit status: 0 without violations, else 2.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--report", type=Path, help="where the report goes, beside standard output")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, help="an empty directory for logs and mail, kept")
    parser.add_argument("--no-mount", action="store_true", help="never mount a tmpfs to be filled")
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pop3svc-model-") as directory:
        place = options.keep or Path(directory)
        place.mkdir(exist_ok=True)
        limits = Limits(options.minutes < 2)
        run = Run(place, options.seed, limits, mayMount=not options.no_mount)
        try:
            run.go(options.minutes * 60)
        finally:
            report = run.report()
            print(report)
            if options.report is not None:
                options.report.write_text(report)
    return 2 if run.journal.violations else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
