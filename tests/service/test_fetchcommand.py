"""
C{pop3svc fetch} as an operator runs it, against a real service.
"""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.client import PasswordLogin
from pop3svc.service.datadirectory import _selfSigned
from pop3svc.service.fetchcommand import makeParser, prepare
from pop3svc.service.settings import SettingError
from pop3svc.testing.certificates import Authority
from tests.support.maildirs import deliver
from tests.support.running import PATIENCE, Running, environment, freePort, script

USERS = ("alice", "bob", "carol", "dave", "erin", "frank")
MANY = 300
# How often a process is killed at a random moment.
KILLS = int(os.environ.get("POP3SVC_KILLS", "3"))


class Site:
    """
    A running service with the mail of some users.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mail = path / "mail"
        for name in USERS:
            deliver(self.mail / name, f"1600000001.M1P1.{name}", b"Subject: one\n\n1\n")
            deliver(self.mail / name, f"1600000002.M1P1.{name}", b"Subject: two\n\n.\n")
        lines = [f"{name}:{{PLAIN}}secret\n" for name in USERS[:-1]]
        lines.append(f"frank:{makeVerifier('secret')}\n")
        (path / "users").write_text("".join(lines))
        (path / "users").chmod(0o600)
        certificate, key = _selfSigned()
        (path / "cert.pem").write_bytes(certificate)
        (path / "key.pem").write_bytes(key)
        authority = Authority()
        authority.write(path / "clients.pem")
        authority.issue(path / "frank.pem", ["frank"], isForClients=True)
        self.plain, self.tls = freePort(), freePort()
        self.options = [
            *("--provider", f"maildir:{self.mail}", "--auth", f"passwd:{path / 'users'}"),
            *("--certificate", str(path / "cert.pem"), "--private-key", str(path / "key.pem")),
            *("--endpoint", f"tcp:{self.plain}:interface=127.0.0.1"),
            *("--endpoint", f"ssl:{self.tls}:interface=127.0.0.1"),
            *("--lmtp", f"unix:{path / 'lmtp'}", "--cleartext-login", "never"),
            *("--enable", "SCRAM-SHA-256", "--enable", "SCRAM-SHA-256-PLUS"),
            *("--client-ca", str(path / "clients.pem"), "--client-name", "cn"),
        ]

    def url(self, user: str) -> str:
        return f"pop3s://{user}@localhost:{self.tls}"

    def plainURL(self, user: str) -> str:
        return f"pop3://{user}@localhost:{self.plain}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    with Running(made.path / "home", *made.options) as running:
        running.up()
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text("secret\n")
    return tmp_path


Fetch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fetch(site: Site, home: Path) -> Fetch:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            command(site, home, *arguments),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment(home),
            cwd=home,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def command(site: Site, home: Path, *arguments: str | Path) -> list[str]:
    given = list(map(str, arguments))
    if "--config" not in given and "--insecure" not in given:
        given += ["--ca", str(site.path / "cert.pem")]
    return [script("pop3svc"), "fetch", "--state", str(home / "fetch.db"), *given]


def texts(maildir: Path) -> list[bytes]:
    return sorted(each.read_bytes() for each in (maildir / "new").iterdir())


def test_maildir(site: Site, fetch: Fetch, home: Path) -> None:
    """
    New mail is fetched once, over TLS and over STLS, and deleted when that is asked for.
    """
    options = ["--to", f"maildir:{home / 'Maildir'}", "--password-file", home / "password"]
    name = f"alice@localhost:{site.tls}"
    assert fetch(*options, site.url("alice")) == (0, f"{name}: 2 messages fetched\n", "")
    assert fetch(*options, site.url("alice")) == (0, f"{name}: 0 messages fetched\n", "")
    deliver(site.mail / "alice", "1600000003.M1P1.alice", b"Subject: three\n\n3\n")
    status, told, said = fetch("--delete", *options, site.url("alice"))
    assert (status, told, said) == (0, f"{name}: 1 message fetched\n", "")
    assert not list((site.mail / "alice" / "new").iterdir())
    assert texts(home / "Maildir") == [
        *(b"Subject: one\n\n1\n", b"Subject: three\n\n3\n", b"Subject: two\n\n.\n")
    ]
    status, told, said = fetch(*options, site.plainURL("bob"))
    assert (status, said) == (0, "") and told.endswith("2 messages fetched\n")


def test_logins(site: Site, fetch: Fetch, home: Path) -> None:
    """
    A login works by SCRAM, with and without channel binding, and by a certificate, over TLS and
    after STLS.
    """
    password = ["--password-file", home / "password", "--mechanism"]
    certificate = ["--certificate", site.path / "frank.pem"]
    ways = [[*password, "SCRAM-SHA-256-PLUS"], [*password, "SCRAM-SHA-256"], certificate]
    for number, way in enumerate(ways):
        for url in (site.url("frank"), site.plainURL("frank")):
            to = ["--to", f"maildir:{home / f'Maildir{number}'}", "--state", home / f"{number}.db"]
            status, told, said = fetch(*way, *to, url)
            assert (status, said) == (0, "") and told.endswith(": 2 messages fetched\n")


def test_configuration(site: Site, fetch: Fetch, home: Path) -> None:
    """
    A configuration has several mailboxes, with passwords in files, and several targets.
    """
    netrc = home / ".netrc"
    netrc.write_text("machine localhost login dave password secret\n")
    netrc.chmod(0o600)
    config = home / "fetch.toml"
    config.write_text(f"""
