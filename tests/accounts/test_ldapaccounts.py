"""
Accounts in an LDAP directory: checkers that ask a real slapd.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

if not os.environ.get("CI"):
    pytest.importorskip("ldap", reason="python-ldap is not installed")

from pop3svc.accounts.blockingchecks import CheckUnavailable
from pop3svc.accounts.ldapaccounts import Answer, DirectBind, LDAPAccounts, Search, SearchedAccounts
from pop3svc.accounts.ldapserver import LDAPConnection, LDAPServer
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountNames, IAccountStatus, IProvenAccounts, IReloading
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.testing.certificates import Authority
from pop3svc.threadpool import InlineExecutor
from tests.support.logs import logging
from tests.support.slapd import BASE, PASSWORD, READER, Slapd, needsSlapd

pytestmark = needsSlapd

AWAY = "SYS/TEMP"
DN = "uid={user},ou=people,dc=example,dc=org"


@pytest.fixture(scope="module")
def directory() -> Iterator[Slapd]:
    with Slapd() as slapd:
        yield slapd


@pytest.fixture
def slapd() -> Iterator[Slapd]:
    """
    A server that a test may stop.
    """
    with Slapd() as slapd:
        yield slapd


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    with logging() as lines:
        yield lines
    assert not any(PASSWORD in line for line in lines)


class Attempt:
    isFromKnownNetwork = False
    isGuess = wasRefused = False


def server(slapd: Slapd, url: str = "", **options: Any) -> LDAPServer:
    return LDAPServer(url or slapd.url, **options)


def searching(
    slapd: Slapd, condition: str = "(uid={user})", attribute: str | None = None, **options: Any
) -> SearchedAccounts:
    search = Search(BASE, condition, attribute=attribute, binder=lambda: (READER, PASSWORD))
    return SearchedAccounts(
        server(slapd, **options), search, threads=InlineExecutor(), clock=Clock()
    )


def binding(
    slapd: Slapd, template: str = DN, attribute: str | None = None, **options: Any
) -> LDAPAccounts:
    return LDAPAccounts(
        server(slapd, **options),
        DirectBind(template, attribute),
        threads=InlineExecutor(),
        clock=Clock(),
    )


def logIn(
    accounts: LDAPAccounts, name: str | bytes = "ann", password: str = PASSWORD, **more: Any
) -> Any:
    """
    @return: the mailbox; L{None} if the login is refused; otherwise the code of the error.
    """
    username = name.encode() if isinstance(name, str) else name
    secret = password.encode("utf-8", "surrogateescape")
    try:
        return accounts.requestAvatarId(PasswordAttempt(username, secret, **more)).decode()
    except UnauthorizedLogin:
        return None
    except POP3ResponseError as error:
        return error.code


def both(slapd: Slapd) -> list[LDAPAccounts]:
    return [searching(slapd), binding(slapd)]


# --- logins -----------------------------------------------------------------------


def test_interfaces(directory: Slapd) -> None:
    for accounts in both(directory):
        verifyObject(ICredentialsChecker, accounts)
        verifyObject(IReloading, accounts)
    for interface in (IAccountNames, IAccountStatus, IProvenAccounts):
        verifyObject(interface, searching(directory))
        assert not interface.providedBy(binding(directory))


def test_logins(directory: Slapd) -> None:
    for accounts in both(directory):
        for _ in range(2):
            assert logIn(accounts) == "ann"
            assert logIn(accounts, password="wrong") is None
            assert logIn(accounts, "nobody") is None


def test_guesses(directory: Slapd) -> None:
    """
    A search tells whether the user exists; a bind does not.
    """
    for accounts, expected in zip(both(directory), (False, True), strict=True):
        for name, wasRefused in (("ann", True), ("nobody", expected)):
            attempt = Attempt()
            assert logIn(accounts, name, "wrong", attempt=attempt) is None
            assert attempt.isGuess and attempt.wasRefused == wasRefused


def test_nameOfTheMailbox(directory: Slapd) -> None:
    """
    The directory ignores case and spaces, so the entry names the mailbox.
    """
    for accounts in both(directory):
        for spelling in ("ANN", " ann ", "Ann"):
            assert logIn(accounts, spelling) == "ann"
    assert logIn(searching(directory, "(mail={user})"), "Ann@Example.org") == "ann@example.org"
    assert logIn(searching(directory, "(mail={user})", "uid"), "ann@example.org") == "ann"
    assert logIn(searching(directory, "(uid={local})", "mail"), "ann@x.example") == (
        "ann@example.org"
    )
    assert logIn(binding(directory, attribute="mail")) == "ann@example.org"


def test_partsOfNames(directory: Slapd) -> None:
    accounts = searching(directory, "(&(uid={local})(mail=*@{domain}))", "uid")
    assert logIn(accounts, "ann") is None
    assert logIn(accounts, "@example.org") is None
    assert logIn(accounts, "ann@example.org") == "ann"
    assert logIn(accounts, "ann@example.com") is None


INJECTIONS = [
    "*",
    "a*",
    "ann)(uid=*",
    "*)(objectClass=*",
    "ann\\2a",
    "a\\6e",
    "(",
    ")",
    "\\",
    "\\2",
]


def test_filterInjection(directory: Slapd) -> None:
    for accounts in both(directory):
        for name in INJECTIONS:
            assert logIn(accounts, name) is None
    assert logIn(searching(directory, "(|(uid={user})(cn={user}))", "uid"), "*") is None
    assert searching(directory).hasAccount("*") is False
    # A name with placeholders is a name.
    assert logIn(searching(directory), "{user}") is None


ODD_NAMES = ["a,b", "a+uid=ann", "#ann", 'a"b', "a<b>c", "a;b", "a=b", "a\\b", "ä(b)*", "{user}"]


def test_oddNames(directory: Slapd) -> None:
    """
    Characters with a meaning in filters and DNs may be part of a name.
    """
    import ldap.dn

    for number, name in enumerate(ODD_NAMES):
        directory.addUser(name, f"uid={ldap.dn.escape_dn_chars(name)}", mail=f"{number}@x.example")
    for accounts in both(directory):
        for name in ODD_NAMES:
            assert logIn(accounts, name) == name
            assert logIn(accounts, name, "wrong") is None


def test_dnInjection(directory: Slapd) -> None:
    directory.addUser("sub", "uid=sub,ou=more")
    assert logIn(searching(directory), "sub") == "sub"
    accounts = binding(directory)
    for name in ("sub,ou=more", "ann,ou=people,dc=example,dc=org", "ann+cn=ann", "ann#", "ann\\"):
        assert logIn(accounts, name) is None


NOT_ASKED = [
    (b"", PASSWORD),
    (b"ann", ""),
    (b"", ""),
    (b"a\0", PASSWORD),
    (b"ann", "x\0"),
    (b"ann\xff", PASSWORD),
    (b"ann", "\udcff"),
    (b"a" * 513, PASSWORD),
    (b"ann", "x" * 1025),
]


@pytest.mark.parametrize(("name", "password"), NOT_ASKED)
def test_notAsked(
    directory: Slapd, monkeypatch: pytest.MonkeyPatch, name: bytes, password: str
) -> None:
    def run(*_: object) -> None:
        raise AssertionError("the server is asked")

    for accounts in both(directory):
        monkeypatch.setattr(accounts._server, "run", run)
        attempt = Attempt()
        assert logIn(accounts, name, password, attempt=attempt) is None
        assert not attempt.isGuess and not attempt.wasRefused


def test_emptyBind(directory: Slapd) -> None:
    """
    A bind without a name or without a password never reaches the server.
    """
    for dn, password in (("", PASSWORD), (READER, "")):
        with pytest.raises(CheckUnavailable, match="both a name and a password"):
            server(directory).run(lambda each, dn=dn, word=password: each.bind(dn, word))


def test_scope(directory: Slapd) -> None:
    import ldap

    search = Search(BASE, "(uid={user})", ldap.SCOPE_ONELEVEL, binder=lambda: (READER, PASSWORD))
    directory.addUser("deep", "uid=deep,ou=more")
    accounts = SearchedAccounts(server(directory), search, threads=InlineExecutor(), clock=Clock())
    assert logIn(accounts, "deep") is None and logIn(accounts) == "ann"
    assert logIn(searching(directory), "deep") == "deep"


# --- entries that cannot be used ------------------------------------------------------


def test_notOneEntry(directory: Slapd, logged: list[str]) -> None:
    directory.addUser("twice")
    directory.addUser("twice", "uid=twice,ou=more")
    accounts = searching(directory)
    for _ in range(2):
        assert logIn(accounts, "twice") is None
    assert accounts.hasAccount("twice") is False
    directory.addUser("twice", "cn=third")
    assert logIn(accounts, "twice") is None
    (line,) = logged
    assert "because the filter finds more than one entry for a name (logged once" in line
    assert logIn(accounts) == "ann"


def test_notOneName(directory: Slapd, logged: list[str]) -> None:
    directory.addUser("nomail")
    dn = directory.addUser("mails", mail="mails@example.org")
    directory.change(dn, "mail", "a@example.org", "b@example.org")
    directory.addUser("long", description="x" * 513)
    directory.addUser("control", description="a\nb")
    for name in ("nomail", "mails"):
        assert logIn(searching(directory, attribute="mail"), name) is None
        assert logIn(binding(directory, attribute="mail"), name) is None
    for name in ("long", "control"):
        assert logIn(searching(directory, attribute="description"), name) is None
    # Both checkers log the reasons for the first two names.
    assert [line.partition("because ")[2].partition(" (logged")[0] for line in logged] == [
        *["uid=nomail,ou=people,dc=example,dc=org has 0 readable values of mail"] * 2,
        *["uid=mails,ou=people,dc=example,dc=org has 2 readable values of mail"] * 2,
        "the description of uid=long,ou=people,dc=example,dc=org is not a name of a mailbox",
        "the description of uid=control,ou=people,dc=example,dc=org is not a name of a mailbox",
    ]
    with directory.root() as link:
        dn = directory.addUser("picture")
        link.modify_s(dn, [(0, "jpegPhoto", [b"\xff\xd8"])])
    assert logIn(searching(directory, attribute="jpegPhoto"), "picture") is None
    assert logged[-1].partition(" (")[0].endswith("is not a name of a mailbox")
    # The password is compared all the same.
    assert logIn(searching(directory, attribute="mail"), "nomail", "wrong") is None


def test_hiddenEntry(directory: Slapd, logged: list[str]) -> None:
    """
    A user who may not read their own entry has no mailbox.
    """
    directory.addUser("hidden")
    assert logIn(binding(directory), "hidden") is None
    assert "hidden,ou=people,dc=example,dc=org may not read its own entry" in logged[0]
    assert logIn(searching(directory), "hidden") is None


def test_noPassword(directory: Slapd, logged: list[str]) -> None:
    directory.addUser("locked", password="")
    for accounts in both(directory):
        assert logIn(accounts, "locked") is None
    accounts = binding(directory, "uid={user},nonsense={user},dc=example,dc=org")
    for _ in range(2):
        assert logIn(accounts) is None
    (line,) = logged
    assert "the server refuses a bind: Invalid DN syntax (logged once for each reason)" in line
    accounts.reload()
    assert logIn(accounts) is None and len(logged) == 2


def test_wrongConfiguration(directory: Slapd, logged: list[str]) -> None:
    for base, binder, reason in (
        (f"ou=no,{BASE}", (READER, PASSWORD), "the base of the search does not exist"),
        (BASE, (READER, "wrong"), "it refuses the bind for the search: Invalid credentials"),
    ):
        search = Search(base, "(uid={user})", binder=lambda binder=binder: binder)
        accounts = SearchedAccounts(
            server(directory), search, threads=InlineExecutor(), clock=Clock()
        )
        attempt = Attempt()
        assert logIn(accounts, attempt=attempt) == AWAY and not attempt.wasRefused
        assert logged.pop().endswith(f"is not available: {reason}")


def test_anonymousSearch(directory: Slapd, logged: list[str]) -> None:
    """
    This server shows nothing to a stranger.
    """
    accounts = SearchedAccounts(
        server(directory), Search(BASE, "(uid={user})"), threads=InlineExecutor(), clock=Clock()
    )
    assert logIn(accounts) == AWAY
    assert logged[0].endswith("the base of the search does not exist")


# --- other questions ------------------------------------------------------------------


def test_names(directory: Slapd) -> None:
    accounts = searching(directory)
    assert accounts.hasAccount("ann") is True
    for name in ("nobody", "ANN", "", "a\udcff", "a\0", "a" * 600):
        assert accounts.hasAccount(name) is False
    assert searching(directory, attribute="mail").hasAccount("ann") is False


def ask(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as over:
        return over.value
    raise AssertionError("it waits")


def test_proven(directory: Slapd) -> None:
    accounts = searching(directory, attribute="mail")
    info = ConnectionInfo(1, "192.0.2.1", True)
    assert ask(accounts.provenMailbox(info, "ann")) == "ann@example.org"
    assert ask(accounts.provenMailbox(info, "nobody")) is None
    directory.addUser("ambiguous", mail="x@example.org")
    directory.addUser("ambiguous", "uid=ambiguous,ou=more", mail="y@example.org")
    assert ask(accounts.provenMailbox(info, "ambiguous")) is None


def test_status(directory: Slapd) -> None:
    """
    A session may wake up while its entry exists and is the same.
    """
    dn = directory.addUser("sleeper", mail="sleeper@example.org")
    accounts = searching(directory, attribute="mail")
    info = ConnectionInfo(1, "192.0.2.1", True)
    info.userNameAtLogin = "sleeper"
    mailbox = "sleeper@example.org"
    attempt = PasswordAttempt(b"sleeper", PASSWORD.encode())
    assert accounts.requestAvatarId(attempt).decode() == mailbox
    version = attempt.version
    # Now the directory is asked.
    assert version and accounts.credentialsVersion(info, mailbox) == version
    assert accounts.isStillValid(info, mailbox, version) is True
    assert accounts.isStillValid(info, mailbox, "other") is False
    directory.change(dn, "mail", "other@example.org")
    assert accounts.isStillValid(info, mailbox, version) is False
    directory.change(dn, "mail", mailbox)
    assert accounts.isStillValid(info, mailbox, version) is True
    directory.remove(dn)
    assert accounts.isStillValid(info, mailbox, version) is False
    assert accounts.credentialsVersion(info, mailbox) == ""
    assert accounts.isStillValid(info, mailbox, "") is False
    # Another user gets the name.
    directory.addUser("sleeper", mail=mailbox)
    assert accounts.isStillValid(info, mailbox, version) is False


def test_refusedOperations(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A server may refuse a search and StartTLS for every reason for which it may refuse a bind.
    """
    import ldap

    class Refusing(Link):
        def search_ext_s(self, *_: Any, **named: Any) -> Any:
            raise error

        def start_tls_s(self) -> None:
            raise error

        def unbind_ext_s(self) -> None:
            pass

    for error in (
        ldap.CONSTRAINT_VIOLATION,
        ldap.INAPPROPRIATE_AUTH,
        ldap.INVALID_CREDENTIALS,
        ldap.INVALID_DN_SYNTAX,
        ldap.UNWILLING_TO_PERFORM,
    ):
        monkeypatch.setattr(LDAPServer, "_link", lambda self: Refusing())
        for each in (searching(directory), binding(directory)):
            assert logIn(each) == AWAY
        assert logIn(searching(directory, startsTLS=True)) == AWAY


