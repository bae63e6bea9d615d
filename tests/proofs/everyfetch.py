"""
Fetch mail with a kill at each file-system call in turn, and fetch again.

Run it with the shim preloaded before libc (LD_PRELOAD), like C{everycall}.  Each process of
C{pop3svc fetch} is a fork, with the other server in its memory.  The fork reports which messages
the other server has deleted.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from pop3svc.fetching.targets import CommandTarget, StoreTarget
from pop3svc.threadpool import InlineExecutor
from tests.proofs.everycall import COUNT, HALF_KILL, KILL, KILL_AFTER, MOST, Shim
from tests.support.fetching import Box, Fetching

MESSAGES = {f"message-{n}": b"Subject: %d\n\nFrom x\n.\n" % n for n in range(1, 4)}
CONTENTS = {each.split(b"\n")[0] for each in MESSAGES.values()}


def _target(kind: str, place: Path) -> Any:
    runner: Any = InlineExecutor()
    if kind == "command":
        text = f"sh -c 'cat >> {shlex.quote(str(place / 'out'))}; echo >> {place / 'out'}'"
        return CommandTarget(text, runner)
    return StoreTarget(kind, str(place / "box"), Clock(), 60, runner)


def _stored(kind: str, place: Path) -> Counter[bytes]:
    """
    @return: how often each message is stored.
    """
    if kind == "maildir":
        files = [*(place / "box").glob("new/*"), *(place / "box").glob("cur/*")]
        texts = [each.read_bytes() for each in files]
    else:
        path = place / ("box" if kind == "mbox" else "out")
        texts = [path.read_bytes()] if path.exists() else []
    whole = b"\n".join(texts)
    return Counter(line for line in whole.split(b"\n") if line.startswith(b"Subject: "))


def _fetch(
    shim: Shim, kind: str, place: Path, deleted: set[str], how: int, at: int
) -> tuple[set[str], int, bool]:
    """
    Fetch in a process.

    @param deleted: the messages that the other server has deleted before.
    @return: the messages that the other server has deleted now, the number of calls, and whether
        the process was killed.
    """
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(told)
            box = Box()
            for content in MESSAGES.values():
                box.add(content)
            assert set(box.messages) == set(MESSAGES)
            for name in deleted:
                del box.messages[name]

            class Telling(dict[str, bytes]):
                def pop(self, name: str, *default: Any) -> Any:
                    shim.pause(1)
                    os.write(telling, json.dumps(name).encode() + b"\n")
                    shim.pause(0)
                    return super().pop(name, *default)

            box.provider.store.maildrop("alice").messages = Telling(box.messages)
            shim.begin(os.fsencode(place), how, at, 0)
            Fetching(box.network, place / "fetch.db", _target(kind, place), deletes=True).once()
            shim.pause(1)
            assert not box.messages
            os.write(telling, json.dumps(shim.count()).encode() + b"\n")
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode() + b"\n")
            os._exit(1)
    os.close(telling)
    gone: set[str] = set()
    calls = 0
    with open(told, encoding="utf-8") as file:
        for line in file:
            found = json.loads(line)
            if isinstance(found, int):
                calls = found
            else:
                gone.add(found)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return gone, calls, status != 0


def sweep(shim: Shim, kind: str, place: Path, how: int, step: int) -> dict[str, Any]:
    """
    Kill the process at every call, or at every C{step}-th call, in turn.

    @param step: 1 for every call; a larger number for fewer calls.
    @return: the number of calls, the number of kills, how many messages were stored twice, and
        the errors.
    """
    wrong: list[str] = []
    kills = twice = 0
    calls = 0
    for at in range(0, MOST, step):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        gone, count, wasKilled = _fetch(shim, kind, place, set(), how if at else COUNT, at)
        if not at:
            calls = count
            continue
        stored = _stored(kind, place)
        lost = [each for each in gone if not stored[MESSAGES[each].split(b"\n")[0]]]
        if lost:
            wrong.append(f"call {at}: {lost} were deleted before they were stored")
        if at > calls:
            break
        # HALF_KILL kills the process at reads and writes only.  At another call nothing happens.
        kills += wasKilled
        _fetch(shim, kind, place, gone, COUNT, 0)
        stored = _stored(kind, place)
        twice += sum(each - 1 for each in stored.values())
        if set(stored) != CONTENTS:
            wrong.append(f"call {at}: {set(stored)} are stored")
        if kind != "command" and max(stored.values()) > 1:
            wrong.append(f"call {at}: {stored}")
        left = len(list(place.glob("box/tmp/*")))
        if left > 1:
            wrong.append(f"call {at}: {left} files are left in tmp")
    return {"calls": calls, "kills": kills, "twice": twice, "wrong": wrong}


def main(arguments: list[str]) -> None:
    """
    Take a directory, a kind of target and an action; print the result of L{sweep}.
    """
    place, kind, how, step = arguments
    shim = Shim()
    gc.freeze()
    actions = {"kill": KILL, "kill after": KILL_AFTER, "half kill": HALF_KILL}
    json.dump(sweep(shim, kind, Path(place), actions[how], int(step)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
