"""
Real clients fetch difficult messages from a real service, in each connection mode they support.

The tests compare the octets that a client delivers with those that the service has to send.
Functions named C{by...} return the message as a client changes it, or L{None} if the client cannot
handle it.  The client is the cause of each exception, because L{test_wire}, poplib and openssl get
all the messages unchanged.
"""

from __future__ import annotations

import email.parser
import functools
import hashlib
import poplib
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.interop.clients import TIMEOUT, environment, program, run, runInTerminal, writePrivately
from tests.interop.hard_messages import HARD_MESSAGES, HardMessage, normalised
from tests.interop.service import HOST, PASSWORD, Maildir, Service

pytestmark = pytest.mark.interop

# Seconds.  The service waits longer for a client to close its end.
_PROMPTLY = 3.0

WAYS = ("plain", "stls", "tls")
everyWay = pytest.mark.parametrize("way", WAYS)
keepOrDelete = pytest.mark.parametrize("keep", (True, False), ids=("keep", "delete"))

# Returns a message as a client changes it; None if the client cannot handle it.
Change = Callable[[HardMessage], "bytes | None"]


# --- the service and its accounts ---------------------------------------------


@dataclass(frozen=True)
class Account:
    """
    A user with messages in a Maildir.
    """

    name: str
    maildir: Maildir
    messages: tuple[HardMessage, ...]

    def assertLeft(self, keep: bool) -> None:
        """
        Check that the files are unchanged if C{keep} is true, and otherwise that no file is left.
        """
        contents = self.maildir.contents()
        wanted = self.maildir.delivered if keep else {}
        assert sorted(contents) == sorted(wanted)
        changed = [path for path, octets in contents.items() if octets != wanted[path]]
        assert not changed


NewAccount = Callable[[Change], Account]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """
    The service.  At the end its exit status must be 0, and its log must have no errors.
    """
    service = Service(tmp_path_factory.mktemp("service"))
    service.start()
    try:
        yield service
    finally:
        status = service.stop()
    log = service.log()
    assert status == 0, log
    assert not re.search(r"Traceback|Unhandled|#error|#critical", log), log


@pytest.fixture
def newAccount(service: Service) -> NewAccount:
    """
    @return: a function that makes a new account with the messages that a client can handle.
    """

    def make(change: Change) -> Account:
        name = f"user{len(list(service.mail.iterdir()))}"
        messages = tuple(each for each in HARD_MESSAGES if change(each) is not None)
        return Account(name, service.addUser(name, messages), messages)

    return make


# --- delivering ----------------------------------------------------------------

_DELIVERY_AGENT = """#!/bin/sh
# Write a message to the next numbered file of a directory.
cd "$1" || exit 75
number=1
while [ -e "$number" ]; do number=$((number + 1)); done
exec cat > "$number"
"""


class Delivery:
    """
    A delivery agent that writes each message to a numbered file.
    """

    def __init__(self, home: Path) -> None:
        self.agent = home / "agent"
        self.agent.write_text(_DELIVERY_AGENT)
        self.agent.chmod(0o700)
        self.directory = home / "delivered"
        self.directory.mkdir()

    def messages(self) -> list[bytes]:
        """
        @return: the delivered messages in order.
        """
        paths = sorted(self.directory.iterdir(), key=lambda path: int(path.name))
        return [path.read_bytes() for path in paths]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """
    The home directory of a client, removed after the test because it holds megabytes of mail.
    """
    home = tmp_path / "home"
    home.mkdir()
    yield home
    shutil.rmtree(home)


@pytest.fixture
def delivery(home: Path) -> Delivery:
    """
    A delivery agent.
    """
    return Delivery(home)


# --- comparing ----------------------------------------------------------------


def difference(wanted: bytes, got: bytes) -> str:
    """
    @return: the lengths of two messages and their first difference, for a failure.
    """
    shorter = min(len(wanted), len(got))
    at = next((index for index in range(shorter) if wanted[index] != got[index]), shorter)
    near = slice(max(0, at - 20), at + 20)
    return f"{len(got)} octets for {len(wanted)}, at {at} {got[near]!r} for {wanted[near]!r}"


