"""
The work of short sessions stays within a budget of bytecodes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from pop3svc.metrics.meter import Meter
from pop3svc.providers.maildir import MaildirStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline
from tests.anybody import Anybody
from tests.support.bytecodes import costOf

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python have other bytecodes"
)

# Bytecodes, measured with Python 3.11.  A change that needs over 3 % more has to say why here.
SESSION = 8_867
POLL = 3_716
RETR = 1_831
# The share that metrics may add to a session or a poll on a busy service.
METRICS = 0.02


class Site:
    """
    A Maildir with twenty messages of 4 KiB.  Its times are old enough to be trusted.
    """

    def __init__(self, path: Path, meter: Meter | None = None) -> None:
        box = path / "alice"
        for folder in ("cur", "new", "tmp"):
            (box / folder).mkdir(parents=True)
        for number in range(20):
            message = box / "cur" / f"17000000{number:02d}.M1P1.h:2,S"
            message.write_bytes((b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n") * 48)
        store = MaildirStore(str(path), runner=Inline(), clock=Clock())
        self.factory = POP3Factory(Anybody(store), clock=Clock(), meter=meter)
        # The sizes are counted once.
        self.session()
        for each in (*box.rglob("*"), box):
            os.utime(each, (1_700_000_000, 1_700_000_000))

    def session(self) -> None:
        client = Client(self.factory)
        client.send(b"USER alice\r\nPASS x\r\nSTAT\r\nQUIT\r\n")
        client.vanish()

    def loggedIn(self) -> Client:
        client = Client(self.factory)
        client.send(b"USER alice\r\nPASS x\r\nSTAT\r\n")
        client.received()
        return client


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def check(name: str, budget: int, work: object) -> None:
    cost = costOf(work)  # type: ignore[arg-type]
    assert cost.total <= budget * 1.03, f"{name}: {cost}"
    # Lower the budget after an improvement, so that the next change cannot lose it.
    assert cost.total >= budget * 0.94, f"{name} has become better: {cost}"


def test_session(site: Site) -> None:
    check("a session with USER, PASS, STAT and QUIT", SESSION, site.session)


def test_metrics(tmp_path: Path) -> None:
    """
    Metrics add at most 2 % to a session and to a poll.
    """
    costs = []
    for name, meter in (("plain", None), ("metered", Meter(Clock()))):
        site = Site(tmp_path / name, meter)
        for each in () if meter is None else meter.histograms.values():
            # Each command has run often in the last second.
            each.observe(0, 1000)
            each.adapt()
        session = costOf(site.session)
        client = site.loggedIn()

        def poll(client: Client = client) -> None:
            client.send(b"SLEE\r\nWAKE\r\nUIDL\r\n")
            client.received()

        costs.append((session, costOf(poll)))
    for plain, metered in zip(*costs, strict=True):
        assert plain.total < metered.total <= (1 + METRICS) * plain.total, f"{plain}\n\n{metered}"


def test_poll(site: Site) -> None:
    client = site.loggedIn()

    def poll() -> None:
        client.send(b"SLEE\r\nWAKE\r\nUIDL\r\n")
        client.received()

    check("SLEE, WAKE and UIDL of an unchanged mailbox", POLL, poll)


def test_retr(site: Site) -> None:
    client = site.loggedIn()

    def retr() -> None:
        client.send(b"RETR 3\r\n")
        client.received()

    check("RETR of 4 KiB", RETR, retr)
