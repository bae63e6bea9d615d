"""
A Maildir, and a fault or a kill at every file-system call of a session in turn.

This proof stays with files, because the shim counts file-system calls.  For databases see
C{test_everystatement}.  Kills of an mbox are in C{tests/providers/test_mbox.py}.

With C{POP3SVC_TEST_LONG} in the environment, every kind of fault is tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COMPILER = next((each for each in ("cc", "gcc", "clang") if shutil.which(each)), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler for the shim"),
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux"),
]

SCENARIOS = ["sleep", "quit", "damaged sizes", "put back", "purge"]
KINDS = [("fail", "EIO"), ("kill", ""), ("half", ""), ("half kill", "")]
LONG = [
    *(("fail", code) for code in ("ENOSPC", "EDQUOT", "EMFILE", "ESTALE", "EINTR")),
    *(("fail on", code) for code in ("EIO", "ENOSPC")),
    ("kill after", ""),
]
if os.environ.get("POP3SVC_TEST_LONG"):
    KINDS += LONG
# Time limit of one sweep in seconds, on a busy machine.
PATIENCE = 600


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    assert COMPILER is not None
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *options, "-o", made, HERE / "shim.c", "-ldl"], check=True)
    return made


# The environment is copied, because pytest changes it while the threads below run.  Coverage would
# open files itself, which adds calls.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("COV_")}


def swept(shim: Path, place: Path, scenario: str, how: str, code: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.proofs.everycall", place, scenario, how, code],
        cwd=HERE.parent.parent,
        env=ENVIRONMENT | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


Sweep = tuple[str, str, str]


@pytest.fixture(scope="module")
def sweeps(
    shim: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[Sweep], dict[str, Any]]]:
    """
    Run the sweeps of the chosen tests, one on each processor at a time.
    """
    places = tmp_path_factory.mktemp("everycall")

    def run(which: Sweep) -> dict[str, Any]:
        return swept(shim, places / " ".join(which), *which)

    if "PYTEST_XDIST_WORKER" in os.environ:
        # Other processes run the other tests at the same time.
        yield run
        return
    chosen = [each for each in request.session.items if each.path == Path(__file__)]
    params = [each.callspec.params for each in chosen if isinstance(each, pytest.Function)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        begun: dict[Sweep, Future[dict[str, Any]]] = {}
        for each in params:
            which = (each["scenario"], each["how"], each["code"])
            begun[which] = threads.submit(run, which)
        yield lambda which: begun[which].result()


@pytest.mark.parametrize(("how", "code"), KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_everyCall(
    sweeps: Callable[[Sweep], dict[str, Any]], scenario: str, how: str, code: str
) -> None:
    found = sweeps((scenario, how, code))
    struck = sum(found["struck"].values())
    print(f"{scenario}: {how} {code} at {struck} of {found['calls']} calls {found['struck']}")
    assert found["wrong"] == []
    # There was a fault at every call (if halves are not asked for), and the session was a whole one.
    assert found["calls"] > 80
    assert how in ("half", "half kill") or struck >= found["calls"]
    assert struck
