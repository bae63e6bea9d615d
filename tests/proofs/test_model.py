"""
The short form of the model; see L{tests.proofs.model}.

The model stays with Maildirs, because its shim injects faults into the files of messages, and its
other programs are those that use a Maildir.  C{test_nodes} runs services at one database.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.proofs.model import COMPILER, Limits, Run

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler for the shim"),
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux"),
]

SECONDS = 20


def test_nothingSilentlyWrong(tmp_path: Path) -> None:
    """
    Two services, kills, clocks, full disks and broken files: each message is
    accounted for, and each login is answered.
    """
    run = Run(tmp_path, random.SystemRandom().randrange(2**32), Limits(isShort=True))
    run.go(SECONDS)
    print(run.report())
    assert not run.journal.violations
    # The run contained enough activity.
    counts = run.journal.counts
    assert counts["logins answered +OK"] > 50 and counts["deleted"] > 20, run.report()
    assert sum(run.shim.struck.values()), "the shim did nothing"
