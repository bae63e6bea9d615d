"""
The command C{pop3svc check}, run on a pop3svc service.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from pop3svc.check.command import main
from tests.interop.hard_messages import HARD_MESSAGES
from tests.interop.service import HOST, PASSWORD, Service
from tests.support.running import script

WAYS = ("plain", "stls", "tls")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"))
    running.addUser("nomail")
    for way in WAYS:
        running.addUser(way, HARD_MESSAGES)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def patient(service: Service) -> Service:
    """
    The service after a restart.  It has forgotten the refused logins of earlier runs, after which
    each further refusal would take five seconds.
    """
    service.stop()
    service.start()
    return service


def run(
    service: Service, user: str, way: str, *options: str, password: str = PASSWORD
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(script("pop3svc"), "check", HOST, f"--{way}", "--port", str(service.portFor(way))),
            *("--user", user, "--timeout", "60", *options),
        ],
        input=password + "\n",
        capture_output=True,
        text=True,
        timeout=300,
    )


def trusting(service: Service) -> tuple[str, str]:
    return "--ca", str(service.certificate)


def test_nothingIsDeleted(patient: Service) -> None:
    """
    Our service fails none of the rules that delete nothing, and keeps its mail.
    """
    way = "tls"
    mail = patient.mail / way
    before = sorted(path.name.split(":")[0] for path in mail.glob("[cn]*/*"))
    ended = run(patient, way, way, *trusting(patient))
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    assert "FAILED" not in ended.stdout
    assert re.search(r"^131 rules: \d+ passed, .* 12 skipped", ended.stdout, re.MULTILINE)
    assert sorted(path.name.split(":")[0] for path in mail.glob("[cn]*/*")) == before


@pytest.mark.parametrize("way", WAYS)
def test_ourServicePasses(patient: Service, way: str) -> None:
    """
    Our service passes all rules that apply to it, including those that delete messages.
    """
    ended = run(patient, way, way, *trusting(patient), "--destructive", "--json")
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    results = json.loads(ended.stdout)["results"]
    assert {each["outcome"] for each in results} == {"passed", "not applicable", "noted"}
    found = {each["rule"]: each for each in results if each["destructive"]}
    # The mailbox admits one session at a time.
    gone = found.pop("deletedByAnotherSession")
    assert gone["outcome"] == "not applicable" and "[IN-USE]" in gone["seen"], gone
    assert all(each["outcome"] == "passed" for each in found.values())


def test_emptyMailbox(patient: Service) -> None:
    ended = run(patient, "nomail", "tls", *trusting(patient), "--destructive")
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    assert "not applicable retrSendsItsSize: there are no messages\n" in ended.stdout


def test_someRules(service: Service) -> None:
    ended = run(service, "tls", "tls", *trusting(service), "--only", "statHasItsForm")
    assert (ended.returncode, ended.stdout) == (
        0,
        "passed         statHasItsForm\n1 rules: 1 passed\n",
    )


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_fullDisk(service: Service, form: tuple[str, ...]) -> None:
    """
    If the results cannot be written, the check says so in one sentence.
    """
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [
                *(script("pop3svc"), "check", HOST, "--plain", "--port", str(service.port)),
                *("--user", "nomail", "--only", "statHasItsForm", *form),
            ],
            input=f"{PASSWORD}\n",
            stdout=full,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            text=True,
            timeout=120,
        )
    text = "pop3svc: cannot write the output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, text)


def test_brokenServer() -> None:
    """
    A server that sends nothing fails rules, but the check ends.
    """
    with socket.create_server((HOST, 0)) as silent:
        ended = subprocess.run(
            [
                *(script("pop3svc"), "check", HOST, "--plain", "--timeout", "0.2"),
                *("--port", str(silent.getsockname()[1]), "--user", "alice"),
            ],
            input="x\n",
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (ended.returncode, ended.stderr) == (2, "")
    assert "FAILED         greetingIsPositive" in ended.stdout
    assert "nothing comes for 0.2 seconds" in ended.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--port 0", "a port is a number from 1 to 65535"),
        ("--timeout -1", "seconds, more than 0 and at most 600"),
        ("--tls", "not allowed with"),
        ("--only nothing", "there is no rule nothing; --list-rules lists them"),
        ("--password-file none", "No such file"),
        ("--password-file empty", "the password is empty"),
        ("--ca empty", "contains no PEM certificate"),
        ("--ca bad", "contains an invalid PEM certificate"),
        ("--user a\r\nb", "the user name is empty or contains CR"),
    ],
)
def test_badOptions(
    options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If an option is bad, the command ends with one sentence.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"secret\n")))
    (tmp_path / "empty").write_text("")
    (tmp_path / "bad").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    with pytest.raises(SystemExit) as ended:
        main([HOST, "--plain", "--user", "plain", *options.split(" ")])
    sentence = str(ended.value.code)
    assert said in sentence and sentence.startswith("pop3svc: ") and "\n" not in sentence


def test_badUse(service: Service) -> None:
    """
    If the check cannot begin, the command ends with one sentence and exit status 1.
    """
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        closed = str(unused.getsockname()[1])
        for way, options, said in (
            ("tls", (), "the TLS handshake fails: certificate verify failed"),
            ("stls", (), "the TLS handshake fails: certificate verify failed"),
            ("plain", ("--port", closed), "refused"),
            ("plain", ("--tls",), "not allowed with"),
        ):
            ended = run(service, "plain", way, *options)
            assert (ended.returncode, ended.stdout) == (1, ""), ended
            assert said in ended.stderr
            assert ended.stderr.startswith("pop3svc: ")
            assert ended.stderr.count("\n") == 1
    ended = run(service, "plain", "plain", password="wrong")
    assert ended.returncode == 1
    assert "'PASS ...' is answered '-ERR [AUTH] Wrong name or password." in ended.stderr
    assert "wrong" not in ended.stderr


def test_selfSigned(patient: Service) -> None:
    """
    A self-signed certificate fails only one rule.  The other rules about TLS run and pass.
    """
    ended = run(patient, "nomail", "plain")
    assert (ended.returncode, ended.stderr) == (2, ""), ended
    failed = re.findall(r"^FAILED +(\w+)", ended.stdout, re.MULTILINE)
    assert failed == ["certificateIsValid"]
    assert "certificate verify failed" in ended.stdout
    for name in ("tlsIsRecent", "closeAlert", "noSTLSInsideTLS", "stlsSendsNoGreeting"):
        assert re.search(rf"^passed +{name}", ended.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("", "'' does not name a host"),
        (":110", "':110' does not name a host"),
        ("a b", "'a b' does not name a host"),
        ("x:y", "'x:y': a port is a number from 1 to 65535"),
        ("x:0", "'x:0': a port is a number from 1 to 65535"),
        ("[::1]:", "'[::1]:': a port is a number from 1 to 65535"),
        ("[]:110", "'[]:110' does not name a host"),
        ("x..y", "x..y port 110: "),
        ("x" * 70, "x" * 70 + " port 110: "),
        ("[::1]:9", "::1 port 9: "),
        ("localhost:9", "localhost port 9: "),
        ("::1", "::1 port 110: "),
    ],
)
def test_badHosts(host: str, says: str) -> None:
    """
    If a host has an invalid name or cannot be reached, the command ends with one sentence and exit
    status 1.
    """
    ended = subprocess.run(
        [script("pop3svc"), "check", host, "--plain", "--user", "x", "--timeout", "5"],
        input="x\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    assert ended.stderr.startswith(f"pop3svc: {says}"), ended
    assert ended.stderr.count("\n") == 1


def test_hostAndPort(service: Service) -> None:
    """
    The host argument or C{--port} may give the port.  Both together are an error.
    """
    command = [script("pop3svc"), "check", f"{HOST}:{service.port}", "--plain", "--user", "nomail"]
    command += ["--only", "statHasItsForm"]
    for more, status in (([], 0), (["--port", "110"], 1)):
        ended = subprocess.run(
            [*command, *more], input=PASSWORD + "\n", capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == status, ended
    assert ended.stderr == "pop3svc: the port is given twice\n"


def test_listOfRules() -> None:
    """
    The documentation contains the table of rules.
    """
    listed = subprocess.run(
        [script("pop3svc"), "check", "--list-rules"], capture_output=True, text=True, check=True
    ).stdout
    documented = (Path(__file__).parents[2] / "docs" / "check.rst").read_text()
    assert listed in documented, "put what pop3svc check --list-rules prints into docs/check.rst"
