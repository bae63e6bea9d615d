"""
C{pop3svc fetch}, killed at file-system calls: each message is stored, and stored once where that is
possible.

With C{POP3SVC_TEST_LONG} in the environment, it is killed at every call, in every way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs.test_everycall import COMPILER, ENVIRONMENT, HERE, PATIENCE, shim

__all__ = ["shim"]

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler for the shim"),
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux"),
]

IS_LONG = bool(os.environ.get("POP3SVC_TEST_LONG"))
# Every eleventh call, of a different kind each time.
STEP = 1 if IS_LONG else 11
KINDS = [(kind, "kill") for kind in ("maildir", "mbox", "command")]
if IS_LONG:
    KINDS += [(kind, how) for kind, _ in KINDS for how in ("kill after", "half kill")]


@pytest.mark.parametrize(("kind", "how"), KINDS)
def test_everyKill(shim: Path, tmp_path: Path, kind: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.proofs.everyfetch", tmp_path / "x", kind, how, str(STEP)],
        cwd=HERE.parent.parent,
        env=ENVIRONMENT | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(
        f"{kind}: {how}: {found['kills']} kills at {found['calls']} calls, {found['twice']} twice"
    )
    assert found["wrong"] == []
    assert found["calls"] > 80 and found["kills"] >= (found["calls"] // STEP) // 4
