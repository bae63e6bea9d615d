"""
Repeat a session with a Maildir, with a fault or a kill at each file-system call in turn,
and check the Maildir after each run.

Run it with the shim preloaded before libc (LD_PRELOAD), like C{test_everycall}.  Python is
started once, and each session runs in a fork.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogBeginner

from pop3svc.providers.maildir import MaildirStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline
from tests.anybody import Anybody
from tests.support.messages import asSent, stuffed

# Actions of the shim at a call; as in shim.c.
COUNT, FAIL, FAIL_ON, KILL, KILL_AFTER, HALF, HALF_KILL = range(7)
KILLS = (KILL, KILL_AFTER, HALF_KILL)
# Seconds by which the wall clock is ahead, so that directories count as old at once.
AHEAD = 60
# Maximum number of calls of a session.
MOST = 5000

MESSAGES = {
    "1600000001.M1P1.host": ("new", b"Subject: one\n\nfirst\n.dot\n"),
    "1600000002.M2P1.host": ("cur", b"Subject: two\r\n\r\nas it is sent\r\n"),
    "1600000003.M3P1.host": ("cur", b"Subject: three\n\n" + b"x" * 70 + b"\n"),
    "1600000004.M4P1.host": ("new", b"Subject: four\n\nno end"),
    "1600000005.M5P1.host": ("cur", b"\n\n..\n"),
}
ONE, TWO, THREE, FOUR, FIVE = MESSAGES
LATER = "1600000006.M6P1.host"
LATEST = "1600000007.M7P1.host"
CONTENTS = {name: octets for name, (_, octets) in MESSAGES.items()} | {
    LATER: b"Subject: six\n\nnew mail\n",
    LATEST: b"Subject: seven\n\nnewer mail\n",
}
SENT = {name: asSent(octets) for name, octets in CONTENTS.items()}


class Shim:
    """
    The shared memory of C{shim.c}.
    """

    def __init__(self) -> None:
        library: Any = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.shim_count.restype = library.shim_struck.restype = ctypes.c_long
        library.shim_name.restype = ctypes.c_char_p
        library.shim_name.argtypes = [ctypes.c_long]
        library.shim_begin.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
        library.shim_ahead.argtypes = [ctypes.c_long]
        library.shim_pause.argtypes = [ctypes.c_int]
        self.begin = library.shim_begin
        self.pause = library.shim_pause
        self.ahead = library.shim_ahead
        self.count = library.shim_count
        self.open = library.shim_open
        self._name = library.shim_name

    def name(self, number: int) -> str:
        found: bytes = self._name(number)
        return found.decode()


# --- the Maildir ----------------------------------------------------------------


def deliver(maildir: Path, name: str) -> None:
    """
    Deliver a message like a delivery agent.
    """
    (maildir / "tmp" / name).write_bytes(CONTENTS[name])
    (maildir / "tmp" / name).rename(maildir / "new" / name)
    # Two changes within one tick of the file system's clock cannot be distinguished.
    status = (maildir / "new").stat()
    os.utime(maildir / "new", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000 + len(name)))


def plain(maildir: Path) -> None:
    """
    A Maildir that was never opened.
    """
    for folder in ("new", "cur", "tmp"):
        (maildir / folder).mkdir(parents=True)
    for name, (folder, octets) in MESSAGES.items():
        (maildir / folder / _named(name, folder)).write_bytes(octets)


def _named(name: str, folder: str) -> str:
    return name + (":2,S" if folder == "cur" else "")


def served(maildir: Path) -> Client:
    """
    @return: a session of a service that was just started.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    return Client(POP3Factory(Anybody(store), clock=Clock()))


def knownButOne(maildir: Path) -> None:
    """
    The file of sizes contains all messages but one.
    """
    plain(maildir)
    away = maildir / "new" / ONE
    away.rename(maildir / "tmp" / ONE)
    client = served(maildir)
    client.logIn()
    client.say(b"LIST")
    client.say(b"QUIT")
    (maildir / "tmp" / ONE).rename(away)


def damagedSizes(maildir: Path) -> None:
    """
    The file of sizes was cut in the middle.
    """
    knownButOne(maildir)
    kept = maildir / "pop3svc-sizes"
    kept.write_bytes(kept.read_bytes()[:-7])


