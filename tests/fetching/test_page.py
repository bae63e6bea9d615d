"""
The examples of the page about fetching work.  Only addresses and paths in them are replaced.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pop3svc.service.configfile import readConfiguration
from pop3svc.service.settings import FETCH, Faults
from pop3svc.testing import POP3Server
from tests.support.pages import block
from tests.support.running import CHECKOUT, PATIENCE, environment

PAGE = "docs/fetching.rst"


def test_client(tmp_path: Path) -> None:
    with POP3Server({"alice": "correct-horse"}) as server:
        server.deliver("alice", b"a: b\n\nc\n")
        program = block(PAGE, "from twisted.internet.defer")
        program = program.replace("pop3s://mail.example.org", f"pop3s://localhost:{server.tlsPort}")
        program = program.replace(
            'TLSOptions("mail.example.org")', f'TLSOptions("localhost", {server.caFile!r})'
        )
        (tmp_path / "program.py").write_text(program)
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stdout) == (0, "message-1 11\n"), done.stderr


def test_configuration(tmp_path: Path) -> None:
    """
    The example of a configuration is valid, and the page names all options.
    """
    text = block(PAGE, "[[fetch]]", "toml")
    (tmp_path / "password").write_text("secret\n")
    text = text.replace("/etc/pop3svc/alice.password", str(tmp_path / "password"))
    faults = Faults()
    found = readConfiguration("fetch.toml", faults, text)
    assert faults.sentences == []
    assert [each.interval for each in found.fetches] == [60, 300]
    page = (CHECKOUT / PAGE).read_text()
    missing = [each.name for each in FETCH if each.isOption and f"``--{each.name}``" not in page]
    assert not missing
