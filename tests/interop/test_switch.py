"""
Real clients fetch from Debian's Dovecot or Courier, and leave the mail there.  Then the operator
switches to pop3svc as C{docs/migration.rst} says.  The clients fetch only the new message.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from tests.interop.clients import program, run, writePrivately
from tests.interop.oldservers import PASSWORD, Courier, Dovecot, OldServer
from tests.support.pages import block
from tests.support.running import CHECKOUT, Running, forEverybody

pytestmark = pytest.mark.interop

HOST = "127.0.0.1"
# Fetches the new messages with a client.  The arguments are the client's home and the port.
Fetch = Callable[[Path, int], None]

_AGENT = """#!/bin/sh
exec cat > "$(mktemp {directory}/XXXXXX)"
"""


def agentIn(home: Path) -> Path:
    """
    @return: a delivery agent that writes each message to a file in C{home/delivered}.
    """
    (home / "delivered").mkdir(exist_ok=True)
    agent = home / "agent"
    agent.write_text(_AGENT.format(directory=home / "delivered"))
    agent.chmod(0o700)
    return agent


def byFetchmail(home: Path, port: int) -> None:
    """
    fetchmail with its file of unique-ids.
    """
    settings = f"""
set idfile "{home}/fetchids"
set pidfile "{home}/fetchmail.pid"
set no bouncemail
set no syslog
poll {HOST} protocol pop3 port {port} auth password timeout 30 uidl
  user "alice" password "{PASSWORD}"
  keep no fetchall no rewrite sslproto '' no sslcertck
  mda "{agentIn(home)}"
"""
    command = [program("fetchmail"), "--nodetach", "--fetchmailrc"]
    rc = writePrivately(home / "fetchmailrc", settings)
    # Its status is 1 if there is no new mail.
    run(["/bin/sh", "-c", '"$@" || test $? = 1', "sh", *command, rc], home)


def byGetmail(home: Path, port: int) -> None:
    """
    getmail6 with its file of old mail.
    """
    settings = f"""
[retriever]
type = SimplePOP3Retriever
server = {HOST}
port = {port}
username = alice
password = {PASSWORD}
[destination]
type = MDA_external
path = {agentIn(home)}
allow_root_commands = true
[options]
read_all = false
delete = false
"""
    writePrivately(home / "getmailrc", settings)
    run([program("getmail"), "--getmaildir", str(home), "--rcfile", "getmailrc"], home)


def byMpop(home: Path, port: int) -> None:
    """
    mpop with its file of unique-ids.
    """
    settings = f"""
