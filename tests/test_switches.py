"""
Each optimisation of docs/fast.rst that has a name can be switched off.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from bench.switches import SWITCHES, changed
from pop3svc.providers.maildir import MaildirStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline
from pop3svc.timing import SharedTimeout
from tests.anybody import Anybody

PAGE = (Path(__file__).parent.parent / "docs" / "fast.rst").read_text()


@pytest.mark.parametrize("name", SWITCHES)
def test_switch(name: str, tmp_path: Path) -> None:
    """
    The service gives the same answers without the optimisation, and each changed attribute exists.
    Only C{SharedTimeout.slack} is an attribute of instances.
    """
    switch = SWITCHES[name]
    title = switch.title.replace("line ends by replace", "line ends by** ``replace")
    assert f"\n**{title}" in PAGE
    assert any(line.split("  ")[0].strip() == name for line in PAGE.splitlines())
    for each, attribute, _ in switch.changes():
        assert hasattr(each, attribute) or each is SharedTimeout
    for folder in ("cur", "new", "tmp"):
        (tmp_path / "alice" / folder).mkdir(parents=True)
    (tmp_path / "alice" / "new" / "1700000000.M1P1.h").write_bytes(b"Subject: x\n\n.y\n")
    with changed(switch.changes()):
        store = MaildirStore(str(tmp_path), runner=Inline(), clock=Clock())
        client = Client(POP3Factory(Anybody(store), clock=Clock()))
        client.send(b"USER alice\r\nPASS x\r\nSLEE\r\nWAKE\r\nSTAT\r\nRETR 1\r\nQUIT\r\n")
        answers = client.received()
    assert answers.endswith(
        b"+OK 1 18\r\n+OK Message follows _\r\nSubject: x\r\n\r\n..y\r\n.\r\n+OK Bye.\r\n"
    )