def assertSame(account: Account, received: Sequence[bytes], change: Change) -> None:
    """
    Check that a client got every message with the expected octets.
    """
    assert len(received) == len(account.messages)
    wrong = []
    for message, got in zip(account.messages, received, strict=True):
        wanted = change(message)
        assert wanted is not None
        if got != wanted:
            wrong.append(f"{message.name}: {difference(wanted, got)}")
    assert not wrong, "\n".join(wrong)


def asSent(message: HardMessage) -> bytes:
    """
    The octets as the service sends them.
    """
    return message.expected


def withLF(message: HardMessage) -> bytes:
    """
    The octets with LF line ends.
    """
    return message.expected.replace(b"\r\n", b"\n")


def joined(lines: list[bytes]) -> bytes:
    """
    The lines with line ends.
    """
    return b"".join(line + b"\r\n" for line in lines)


def listing(account: Account) -> list[bytes]:
    """
    The listing that LIST has to send, with the sizes in octets as received.
    """
    return [b"%d %d" % (at, len(each.expected)) for at, each in enumerate(account.messages, 1)]


@pytest.mark.parametrize("message", HARD_MESSAGES, ids=lambda message: message.name)
def test_expectation(message: HardMessage) -> None:
    """
    The expected octets of each message are those of L{normalised}, unless its header has UTF-8.
    """
    expected = normalised(message.stored)
    if message.name == "utf8-header":
        # These clients do not send UTF8.
        assert message.expected.partition(b"\r\n\r\n")[0].isascii()
        assert message.expected.partition(b"\r\n\r\n")[2] == expected.partition(b"\r\n\r\n")[2]
        return
    assert message.expected == expected


# --- plain sockets ------------------------------------------------------------


class Wire:
    """
    A connection without a client library.
    """

    def __init__(self, service: Service, way: str) -> None:
        self._connection = service.connect(way)
        self._open()
        assert self.line().startswith(b"+OK")
        if way == "stls":
            assert self.say("STLS").startswith(b"+OK")
            self._connection = service.secured(self._connection)
            self._open()

    def _open(self) -> None:
        self._file: BinaryIO = self._connection.makefile("rb")

    def line(self) -> bytes:
        return self._file.readline()

    def send(self, *commands: str) -> None:
        self._connection.sendall("".join(f"{each}\r\n" for each in commands).encode())

    def say(self, command: str) -> bytes:
        """
        Send a command.

        @return: the first line of the answer.
        """
        self.send(command)
        return self.line()

    def lines(self) -> list[bytes]:
        """
        @return: the lines after the first one, still dot-stuffed, without the line that ends
            them.
        """
        lines = []
        while (line := self._file.readline()) != b".\r\n":
            assert line.endswith(b"\r\n"), "cut short or a bare LF"
            lines.append(line)
        return lines

    def logIn(self, name: str) -> None:
        assert self.say(f"USER {name}").startswith(b"+OK")
        assert self.say(f"PASS {PASSWORD}").startswith(b"+OK")

    def rest(self, timeout: float = TIMEOUT) -> bytes:
        """
        @return: all octets up to the end of the connection; over TLS the end needs a close_notify.
        """
        self._connection.settimeout(timeout)
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@pytest.fixture
def wire(service: Service, way: str) -> Iterator[Wire]:
    """
    A connection without a client library.
    """
    wire = Wire(service, way)
    try:
        yield wire
    finally:
        wire.close()


def unstuffed(lines: list[bytes]) -> bytes:
    """
    @return: a message from its dot-stuffed lines (RFC 1939 section 3).
    """
    assert all(line.startswith(b"..") for line in lines if line.startswith(b"."))
    return b"".join(line[1:] if line.startswith(b".") else line for line in lines)