def cutBefore(maildir: Path) -> None:
    """
    A removal was interrupted before it was decided; a recovery must put its files back.
    """
    _staged(maildir, "pop3svc-removing")


def cutBehind(maildir: Path) -> None:
    """
    A removal was interrupted after it was decided; its files count as deleted.
    """
    _staged(maildir, "pop3svc-removed")


def _staged(maildir: Path, state: str) -> None:
    plain(maildir)
    (maildir / state / ".new").mkdir(parents=True)
    for name in (ONE, TWO):
        folder = MESSAGES[name][0]
        file = _named(name, folder)
        below = ".new" if folder == "new" else "."
        (maildir / folder / file).rename(maildir / state / below / file)


# --- the sessions -----------------------------------------------------------------

ALL = frozenset(
    ["STAT", "LIST", "UIDL", "RETR", "TOP", "DELE", "DELI", "SLEE", "WAKE", "CORE", "RSET"]
)
Step = bytes | str
LOGIN = [b"USER alice", b"PASS secret"]
LOOK = [b"STAT", b"LIST", b"UIDL"]

# Command that reads a marked message after the failure of one of these.
UNDONE = {b"SLEE": b"RETR 2", b"CORE": b"RETR 1"}

# name: (function that makes the Maildir, messages already deleted, lines of the client; a
# str is a message that is delivered meanwhile)
SCENARIOS: dict[str, tuple[Callable[[Path], None], list[str], list[Step]]] = {
    "quit": (
        plain,
        [],
        [*LOGIN, *LOOK, b"RETR 1", b"DELE 1", b"DELE 2", b"DELE 4", LATER, b"TOP 3 1", b"QUIT"],
    ),
    "sleep": (
        knownButOne,
        [],
        [
            *LOGIN,
            *(b"LIST", b"DELE 2", b"SLEE", LATER, b"WAKE", b"LIST"),
            *(b"DELE 1", b"CORE", b"UIDL", LATEST, b"DELI UID:" + LATEST.encode(), b"QUIT"),
        ],
    ),
    "damaged sizes": (damagedSizes, [], [*LOGIN, *LOOK, b"RETR 5", b"QUIT"]),
    "put back": (cutBefore, [], [*LOGIN, *LOOK, LATER, b"RETR 1", b"QUIT"]),
    "purge": (cutBehind, [ONE, TWO], [*LOGIN, *LOOK, LATER, b"QUIT"]),
}