[[fetch]]
url = "{site.url("carol")}"
password = {{ file = "{home / "password"}" }}
ca = "{site.path / "cert.pem"}"
to = "mbox:{home / "box"}"

[[fetch]]
url = "{site.url("dave")}"
ca = "{site.path / "cert.pem"}"
to = "lmtp:{site.path / "lmtp"}"
recipient = "erin"

[[fetch]]
url = "{site.url("bob")}"
password = {{ file = "{home / "password"}" }}
ca = "{site.path / "cert.pem"}"
mda = "{home / "agent"}"
""")
    agent = home / "agent"
    agent.write_text(f"#!/bin/sh\nexec cat >> {home / 'out'}\n")
    agent.chmod(0o700)
    status, told, said = fetch("--config", config)
    assert (status, said) == (0, "")
    assert told.count("2 messages fetched") == 3
    assert (home / "box").read_bytes().count(b"\nSubject: ") == 2
    assert (home / "out").read_bytes() == b"Subject: one\n\n1\nSubject: two\n\n.\n"
    erin = [each.read_bytes() for each in (site.mail / "erin" / "new").iterdir()]
    assert len(erin) == 4 and sum(each.endswith(b"Subject: two\n\n.\n") for each in erin) == 2
    assert fetch("--config", config)[1].count(": 0 messages fetched") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a URL such as pop3s://USER@HOST is needed, or --config FILE"),
        (["--to", "maildir:x", "pop3s://host"], "needs a user"),
        (["--to", "maildir:x", "--user", "b", "pop3s://a@host"], "leave out user"),
        (["--to", "maildir:x", "pop3s://a:b@host"], "a password in a URL is visible to others"),
        (["--to", "maildir:x", "imaps://a@host"], "needs a URL such as pop3s://HOST"),
        (["--to", "maildir:x", "pop3s://a@host"], "needs a password"),
        (["pop3s://a@host"], "to or mda is needed"),
        (["--to", "maildir:x", "--mda", "y", "pop3s://a@host"], "to or mda is needed"),
        (["--interval", "0", "pop3s://a@host"], "--interval: must be a whole number"),
        (["--mechanism", "X", "pop3s://a@host"], "--mechanism: must be one of EXTERNAL"),
        (["--insecure", "--to", "mbox:x", "pop3s://a@host"], "insecure is for pop3:// only"),
        (["--insecure", "--ca", "x", "--to", "mbox:x", "pop3://a@host"], "cannot be combined"),
        (["--ca", "none", "--to", "mbox:x", "pop3://a@host"], "cannot read none"),
        (["--certificate", "none", "--to", "mbox:x", "pop3://a@host"], "cannot read none"),
        (["--certificate", "empty.toml", "--to", "mbox:x", "pop3://host"], "in PEM format"),
        (["--private-key", "x", "--to", "mbox:x", "pop3://a@host"], "requires certificate"),
        (
            ["--token", "x", "--password-file", "password", "--to", "mbox:x", "pop3://a@host"],
            "token cannot be combined",
        ),
        (["--config", "no.toml"], "--config "),
        (["--config", "empty.toml"], "there is no [[fetch]]"),
        (["--config", "empty.toml", "pop3s://a@host"], "a URL cannot be combined with --config"),
        (["--config", "bad.toml"], "fetch[1]: needs a url"),
        (["--config", "bad.toml", "--delete"], "fetch[1]: needs a url"),
        (["--config", "good.toml", "--delete"], "--delete cannot be combined with --config"),
        (["--to", "maildir:x", "--password-file", "none", "pop3s://a@host"], "No such file"),
        (["--to", "maildir:x", "--password-file", "empty.toml", "pop3s://a@host"], "is empty"),
        (
            ["--to", "mbox:x", "--password-file", "password", *["pop3s://a@host"] * 2],
            "is named twice",
        ),
    ],
)
def test_sentences(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """
    An error in the arguments or the configuration is reported in one sentence.
    """
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="ascii"))
    (home / "empty.toml").write_text("")
    (home / "bad.toml").write_text("[[fetch]]\n")
    (home / "good.toml").write_text("[[fetch]]\nurl = 'pop3s://a@host'\n")
    with pytest.raises(SettingError) as caught:
        prepare(makeParser().parse_args(arguments))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_netrc(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A password may stand in a .netrc file, and errors do not show the password.
    """
    path = home / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    path.write_text("machine host login a password secret\n")
    path.chmod(0o600)
    arguments = ["--to", "mbox:x", "pop3s://a@host"]
    _, [account] = prepare(makeParser().parse_args(arguments))
    assert account.login == PasswordLogin("a", "secret")
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="ascii"))
    for text in ("machine host login b password secret\n", "machine host secret secret\n"):
        path.write_text(text)
        with pytest.raises(SettingError) as caught:
            prepare(makeParser().parse_args(arguments))
        assert "secret" not in str(caught.value)