def splitAnswers(octets: bytes, count: int) -> tuple[list[bytes], bytes]:
    """
    Split the answers to pipelined RETRs.

    @return: the messages, and the octets after them.
    """
    messages = []
    for _ in range(count):
        first, _, octets = octets.partition(b"\r\n")
        assert first.startswith(b"+OK"), first
        if octets.startswith(b".\r\n"):
            body, octets = b"", octets[3:]
        else:
            body, end, octets = octets.partition(b"\r\n.\r\n")
            assert end, "cut short"
            body += b"\r\n"
        messages.append(unstuffed(re.findall(rb".*?\r\n", body, re.DOTALL)))
    return messages, octets


@everyWay
def test_wire(newAccount: NewAccount, wire: Wire, way: str) -> None:
    """
    LIST and STAT tell how many octets RETR sends.  TOP with enough lines sends the same message as
    RETR.  UIDL lists each message.  After QUIT, the service closes the connection at once, over TLS
    with a close_notify.
    """
    account = newAccount(asSent)
    assert wire.say("CAPA").startswith(b"+OK")
    assert (b"STLS\r\n" in wire.lines()) == (way == "plain")
    wire.logIn(account.name)
    sizes = [len(each.expected) for each in account.messages]
    assert wire.say("STAT").split()[1:] == [b"%d" % len(sizes), b"%d" % sum(sizes)]
    assert wire.say("LIST").startswith(b"+OK")
    assert b"".join(wire.lines()) == joined(listing(account))
    assert wire.say("UIDL").startswith(b"+OK")
    uniqueIDs = [line.split()[1] for line in wire.lines()]
    assert len(set(uniqueIDs)) == len(sizes)
    received = []
    for number, line in enumerate(listing(account), 1):
        assert wire.say(f"LIST {number}") == b"+OK %s\r\n" % line
        assert wire.say(f"UIDL {number}").split()[2] == uniqueIDs[number - 1]
        assert wire.say(f"RETR {number}").startswith(b"+OK")
        sent = wire.lines()
        received.append(unstuffed(sent))
        assert wire.say(f"TOP {number} 99999999").startswith(b"+OK")
        assert wire.lines() == sent
    assertSame(account, received, asSent)
    assert wire.say("QUIT").startswith(b"+OK")
    assert wire.rest(_PROMPTLY) == b""
    account.assertLeft(True)


@everyWay
def test_wirePipelined(newAccount: NewAccount, wire: Wire) -> None:
    """
    Pipelined commands are answered in order; then the messages are deleted.
    """
    account = newAccount(asSent)
    numbers = range(1, len(account.messages) + 1)
    wire.logIn(account.name)
    wire.send(*(f"RETR {each}" for each in numbers), *(f"DELE {each}" for each in numbers), "QUIT")
    received, rest = splitAnswers(wire.rest(), len(numbers))
    assertSame(account, received, asSent)
    answers = rest.splitlines()
    assert len(answers) == len(numbers) + 1
    assert all(each.startswith(b"+OK") for each in answers)
    account.assertLeft(False)


def waitUntilFree(service: Service, name: str) -> None:
    """
    Wait until no session holds a user's mailbox.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        wire = Wire(service, "plain")
        try:
            assert wire.say(f"USER {name}").startswith(b"+OK")
            answer = wire.say(f"PASS {PASSWORD}")
            assert wire.say("QUIT").startswith(b"+OK")
        finally:
            wire.close()
        if answer.startswith(b"+OK"):
            return
        assert answer.startswith(b"-ERR [IN-USE]"), answer
        assert time.monotonic() < deadline


@everyWay
def test_wireLost(service: Service, newAccount: NewAccount, way: str) -> None:
    """
    A connection that ends without QUIT deletes no marked message.
    """
    account = newAccount(asSent)
    wire = Wire(service, way)
    wire.logIn(account.name)
    assert wire.say("DELE 1").startswith(b"+OK")
    wire.send("RETR 2", "DELE 3")
    wire.close()
    waitUntilFree(service, account.name)
    account.assertLeft(True)


# --- poplib -------------------------------------------------------------------


@pytest.fixture
def longLines(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Raise poplib's limit of 2,048 octets for a line.
    """
    monkeypatch.setattr(poplib, "_MAXLINE", 10_000_000)