# --- connections ------------------------------------------------------------------------


def connections(server: LDAPServer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """
    @return: a list that gets each new connection.
    """
    made: list[Any] = []
    original = server._link

    def link() -> Any:
        made.append(original())
        return made[-1]

    monkeypatch.setattr(server, "_link", link)
    return made


def test_keptConnection(slapd: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    for accounts in both(slapd):
        made = connections(accounts._server, monkeypatch)
        # A connection of one user must not be the connection of the next.
        for _ in range(3):
            assert logIn(accounts) == "ann"
            assert logIn(accounts, "nobody") is None and logIn(accounts, password="x") is None
        assert len(made) == 1
        accounts.reload()
        assert logIn(accounts) == "ann" and len(made) == 2


def test_restart(slapd: Slapd, logged: list[str]) -> None:
    """
    A kept connection of a former server is noticed before a password is sent.
    """
    sources = both(slapd)
    for _ in range(2):
        assert [logIn(each) for each in sources] == ["ann", "ann"]
        slapd.stop()
        slapd.start()
    assert logged == []
    slapd.stop()
    assert [logIn(each) for each in sources] == [AWAY, AWAY]
    assert [logIn(each) for each in sources] == [AWAY, AWAY]
    slapd.start()
    assert [logIn(each) for each in sources] == ["ann", "ann"]
    assert len(logged) == 4
    assert logged[0].startswith(f"the LDAP server at {slapd.url} is not available: it cannot be r")
    assert logged[3] == f"the LDAP server at {slapd.url} is available again"


def test_age(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection is not used after a long pause, and not for ever.
    """
    now = [1000.0]
    accounts = searching(directory, now=lambda: now[0])
    made = connections(accounts._server, monkeypatch)
    assert logIn(accounts) == "ann"
    for step, count in ((29, 1), (29, 1), (31, 2)):
        now[0] += step
        assert logIn(accounts) == "ann" and len(made) == count
    for _ in range(22):
        now[0] += 29
        assert logIn(accounts) == "ann"
    assert len(made) == 3
    # The files of closed connections are closed.
    for link in made[:2]:
        with pytest.raises(Exception):  # noqa: B017
            link.whoami_s()


def test_keptConnectionsAreBounded(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    each = server(directory, mostKept=2)
    made = connections(each, monkeypatch)

    def nested(depth: int) -> None:
        def work(connection: Any) -> None:
            connection.bind(READER, PASSWORD)
            if depth > 1:
                nested(depth - 1)

        each.run(work)

    nested(5)
    assert len(made) == 5 and len(each._idle) == 2
    nested(3)
    assert len(made) == 6


def test_frozen(slapd: Slapd, logged: list[str]) -> None:
    """
    A server that does not answer costs its time limit, with a kept connection and with a new one.
    """
    for accounts in (searching(slapd, timeout=0.5), binding(slapd, timeout=0.5)):
        assert logIn(accounts) == "ann"
        slapd.freeze()
        for _ in range(2):
            began = time.monotonic()
            assert logIn(accounts) == AWAY
            assert 0.4 <= time.monotonic() - began < 30
        slapd.thaw()
        assert logIn(accounts) == "ann"
    assert [line.partition("available")[2] for line in logged] == [
        ": no answer within 0.5 s",
        " again",
    ] * 2


@contextmanager
def listener(
    *answers: bytes, mayEnd: bool = False, asked: list[object] | None = None
) -> Iterator[str]:
    """
    A server that gives its answers, one for each message, and then keeps silent.

    @param mayEnd: whether it ends the connection after its answers.
    @param asked: gets the connections.
    @return: its address.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[Any] = [] if asked is None else asked

        def serve() -> None:
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return
                for each in answers:
                    held[-1].recv(65536)
                    held[-1].sendall(each)
                if mayEnd:
                    held[-1].close()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for each in held:
                each.close()


def test_silent(directory: Slapd) -> None:
    """
    The time limit is one for the whole exchange.
    """
    accepted = bytes.fromhex("300c02010161070a010004000400")
    with listener(accepted) as address:
        accounts = searching(directory, url=f"ldap://{address}", timeout=0.5)
        began = time.monotonic()
        assert logIn(accounts) == AWAY
        assert 0.4 <= time.monotonic() - began < 30
    with listener() as address:
        accounts = searching(
            directory,
            url=f"ldap://{address}",
            startsTLS=True,
            timeout=0.5,
            authorities=directory.ca,
        )
        assert logIn(accounts) == AWAY


def test_nonsense(directory: Slapd, logged: list[str]) -> None:
    for answer in (b"* OK IMAP4rev1\r\n", b"\0" * 100, b"0\x84\xff\xff\xff\xff"):
        with listener(answer, mayEnd=True) as address:
            accounts = binding(directory, url=f"ldap://{address}", timeout=0.5)
            assert logIn(accounts) == AWAY
    assert len(logged) == 3


def test_referrals(slapd: Slapd, logged: list[str]) -> None:
    """
    A referral leads to no other server.
    """
    asked: list[object] = []
    with listener(asked=asked) as address:
        dn = f"uid=elsewhere,{BASE}"
        with slapd.root() as link:
            link.add_s(
                dn,
                [
                    ("objectClass", [b"referral", b"extensibleObject"]),
                    ("uid", [b"elsewhere"]),
                    ("ref", [f"ldap://{address}/{dn}".encode()]),
                ],
            )
        assert [logIn(each) for each in both(slapd)] == ["ann", "ann"]
        assert [logIn(each, "elsewhere") for each in both(slapd)] == [None, None]
    assert asked == [] and logged == []


# --- TLS ------------------------------------------------------------------------------


def overTLS(slapd: Slapd, authorities: str, host: str = "127.0.0.1") -> list[LDAPAccounts]:
    return [
        searching(slapd, url=slapd.tlsURL.replace("127.0.0.1", host), authorities=authorities),
        searching(
            slapd,
            url=slapd.url.replace("127.0.0.1", host),
            startsTLS=True,
            authorities=authorities,
        ),
    ]


def test_tls(slapd: Slapd, tmp_path: Path, logged: list[str]) -> None:
    for accounts in overTLS(slapd, slapd.ca):
        for _ in range(2):
            assert logIn(accounts) == "ann" and logIn(accounts, password="wrong") is None
    stranger = Authority()
    stranger.write(tmp_path / "other.pem")
    wrong = [
        *overTLS(slapd, str(tmp_path / "other.pem")),
        *overTLS(slapd, "/etc/ssl/certs/ca-certificates.crt"),
    ]
    assert [logIn(each) for each in wrong] == [AWAY] * 4
    slapd.useCertificate(slapd.authority, "other.example.org")
    named = overTLS(slapd, slapd.ca)
    assert [logIn(each) for each in named] == [AWAY] * 2
    slapd.useCertificate(stranger, "127.0.0.1")
    assert [logIn(each) for each in named] == [AWAY] * 2
    assert len(logged) == 6
    assert all("TLS failed, for example because its certificate is not" in line for line in logged)
    # The checkers recover.
    slapd.useCertificate(slapd.authority, "127.0.0.1")
    assert [logIn(each) for each in named] == ["ann"] * 2


def test_plainServerForTLS(directory: Slapd) -> None:
    """
    A port without TLS gets no password.
    """
    url = directory.url.replace("ldap:", "ldaps:")
    assert logIn(searching(directory, url=url, authorities=directory.ca, timeout=2)) == AWAY
    # This server refuses StartTLS.
    refused = bytes.fromhex("300c02010178070a010204000400")
    with listener(refused) as address:
        accounts = searching(
            directory,
            url=f"ldap://{address}",
            startsTLS=True,
            authorities=directory.ca,
            timeout=0.5,
        )
        assert logIn(accounts) == AWAY


def test_authoritiesAreGone(directory: Slapd, tmp_path: Path, logged: list[str]) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Path(directory.ca).read_bytes())
    (accounts, _) = overTLS(directory, str(ca))
    ca.unlink()
    assert logIn(accounts) == AWAY
    assert f"TLS cannot be set up with {ca}" in logged[0]


def test_otherHandshakesGoOn(slapd: Slapd) -> None:
    """
    A TLS handshake that does not end keeps no lock of the library.
    """
    hanging: list[object] = []
    with listener(asked=hanging) as address:
        silent = searching(slapd, url=f"ldaps://{address}", authorities=slapd.ca)
        thread = threading.Thread(target=logIn, args=[silent], daemon=True)
        thread.start()
        while not hanging:
            time.sleep(0.01)
        assert [logIn(each) for each in overTLS(slapd, slapd.ca)] == ["ann", "ann"]
        assert thread.is_alive()
    thread.join(60)


def test_authoritiesOfTheSystem(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    import ldap

    # libldap knows a file, or OpenSSL does, or nobody does.
    monkeypatch.setattr(ldap, "get_option", lambda _: None)
    paths = ssl.get_default_verify_paths()._replace(cafile=directory.ca)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    assert logIn(searching(directory, url=directory.tlsURL)) == "ann"
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths._replace(cafile=None))
    with pytest.raises(ValueError, match="no file of certificates for libldap; add ca=FILE"):
        searching(directory, url=directory.tlsURL)


# --- time and threads -------------------------------------------------------------------------------


def test_unknownUsersTakeAsLong(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The server gets the same operations for an unknown user and for a wrong password.
    """
    operations: list[str] = []
    original = LDAPConnection._do

    def do(connection: LDAPConnection, operation: Any, *arguments: Any, **named: Any) -> Any:
        operations.append(operation.__name__)
        return original(connection, operation, *arguments, **named)

    monkeypatch.setattr(LDAPConnection, "_do", do)
    directory.addUser("double")
    directory.addUser("double", "cn=double")
    accounts = searching(directory)
    for name in ("ann", "nobody", "double"):
        assert logIn(accounts, name, "wrong") is None
        assert operations == ["simple_bind_s", "search_ext_s", "simple_bind_s"]
        operations.clear()


class Link:
    """
    A connection of python-ldap in memory, whose operations take two seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.limits: list[float] = []
        self.sizes: list[int] = []

    def set_option(self, option: int, value: float) -> None:
        import ldap

        if option == ldap.OPT_TIMEOUT:
            self.limits.append(value)

    def simple_bind_s(self, *_: str) -> None:
        self.now += 2

    def search_ext_s(self, *_: Any, sizelimit: int) -> list[Any]:
        self.now += 2
        self.sizes.append(sizelimit)
        return []


def test_oneTimeLimit() -> None:
    """
    All operations of an exchange share its time, and a search asks for two entries at most.
    """
    link = Link()
    connection = LDAPConnection(link, 5, lambda: link.now)
    connection.begin()
    assert connection.bind(READER, PASSWORD) is None
    assert connection.read(READER, ["uid"]) is None
    assert connection.bind(READER, PASSWORD) is None
    assert link.limits == [5, 3, 1] and link.sizes == [2]
    with pytest.raises(CheckUnavailable, match="no answer within 5 s"):
        connection.bind(READER, PASSWORD)
    assert link.now == 6
    connection.begin()
    assert connection.bind(READER, PASSWORD) is None and link.limits[-1] == 5


def test_manyAtOnce(directory: Slapd) -> None:
    """
    Threads that share the kept connections never get the answer of another login.
    """
    logins = [(f"user{each}", f"word{each}") for each in range(10)]
    for name, password in logins:
        directory.addUser(name, password=password)
    for accounts in both(directory):

        def check(number: int, accounts: LDAPAccounts = accounts) -> bool:
            name, password = logins[number % 10]
            isRight = number % 3 > 0
            wanted = accounts._way.nameOf(name)
            word = password if isRight else logins[(number + 1) % 10][1]
            answer = accounts._check(wanted, word)
            assert isinstance(answer, Answer)
            return (answer.account is not None and answer.account.mailbox == name) == isRight

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(check, range(600)))
        assert len(accounts._server._idle) <= 10