class Judge:
    """
    Derives from the replies which messages must exist.
    """

    def __init__(self, deleted: list[str], mayMiss: int) -> None:
        """
        @param mayMiss: messages that a fault may keep from being read.
        """
        self.mayMiss = mayMiss
        self.listed: list[str] = []
        self.marked: list[str] = []
        # Messages that certainly exist, in order; and sets of which all or none exist.
        self.there = [each for each in MESSAGES if each not in deleted]
        self.open: list[list[str]] = []
        self.wrong: list[str] = []
        # Verbs that were refused, and verbs that may be refused.
        self.failed: list[str] = []
        self.excused: frozenset[str] = frozenset()

    def _hidden(self) -> set[str]:
        return {name for group in self.open for name in group} | set(self.marked)

    def delivered(self, name: str) -> None:
        self.there.append(name)

    def _byArgument(self, argument: str) -> str | None:
        if argument.upper().startswith("UID:"):
            return argument[4:]
        number = int(argument)
        return self.listed[number - 1] if number <= len(self.listed) else None

    def said(self, line: str, reply: bytes | None, isOpen: bool, isLasting: bool) -> None:
        """
        @param reply: L{None} if the process was killed meanwhile.
        @param isOpen: whether the connection stayed open.
        @param isLasting: whether all calls failed from some call on.
        """
        verb, *arguments = line.split()
        isOK = reply is not None and reply.startswith(b"+OK")
        if reply is not None and not isOK:
            isAgain = verb in ("PASS", "WAKE") and verb in self.failed
            isPlain = reply.startswith((b"-ERR [SYS/TEMP] Mailbox ", b"-ERR [SYS/PERM] M"))
            if verb == "WAKE" and self.failed[-1:] == ["SLEE"] or verb in self.excused:
                isPlain = reply.startswith(b"-ERR Command is not valid in this state")
            if verb in ("RETR", "TOP"):
                # The connection was cut before anything was sent.
                isPlain = isPlain or (not reply and not isOpen)
            if arguments and verb != "USER":
                name = self._byArgument(arguments[0]) if verb != "PASS" else ONE
                if name is None or name in self._hidden() or name not in self.there:
                    isPlain = reply.startswith(b"-ERR ")
            if isLasting:
                isPlain = True
                self.excused = ALL if verb in ("PASS", "WAKE") else self.excused
            elif isAgain:
                isPlain = False
            self.failed.append(verb)
            if not isPlain:
                self._object(line, reply)
        if verb in ("PASS", "WAKE", "CORE") and isOK:
            group, self.marked = self.marked, []
            if group:
                self._gone(group)
            self.listed = list(self.there)
        elif verb == "DELE" and isOK:
            name = self._byArgument(arguments[0])
            if name is None:
                self._object(line, reply)
            else:
                self.marked.append(name)
        elif verb in ("QUIT", "SLEE") and isOK:
            self._gone(self.marked)
            self.marked = []
        elif verb == "DELI" and isOK:
            name = self._byArgument(arguments[0])
            if name is None:
                self._object(line, reply)
            else:
                self._gone([name])
        elif verb == "RSET" and isOK:
            self.marked = []
        elif verb in ("QUIT", "SLEE", "CORE", "DELI"):
            group = [self._byArgument(arguments[0])] if verb == "DELI" else list(self.marked)
            # If all calls fail, nothing can be undone either.
            isUnsure = reply is None or isLasting or (verb == "CORE" and not isOpen)
            if group and isUnsure:
                # The result of an earlier deletion does not determine this one.
                earlier = {name for names in self.open for name in names}
                self.open.append([each for each in group if each and each not in earlier])
        elif isOK and reply is not None and not (isLasting and self.open):
            self._shown(verb, arguments, reply, line)

    def _gone(self, names: list[str]) -> None:
        self.there = [each for each in self.there if each not in names]

    def _present(self) -> list[tuple[int, str]]:
        hidden = self._hidden()
        return [
            (number, name)
            for number, name in enumerate(self.listed, 1)
            if name in self.there and name not in hidden
        ]

    def _shown(self, verb: str, arguments: list[str], reply: bytes, line: str) -> None:
        lines = reply.split(b"\r\n")
        present = self._present()
        if verb in ("STAT", "LIST"):
            names = [name for _, name in present]
            # A single fault affects one message at most; a lasting one may affect all.
            missing = [set(), *({name} for name in names)] if self.mayMiss else [set()]
            if self.mayMiss > 1:
                missing += [set(each) for n in range(2, 9) for each in combinations(names, n)]
            spoilt = [each for each in missing if lines == self._sizes(verb, present, each)]
            isRight = bool(spoilt)
            if spoilt and self.mayMiss == 1:
                self.mayMiss -= len(spoilt[0])
        elif verb == "UIDL":
            isRight = lines[1:-2] == [f"{n} {name}".encode() for n, name in present]
        elif verb in ("RETR", "TOP"):
            name = self._byArgument(arguments[0])
            assert name is not None
            whole = stuffed(SENT[name])
            body = reply.partition(b"\r\n")[2]
            # The reply is cut or complete; a shorter one never looks complete.
            isRight = body == whole + b".\r\n" or whole.startswith(body)
            if verb == "TOP":
                isRight = body.endswith(b"\r\n.\r\n") and whole.startswith(body[:-3])
        else:
            isRight = True
        if not isRight:
            self._object(line, reply)

    @staticmethod
    def _sizes(verb: str, present: list[tuple[int, str]], missing: set[str]) -> list[bytes]:
        """
        @param missing: the messages that could not be read, whose octets are left out.
        """
        sizes = [0 if name in missing else len(SENT[name]) for _, name in present]
        if verb == "STAT":
            return [f"+OK {len(present)} {sum(sizes)}".encode(), b""]
        noun = "message" if len(present) == 1 else "messages"
        return [
            f"+OK {len(present)} {noun} _".encode(),
            *(
                f"{number} {size}".encode()
                for (number, _), size in zip(present, sizes, strict=True)
            ),
            *(b".", b""),
        ]

    def _object(self, line: str, reply: bytes | None) -> None:
        self.wrong.append(f"{line}: {reply!r}")

    def mayBe(self, found: list[str]) -> bool:
        """
        @return: whether these messages are a possible result.
        """
        left = list(self.there)
        for group in self.open:
            gone = [name not in found for name in group]
            if all(gone):
                left = [each for each in left if each not in group]
            elif any(gone):
                return False
        return found == left


