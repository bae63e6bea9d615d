"""
Application passwords of a password file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from pop3svc.accounts import apppasswordfile, apppasswordlines, passwordfile
from pop3svc.accounts.apppasswordfile import AppPasswordFile, UseTimes
from pop3svc.accounts.apppasswordlines import (
    addAppPassword,
    fileOf,
    lastUses,
    readAppPasswords,
    recordUses,
    revokeAppPasswords,
)
from pop3svc.accounts.apppasswords import expiryOf, makeSecret, secretIn
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordediting import removeUser, setPassword
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.testing import Inline, conversation

_quick = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
MAIN = "$6$abcdefgh$yIZAF3gQPvtKZO/9qOJKffAKKbtS3ef3qmwyugk4uWVjX8YZf/GV3A8SkFxEPY0T56CcilGrHKLffBsp6dLMG."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Hash with little work.
    """
    monkeypatch.setattr(apppasswordlines, "hashPassword", _quick.hash)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "users").write_text(f"ann:{MAIN}\nben:{{PLAIN}}x\ncat:{MAIN}\n")
    return str(tmp_path / "users")


class Counting(Inline):
    """
    Runs work at once, and keeps the hashes that are compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[str] = []

    def run(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        if getattr(work, "__name__", "") == "_compare":
            self.compared.append(arguments[0])
        return super().run(work, *arguments, **named)


def answer(checker: Any, password: str, name: str = "ann", clientIP: str = "192.0.2.1") -> Any:
    """
    @return: the name of the user, None if the login is refused, or another error.
    """
    got: list[Any] = []
    credentials = PasswordAttempt(
        name.encode(), password.encode("utf-8", "surrogateescape"), clientIP=clientIP
    )
    maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
    if isinstance(got[0], bytes):
        return got[0].decode()
    return None if got[0].check(UnauthorizedLogin) else got[0].value


# --- the form of a secret -------------------------------------------------------------


def test_form() -> None:
    selector, secret = makeSecret()
    assert re.fullmatch("(?:[a-z2-7]{4}-){7}[a-z2-7]{4}", secret) and secret.startswith(selector)
    bare = secret.replace("-", "").encode()
    for typed in (secret, secret.upper(), secret.replace("-", " "), secret.replace("-", "")):
        assert secretIn(typed.encode()) == (selector, bare)
    assert len({makeSecret()[1] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "password",
    ["", "secret", "a" * 31, "a" * 33, "aaaa-" * 8, "aaa1" + "-aaaa" * 7, "aaaa--" + "a" * 28]
    + ["a" * 31 + "ä", "a" * 32 + "\n", "aaaa-aaaa" * 200, " " + "a" * 32],
)
def test_otherForms(password: str) -> None:
    assert secretIn(password.encode()) is None


def test_selectorsDiffer(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter("aaaaaaaabbbb" + "c" * 28)
    monkeypatch.setattr("pop3svc.accounts.apppasswords.secrets.choice", lambda _: next(drawn))
    assert makeSecret({"aaaa"}) == ("bbbb", "bbbb-" + "-".join(["cccc"] * 7))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (0, 0.0),
        (1e9, 1e9),
        ("1970-01-01", 86_400 - 1e-6),
        (date(1970, 1, 1), 86_400 - 1e-6),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01 00:01:00+00:01", 0.0),
        (datetime(1970, 1, 1, 0, 1), 60.0),
        (datetime(1970, 1, 1, 0, 1, tzinfo=timezone(timedelta(minutes=1))), 0.0),
    ],
)
def test_expiry(value: Any, expected: float | None) -> None:
    assert expiryOf(value) == expected


@pytest.mark.parametrize("value", ["tomorrow", "2030-13-01", "0", True, b"2030-01-01", [1]])
def test_badExpiry(value: Any) -> None:
    with pytest.raises(ValueError, match="a time of expiry that is not"):
        expiryOf(value)


# --- logins ---------------------------------------------------------------------------


def test_login(path: str) -> None:
    """
    Each application password and the password of the account work, and each login compares one
    hash.
    """
    phone, laptop = (addAppPassword(path, "ann", each) for each in ("Phone", "Laptop"))
    runner = Counting()
    checker = PasswordFile(path, runner, Clock())
    for secret in (phone, laptop, laptop.upper().replace("-", " ")):
        assert answer(checker, secret) == "ann"
        assert len(runner.compared) == 1
        assert runner.compared.pop().startswith("$argon2id$")
    # Refused are a wrong end, an unknown selector, an unknown user, and the secret of another user.
    last = "a" if phone[-1] != "a" else "b"
    unknown = "aaaa" if phone[:4] != "aaaa" and laptop[:4] != "aaaa" else "bbbb"
    assert answer(checker, phone[:-1] + last) is None
    assert [each[:4] for each in runner.compared] == ["$arg"]
    runner.compared.clear()
    for name in ("ann", "nobody"):
        assert answer(checker, unknown + phone[4:], name) is None
    assert answer(checker, phone, "nobody") is None
    assert runner.compared == [MAIN] * 3
    assert answer(checker, phone, "ben") is None and answer(checker, "x", "ben") == "ben"


def test_mainPasswordOfThisForm(path: str) -> None:
    """
    A password of the account may look like an application password.
    """
    main = "abcd" * 8
    setPassword(path, "ann", main)
    assert answer(PasswordFile(path, Inline(), Clock()), main) == "ann"
    addAppPassword(path, "ann", "Phone")
    assert answer(PasswordFile(path, Inline(), Clock()), main) == "ann"


def test_otherPasswordsReadNothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The file is not looked at for a password of another form.
    """
    checker = PasswordFile(path, Inline(), Clock())

    def never(_: str) -> Any:
        raise AssertionError

    monkeypatch.setattr(apppasswordfile, "stampOf", never)
    assert answer(checker, "x", "ben") == "ben" and answer(checker, "wrong", "ben") is None