def test_refusals(site: Site, fetch: Fetch, home: Path) -> None:
    """
    A wrong password, an unknown authority, a missing server and a missing program are each reported
    in one sentence.
    """
    (home / "wrong").write_text("wrong\n")
    to = ["--to", f"maildir:{home / 'Maildir'}"]
    status, _, said = fetch(*to, "--password-file", home / "wrong", site.url("alice"))
    assert (status, said) == (1, f"pop3svc: alice@localhost:{site.tls} refuses the login\n")
    plain = [script("pop3svc"), "fetch", "--state", str(home / "db"), *to]
    done = subprocess.run(
        [*plain, "--password-file", str(home / "password"), site.url("alice")],
        capture_output=True,
        text=True,
        env=environment(home),
        cwd=home,
        timeout=PATIENCE,
    )
    assert done.returncode == 75 and "cannot be verified: TLS failed" in done.stderr
    password = ["--password-file", home / "password"]
    status, _, said = fetch(*to, *password, "pop3s://a@localhost:1")
    assert status == 75 and "cannot be reached" in said
    status, _, said = fetch("--to", "x", *password, "pop3s://a@localhost:1")
    assert status == 1 and "to must be maildir:" in said
    status, _, said = fetch("--mda", "/no/such/program", *password, site.url("erin"))
    assert (status, said) == (1, "pop3svc: /no/such/program: No such file or directory\n")


def test_prompt(site: Site, home: Path) -> None:
    """
    At a terminal the command asks for the password, and shows its progress.
    """
    ours, theirs = pty.openpty()
    # The library of the progress bar shows nothing on a terminal with no lines.
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = command(site, home, "--to", f"mbox:{home / 'box'}", site.url("bob"))
    process = subprocess.Popen(
        arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(home),
        cwd=home,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    hasAnswered = False
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:
            break
        if not data:
            break
        said += data
        if not hasAnswered and b"Password of bob@" in said:
            hasAnswered = True
            os.write(ours, b"secret\n")
    os.close(ours)
    assert process.wait(PATIENCE) == 0, said
    assert b"2 messages fetched" in said and b"secret" not in said
    # The progress bar.
    assert b"0/2" in said, said


def test_watch(site: Site, home: Path) -> None:
    """
    C{--watch} fetches new mail when it comes, excludes other processes, and ends at a signal.
    """
    arguments = command(
        *(site, home, "--watch", "--interval", "1", "--password-file", home / "password"),
        *("--to", f"maildir:{home / 'Maildir'}", site.url("carol")),
    )
    with Running(home / "home", command=arguments) as running:
        running.waitFor(": 2 messages fetched")
        deliver(site.mail / "carol", "1600000009.M1P1.carol", b"Subject: late\n\n1\n")
        running.waitFor(": 1 message fetched")
        second = subprocess.run(
            [each for each in arguments if each != "--watch"],
            capture_output=True,
            text=True,
            env=environment(home),
            cwd=home,
            timeout=PATIENCE,
        )
        assert second.returncode == 1
        name = f"carol@localhost:{site.tls}"
        assert (
            second.stderr
            == f"pop3svc: another process of pop3svc fetch is fetching the mail of {name}\n"
        )
        assert running.end(signal.SIGTERM) == 0
    assert len(texts(home / "Maildir")) == 3


def test_killed(site: Site, fetch: Fetch, home: Path) -> None:
    """
    Although C{pop3svc fetch} is killed at random moments, each message is delivered exactly once.
    """
    maildir = site.mail / "erin"
    for each in (maildir / "new").iterdir():
        each.unlink()
    wanted = []
    for number in range(MANY):
        text = b"Subject: %d\n\n%s\n" % (number, b"x" * 2000)
        wanted.append(text)
        deliver(maildir, f"{1600000000 + number}.M1P1.erin", text)
    options = ["--delete", "--to", f"maildir:{home / 'Maildir'}"]
    options += ["--password-file", str(home / "password"), site.url("erin")]
    choose = random.Random(7)
    (home / "Maildir").mkdir()
    for folder in ("tmp", "new", "cur"):
        (home / "Maildir" / folder).mkdir()
    for _ in range(KILLS):
        before = len(list((home / "Maildir" / "new").iterdir()))
        process = subprocess.Popen(
            command(site, home, *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(home),
            cwd=home,
        )
        # Kill the process when it has stored some more messages.
        more = choose.randrange(1, 80)
        deadline = time.monotonic() + PATIENCE
        stopped = threading.Event()
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((home / "Maildir" / "new").iterdir())) >= before + more:
                break
            stopped.wait(0.005)
        process.kill()
        process.wait()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        # The mailbox may be in use until the service notices that the last connection has ended.
        status, _, said = fetch(*options)
        if status != 75:
            break
    assert status == 0, said
    assert texts(home / "Maildir") == sorted(wanted)
    assert not list((maildir / "new").iterdir()) and not list((maildir / "cur").iterdir())