# --- one run ----------------------------------------------------------------------


def keepFailure(failures: list[str], event: Any) -> None:
    """
    Observe the log.

    @param failures: gets each exception that is logged and not expected.
    """
    failure = event.get("log_failure")
    text = event.get("log_format") or ""
    if failure is not None and "a reply failed midway" not in text:
        failures.append(f"{text}: {failure.value!r}")


def converse(
    client: Client,
    send: Callable[[bytes], bytes],
    steps: list[Step],
    deliver: Callable[[str], object],
    tell: Callable[[Any], object],
) -> None:
    """
    Run a session, and report the replies.

    @param send: sends a line, and returns the reply.
    @param deliver: delivers a message by its name.
    """

    def say(line: bytes) -> bytes:
        tell(["C", line.decode()])
        reply = send(line)
        tell(["S", reply.decode("latin-1"), client.isOpen])
        return reply

    for step in steps:
        if isinstance(step, str):
            deliver(step)
            tell(["delivered", step])
        elif client.isOpen:
            reply = say(step)
            if client.isOpen and step in (b"PASS secret", b"WAKE") and b"-ERR [" in reply:
                # After a single fault, the next attempt works.
                for again in LOGIN if step != b"WAKE" else [step]:
                    say(again)
            elif client.isOpen and step in UNDONE and reply.startswith(b"-ERR"):
                # Nothing was deleted, so the marked message can be read.
                for again in (b"RSET", UNDONE[step]):
                    say(again)
    client.vanish()


def _play(
    shim: Shim,
    begin: Callable[[], object],
    maildir: Path,
    steps: list[Step],
    tell: Callable[[Any], None],
) -> None:
    """
    In the child: run the session, and report the replies.
    """
    failures: list[str] = []
    globalLogBeginner.beginLoggingTo(
        [partial(keepFailure, failures)], discardBuffer=True, redirectStandardIO=False
    )
    client = served(maildir)
    client.received()
    begin()

    def deliverUncounted(name: str) -> None:
        shim.pause(1)
        deliver(maildir, name)
        shim.pause(0)

    converse(client, client.say, steps, deliverUncounted, tell)
    shim.pause(1)
    calls = [shim.name(each) for each in range(1, shim.count() + 1)]
    tell(["end", calls, shim.open(), failures])