@pytest.mark.parametrize("how", ["label", "selector", "all", "file", "user"])
def test_revoked(path: str, how: str) -> None:
    """
    A revoked password is refused at once.
    """
    phone, laptop = (addAppPassword(path, "ann", each) for each in ("Phone", "Laptop"))
    checker = PasswordFile(path, Inline(), Clock())
    assert answer(checker, phone) == answer(checker, laptop) == "ann"
    if how == "file":
        os.unlink(fileOf(path))
    elif how == "user":
        removeUser(path, "ann")
    else:
        which = {"label": "Phone", "selector": phone[:4], "all": None}[how]
        assert revokeAppPasswords(path, "ben") == revokeAppPasswords(path, "ann", "phone") == 0
        assert revokeAppPasswords(path, "ann", which) == (2 if how == "all" else 1)
    assert answer(checker, phone) is None
    assert answer(checker, laptop) == ("ann" if how in ("label", "selector") else None)


def test_ambiguous(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the label of one password is the selector of another password, the label decides which of
    them is revoked.
    """
    monkeypatch.setattr(apppasswordlines, "makeSecret", lambda taken: ("mutt", "mutt" * 8))
    addAppPassword(path, "ann", "first")
    monkeypatch.setattr(apppasswordlines, "makeSecret", lambda taken: ("abcd", "abcd" * 8))
    addAppPassword(path, "ann", "mutt")
    assert revokeAppPasswords(path, "ann", "mutt") == 1
    assert [each.label for each in readAppPasswords(path)[0].values()] == ["first"]


@pytest.mark.parametrize("extra", ["", "::::::allow_nets=192.0.2.0/24", "::::::nologin=Closed"])
def test_restrictions(path: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The password's own restrictions and those of the account apply, and both only after the
    comparison.
    """
    Path(path).write_text(f"ann:{MAIN}{extra}\n")
    network = addAppPassword(path, "ann", "Office", ["192.0.2.0/25", "2001:db8::/32"])
    expiring = addAppPassword(path, "ann", "Guest", expires="2026-11-30")
    runner = Counting()
    checker = PasswordFile(path, runner, Clock())
    checker.rememberChecks(100)
    now = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()
    monkeypatch.setattr(time, "time", lambda: now)

    def check(secret: str, clientIP: str = "192.0.2.1") -> Any:
        return answer(checker, secret, clientIP=clientIP)

    if "nologin" in extra:
        refusal = check(network)
        assert (refusal.text, refusal.code) == ("Closed", "SYS/PERM")
        assert check(network, "192.0.2.200") is None
        return
    isFree = extra == ""
    assert check(network) == check(expiring) == "ann"
    assert check(network, "192.0.2.200") is None
    assert check(network, "2001:db8::1") == ("ann" if isFree else None)
    assert check(expiring, "198.51.100.1") == ("ann" if isFree else None)
    now += 60
    runner.compared.clear()
    for _ in range(2):
        assert check(expiring) is None and check(network, "192.0.2.200") is None
    assert len(runner.compared) == 4, "a remembered check would tell that the password is right"
    assert check(network) == "ann" and len(runner.compared) == 4


def test_wake(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A session does not wake up after its application password has expired or was revoked.  The
    password of the account may change.
    """
    phone, laptop = (
        addAppPassword(path, "ann", "Phone", expires="2026-11-30"),
        addAppPassword(path, "ann", "Laptop"),
    )
    now = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
    monkeypatch.setattr(time, "time", lambda: now)
    checker = PasswordFile(path, Inline(), Clock())
    provider = AccountsProvider(MemoryStore([b"x"]), [checker])
    script = (
        "S: +OK…\nC: XLOG {0} {1}\nS: +OK…\nC: SLEE\nS: +OK…\nC: WAKE\nS: +OK…\nC: SLEE\nS: +OK…"
    )
    first, second, main = (
        conversation(provider, script.format(*each))
        for each in (("ann", phone), ("ann", laptop), ("ben", "x"))
    )
    setPassword(path, "ann", "other")
    assert first.say(b"WAKE").startswith(b"+OK")
    assert first.say(b"SLEE").startswith(b"+OK")
    now += 86_400
    assert first.say(b"WAKE").startswith(b"-ERR [AUTH]")
    assert second.say(b"WAKE").startswith(b"+OK")
    assert second.say(b"SLEE").startswith(b"+OK")
    revokeAppPasswords(path, "ann", "Laptop")
    assert second.say(b"WAKE").startswith(b"-ERR [AUTH]")
    assert main.say(b"WAKE").startswith(b"+OK")


def test_wakeOfAnotherEntry(path: str) -> None:
    """
    A version is no longer valid if the line has changed, or if the user is barred or removed.
    """
    secret = addAppPassword(path, "ann", "Phone")
    checker = PasswordFile(path, Inline(), Clock())
    attempt = PasswordAttempt(b"ann", secret.encode(), clientIP="::1")
    maybeDeferred(checker.requestAvatarId, attempt)
    info = ConnectionInfo(1, "::1", True)
    assert attempt.version.startswith("app:")
    assert checker.isStillValid(info, "ann", attempt.version) is True
    assert checker.isStillValid(info, "ben", attempt.version) is False
    text = Path(fileOf(path)).read_text()
    Path(fileOf(path)).write_text(text.replace(" label", " networks=::1 label"))
    assert checker.isStillValid(info, "ann", attempt.version) is False
    Path(fileOf(path)).write_text(text)
    assert checker.isStillValid(info, "ann", attempt.version) is True
    Path(path).write_text(f"ann:{MAIN}::::::nologin\n")
    assert checker.isStillValid(info, "ann", attempt.version) is False
    Path(path).write_text("ben:{PLAIN}x\n")
    assert checker.isStillValid(info, "ann", attempt.version) is False


def test_oneOfTwoSessions(path: str) -> None:
    """
    Sessions of one user have the versions of their own passwords.
    """
    secrets = [addAppPassword(path, "ann", each) for each in ("Phone", "Laptop")]
    attempts = [PasswordAttempt(b"ann", each.encode()) for each in secrets]
    checker = PasswordFile(path, Inline(), Clock())
    for each in attempts:
        maybeDeferred(checker.requestAvatarId, each)
    revokeAppPasswords(path, "ann", "Laptop")
    info = ConnectionInfo(1, "::1", True)
    valid = [checker.isStillValid(info, "ann", each.version) for each in attempts]
    assert valid == [True, False]


# --- the file -------------------------------------------------------------------------


def test_line(path: str) -> None:
    secret = addAppPassword(path, "ann", "Ann's phone: label=1", ["192.0.2.0/24"], "2030-12-31")
    (entry,) = readAppPasswords(path)[0].values()
    assert (entry.user, entry.selector, entry.label) == ("ann", secret[:4], "Ann's phone: label=1")
    assert [str(each) for each in entry.password.networks] == ["192.0.2.0/24"]
    assert entry.password.expires == expiryOf("2030-12-31")
    assert abs(expiryOf(entry.created) - time.time()) < 100  # type: ignore[operator]
    assert os.stat(fileOf(path)).st_mode & 0o777 == 0o600
    assert secret.replace("-", "")[4:] not in Path(fileOf(path)).read_text()
    with pytest.raises(
        ValueError, match="ann already has an application password Ann's phone: label=1"
    ):
        addAppPassword(path, "ann", "Ann's phone: label=1")


@pytest.mark.parametrize("label", ["", " x", "x\ny", "x" * 101, "\udcff"])
def test_badLabel(path: str, label: str) -> None:
    with pytest.raises(ValueError, match="a label is printable text"):
        addAppPassword(path, "ann", label)
    assert not os.path.exists(fileOf(path))


def test_bound(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apppasswordlines, "MOST", 2)
    for each in ("1", "2"):
        addAppPassword(path, "ann", each)
    with pytest.raises(ValueError, match="ann already has 2 application passwords"):
        addAppPassword(path, "ann", "3")
    addAppPassword(path, "ben", "3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line.replace(":", ";"), "fewer than four fields"),
        (lambda line: line.replace("ann:", "a nn:"), "a user name is"),
        (lambda line: line.replace("ann:", "ann:x"), "a malformed selector"),
        (lambda line: line.replace("$argon2id$", "$argon3id$"), "unknown kind"),
        (lambda line: line.replace("networks=", "nets="), "an unknown setting"),
        (lambda line: line.replace("networks=::1", "networks="), "networks is not a list"),
        (lambda line: line.replace("networks=::1", "networks=everywhere"), "a malformed list"),
        (lambda line: line.replace("expires=2099-01-01", "expires=never"), "a time of expiry"),
        (lambda line: line.replace("expires=2099-01-01", "expires="), "an empty time of expiry"),
        (lambda line: line + line, "listed twice"),
    ],
)
def test_badLine(path: str, logged: list[str], change: Any, says: str) -> None:
    """
    A restriction that cannot be read makes the password useless.  The other lines work.
    """
    secret = addAppPassword(path, "ann", "Phone", ["::1"], "2099-01-01")
    file = Path(fileOf(path))
    file.write_text("# comment\n\n" + change(file.read_text()))
    other = addAppPassword(path, "ann", "Laptop")
    checker = PasswordFile(path, Inline(), Clock())
    for _ in range(2):
        assert (answer(checker, secret, clientIP="::1") == "ann") == (says == "listed twice")
        assert answer(checker, other) == "ann"
        checker._apps._hasRead = False
    (line,) = logged[-1:]
    assert re.match(f"{re.escape(str(file))}, line [34]: ignored: ", line) and says in line
    assert len([each for each in logged if says in each]) == 1
    assert "argon" not in line and "never" not in line
    assert revokeAppPasswords(path, "ann") >= 1


def test_unreadable(path: str, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the file cannot be read, no application password is accepted, because it may have been
    revoked.
    """
    secret = addAppPassword(path, "ann", "Phone")
    checker = PasswordFile(path, Inline(), Clock())
    assert answer(checker, secret) == "ann"
    text = Path(fileOf(path)).read_text()
    os.unlink(fileOf(path))
    os.mkdir(fileOf(path))
    for name in ("ann", "nobody"):
        refusal = answer(checker, secret, name)
        assert isinstance(refusal, POP3ResponseError) and refusal.code == "SYS/TEMP"
    assert answer(checker, "x", "ben") == "ben"
    assert logged[-1:] == [f"no application passwords: {fileOf(path)}: Is a directory"]
    assert len([each for each in logged if "no application" in each]) == 1
    os.rmdir(fileOf(path))
    Path(fileOf(path)).write_text(text)
    monkeypatch.setattr(AppPasswordFile, "RETRY", 0)
    assert answer(checker, secret) == "ann"


def test_slow(path: str) -> None:
    """
    A login waits five seconds for a slow disk, and is then refused.
    """
    secret = addAppPassword(path, "ann", "Phone")
    clock = Clock()

    class Slow(Inline):
        def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
            return self.result if work is apppasswordfile._read else super().run(work, *arguments)

        result: Deferred[Any] = Deferred()

    slow = Slow()
    checker = PasswordFile(path, slow, clock)
    got: list[Any] = []
    for _ in range(2):
        attempt = PasswordAttempt(b"ann", secret.encode())
        maybeDeferred(checker.requestAvatarId, attempt).addBoth(got.append)
    clock.advance(4.9)
    assert got == []
    clock.advance(0.2)
    assert [each.value.code for each in got] == ["SYS/TEMP"] * 2
    slow.result.callback(apppasswordfile._read(path))
    assert answer(checker, secret) == "ann"


def test_changedDuringTheRead(path: str) -> None:
    """
    A password that is revoked while the file is read is refused.
    """
    secret = addAppPassword(path, "ann", "Phone")

    class Late(Inline):
        before: Deferred[Any] | None = None

        def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
            if work is apppasswordfile._read and self.before is None:
                self.read = apppasswordfile._read(*arguments)
                self.before = Deferred()
                return self.before
            return super().run(work, *arguments, **named)

    late = Late()
    checker = PasswordFile(path, late, Clock())
    got: list[Any] = []

    def logIn() -> None:
        attempt = PasswordAttempt(b"ann", secret.encode())
        maybeDeferred(checker.requestAvatarId, attempt).addBoth(got.append)

    logIn()
    revokeAppPasswords(path, "ann")
    logIn()
    assert late.before is not None
    late.before.callback(late.read)
    assert all(each.check(UnauthorizedLogin) for each in got) and len(got) == 2


def test_reload(path: str, logged: list[str]) -> None:
    """
    After a reload, errors are logged again.
    """
    Path(fileOf(path)).write_text("nonsense\n")
    checker = PasswordFile(path, Inline(), Clock())
    for _ in range(2):
        assert answer(checker, "abcd" * 8) is None
        checker.reload()
    assert len([each for each in logged if "fewer than four" in each]) == 2


# --- last uses ------------------------------------------------------------------------


def test_lastUse(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A use is written some seconds later.  Each process writes the uses of a password at most once a
    minute.  A refused login is no use.
    """
    phone, laptop = (addAppPassword(path, "ann", each) for each in ("Phone", "Laptop"))
    now = 1000.5
    monkeypatch.setattr(time, "time", lambda: now)
    clock = Clock()
    checker, other = (PasswordFile(path, Inline(), clock) for _ in range(2))
    assert lastUses(path) == {}
    assert answer(checker, phone) == "ann" and answer(checker, laptop[:-4] + "aaaa") is None
    assert lastUses(path) == {}
    clock.advance(UseTimes.PAUSE)
    assert lastUses(path) == {("ann", phone[:4]): 1000}
    now += 59
    assert answer(checker, phone) == answer(other, laptop) == "ann"
    clock.advance(UseTimes.PAUSE)
    assert lastUses(path) == {("ann", phone[:4]): 1000, ("ann", laptop[:4]): 1059}
    now += 1
    assert answer(checker, phone) == "ann"
    clock.advance(UseTimes.PAUSE)
    assert lastUses(path)["ann", phone[:4]] == 1060
    # The clock was set back.
    now = 500
    assert answer(checker, phone) == "ann"
    clock.advance(UseTimes.PAUSE)
    assert lastUses(path)["ann", phone[:4]] == 1060
    revokeAppPasswords(path, "ann", "Phone")
    recordUses(path, {("ann", phone[:4]): 2000, ("ann", laptop[:4]): 2000.9})
    assert lastUses(path) == {("ann", laptop[:4]): 2000}
    assert os.stat(f"{path}.app-passwords-used").st_mode & 0o777 == 0o600


def test_lastUseFails(path: str, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a use cannot be written, logins go on, the failure is logged once, and the write is tried
    again.
    """
    secret = addAppPassword(path, "ann", "Phone")
    clock = Clock()
    checker = PasswordFile(path, Inline(), clock)
    os.mkdir(f"{path}.app-passwords-used")
    for _ in range(3):
        assert answer(checker, secret) == "ann"
        clock.advance(300)
    assert logged[1:] == [
        "the last use of application passwords is not recorded: "
        f"{path}.app-passwords-used: Is a directory"
    ]
    os.rmdir(f"{path}.app-passwords-used")
    clock.advance(300)
    assert list(lastUses(path)) == [("ann", secret[:4])]


def test_lastUseIsBlocked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Another program may hold the lock of the directory, without which no use can be recorded.  The
    application passwords are read meanwhile.
    """

    class Thread(Inline):
        isBlocked = False

        def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
            self.isBlocked |= work is recordUses
            return Deferred() if self.isBlocked else super().run(work, *arguments, **named)

    threads = {each: Thread() for each in ("_files", "_recording")}
    for name, thread in threads.items():
        monkeypatch.setattr(apppasswordfile, name, thread, raising=False)
    clock, found = Clock(), []
    secret = addAppPassword(path, "ann", "Phone")
    apps = AppPasswordFile(path, None, clock)
    Deferred.fromCoroutine(apps.find("ann", secret[:4])).addBoth(found.append)
    apps.used(found[0], 1000)
    clock.advance(UseTimes.PAUSE)
    assert any(each.isBlocked for each in threads.values())
    revokeAppPasswords(path, "ann", "Phone")
    Deferred.fromCoroutine(apps.find("ann", secret[:4])).addBoth(found.append)
    assert found[1:] == [None]


def test_usesThatCannotBeRead(path: str) -> None:
    addAppPassword(path, "ann", "Phone")
    Path(f"{path}.app-passwords-used").write_text(f"ann:abcd\nann:abcd:x\nann:abcd:{'9' * 40}\n\n")
    assert lastUses(path) == {}
    recordUses(path, {})


def test_versions() -> None:
    """
    The version of a password of the account never looks like one of an application password.
    """
    assert not re.fullmatch("[0-9a-f]*", passwordfile._APP)
