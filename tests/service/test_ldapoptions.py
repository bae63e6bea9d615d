"""
The argument of C{--auth ldap:}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pop3svc.service.plugins import LDAPAccountsMaker
from pop3svc.testing.certificates import Authority

if not os.environ.get("CI"):
    pytest.importorskip("ldap", reason="python-ldap is not installed")

BASE = "base=ou=people,dc=example,dc=org"
DN = "dn=uid={user},ou=people,dc=example,dc=org"


def make(text: str) -> Any:
    return LDAPAccountsMaker().generateChecker(text)


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pop3svc.accounts.ldapaccounts import LDAPAccounts, SearchedAccounts

    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    Authority().write(tmp_path / "ca.pem")
    bind = "bind=cn=reader,dc=example,dc=org"
    for text in (
        f"ldaps://example.org:{BASE}",
        f"ldaps://example.org/:{BASE}:scope=sub:starttls=no",
        f"ldap://example.org:389:starttls=yes:ca={tmp_path / 'ca.pem'}:{BASE}:scope=one",
        f"ldap://127.0.0.1:{BASE}:timeout=60:concurrent=100",
        f"ldap://[::1]:3890:{BASE}:{bind}:password-file={tmp_path / 'password'}",
        f"ldap://localhost:{BASE}:{bind}:password-credential=password",
        f"ldap://example.org:insecure=yes:{BASE}",
        f"ldaps://example.org:{BASE}:filter=(&(mail={{user}})(o:dn:caseIgnoreMatch:=a:b=c))",
        f"ldaps://example.org:{BASE}:filter=(|(uid={{user}})(mail={{user}})):user=uid",
    ):
        assert isinstance(make(text), SearchedAccounts)
    for text in (f"ldaps://example.org:{DN}", f"ldap://127.0.0.1:{DN}:user=mail"):
        assert type(make(text)) is LDAPAccounts


def test_forms() -> None:
    from pop3svc.accounts.ldapaccounts import DirectBind, Search, Template

    assert DirectBind("uid={user},dc=x").nameOf("a,b") == "uid=a\\,b,dc=x"
    search = Search("dc=x", "(&(uid={local})(o={domain}))", attribute="mail")
    assert search.nameOf("a*@{user}") == "(&(uid=a\\2a)(o={user}))"
    assert search.nameOf("a") is None and search.nameOf("@x") is None
    assert Template("filter", "(|(uid={user})(mail={user}))").attribute is None
    assert Template("filter", "(&(uid={user})(o=x))").attribute == "uid"
    assert Template("filter", "(!(!(uid={user})))").attribute == "uid"
    assert Template("filter", "(mail={user}@example.org)").attribute is None


def test_password(tmp_path: Path) -> None:
    """
    The service reads the password file for each search.  If it cannot, it uses the former password.
    """
    path = tmp_path / "password"
    path.write_bytes("wörd\n\n".encode())
    accounts = make(f"ldap://127.0.0.1:{BASE}:bind=cn=reader:password-file={path}")
    binder = accounts._way._binder
    assert binder() == ("cn=reader", "wörd\n")
    path.write_text("new")
    assert binder() == ("cn=reader", "new")
    for wrong in (b"", b"\n", b"\xff", b"a\0b", b"x" * 5000):
        path.write_bytes(wrong)
        assert binder() == ("cn=reader", "new")
    path.unlink()
    assert binder() == ("cn=reader", "new")
    assert "new" not in repr(accounts) + repr(binder)


TLS_NEEDED = (
    "passwords would be sent without TLS; use ldaps:// or starttls=yes, or add insecure=yes to "
    "allow this"
)
URL_NEEDED = "a URL such as ldaps://HOST or ldap://HOST:PORT is needed"
TOGETHER = "bind=DN and one of password-file and password-credential go together"
WRONG = [
    ("", URL_NEEDED),
    ("example.org", URL_NEEDED),
    (f"http://example.org:{BASE}", URL_NEEDED),
    (f"ldapi:///:{BASE}", URL_NEEDED),
    (f"ldaps://:{BASE}", URL_NEEDED),
    (f"ldaps://example.org:0:{BASE}", URL_NEEDED),
    (f"ldaps://example.org:65536:{BASE}", URL_NEEDED),
    (f"ldaps://example.org/dc=example:{BASE}", URL_NEEDED),
    (f"ldaps://a b:{BASE}", URL_NEEDED),
    (f"ldaps://a ldap://b:{BASE}", URL_NEEDED),
    (f"ldap://example.org:{BASE}", TLS_NEEDED),
    (f"ldap://127.0.0.1.example.org:{BASE}", TLS_NEEDED),
    (
        f"ldaps://x:starttls=yes:{BASE}",
        "starttls is for ldap://, because ldaps:// begins with TLS",
    ),
    (f"ldap://localhost:ca=/x:{BASE}", "ca is for ldaps:// and starttls=yes only"),
    (f"ldaps://x:ca=/no/such:{BASE}", "cannot read /no/such: No such file or directory"),
    ("ldaps://x", "base=DN or dn=TEMPLATE is needed"),
    ("ldaps://x:base=", "base is empty"),
    (f"ldaps://x:{BASE}:{BASE}", "base is given twice"),
    ("ldaps://x:base=people", "base is not a valid DN"),
    (f"ldaps://x:{BASE}:scope=base", "scope is sub or one"),
    (
        f"ldaps://x:{BASE}:filter=(uid={{user}}",
        "filter is not a valid filter, such as (uid={user})",
    ),
    (f"ldaps://x:{BASE}:filter=(uid=ann)", "filter has no {user} or {local}, so it finds no user"),
    (
        f"ldaps://x:{BASE}:filter=(uid={{domain}})",
        "filter has no {user} or {local}, so it finds no user",
    ),
    (
        f"ldaps://x:{BASE}:filter=(uid={{name}})",
        "filter has braces around other words than user, local and domain",
    ),
    (
        f"ldaps://x:{BASE}:filter=(uid={{user}}}})",
        "filter has braces around other words than user, local and domain",
    ),
    (
        f"ldaps://x:{BASE}:filter=(|(uid={{user}})(mail={{user}}))",
        "user=ATTRIBUTE is needed, because filter does not name the attribute",
    ),
    (f"ldaps://x:{BASE}:user=a b", "user is not the name of an attribute"),
    (f"ldaps://x:{BASE}:bind=cn=a", TOGETHER),
    (f"ldaps://x:{BASE}:password-file=/x", TOGETHER),
    (f"ldaps://x:{BASE}:bind=cn=a:password-file=/x:password-credential=x", TOGETHER),
    (
        f"ldaps://x:{BASE}:bind=cn=a:password-file=/no/such",
        "cannot read /no/such: No such file or directory",
    ),
    (f"ldaps://x:{BASE}:bind=cn=a:password-file=/dev/null", "cannot read /dev/null: Not a"),
    (
        f"ldaps://x:{BASE}:bind=cn=a:password-credential=x",
        "password-credential needs systemd's credentials: CREDENTIALS_DIRECTORY is not set",
    ),
    (f"ldaps://x:{BASE}:timeout=0", "timeout is a number from 1 to 60"),
    (f"ldaps://x:{BASE}:timeout=x", "timeout is a number from 1 to 60"),
    (f"ldaps://x:{BASE}:concurrent=101", "concurrent is a number from 1 to 100"),
    (f"ldaps://x:{BASE}:insecure=maybe", "insecure is yes or no"),
    ("ldaps://x:dn={user}", "dn is not a valid DN"),
    (
        "ldaps://x:dn=uid={local},dc=x",
        "user=ATTRIBUTE is needed, because dn does not name the attr",
    ),
    (f"ldaps://x:{DN}:{BASE}", "base is for a search, so it cannot be combined with dn"),
    (f"ldaps://x:{DN}:filter=(a=b)", "filter is for a search, so it cannot be combined with dn"),
]


@pytest.mark.parametrize(("text", "fault"), WRONG)
def test_badArguments(text: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ValueError) as caught:
        make(text)
    assert str(caught.value).startswith(fault) and "\n" not in str(caught.value)


def test_emptyPasswordFile(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(ValueError, match=f"{path} contains no password"):
        make(f"ldap://127.0.0.1:{BASE}:bind=cn=a:password-file={path}")


def test_withoutLibrary(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if "ldap" in each and each.startswith("pop3svc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ldap", None)
    with pytest.raises(ValueError, match="python-ldap is needed: pip install 'pop3svc\\[ldap\\]'"):
        make(f"ldap://127.0.0.1:{BASE}")