def _run(
    shim: Shim, place: Path, scenario: str, how: int, at: int, code: int
) -> tuple[list[Any], bool, Path]:
    """
    @return: the report of the child, whether it was killed, and its Maildir.
    """
    setUp, _, steps = SCENARIOS[scenario]
    maildir = place / "alice"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    setUp(maildir)
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(told)
            _play(
                shim,
                lambda: shim.begin(os.fsencode(place), how, at, code),
                maildir,
                steps,
                lambda what: os.write(telling, json.dumps(what).encode() + b"\n") and None,
            )
            os._exit(0)
        except BaseException as error:
            shim.pause(1)
            os.write(telling, json.dumps(["raised", repr(error)]).encode() + b"\n")
            os._exit(1)
    os.close(telling)
    with open(told, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return lines, status == -signal.SIGKILL, maildir


def examine(client: Client, judge: Judge) -> list[str] | None:
    """
    Check the mailbox with a service that was just started.

    @return: the messages' names, if the client could log in.
    """
    client.received()
    client.say(b"USER alice")
    reply = client.say(b"PASS secret")
    if not reply.startswith(b"+OK"):
        judge.wrong.append(f"the next login: {reply!r}")
        return None
    found = [line.split()[1] for line in client.say(b"UIDL").decode().split("\r\n")[1:-2]]
    if not judge.mayBe(found):
        judge.wrong.append(f"{found} are left of {judge.there}, all or none of {judge.open}")
    judge.mayMiss = 0
    sizes = [line.split()[1] for line in client.say(b"LIST").decode().split("\r\n")[1:-2]]
    for number, (name, size) in enumerate(zip(found, sizes, strict=True), 1):
        body = client.say(b"RETR %d" % number).partition(b"\r\n")[2]
        if name not in SENT or body != stuffed(SENT[name]) + b".\r\n":
            judge.wrong.append(f"{name} is {body!r}")
        elif int(size) != len(SENT[name]):
            judge.wrong.append(f"the size of {name} is {size}")
    client.say(b"QUIT")
    return found


def _examine(maildir: Path, judge: Judge) -> None:
    found = examine(served(maildir), judge)
    if found is None:
        return
    files = sorted(
        each.name.partition(":")[0]
        for folder in ("new", "cur")
        for each in (maildir / folder).iterdir()
    )
    if files != sorted(found):
        judge.wrong.append(f"the files are {files}")
    rest = {each.name for each in maildir.iterdir() if not each.name.startswith("pop3svc-sizes")}
    if rest - {"pop3svc-removing"} != {"new", "cur", "tmp"}:
        judge.wrong.append(f"left behind: {sorted(rest)}")
    if any(each.is_file() for each in (maildir / "pop3svc-removing").rglob("*")):
        judge.wrong.append("files are left in pop3svc-removing")


def judged(told: list[Any], wasKilled: bool, maildir: Path, deleted: list[str], how: int) -> Judge:
    """
    Compare the replies with the Maildir afterwards.
    """
    judge = Judge(deleted, {FAIL: 1, FAIL_ON: 9}.get(how, 0))
    isOver = hear(judge, told, how == FAIL_ON)
    if isOver == wasKilled:
        judge.wrong.append("it was killed" if wasKilled else "it has ended midway")
    _examine(maildir, judge)
    return judge


def hear(judge: Judge, told: list[Any], isLasting: bool) -> bool:
    """
    Tell a judge what the child has reported.

    @return: whether the session has ended.
    """
    asked: str | None = None
    isOver = False
    for what, *rest in told:
        if what == "delivered":
            judge.delivered(rest[0])
        elif what == "C":
            asked = rest[0]
        elif what == "S" and asked is not None:
            judge.said(asked, rest[0].encode("latin-1"), rest[1], isLasting)
            asked = None
        elif what == "end":
            isOver = True
            _, isOpen, failures = rest
            if isOpen:
                judge.wrong.append(f"{isOpen} descriptors are left open")
            judge.wrong += failures
        else:
            judge.wrong.append(f"{what} {rest}")
    if asked is not None:
        judge.said(asked, None, False, isLasting)
    return isOver


def sweep(shim: Shim, place: Path, scenario: str, how: int, code: int) -> dict[str, Any]:
    """
    Inject the fault at every call in turn.

    @return: the number of calls, the faults by call, and the errors found.
    """
    deleted = SCENARIOS[scenario][1]
    struck: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    told, wasKilled, maildir = _run(shim, place, scenario, COUNT, 0, 0)
    usual = judged(told, wasKilled, maildir, deleted, COUNT)
    wrong += [f"without a fault: {each}" for each in usual.wrong]
    calls = told[-1][1] if told and told[-1][0] == "end" else []
    at = 0
    while at < MOST:
        at += 1
        if how in (HALF, HALF_KILL) and at <= len(calls):
            # The calls are the same up to the fault.
            if not calls[at - 1].startswith(("read", "write", "pread", "pwrite")):
                continue
            if calls[at - 1].startswith("readdir"):
                continue
        told, wasKilled, maildir = _run(shim, place, scenario, how, at, code)
        isOver = bool(told) and told[-1][0] == "end"
        if isOver and len(told[-1][1]) < at:
            break
        name = told[-1][1][at - 1] if isOver else calls[at - 1] if at <= len(calls) else "?"
        struck[name] += 1
        judge = judged(told, wasKilled, maildir, deleted, how)
        said = [rest[0] for what, *rest in told if what in ("C", "delivered")]
        wrong += [f"{name}, call {at}, after {said[-1:]}: {each}" for each in judge.wrong]
    return {"calls": len(calls), "struck": dict(struck), "wrong": wrong}


def main(arguments: list[str]) -> None:
    """
    Take a directory, a scenario, an action and the name of an errno; print the result of
    L{sweep}.
    """
    place, scenario, how, code = arguments
    shim = Shim()
    shim.ahead(AHEAD)
    # Objects that are never collected stay shared with the children.
    gc.freeze()
    gc.disable()
    kind = {"fail": FAIL, "fail on": FAIL_ON, "kill": KILL, "kill after": KILL_AFTER}
    kind |= {"half": HALF, "half kill": HALF_KILL}
    found = sweep(shim, Path(place), scenario, kind[how], getattr(errno, code, 0))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