account default
host {HOST}
port {port}
auth user
user alice
password {PASSWORD}
tls off
keep on
only_new on
uidls_file {home}/uidls
delivery mda {agentIn(home)}
"""
    run([program("mpop"), "--quiet", "--file", writePrivately(home / "mpoprc", settings)], home)


CLIENTS: list[Fetch] = [byFetchmail, byGetmail, byMpop]


def fetched(fetch: Fetch, home: Path, port: int) -> list[str]:
    """
    @return: the subjects of the messages that a client fetches now.
    """
    home.mkdir(exist_ok=True)
    agentIn(home)
    for each in (home / "delivered").iterdir():
        each.unlink()
    fetch(home, port)
    messages = [each.read_text() for each in (home / "delivered").iterdir()]
    return sorted(re.findall(r"^Subject: (.*?)\r?$", "\n".join(messages), re.M))


@contextmanager
def switched(old: OldServer, store: str) -> Iterator[Running]:
    """
    Serve the Maildirs of a server that was stopped, on its port, with the configuration in
    C{docs/migration.rst}.

    @param store: the lines of the store that replace C{uidl = "dovecot"}.
    """
    page = block("docs/migration.rst", 'uidl = "dovecot"', "toml")
    for text, replacement in [
        ('"tcp:110"', f'"tcp:{old.port}:interface={HOST}"\ncleartext-login = "always"'),
        ('[[listener]]\nendpoint = "ssl:995"\n', ""),
        ("/srv/mail", str(old.mail)),
        ("/etc/pop3svc", str(old.base)),
        ('uidl = "dovecot"', store),
    ]:
        assert page.count(text) == 1
        page = page.replace(text, replacement)
    (old.base / "pop3svc.toml").write_text(page)
    if not (old.base / "users").exists():
        addUser(str(old.base / "users"), "alice", PASSWORD)
    with Running(old.base, "--config", str(old.base / "pop3svc.toml")) as running:
        running.up()
        yield running


def message(subject: str) -> bytes:
    return f"From: bob@example.test\nSubject: {subject}\n\nHello.\n".encode()


def prepare(old: OldServer) -> list[str]:
    """
    Deliver messages and delete one, so that neither the UIDs nor the file names are consecutive.

    @return: the subjects of the messages that are left.
    """
    for number in (5, 3, 9, 1, 7):
        old.deliver("alice", number, message(f"number {number}"))
        # Log in, so that the server adds this message to its list before the next delivery.
        old.uniqueIDs("alice")
    client = old.login("alice")
    client.dele(2)
    client.quit()
    client = old.login("alice")
    count, _ = client.stat()
    assert count == 4
    left = []
    for number in range(1, count + 1):
        subject = re.search(rb"Subject: ([^\n]*)", b"\n".join(client.retr(number)[1]))
        assert subject is not None
        left.append(subject[1].decode())
    client.quit()
    return sorted(left)


def switch(old: OldServer, homes: Path, store: str) -> None:
    """
    @param homes: an empty directory for the homes of the clients.
    """
    try:
        left = prepare(old)
        for fetch in CLIENTS:
            home = homes / fetch.__name__
            assert fetched(fetch, home, old.port) == left
            assert fetched(fetch, home, old.port) == []
        told = old.uniqueIDs("alice")
    finally:
        old.stop()
    with switched(old, store):
        # The file name is old, so the message would be the first in the order of the names.
        old.deliver("alice", 0, message("the new one"))
        assert old.uniqueIDs("alice")[:4] == told
        for fetch in CLIENTS:
            home = homes / fetch.__name__
            assert fetched(fetch, home, old.port) == ["the new one"]
            assert fetched(fetch, home, old.port) == []
    with switched(old, store):
        for fetch in CLIENTS:
            assert fetched(fetch, homes / fetch.__name__, old.port) == []


DOVECOTS = {
    "default": ("", 'uidl = "dovecot"'),
    "saved": ("pop3_uidl_format = %f\npop3_save_uidl = yes", 'uidl = "dovecot"'),
    "control": (
        "pop3_uidl_format = %v.%u\n"
        "mail_location = maildir:{base}/mail/%u:CONTROL={base}/control/%u",
        'uidl = "%v.%u"\ncontrol = "{base}/control/{{user}}"',
    ),
}


@pytest.mark.parametrize("settings", DOVECOTS)
def test_fromDovecot(settings: str, tmp_path: Path) -> None:
    why = Dovecot.whyNot()
    if why:
        pytest.skip(why)
    more, store = DOVECOTS[settings]
    with forEverybody() as base:
        (base / "control").mkdir()
        (base / "control").chmod(0o777)
        switch(Dovecot(base, more.format(base=base)), tmp_path, store.format(base=base))


def test_fromCourier(tmp_path: Path) -> None:
    why = Courier.whyNot()
    if why:
        pytest.skip(why)
    with forEverybody() as base:
        switch(Courier(base), tmp_path, 'uidl = "courier"')


def test_withDovecotForIMAP(tmp_path: Path) -> None:
    """
    If Dovecot runs again, as for IMAP, it adds new mail to its list.  The unique-ids that pop3svc
    has told before stay the same.
    """
    why = Dovecot.whyNot()
    if why:
        pytest.skip(why)
    with forEverybody() as base:
        old = Dovecot(base)
        try:
            prepare(old)
            told = old.uniqueIDs("alice")
        finally:
            old.stop()
        with switched(old, 'uidl = "dovecot"'):
            name = old.deliver("alice", 0, message("the new one"))
            assert old.uniqueIDs("alice") == [*told, name]
        again = Dovecot(base)
        try:
            assert name not in again.uniqueIDs("alice")
            uidList = (old.mail / "alice" / "dovecot-uidlist").read_text()
            assert f":{name}\n" in uidList
        finally:
            again.stop()
        with switched(old, 'uidl = "dovecot"'):
            later = old.deliver("alice", 20, message("later"))
            assert old.uniqueIDs("alice") == [*told, name, later]


def test_settingsOfThePage() -> None:
    """
    The C{doveconf} commands of C{docs/migration.rst} print Dovecot's settings.
    """
    why = Dovecot.whyNot()
    if why:
        pytest.skip(why)
    page = (CHECKOUT / "docs" / "migration.rst").read_text()
    commands = re.findall(r"^    doveconf (.*)$", page, re.M)
    with forEverybody() as base:
        settings = "pop3_uidl_duplicates = rename\nprotocol pop3 {\n pop3_uidl_format = %v.%u\n}\n"
        old = Dovecot(base, settings)
        old.stop()
        printed = [
            subprocess.run(
                ["doveconf", "-c", str(base / "dovecot.conf"), *each.split()],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for each in commands
        ]
        assert printed == ["%v.%u", "rename", "no", f"maildir:{base}/mail/%u"]
