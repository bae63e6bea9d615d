"""
Run the load generator, and measure the work of a server between two marks: its processor time, and
the memory of all its processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Failed", "Group", "Load", "Span", "adopt", "makeGroup"]

# Seconds for which the processor time of a server must not grow before it is read, and the most
# seconds to wait for this or for the end of processes.
STILL = 0.05
PATIENCE = 10.0


class Failed(Exception):
    """
    A server gave a wrong answer or none, or could not be measured.  The text gives the reason.
    """


class Group:
    """
    The processes of one server: the process that was started, and its descendants.  The processor
    time of the group comes from C{/proc}, in ticks.  It includes the time of children that have
    ended, if their parents have waited for them.
    """

    how = "utime, stime, cutime and cstime of the process tree"

    def __init__(self) -> None:
        self.root: int | None = None

    def wrap(self, command: list[str]) -> list[str]:
        """
        @return: a command that runs C{command} in the group.
        """
        return command

    def pids(self) -> list[int]:
        """
        @return: the numbers of the processes that exist now.
        """
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int(_stat(int(entry.name))[1])
        found = [self.root] if self.root in parents else []
        for each in found:
            found += [pid for pid, parent in parents.items() if parent == each]
        return [each for each in found if each is not None]

    def cpu(self) -> float:
        """
        @return: the processor time, user and system, of all processes that have been in the group,
            in seconds.
        """
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                ticks += sum(int(each) for each in _stat(pid)[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def settledCPU(self) -> float:
        """
        @return: the result of L{cpu} when it no longer grows.  A server may work after its last
            reply, for example because children end or because it writes a log, and the result
            includes this work.
        """
        deadline = time.monotonic() + PATIENCE
        before = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(STILL)
            after = self.cpu()
            if after - before < 0.01 * STILL:
                return after
            before = after
        return before

    def memory(self) -> int:
        """
        @return: the octets of memory (Pss) of all processes that exist now.
        """
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total

    def kill(self) -> None:
        """
        End all processes of the group.
        """
        deadline = time.monotonic() + PATIENCE
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def close(self) -> None:
        """
        End all processes, and remove the group.
        """
        self.kill()
        with contextlib.suppress(ChildProcessError):
            # Remove ended processes whose parents have ended; see adopt().
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class ControlGroup(Group):
    """
    The processes of one server in a control group of Linux.  The kernel counts their processor time
    in nanoseconds or microseconds, and loses none of it.
    """

    how = "a control group for each server"

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.mkdir()
        self._path = path

    def wrap(self, command: list[str]) -> list[str]:
        """
        See L{Group.wrap}.
        """
        return ["sh", "-c", f'echo $$ >"{self._path}/cgroup.procs" && exec "$@"', "sh", *command]

    def pids(self) -> list[int]:
        """
        See L{Group.pids}.
        """
        return [int(line) for line in (self._path / "cgroup.procs").read_text().split()]

    def cpu(self) -> float:
        """
        See L{Group.cpu}.
        """
        with contextlib.suppress(FileNotFoundError):
            return int((self._path / "cpuacct.usage").read_text()) / 1e9
        words = (self._path / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def close(self) -> None:
        """
        See L{Group.close}.
        """
        super().close()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._path.rmdir()
                return
            except OSError:
                # The directory cannot be removed yet, because zombies stay in the group until their
                # parent has waited for them.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _stat(pid: int) -> list[str]:
    """
    @return: the fields of C{/proc/PID/stat}, beginning with the state.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def adopt() -> None:
    """
    Make this process the new parent of each descendant whose own parent ends, in order to wait for
    this descendant.
    """
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def makeGroup(name: str) -> Group:
    """
    @return: a group for a server that will be started.  The group is a control group if this
        process may make one.
    """
    for place in (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup")):
        isVersion1 = (place / "cpuacct.usage").exists()
        if isVersion1 or (place / "cgroup.controllers").exists():
            with contextlib.suppress(OSError):
                return ControlGroup(place / f"bench-{os.getpid()}-{name}")
    return Group()


@dataclass
class Span:
    """
    The work between two marks of the load generator.

    @ivar wall: the seconds between the marks.
    @ivar server: the processor time of the server, in seconds.
    @ivar client: the processor time of the load generator, in seconds.
    @ivar octets: the octets of the messages, as the server has sent them.
    @ivar memory: the octets of the server's memory at the second mark.
    """

    wall: float
    server: float
    client: float
    octets: int
    messages: int
    sessions: int
    resumed: int
    agains: int
    memory: int


class Load:
    """
    Runs the load generator with a server.
    """

    def __init__(self, program: Path, directory: Path) -> None:
        """
        @param program: the compiled program C{load}.
        @param directory: the directory for the script.
        """
        self._program = program
        self._script = directory / "script"

    def run(self, group: Group, script: list[str]) -> list[Span]:
        """
        @param script: the lines of the script; see C{load.c}.
        @return: a span for each two successive marks.
        @raise Failed: the server gave a wrong answer or none.
        """
        self._script.write_text("\n".join(script) + "\n")
        spans: list[Span] = []
        before: float | None = None
        with subprocess.Popen(
            [str(self._program), str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                for line in process.stdout:
                    word, *rest = line.split()
                    if word != "mark":
                        raise Failed(line.strip())
                    cpu = group.settledCPU()
                    if before is not None:
                        wall, client, *counts = (int(each) for each in rest)
                        memory = group.memory()
                        spans.append(
                            Span(wall / 1e9, cpu - before, client / 1e6, *counts, memory=memory)
                        )
                    before = group.cpu()
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.write("\n")
                        process.stdin.flush()
            finally:
                process.kill()
        if process.returncode != 0:
            raise Failed(f"the load generator ended with status {process.returncode}")
        return spans
