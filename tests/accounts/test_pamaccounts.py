"""
Accounts that PAM knows: with a library of the test, and with the real one on a system of the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

try:
    import pamela  # noqa: F401
except (ImportError, AttributeError, OSError):
    # It loads libpam when it is imported.
    pytest.skip("pamela or libpam is not installed", allow_module_level=True)

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.pamaccounts import PAMAccounts
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountNames, IAccountStatus, IProvenAccounts
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.service.plugins import PAMAccountsMaker
from pop3svc.systemusers import SystemUser
from pop3svc.testing import Client, Inline
from tests.support.coroutines import start
from tests.support.pam import System, hasNamespaces
from tests.support.running import environment, forEverybody


class PAMError(Exception):
    def __init__(self, errno: int) -> None:
        super().__init__()
        self.errno = errno
        self.message = f"text {errno}"


class Library:
    """
    The module C{pamela}, with one user.

    @ivar code: the result of the next calls; 0: the password decides.
    """

    PAMError = PAMError

    def __init__(self) -> None:
        self.code = 0
        self.calls: list[Any] = []

    def authenticate(self, name: str, password: str, service: str, resetcred: int) -> None:
        assert isinstance(name, str) and isinstance(password, str) and not resetcred
        self.calls.append((name, password, service))
        if self.code or (name.lower(), password) != ("alice", "secret"):
            raise PAMError(self.code or 7)

    def check_account(self, name: str, service: str) -> None:
        self.calls.append((name, service))
        if self.code or name.lower() != "alice":
            raise PAMError(self.code or 10)


class Site:
    def __init__(self, **options: Any) -> None:
        self.library = Library()
        self.users = {
            "alice": SystemUser(1000, 1000, "/home/alice", (1000,), "alice"),
            "Alice": SystemUser(1000, 1000, "/home/alice", (1000,), "alice"),
            "root": SystemUser(0, 0, "/root", (0,), "root"),
        }
        self.isAway = False
        self.accounts = PAMAccounts(
            threads=Inline(), clock=Clock(), pam=self.library, look=self._look, **options
        )

    def _look(self, name: str) -> SystemUser | None:
        if self.isAway:
            raise OSError(5, "Input/output error")
        return self.users.get(name)

    def ask(self, name: bytes = b"alice", password: bytes = b"secret") -> Any:
        """
        @return: the name of the mailbox, the code of an error, or False for a wrong password.
        """
        return outcome(self.accounts.requestAvatarId(UsernamePassword(name, password)))


def outcome(answer: Any) -> Any:
    async def wait() -> Any:
        return await answer if hasattr(answer, "__await__") else answer

    _, [found] = start(wait())
    if not hasattr(found, "check"):
        return found
    if found.check(UnauthorizedLogin):
        return False
    assert found.check(POP3ResponseError), found
    return found.value.code


def asked(site: Site, name: bytes, password: bytes) -> Any:
    try:
        return site.ask(name, password)
    except UnauthorizedLogin:
        return False
    except POP3ResponseError as error:
        return error.code


def test_passwords() -> None:
    site = Site()
    assert asked(site, b"alice", b"secret") == b"alice"
    assert asked(site, b"alice", b"other") is False
    assert asked(site, b"bob", b"secret") is False
    # The system ignores case, and a user has one mailbox.
    assert asked(site, b"Alice", b"secret") == b"alice"
    # PAM may know users that the system does not.
    del site.users["alice"]
    assert asked(site, b"alice", b"secret") == b"alice"
    assert verifyObject(ICredentialsChecker, site.accounts)


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"alice", b""),
        (b"", b"secret"),
        (b"alice", b"secret\0"),
        (b"alice\0x", b"secret"),
        (b"alice", b"secret\xff"),
        (b"alice\xff", b"secret"),
        (b"alice", b"x" * 512),
        (b"a" * 256, b"secret"),
        (b"../alice", b"secret"),
        (b"a/b", b"secret"),
        (b"-f", b"secret"),
        (b"al ice", b"secret"),
        (b"al\nice", b"secret"),
        (b"al\x1bice", b"secret"),
        ("al\u202eice".encode(), b"secret"),
        (b"root", b"secret"),
    ],
)
def test_neverAsked(name: bytes, password: bytes) -> None:
    site = Site()
    assert asked(site, name, password) is False
    assert site.library.calls == []


def test_longest() -> None:
    site = Site()
    asked(site, b"a" * 255, "ä".encode() * 255)
    assert site.library.calls == [("a" * 255, "ä" * 255, "pop3svc")]


@pytest.mark.parametrize("code", [6, 12, 13, 27])
def test_refusedUsers(code: int, logged: list[str]) -> None:
    """
    An account that may not be used looks like a wrong password, and the log has the reason once.
    """
    site = Site()
    logged.clear()
    site.library.code = code
    assert asked(site, b"alice", b"secret") is asked(site, b"alice", b"secret") is False
    assert len(logged) == 1 and logged[0].startswith("alice cannot log in: ")
    assert "secret" not in logged[0]
    site.accounts.reload()
    assert asked(site, b"alice", b"secret") is False
    assert len(logged) == 2


@pytest.mark.parametrize("code", [7, 10, 11])
def test_wrong(code: int, logged: list[str]) -> None:
    site = Site()
    logged.clear()
    site.library.code = code
    assert asked(site, b"alice", b"secret") is False
    assert logged == []


@pytest.mark.parametrize("code", [1, 3, 4, 5, 8, 9, 19, 26, 28, 99])
def test_outOfOrder(code: int, logged: list[str]) -> None:
    site = Site()
    logged.clear()
    site.library.code = code
    assert asked(site, b"alice", b"secret") == asked(site, b"alice", b"x") == "SYS/TEMP"
    [line] = logged
    assert "the PAM service pop3svc" in line and f"text {code} (PAM error {code})" in line
    site.library.code = 0
    assert asked(site, b"alice", b"secret") == b"alice"
    assert len(logged) == 2
    site.isAway = True
    assert asked(site, b"alice", b"secret") == "SYS/TEMP"


def test_guesses() -> None:
    """
    A refusal counts as a guess; an answer that PAM cannot give does not.
    """

    class Attempt:
        isFromKnownNetwork = isGuess = wasRefused = False

    site = Site()
    for code, isGuess in ((0, True), (13, True), (9, False)):
        site.library.code = code
        attempt = Attempt()
        with pytest.raises((UnauthorizedLogin, POP3ResponseError)):
            site.accounts.requestAvatarId(PasswordAttempt(b"alice", b"wrong", attempt))
        assert attempt.wasRefused is isGuess


def test_accounts() -> None:
    site = Site()
    accounts: Any = site.accounts
    for each in (IAccountNames, IAccountStatus, IProvenAccounts):
        assert verifyObject(each, accounts)
    assert outcome(accounts.provenMailbox(None, "alice")) == "alice"
    assert outcome(accounts.provenMailbox(None, "Alice")) == "alice"
    assert outcome(accounts.isStillValid(None, "alice", "pam")) is True
    for name in ("bob", "root", "", "a/b", "alice\0", "\udcff"):
        assert outcome(accounts.provenMailbox(None, name)) is None
        assert outcome(accounts.isStillValid(None, name, "pam")) is False
        assert outcome(accounts.hasAccount(name)) is False
    assert outcome(accounts.hasAccount("alice")) is True
    # Nobody would read the mail of another spelling.
    assert outcome(accounts.hasAccount("Alice")) is False
    site.library.code = 13
    assert outcome(accounts.provenMailbox(None, "alice")) is None
    assert outcome(accounts.isStillValid(None, "alice", "pam")) is False
    assert outcome(accounts.hasAccount("alice")) is True
    site.library.code = 9
    assert outcome(accounts.provenMailbox(None, "alice")) == "SYS/TEMP"
    site.isAway = True
    assert outcome(accounts.hasAccount("alice")) == "SYS/TEMP"
    assert not IAccountNames.providedBy(Site(isSystem=False).accounts)


def test_session() -> None:
    """
    A sleeping session does not wake up when PAM does not permit the account any more.
    """
    site = Site()
    provider = AccountsProvider(MemoryStore([b"a: b\n\nc\n"]), [site.accounts])
    client = Client(POP3Factory(provider, clock=Clock()))
    client.logIn(b"alice", b"secret")
    assert client.say(b"SLEE").startswith(b"+OK")
    assert client.say(b"WAKE").startswith(b"+OK")
    assert client.say(b"SLEE").startswith(b"+OK")
    site.library.code = 13
    assert client.say(b"WAKE").startswith(b"-ERR")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("../x", "a PAM service is the name of a file"),
        (".x", "a PAM service is the name of a file"),
        ("x" * 65, "a PAM service is the name of a file"),
        ("x:nss=perhaps", "nss is yes or no"),
        ("x:timeout=0", "timeout is a number of seconds, from 1 to 60"),
        ("timeout=61", "timeout is a number of seconds, from 1 to 60"),
        ("x:concurrent=0", "concurrent is a number from 1 to 100"),
        ("x:timeout=1:timeout=2", "timeout is given twice"),
        ("x:y=z", "a PAM service is the name of a file"),
    ],
)
def test_badArguments(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PAMAccountsMaker().generateChecker(argument)


def test_arguments(logged: list[str]) -> None:
    made = PAMAccountsMaker().generateChecker("no-such-service:nss=no:timeout=5")
    assert not IAccountNames.providedBy(made)
    if os.path.isdir("/etc/pam.d"):
        assert "PAM has no service no-such-service in /etc/pam.d" in logged[0]
    assert IAccountNames.providedBy(PAMAccountsMaker().generateChecker(""))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError, r"pamela is needed: pip install 'pop3svc\[pam\]'"),
        (AttributeError, "the library of PAM is needed"),
    ],
)
def test_missing(error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pamela":
                raise error(name)

    monkeypatch.delitem(sys.modules, "pamela", raising=False)
    monkeypatch.delitem(sys.modules, "pop3svc.accounts.pamaccounts", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ValueError, match=says):
        PAMAccountsMaker().generateChecker("")


# --- the real library -----------------------------------------------------------

realPAM = pytest.mark.skipif(not hasNamespaces(), reason="needs root and mount namespaces")

# Prints the outcome of each question on the standard input.
PROGRAM = """
import json, sys
from twisted.cred.error import UnauthorizedLogin
from pop3svc.accounts.pamaccounts import PAMAccounts
from pop3svc.accounts.blockingchecks import CheckUnavailable
service, questions = json.load(sys.stdin)
accounts = PAMAccounts(service)
answers = []
for name, password in questions:
    try:
        if password is None:
            found = accounts._account(name)
        else:
            found = accounts._authenticate(name, password)
        answers.append([found.mailbox, found.reason])
    except CheckUnavailable as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture
def system() -> Iterator[System]:
    with forEverybody() as path:
        yield System(path)


def answers(system: System, *questions: tuple[str, str | None], service: str = "pop3svc") -> Any:
    done = subprocess.run(
        system.command([sys.executable, "-c", PROGRAM]),
        input=json.dumps([service, questions]),
        capture_output=True,
        text=True,
        check=False,
        env=environment("/"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WRONG = ["", ""]
EXPIRED = ["", "the account has expired"]
MUST_CHANGE = ["", "the password has expired and must be changed"]
INACTIVE = ["", "the password has expired, and the account with it"]


@realPAM
def test_states(system: System) -> None:
    """
    Each state of an account of C{shadow}(5).
    """
    system.user("alice", 20001, "secret")
    system.user("expired", 20002, "secret", aging=f"0:99999:7::{int(time.time() // 86400) - 1}")
    system.user("change", 20003, "secret", aging="0:1:7::")
    system.user("inactive", 20004, "secret", aging="0:1:7:1:", changed=-30)
    system.user("locked", 20005, "secret")
    system.user("empty", 20006, "")
    shadow = system.path / "shadow"
    shadow.write_text(shadow.read_text().replace("locked:$", "locked:!$"))
    found = answers(
        system,
        ("alice", "secret"),
        ("alice", "wrong"),
        ("nobody-knows", "secret"),
        *((each, "secret") for each in ("expired", "change", "inactive", "locked", "empty")),
        *((each, "wrong") for each in ("expired", "change", "inactive", "root")),
        *((each, None) for each in ("alice", "expired", "change", "nobody-knows")),
    )
    assert found[:3] == [["alice", ""], WRONG, WRONG]
    assert found[3:8] == [EXPIRED, MUST_CHANGE, INACTIVE, WRONG, WRONG]
    assert found[8:12] == [WRONG, WRONG, WRONG, ["", "root is not served"]]
    assert found[12:] == [["alice", ""], EXPIRED, MUST_CHANGE, WRONG]


@realPAM
def test_services(system: System) -> None:
    """
    Services that refuse, that lack a module, and that do not exist.
    """
    system.user("alice", 20001, "secret")
    unix = "auth required pam_unix.so nodelay\n"
    system.service("denied", unix + "account required pam_deny.so\n")
    system.service("missing", "auth required pam_of_nobody.so\naccount required pam_permit.so\n")
    system.service("broken", "this is no rule\n")
    system.service("open", "auth required pam_permit.so\naccount required pam_permit.so\n")
    system.service(
        "talks", "auth optional pam_echo.so hello\n" + unix + "account required pam_unix.so\n"
    )
    question = ("alice", "secret")
    assert answers(system, question, service="open") == [["alice", ""]]
    assert answers(system, question, service="talks") == [["alice", ""]]
    assert answers(system, question, service="denied") == [WRONG]
    [found] = answers(system, question, service="missing")
    assert found == "Module is unknown (PAM error 28)"
    assert answers(system, question, service="broken") == [["", "PAM does not permit it"]]
    assert answers(system, question, service="absent") == [WRONG]