def openPoplib(service: Service, way: str, name: str) -> poplib.POP3:
    """
    @return: a session that is logged in.
    """
    if way == "tls":
        pop: poplib.POP3 = poplib.POP3_SSL(
            HOST, service.tlsPort, timeout=TIMEOUT, context=service.context()
        )
    else:
        pop = poplib.POP3(HOST, service.port, timeout=TIMEOUT)
    if way == "stls":
        pop.stls(service.context())
    pop.user(name)
    pop.pass_(PASSWORD)
    return pop


@everyWay
@keepOrDelete
@pytest.mark.usefixtures("longLines")
def test_poplib(service: Service, newAccount: NewAccount, way: str, keep: bool) -> None:
    """
    Python's poplib sends LIST.  For each message it sends RETR, and then TOP or DELE.
    """
    account = newAccount(asSent)
    pop = openPoplib(service, way, account.name)
    assert pop.list()[1] == listing(account)
    received = []
    for number in range(1, len(account.messages) + 1):
        lines = pop.retr(number)[1]
        received.append(joined(lines))
        if keep:
            assert pop.top(number, 99999999)[1] == lines
        else:
            pop.dele(number)
    pop.quit()
    assertSame(account, received, asSent)
    account.assertLeft(keep)


# --- openssl ------------------------------------------------------------------


@pytest.mark.parametrize("way", ("stls", "tls"))
@keepOrDelete
def test_openssl(
    service: Service, newAccount: NewAccount, home: Path, way: str, keep: bool
) -> None:
    """
    OpenSSL's client sends all commands at once, without waiting for answers.
    """
    openssl = program("openssl")
    account = newAccount(asSent)
    numbers = range(1, len(account.messages) + 1)
    commands = [f"USER {account.name}", f"PASS {PASSWORD}", *(f"RETR {each}" for each in numbers)]
    if not keep:
        commands += [f"DELE {each}" for each in numbers]
    commands.append("QUIT")
    client = [openssl, "s_client", "-connect", f"{HOST}:{service.portFor(way)}"]
    if way == "stls":
        client += ["-starttls", "pop3"]
    client += ["-CAfile", str(service.certificate), "-verify_return_error", "-verify_ip", HOST]
    # -quiet also keeps openssl from taking an R or a Q at the start of a line for its own command.
    output = run([*client, "-quiet"], home, "".join(f"{each}\r\n" for each in commands).encode())
    if way == "tls":
        # With -starttls openssl reads the greeting itself.
        greeting, _, output = output.partition(b"\r\n")
        assert greeting.startswith(b"+OK")
    for _ in ("USER", "PASS"):
        answer, _, output = output.partition(b"\r\n")
        assert answer.startswith(b"+OK")
    received, rest = splitAnswers(output, len(numbers))
    assertSame(account, received, asSent)
    assert rest.count(b"\r\n") == (1 if keep else len(numbers) + 1)
    account.assertLeft(keep)


# --- curl ---------------------------------------------------------------------


def curl(service: Service, way: str, name: str) -> tuple[list[str], str]:
    """
    @return: the command without the URL, and the URL without a message number.
    """
    command = [program("curl"), "--disable", "--silent", "--show-error", "--fail-early"]
    command += ["--cacert", str(service.certificate), "--user", f"{name}:{PASSWORD}"]
    if way == "stls":
        command.append("--ssl-reqd")
    scheme = "pop3s" if way == "tls" else "pop3"
    return command, f"{scheme}://{HOST}:{service.portFor(way)}/"


