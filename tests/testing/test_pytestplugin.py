"""
The fixture C{pop3_server}, tested in pytest processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.running import PATIENCE


def run(directory: Path, program: str, *options: str) -> tuple[int, str]:
    """
    @return: the exit status of pytest, and its output.
    """
    (directory / "test_it.py").write_text(textwrap.dedent(program))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_fixture(tmp_path: Path) -> None:
    """
    Each test gets a server of its own, made with the arguments of its marker.  The fixture works
    beside trial's tests and with strict markers.
    """
    status, said = run(
        tmp_path,
        """
        import poplib
        import pytest
        from pop3svc.testing import TempFail
        from twisted.internet import reactor, task
        from twisted.trial.unittest import TestCase

        class TrialTests(TestCase):
            def test_before(self):
                return task.deferLater(reactor, 0)

        ports = []

        def test_plain(pop3_server):
            ports.append(pop3_server.port)
            assert pop3_server.transcript == []
            client = poplib.POP3(pop3_server.host, pop3_server.port, 30)
            assert "TOP" in client.capa()
            client.close()

        @pytest.mark.pop3_server({"a": "b"}, without={"TOP"}, faults=[TempFail(command="NOOP")])
        def test_marked(pop3_server):
            client = poplib.POP3(pop3_server.host, pop3_server.port, 30)
            assert "TOP" not in client.capa()
            client.user("a")
            client.pass_("b")
            with pytest.raises(poplib.error_proto):
                client.noop()
            client.close()

        def test_stopped():
            with pytest.raises(ConnectionRefusedError):
                poplib.POP3("127.0.0.1", ports[0], 30)

        class MoreTrialTests(TestCase):
            def test_after(self):
                return task.deferLater(reactor, 0)
        """,
        "--strict-markers",
        "-W",
        "error",
    )
    assert status == 0, said
    assert "5 passed" in said


def test_brokenMarker(tmp_path: Path) -> None:
    """
    Invalid arguments of the marker are reported.
    """
    status, said = run(
        tmp_path,
        """
        import pytest

        @pytest.mark.pop3_server(without={"STLZ"})
        def test_it(pop3_server):
            pass
        """,
    )
    assert status == 1
    assert "ValueError: without STLZ: known are AUTH, " in said


def test_costsNothing(tmp_path: Path) -> None:
    """
    If no test uses the fixture, pytest does not import Twisted.
    """
    status, said = run(
        tmp_path,
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("pop3svc")
            heavy = ("twisted", "zope", "cryptography", "OpenSSL")
            assert not [each for each in sys.modules if each.split(".")[0] in heavy]
        """,
    )
    assert status == 0, said


def test_marker(tmp_path: Path) -> None:
    status, said = run(tmp_path, "", "--markers")
    assert status == 0
    assert (
        "@pytest.mark.pop3_server(users, without, faults, policy): arguments that the fixture"
        in said
    )
