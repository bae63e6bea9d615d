"""
Count the system calls of a server with strace.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Failed, Group

__all__ = ["Counted", "counting", "whyNoStrace"]

# The form of a line of strace's summary.  The columns are the share of the time, the seconds, the
# microseconds of each call, the number of calls, the number of errors, and the name.  The number of
# errors may be missing.
_LINE = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)
# Seconds within which strace must write its summary.
_PATIENCE = 30


def whyNoStrace() -> str:
    """
    @return: the reason why system calls cannot be counted on this machine; empty if they can.
    """
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        ["strace", "-f", "-c", "-o", "/dev/null", "true"], capture_output=True, check=False
    )
    return "strace may not trace here" if done.returncode else ""


class Counted:
    """
    The system calls of some processes.

    @ivar calls: the number of calls, by name; empty before the end of L{counting}.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    @property
    def total(self) -> int:
        """
        The number of all calls.
        """
        return sum(self.calls.values())


@contextmanager
def counting(group: Group, output: Path) -> Iterator[Counted]:
    """
    Count the system calls of a server and of the processes that it starts.

    @param output: the path of a file for the output of strace.
    @raise Failed: strace cannot trace the server.
    """
    command = ["strace", "-f", "-c", "-o", str(output)]
    pids = group.pids()
    for pid in pids:
        command += ["-p", str(pid)]
    counted = Counted()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            attached = 0
            while attached < len(pids):
                line = process.stderr.readline()
                if not line:
                    raise Failed("strace cannot trace the server")
                attached += " attached" in line
            yield counted
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=_PATIENCE)
            finally:
                process.kill()
    counted.calls = {name: int(count) for count, name in _LINE.findall(output.read_text())}
    counted.calls.pop("total", None)