@everyWay
@keepOrDelete
def test_curl(
    service: Service,
    newAccount: NewAccount,
    delivery: Delivery,
    home: Path,
    way: str,
    keep: bool,
) -> None:
    """
    curl gets the list and each message, and sends DELE if the messages are not kept.
    """
    account = newAccount(asSent)
    command, url = curl(service, way, account.name)
    assert run([*command, url], home) == joined(listing(account))
    every = f"{url}[1-{len(account.messages)}]"
    run([*command, every, "--output", f"{delivery.directory}/#1"], home)
    received = [
        # For an empty message curl also writes the CRLF of the +OK line.
        b"" if message.name == "empty" and got == b"\r\n" else got
        for message, got in zip(account.messages, delivery.messages(), strict=True)
    ]
    assertSame(account, received, asSent)
    account.assertLeft(True)
    if not keep:
        run([*command, every, "--request", "DELE", "--head"], home)
        account.assertLeft(False)


def test_curlDoubtsStrangers(service: Service, newAccount: NewAccount, home: Path) -> None:
    """
    curl refuses to connect without the certificate, so the tests above use verified TLS.
    """
    account = newAccount(asSent)
    command, url = curl(service, "tls", account.name)
    at = command.index("--cacert")
    del command[at : at + 2]
    done = subprocess.run(
        [*command, url],
        env=environment(home),
        capture_output=True,
        timeout=TIMEOUT,
    )
    # 60: the certificate is not verified; 77: this machine has no certificates at all.
    assert done.returncode in (60, 77)
    assert done.stdout == b""


# --- fetchmail ----------------------------------------------------------------

_FETCHMAIL = """
set pidfile "{home}/fetchmail.pid"
set invisible
set no bouncemail
set no syslog
poll {host} protocol pop3 port {port} auth password bad-header accept timeout 30 {uidl}
  user "{name}" password "{password}"
  {keep} no rewrite no stripcr no mimedecode no dropstatus no dropdelivered pass8bits
  {tls}
  mda "{agent} {directory}"
"""

_FETCHMAIL_HEADER = re.compile(rb"\AFrom: FETCHMAIL-DAEMON[^\0]*?\r\n(?=\r\n)")


def byFetchmail(message: HardMessage) -> bytes | None:
    """
    The message as fetchmail changes it.
    """
    sent = message.expected
    if message.longestLine > 8000:
        # fetchmail cuts lines to its buffer of 8 kB and inserts octets of its own there.
        return None
    if message.name in ("empty", "only-cr", "only-nul"):
        # fetchmail replaces a header without visible characters by one of its own.
        return None
    if b"\r\n\r\n" not in sent and not sent.startswith(b"\r\n"):
        # fetchmail ends a header that has no end.
        return sent + b"\r\n"
    return sent


@everyWay
@keepOrDelete
def test_fetchmail(
    service: Service,
    newAccount: NewAccount,
    delivery: Delivery,
    home: Path,
    way: str,
    keep: bool,
) -> None:
    """
    fetchmail gets messages by TOP if it keeps them, and otherwise by RETR and DELE.
    """
    fetchmail = program("fetchmail")
    account = newAccount(byFetchmail)
    trust = f'sslcertck sslcertfile "{service.certificate}" sslcommonname localhost'
    settings = _FETCHMAIL.format(
        home=home,
        host=HOST,
        port=service.portFor(way),
        name=account.name,
        password=PASSWORD,
        # fetchmail sends TOP only with this setting.
        uidl="uidl" if keep else "no uidl",
        keep="keep no fetchall" if keep else "no keep fetchall",
        tls={
            "plain": "sslproto '' no sslcertck",
            "stls": f"sslproto 'tls1.2+' {trust}",
            "tls": f"ssl {trust}",
        }[way],
        agent=delivery.agent,
        directory=delivery.directory,
    )
    settingsFile = writePrivately(home / "fetchmailrc", settings)
    said = run([fetchmail, "--nodetach", "--verbose", "--fetchmailrc", settingsFile], home)
    for number in range(1, len(account.messages) + 1):
        asked = f"TOP {number} 99999999" if keep else f"RETR {number}"
        assert f"POP3> {asked}\n".encode() in said
    # fetchmail adds a header to a message that has none.
    received = [_FETCHMAIL_HEADER.sub(b"", each) for each in delivery.messages()]
    assertSame(account, received, byFetchmail)
    account.assertLeft(keep)


