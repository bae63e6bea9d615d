"""
Make the checker for accounts in an LDAP directory from the argument of C{--auth ldap:}.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pop3svc.accounts.blockingchecks import CONCURRENT
from pop3svc.accounts.ldapaccounts import DirectBind, LDAPAccounts, Search, SearchedAccounts
from pop3svc.accounts.ldapserver import SCOPES, TIMEOUT, LDAPServer
from pop3svc.files import readReplaceable
from pop3svc.service.settings import secretPath

__all__ = ["makeLDAP"]

_ANYWHERE = ("user", "starttls", "ca", "timeout", "concurrent", "insecure")
_OF_SEARCHES = ("base", "filter", "scope", "bind", "password-file", "password-credential")
_OPTIONS = (*_ANYWHERE, *_OF_SEARCHES, "dn")
# The colon in front of an option.  Any other colon belongs to a value or to the URL.
_BETWEEN = re.compile(rf":(?=(?:{'|'.join(_OPTIONS)})=)")
# The most octets of a file with a password.
_LARGEST = 4096


class _Binder:
    """
    Has the DN and the password with which the service searches the directory.
    """

    def __init__(self, dn: str, path: str) -> None:
        """
        @raise ValueError: the file has no password.  The text is a sentence for the operator.
        """
        self._dn = dn
        self._path = path
        self._password = self._read()

    def _read(self) -> str:
        try:
            data = readReplaceable(self._path, _LARGEST)
        except OSError as error:
            raise ValueError(f"cannot read {self._path}: {error.strerror}")
        try:
            password = data.removesuffix(b"\n").decode("utf-8")
        except UnicodeDecodeError:
            password = ""
        if not password or "\0" in password:
            raise ValueError(f"{self._path} contains no password")
        return password

    def __call__(self) -> tuple[str, str]:
        """
        Read the password again, because it may have changed.  If the file cannot be read, for
        example because the service has dropped its privileges, use the previous password.  This
        method blocks, so call it in a thread.

        @return: the DN and the password.
        """
        try:
            self._password = self._read()
        except ValueError:
            pass
        return self._dn, self._password


def _optionsOf(argument: str) -> tuple[str, dict[str, str]]:
    """
    @return: the URL, and the options by name.
    """
    url, *fields = _BETWEEN.split(argument)
    options: dict[str, str] = {}
    for each in fields:
        name, _, value = each.partition("=")
        if name in options:
            raise ValueError(f"{name} is given twice")
        if not value:
            raise ValueError(f"{name} is empty")
        options[name] = value
    return url, options


def _isOn(options: dict[str, str], name: str) -> bool:
    if options.get(name, "no") not in ("yes", "no"):
        raise ValueError(f"{name} is yes or no")
    return options.get(name) == "yes"


def _number(options: dict[str, str], name: str, default: int, most: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= most):
        raise ValueError(f"{name} is a number from 1 to {most}")
    return int(text)


def _binderOf(options: dict[str, str]) -> Callable[[], tuple[str, str]]:
    dn = options.get("bind", "")
    given = [each for each in ("password-file", "password-credential") if each in options]
    if bool(dn) != (len(given) == 1):
        raise ValueError("bind=DN and one of password-file and password-credential go together")
    if not dn:
        return lambda: ("", "")
    kind = given[0].removeprefix("password-")
    try:
        path = secretPath({kind: options[given[0]]})
    except ValueError as error:
        raise ValueError(f"{given[0]} {error}")
    return _Binder(dn, path)


def makeLDAP(argument: str) -> LDAPAccounts:
    """
    Make the checker for accounts in an LDAP directory.

    @param argument: C{URL:base=DN[:filter=FILTER][:scope=one][:bind=DN:password-file=FILE]} or
        C{URL:dn=TEMPLATE}, then
        C{[:user=ATTRIBUTE][:starttls=yes][:ca=FILE][:timeout=SECONDS][:concurrent=NUMBER]
        [:insecure=yes]}.  Colons need no backslash.
    @raise ValueError: the argument is not valid.  The text is a sentence.
    """
    url, options = _optionsOf(argument)
    timeout = _number(options, "timeout", TIMEOUT, 60)
    # The upper bound is 100, because more threads are of no use, and a directory limits the
    # connections of a client.
    concurrent = _number(options, "concurrent", CONCURRENT, 100)
    server = LDAPServer(
        url,
        _isOn(options, "starttls"),
        options.get("ca"),
        _isOn(options, "insecure"),
        timeout,
        concurrent,
    )
    attribute = options.get("user")
    if "dn" in options:
        for name in _OF_SEARCHES:
            if name in options:
                raise ValueError(f"{name} is for a search, so it cannot be combined with dn")
        return LDAPAccounts(server, DirectBind(options["dn"], attribute), timeout, concurrent)
    if "base" not in options:
        raise ValueError("base=DN or dn=TEMPLATE is needed")
    if options.get("scope", "sub") not in SCOPES:
        raise ValueError("scope is sub or one")
    search = Search(
        options["base"],
        options.get("filter", "(uid={user})"),
        SCOPES[options.get("scope", "sub")],
        attribute,
        _binderOf(options),
    )
    return SearchedAccounts(server, search, timeout, concurrent)
