"""
The tutorial: its files are built step by step, its commands run, and their output is
what the page shows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import PATIENCE, SCRIPTS, Running, environment, freePort

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.rst").read_text()
# The beginning of each command that starts the service; the options of pop3svc follow.
START = "PYTHONPATH=. twistd -n --pidfile= pop3svc "

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there"),
]


def blocks() -> Iterator[tuple[str, str]]:
    """
    @return: the language and the text of each block, in order.
    """
    pattern = r"\.\. code-block:: (\w+)\n\n((?:    .*\n|\n)+)"
    for language, text in re.findall(pattern, PAGE):
        lines = text.rstrip().split("\n")
        yield language, "".join(f"{line[4:]}\n" for line in lines)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """
    @return: each command of a block for the console, with the output that the page shows.
    """
    for part in text.split("$ ")[1:]:
        command, *shown = part.replace("\\\n", "").rstrip("\n").split("\n")
        yield command, shown


def asPattern(lines: list[str]) -> str:
    """
    @return: a regular expression for the lines, where an ellipsis stands for anything.
    """
    return ".*".join(map(re.escape, "\n".join(lines).split("…")))


class Reader:
    """
    Somebody who does what the tutorial says, in a directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "mymail.py"
        self._port = freePort()
        self._options: list[str] = []
        self._service: Running | None = None
        # Has the file changed since the service was started?
        self._isStale = False
        self.steps: list[str] = []

    def write(self, text: str) -> None:
        """
        Save a new file if the first line is a file name; otherwise add the text to C{mymail.py}.
        """
        named = re.match(r"# (\w+\.py)\n", text)
        if named is not None:
            (self._directory / named[1]).write_text(text)
        elif text.startswith(" "):
            self._file.write_text(f"{self._file.read_text()}\n{text}")
        else:
            self._file.write_text(f"{self._file.read_text()}\n\n{text}")
        self._isStale = True

    def type(self, command: str, shown: list[str]) -> None:
        """
        Run a command, and compare its output with the lines that the page shows.  If the command
        starts the service, its output is not compared.
        """
        self.steps.append(command)
        if command.startswith(START):
            self._options = shlex.split(command.removeprefix(START))
            self._start()
            return
        if self._isStale and self._options:
            self._start()
        found = environment(self._directory)
        done = subprocess.run(
            command.replace("1110", str(self._port)),
            shell=True,
            cwd=self._directory,
            env=found | {"PATH": os.pathsep.join([str(SCRIPTS), found["PATH"]])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
        # The lines of a message end with CRLF.
        said = done.stdout.decode().replace("\r\n", "\n").rstrip("\n")
        flags = re.DOTALL if "…" in shown else 0
        assert re.fullmatch(asPattern(shown), said, flags), f"{command}\n{said}"

    def _start(self) -> None:
        self.stop()
        endpoint = f"tcp:{self._port}:interface=127.0.0.1"
        self._service = Running(self._directory, *self._options, "--endpoint", endpoint).up()
        self._isStale = False

    def readLog(self, line: str) -> None:
        """
        Wait until the log has a line.
        """
        assert self._service is not None
        *_, last = line.strip().split("…")
        assert re.search(asPattern([line.strip()]), self._service.waitFor(last.strip()))

    def stop(self) -> None:
        """
        Press Ctrl-C where the service runs.
        """
        if self._service is not None:
            with self._service as service:
                assert service.end(signal.SIGINT) == 0, service.lines
            self._service = None


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reader = Reader(tmp_path)
    try:
        for language, text in blocks():
            if language == "python":
                reader.write(text)
            elif language == "text":
                reader.readLog(text)
            else:
                for command, shown in commands(text):
                    reader.type(command, shown)
    finally:
        reader.stop()
    assert len(reader.steps) == PAGE.count("    $ ")
    assert sum(step.startswith(START) for step in reader.steps) == 3


def test_names() -> None:
    """
    Two listings begin with the name of a new file, and all others belong to C{mymail.py}.  Each
    listing is Python.
    """
    listings = [text for language, text in blocks() if language == "python"]
    assert [text.split("\n")[0] for text in listings if text.startswith("# ")] == [
        "# mymail.py",
        "# test_mymail.py",
    ]
    for text in listings:
        compile(textwrap.dedent(text), "listing", "exec")