# --- mpop ---------------------------------------------------------------------

_MPOP = """
account default
host {host}
port {port}
auth {auth}
user {name}
password {password}
timeout 30
{tls}
keep {keep}
only_new off
received_header off
uidls_file {home}/uidls
delivery mda {agent} {directory}
"""


def byMpop(message: HardMessage) -> bytes | None:
    """
    The message as mpop changes it.
    """
    if message.name == "crs-only":
        # mpop loses a CR at the end of its buffer of 4 kB.
        return None
    return withLF(message)


@everyWay
@keepOrDelete
def test_mpop(
    service: Service,
    newAccount: NewAccount,
    delivery: Delivery,
    home: Path,
    way: str,
    keep: bool,
) -> None:
    """
    mpop pipelines its commands.
    """
    mpop = program("mpop")
    account = newAccount(byMpop)
    trust = f"tls_trust_file {service.certificate}"
    settings = _MPOP.format(
        home=home,
        host=HOST,
        port=service.portFor(way),
        name=account.name,
        password=PASSWORD,
        # Without TLS mpop chooses no mechanism that the service offers.
        auth="user" if way == "plain" else "on",
        keep="on" if keep else "off",
        tls={
            "plain": "tls off",
            "stls": f"tls on\ntls_starttls on\n{trust}",
            "tls": f"tls on\ntls_starttls off\n{trust}",
        }[way],
        agent=delivery.agent,
        directory=delivery.directory,
    )
    run([mpop, "--quiet", "--file", writePrivately(home / "mpoprc", settings)], home)
    assertSame(account, delivery.messages(), byMpop)
    account.assertLeft(keep)


# --- getmail ------------------------------------------------------------------

_GETMAIL = """
[retriever]
type = {kind}
server = {host}
port = {port}
username = {name}
password = {password}
{trust}
[destination]
type = MDA_external
path = {agent}
arguments = ("{directory}",)
allow_root_commands = true
[options]
read_all = true
delete = {delete}
delivered_to = false
received = false
verbose = 0
"""


@functools.cache
def byGetmail(message: HardMessage) -> bytes:
    """
    The message as getmail changes it.
    """
    # getmail parses a message with the standard library, and writes the result after a Return-Path.
    # The sender there is unknown, because none of these messages has a Return-Path of its own.
    parsed = email.parser.BytesParser().parsebytes(withLF(message))
    return b"Return-Path: <unknown>\n" + parsed.as_bytes(policy=parsed.policy.clone(linesep="\n"))


# getmail does not support STLS.
@pytest.mark.parametrize("way", ("plain", "tls"))
@keepOrDelete
def test_getmail(
    service: Service,
    newAccount: NewAccount,
    delivery: Delivery,
    home: Path,
    way: str,
    keep: bool,
) -> None:
    """
    getmail6 fetches all messages, and deletes them if they are not kept.
    """
    getmail = program("getmail")
    account = newAccount(byGetmail)
    pem = service.certificate.read_text()
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    settings = _GETMAIL.format(
        kind="SimplePOP3SSLRetriever" if way == "tls" else "SimplePOP3Retriever",
        host=HOST,
        port=service.portFor(way),
        name=account.name,
        password=PASSWORD,
        # getmail's ca_certs uses a function that Python 3.12 has removed.
        trust=f'ssl_fingerprints = ("{fingerprint}",)' if way == "tls" else "",
        agent=delivery.agent,
        directory=delivery.directory,
        delete="false" if keep else "true",
    )
    writePrivately(home / "getmailrc", settings)
    run([getmail, "--getmaildir", str(home), "--rcfile", "getmailrc"], home)
    assertSame(account, delivery.messages(), byGetmail)
    account.assertLeft(keep)


# --- mutt ---------------------------------------------------------------------

