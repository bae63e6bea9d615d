"""
The commands of docs/situations.rst, run against a real service.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop3svc.testing.certificates import Authority
from tests.support.maildirs import deliver
from tests.support.pages import CHECKOUT, block
from tests.support.running import SCRIPTS, Connection, Running, environment, freePort, script

PAGE = "docs/situations.rst"
# Seconds that a command may take; a busy machine needs long.
PATIENCE = 60


class Place:
    """
    Translates between the paths and ports of the page and those of the test.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = {"tcp:110": freePort(), ":995": freePort(), ":8110": freePort()}
        for name in ("etc/pop3svc", "srv/mail", "var/lib/pop3svc", "var/backups"):
            (home / name).mkdir(parents=True)

    def here(self, text: str) -> str:
        """
        @return: a text of the page with the paths and ports of the test.
        """
        text = re.sub(r"(?<![\w.])/(etc|srv|var)/", rf"{self.home}/\1/", text)
        for name, port in self.ports.items():
            text = text.replace(name, f"{name.rpartition(':')[0]}:{port}")
        return text

    def there(self, text: str) -> str:
        """
        @return: a text that a command has printed in the test, with the paths and ports of the
            page.
        """
        text = text.replace(str(self.home), "")
        for name, port in self.ports.items():
            text = text.replace(f":{port}", f":{name.rpartition(':')[2]}")
        return text


def commands() -> Iterator[tuple[str, str]]:
    """
    @return: each command of the page, and the output that the page shows.
    """
    text = (CHECKOUT / PAGE).read_text()
    for found in re.findall(r"\.\. code-block:: console\n\n((?: +.*\n|\n)+)", text):
        lines = textwrap.dedent(re.sub(r"(?m)^\S.*", "", found))
        for each in re.split(r"(?m)^\$ ", lines)[1:]:
            command, _, answer = each.partition("\n")
            yield command, textwrap.dedent(answer).strip()


def isLike(text: str, shown: str) -> bool:
    """
    @return: whether a text is the one that the page shows, where C{...} stands for any text.
    """
    parts = map(re.escape, " ".join(shown.split()).split("..."))
    return re.fullmatch(".*".join(parts), " ".join(text.split())) is not None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    configuration = place.home / "etc/pop3svc"
    (configuration / "pop3svc.toml").write_text(place.here(block(PAGE, "workers", "toml")))
    Authority().issue(configuration / "fullchain.pem", ["mail.example.org"])
    key = (configuration / "fullchain.pem").read_bytes()
    (configuration / "privkey.pem").write_bytes(key)
    (configuration / "privkey.pem").chmod(0o600)
    deliver(place.home / "srv/mail/alice", "1700000000.M1P1.host", b"Subject: hello\n\nhello\n")
    return place


def test_commands(place: Place) -> None:
    """
    The commands of the page, in their order, succeed and print what the page shows.
    """
    home = place.home
    running: Running | None = None
    sessions: list[Connection] = []
    told: list[str] = []
    try:
        for command, shown in commands():
            program = command.split()[1] if command.startswith("pop3svc") else ""
            if running is None and program == "status":
                options = ("serve", "--config", str(home / "etc/pop3svc/pop3svc.toml"))
                running = Running(home, command=[script("pop3svc"), *options])
                for _ in range(2):
                    running.waitFor(" serves")
            if program == "who" or command.startswith("pop3svc user remove"):
                sessions.append(Connection(place.ports["tcp:110"]))
                sessions[-1].line()
                sessions[-1].logIn(b"alice", b"secret words")
            command = place.here(command).replace("--seconds 60", "--seconds 1")
            done = subprocess.run(
                command,
                shell=True,
                input="secret words\nsecret words\n",
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                cwd=home,
                env={**environment(home), "PATH": f"{SCRIPTS}:/usr/bin:/bin"},
                check=False,
            )
            text = place.there(done.stdout + done.stderr)
            told.append(f"$ {command}\n{text}")
            assert done.returncode == 0 and isLike(text, shown), "\n".join(told)
        assert running is not None and running.end() == 0
    finally:
        print("\n".join(told))
        for each in sessions:
            each.socket.close()
        if running is not None:
            running.process.kill()