_MUTT = """
set mbox_type=Maildir
set folder="{home}"
set spoolfile="{home}/delivered"
set pop_host="{url}"
set pop_pass="{password}"
set pop_delete={delete}
set pop_last=no
set ssl_starttls={stls}
set ssl_force_tls={tls}
set certificate_file="{certificate}"
set sort=mailbox-order
set sleep_time=0
set quit=yes
set move=no
set delete=yes
set confirmappend=no
set confirmcreate=no
set mail_check=0
push "{keys}"
"""


def byMutt(message: HardMessage) -> bytes | None:
    """
    The message as mutt changes it when it fetches mail.
    """
    if message.name == "crs-only":
        # mutt takes a CR at the end of its buffer of 1 kB for a line end.
        return None
    # mutt ends a line at a NUL.
    return re.sub(rb"\0[^\n]*", b"", withLF(message))


def byMuttsCopy(message: HardMessage) -> bytes | None:
    """
    The message as mutt changes it when mutt copies messages from an open mailbox.
    """
    if not message.expected.startswith(b"From: "):
        # mutt closes a mailbox that has a message without a header.
        return None
    return byMutt(message)


def runMutt(
    service: Service,
    way: str,
    name: str,
    home: Path,
    keys: str,
    delete: bool = False,
    *options: str,
) -> None:
    """
    Run mutt with simulated key strokes.
    """
    mutt = program("mutt")
    url = f"{'pops' if way == 'tls' else 'pop'}://{name}@{HOST}:{service.portFor(way)}"
    for folder in ("tmp", "new", "cur"):
        (home / "delivered" / folder).mkdir(parents=True)
    settings = _MUTT.format(
        home=home,
        url=url,
        password=PASSWORD,
        delete="yes" if delete else "no",
        stls="yes" if way == "stls" else "no",
        tls="no" if way == "plain" else "yes",
        certificate=service.certificate,
        keys=keys,
    )
    settingsFile = writePrivately(home / "muttrc", settings)
    where = [url if each == "URL" else each for each in options]
    runInTerminal([mutt, "-n", "-F", settingsFile, *where], home)


def deliveredByMutt(home: Path) -> list[bytes]:
    """
    @return: the messages in the order in which mutt wrote them.
    """

    def order(path: Path) -> tuple[int, ...]:
        # "1600000000.R123_45.host": the seconds and a counter.
        seconds, counter = re.findall(r"(?:^|_)([0-9]+)", path.name)[:2]
        return int(seconds), int(counter)

    paths = [path for folder in ("new", "cur") for path in (home / "delivered" / folder).iterdir()]
    return [path.read_bytes() for path in sorted(paths, key=order)]


@everyWay
@keepOrDelete
def test_mutt(service: Service, newAccount: NewAccount, home: Path, way: str, keep: bool) -> None:
    """
    mutt fetches all messages by its command <fetch-mail>.
    """
    account = newAccount(byMutt)
    runMutt(service, way, account.name, home, "<fetch-mail><quit>", not keep)
    assertSame(account, deliveredByMutt(home), byMutt)
    account.assertLeft(keep)


@everyWay
def test_muttBrowses(service: Service, newAccount: NewAccount, home: Path, way: str) -> None:
    """
    mutt opens the maildrop as a mailbox: it sends TOP for each header, then RETR for each message
    that is copied.
    """
    account = newAccount(byMuttsCopy)
    keys = "<tag-pattern>~A<enter><tag-prefix><copy-message>=delivered<enter><quit>"
    runMutt(service, way, account.name, home, keys, False, "-R", "-f", "URL")
    # mutt adds fields with the size and the status to a message that it copies.
    told = re.compile(rb"^(?:Content-Length|Lines|Status): .*\n", re.MULTILINE)
    received = []
    for each in deliveredByMutt(home):
        header, blank, body = each.partition(b"\n\n")
        received.append(told.sub(b"", header + b"\n") + blank[1:] + body)
    assertSame(account, received, byMuttsCopy)
    account.assertLeft(True)
