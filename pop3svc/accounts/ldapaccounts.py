"""
Accounts in an LDAP directory.  The service finds an entry by a search, or by a DN that contains the
user's name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import ldap.dn
import ldap.filter
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.blockingchecks import CONCURRENT, BlockingChecks, CheckUnavailable
from pop3svc.accounts.hashes import LONGEST_PASSWORD
from pop3svc.accounts.ldapserver import TIMEOUT, Entry, LDAPConnection, LDAPServer, TooManyEntries
from pop3svc.awaiting import startNow
from pop3svc.credentials import IPasswordAttempt, asAttempt
from pop3svc.interfaces import (
    IAccountNames,
    IAccountStatus,
    IPOP3ConnectionInfo,
    IProvenAccounts,
    IReloading,
)
from pop3svc.once import Once
from pop3svc.threadpool import Executor

__all__ = ["DirectBind", "LDAPAccounts", "Search", "SearchedAccounts", "Template"]

log = Logger(namespace="pop3svc")

PLACEHOLDERS = ("user", "local", "domain")
# The most octets of a name that is looked up.  An address has at most 254 (RFC 5321 section
# 4.5.3.1).
_LONGEST_NAME = 512
# Seconds by which the time limit of a thread exceeds that of its requests.  The requests therefore
# usually end by themselves, and the thread is not lost.
_GRACE = 1.0
# A change of one of these attributes ends sleeping sessions: the identity of an entry (RFC 4530,
# Active Directory), and the time of the last change of its password.
_MARKS = (
    "entryUUID",
    "objectGUID",
    "pwdChangedTime",
    "pwdLastSet",
    "krbLastPwdChange",
    "shadowLastChange",
)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# The attribute that is compared with the whole name, in a filter or at the beginning of a DN.
_COMPARED = re.compile(r"\(([A-Za-z][A-Za-z0-9-]*)=\{user\}\)|^([A-Za-z][A-Za-z0-9-]*)=\{user\},")
ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class Template:
    """
    A text with the placeholders C{{user}}, C{{local}} and C{{domain}}.
    """

    def __init__(self, name: str, text: str) -> None:
        """
        @param name: the name of the option, for errors.
        @raise ValueError: there is an unknown placeholder, or no placeholder for the user.  The
            text is a sentence for the operator.
        """
        used = _PLACEHOLDER.findall(text)
        rest = _PLACEHOLDER.sub("", text)
        if set(used) - set(PLACEHOLDERS) or "{" in rest or "}" in rest:
            raise ValueError(f"{name} has braces around other words than user, local and domain")
        if not set(used) & {"user", "local"}:
            raise ValueError(f"{name} has no {{user}} or {{local}}, so it finds no user")
        self._text = text
        self._used = frozenset(used)
        compared = {one or other for one, other in _COMPARED.findall(text)}
        # The attribute that is compared with the name of the login, if there is only one.
        self.attribute: str | None = compared.pop() if len(compared) == 1 else None

    def fill(self, name: str, escape: Callable[[str], str]) -> str | None:
        """
        @param escape: escapes a value.
        @return: the text for a user; L{None} if the name lacks a part of it, such as the domain.
        """
        local, at, domain = name.rpartition("@")
        values = {"user": name, "local": local if at else name, "domain": domain if at else ""}
        if not all(values[each] for each in self._used):
            return None
        # Replace all placeholders in one pass, because a value may contain braces.
        return _PLACEHOLDER.sub(lambda found: escape(values[found[1]]), self._text)


class _BadAccount(Exception):
    """
    An entry cannot be used.  The text is the reason.
    """


class _Account(NamedTuple):
    """
    An account.

    @ivar mailbox: the name of the mailbox.
    @ivar marks: values that change when another account takes the place of this one, or its
        password changes.
    """

    dn: str
    mailbox: str
    marks: Sequence[bytes]


def _accountOf(entry: Entry, attribute: str) -> _Account:
    """
    @param attribute: has the name of the mailbox.
    @raise _BadAccount: the entry has no usable name of a mailbox.
    """
    values = entry.values.get(attribute.lower(), ())
    if len(values) != 1:
        # The server may return values in any order, so the service cannot choose the first one.
        raise _BadAccount(f"{entry.dn} has {len(values)} readable values of {attribute}")
    try:
        mailbox = values[0].decode("utf-8")
    except UnicodeDecodeError:
        mailbox = ""
    if not mailbox or not mailbox.isprintable() or len(values[0]) > _LONGEST_NAME:
        raise _BadAccount(f"the {attribute} of {entry.dn} is not a name of a mailbox")
    marks = []
    for name in _MARKS:
        marks += [name.encode(), *entry.values.get(name.lower(), ())]
    return _Account(entry.dn, mailbox, marks)


# --- the ways to find an account, in threads ------------------------------------------


class Answer(NamedTuple):
    """
    The answer of the directory to a login.

    @ivar account: L{None}: the login is refused.
    @ivar isUser: whether the user exists, as far as the service knows.
    @ivar reason: why the server refuses the bind; L{None} if the password is right.
    """

    account: _Account | None
    isUser: bool
    reason: str | None = None


class DirectBind:
    """
    Binds with a DN that contains the user's name.
    """

    def __init__(self, template: str, attribute: str | None = None) -> None:
        """
        @param attribute: has the name of the mailbox in the user's entry; by default the attribute
            at the beginning of the DN.
        @raise ValueError: a value cannot be used.  The text is a sentence for the operator.
        """
        self._template = Template("dn", template)
        if not ldap.dn.is_dn(self._template.fill("x@x", ldap.dn.escape_dn_chars) or "="):
            raise ValueError("dn is not a valid DN")
        self._attribute = _attributeFor(attribute, self._template, "dn")

    def nameOf(self, name: str) -> str | None:
        """
        @return: the DN of a user; L{None} if there can be none.
        """
        return self._template.fill(name, ldap.dn.escape_dn_chars)

    def check(self, connection: LDAPConnection, dn: str, password: str) -> Answer:
        """
        Check a password.

        @raise CheckUnavailable: the server gives no usable answer.
        @raise _BadAccount: the password is right, but the entry cannot be used.
        """
        reason = connection.bind(dn, password)
        if reason is not None:
            return Answer(None, True, reason)
        # The server ignores case and spaces in a DN, so the right spelling of the name is only in
        # the entry.
        entry = connection.read(dn, [self._attribute])
        if entry is None:
            raise _BadAccount(f"{dn} may not read its own entry")
        return Answer(_accountOf(entry, self._attribute), True)


class Search:
    """
    Searches for the entry of a user, and binds with its DN.
    """

    def __init__(
        self,
        base: str,
        condition: str,
        scope: int = ldap.SCOPE_SUBTREE,
        attribute: str | None = None,
        binder: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        """
        @param condition: a filter (RFC 4515), with placeholders.
        @param attribute: has the name of the mailbox; by default the attribute that the filter
            compares with the user's name.
        @param binder: returns the DN and the password for the search; both are empty for an
            anonymous search.
        @raise ValueError: a value cannot be used.  The text is a sentence for the operator.
        """
        if not base or not ldap.dn.is_dn(base):
            raise ValueError("base is not a valid DN")
        self._base = base
        self._scope = scope
        self._template = Template("filter", condition)
        _checkFilter(self._template.fill("x@x", ldap.filter.escape_filter_chars) or "")
        self._attribute = _attributeFor(attribute, self._template, "filter")
        self._binder = binder
        # A DN below the base, so that the same server refuses the bind.
        self._nobody = f"cn={secrets.token_hex(8)},{base}"

    def nameOf(self, name: str) -> str | None:
        """
        @return: the filter that finds a user; L{None} if there can be no such user.
        """
        return self._template.fill(name, ldap.filter.escape_filter_chars)

    def find(self, connection: LDAPConnection, condition: str) -> _Account | None:
        """
        @param condition: the result of C{nameOf}.
        @raise CheckUnavailable: the server gives no usable answer.
        @raise _BadAccount: there is an entry that cannot be used, or more than one.
        """
        reason = connection.bind(*self._binder())
        if reason is not None:
            raise CheckUnavailable(f"it refuses the bind for the search: {reason}")
        try:
            entry = connection.find(self._base, self._scope, condition, [self._attribute, *_MARKS])
        except TooManyEntries:
            raise _BadAccount("the filter finds more than one entry for a name") from None
        return None if entry is None else _accountOf(entry, self._attribute)

    def check(self, connection: LDAPConnection, condition: str, password: str) -> Answer:
        """
        Check a password; see L{DirectBind.check}.
        """
        fault = account = None
        try:
            account = self.find(connection, condition)
        except _BadAccount as error:
            fault = error
        # If there is no account, a bind that must fail takes as long as a wrong password.
        reason = connection.bind(self._nobody if account is None else account.dn, password)
        if fault is not None:
            raise fault
        if account is None or reason is not None:
            return Answer(None, account is not None, reason)
        return Answer(account, True)


def _attributeFor(attribute: str | None, template: Template, option: str) -> str:
    if attribute is None:
        attribute = template.attribute
    if attribute is None:
        raise ValueError(f"user=ATTRIBUTE is needed, because {option} does not name the attribute")
    if not ATTRIBUTE.fullmatch(attribute):
        raise ValueError("user is not the name of an attribute")
    return attribute


def _checkFilter(condition: str) -> None:
    """
    @raise ValueError: it is not a valid filter.
    """
    # libldap parses the filter before it connects, and no server listens at this address.
    link: Any = ldap.initialize("ldapi://%2Fdev%2Fnull%2F")
    try:
        link.search_ext("", ldap.SCOPE_BASE, condition)
    except ldap.FILTER_ERROR:
        raise ValueError("filter is not a valid filter, such as (uid={user})")
    except ldap.LDAPError:
        pass


# --- the checkers -----------------------------------------------------------------


@implementer(ICredentialsChecker, IReloading)
class LDAPAccounts:
    """
    A checker that binds as the user (RFC 4513 section 5.1.3).
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    def __init__(
        self,
        server: LDAPServer,
        way: DirectBind | Search,
        timeout: float = TIMEOUT,
        concurrent: int = CONCURRENT,
        threads: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param timeout: seconds for the check of a password.
        @param concurrent: checks at the same time.
        @param threads: runs the checks; separate threads if not given.
        @param clock: the reactor if not given.
        """
        self._server = server
        self._way: Any = way
        self._checks = BlockingChecks(
            f"the LDAP server at {server.url}",
            timeout + _GRACE,
            concurrent,
            threads=threads,
            clock=clock,
        )
        self._reported = Once()

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name of the mailbox in UTF-8.
        @raise POP3ResponseError: C{SYS/TEMP} if the server gives no usable answer.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        credentials = asAttempt(credentials)
        name = _textOf(credentials.username, _LONGEST_NAME)
        # An empty password would be an anonymous bind, which succeeds (RFC 4513 section 5.1.2).
        password = _textOf(credentials.password, LONGEST_PASSWORD)
        wanted = self._way.nameOf(name) if name and password else None
        if name is None or wanted is None:
            raise UnauthorizedLogin()
        answer: Answer | _BadAccount = await self._checks.check(
            credentials, self._check, wanted, password
        )
        if isinstance(answer, _BadAccount):
            self._report(str(answer))
            raise UnauthorizedLogin()
        if answer.account is None:
            self._reportRefusal(answer.reason)
            if answer.isUser:
                credentials.refused()
            raise UnauthorizedLogin()
        credentials.version = self._versionOf(answer.account)
        return answer.account.mailbox.encode("utf-8")

    def _check(self, wanted: str, password: str) -> Answer | _BadAccount:
        """
        Check a password, in a thread.
        """
        way = self._way
        answer: Answer | _BadAccount
        answer = self._inThread(lambda connection: way.check(connection, wanted, password))
        return answer

    def _inThread(self, work: Callable[[LDAPConnection], Any]) -> Any:
        """
        @return: the result of C{work}, or the L{_BadAccount} that it raised.  Returning the error
            lets the connection be used again.
        """

        def safely(connection: LDAPConnection) -> Any:
            try:
                return work(connection)
            except _BadAccount as error:
                return error

        return self._server.run(safely)

    def _versionOf(self, account: _Account) -> str:
        """
        @return: see L{pop3svc.credentials.IPasswordAttempt.version}.
        """
        return ""

    def _report(self, fault: str) -> None:
        if self._reported.isFirst(fault):
            log.error(
                "accounts in {url}: somebody cannot log in, because {fault} (logged once for each "
                "reason)",
                url=self._server.url,
                fault=fault,
            )

    def _reportRefusal(self, reason: str | None) -> None:
        if reason not in (None, _WRONG) and self._reported.isFirst(reason):
            log.info(
                "accounts in {url}: the server refuses a bind: {reason} (logged once for each "
                "reason)",
                url=self._server.url,
                reason=reason,
            )

    def reload(self) -> None:
        """
        See L{IReloading.reload}.  Replace the connections, and log errors again that were logged
        before.
        """
        self._reported = Once()
        self._server.renew()


# The description of the refusal of a wrong password.
_WRONG = "Invalid credentials"


@implementer(IAccountNames, IAccountStatus, IProvenAccounts)
class SearchedAccounts(LDAPAccounts):
    """
    A checker that searches for the entry of a user, and then binds as the user.  It can also look
    up accounts without a password.
    """

    def __init__(self, server: LDAPServer, way: Search, *arguments: Any, **named: Any) -> None:
        """
        See L{LDAPAccounts}.
        """
        super().__init__(server, way, *arguments, **named)
        self._secret = secrets.token_bytes(16)
        # For each connection, the version of the entry that the login has used, until the session
        # asks for it.
        self._versions: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    async def _find(self, name: str, isUrgent: bool) -> _Account | None:
        """
        @return: the account of a user; L{None} if no entry can be used.
        @raise POP3ResponseError: C{SYS/TEMP}: the server does not work.
        """
        text = _textOf(name.encode("utf-8", "surrogateescape"), _LONGEST_NAME)
        wanted = self._way.nameOf(text) if text else None
        if wanted is None:
            return None
        found: _Account | _BadAccount | None = await self._checks.ask(
            self._look, wanted, isUrgent=isUrgent
        )
        if isinstance(found, _BadAccount):
            self._report(str(found))
            return None
        return found

    def _look(self, wanted: str) -> _Account | _BadAccount | None:
        """
        Search for an account, in a thread.
        """
        way = self._way
        found: _Account | _BadAccount | None
        found = self._inThread(lambda connection: way.find(connection, wanted))
        return found

    def _versionOf(self, account: _Account) -> str:
        data = b"\0".join([account.dn.encode(), account.mailbox.encode(), *account.marks])
        return hashlib.blake2b(data, key=self._secret, digest_size=16).hexdigest()

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}.
        """
        account = await self._find(username, isUrgent=True)
        if account is None:
            return None
        self._versions[info] = self._versionOf(account)
        return account.mailbox

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}; a keyed digest of the user's entry at the login.
        """
        known = self._versions.pop(info, None)
        if known is not None:
            return known
        return startNow(self._currentVersion(info.userNameAtLogin or username))

    async def _currentVersion(self, name: str) -> str:
        account = await self._find(name, isUrgent=True)
        return "" if account is None else self._versionOf(account)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}: the entry exists, and is the same.
        """
        # The search needs the login name, and the mailbox may have another name.
        return startNow(self._isStillValid(info.userNameAtLogin or username, version))

    async def _isStillValid(self, name: str, version: str) -> bool:
        now = await self._currentVersion(name)
        return now != "" and hmac.compare_digest(now, version)

    def hasAccount(self, username: str) -> Any:
        """
        See L{IAccountNames.hasAccount}.  If the mailbox of this user has another name, the result
        is False, because nobody would read mail for this name.
        """
        return startNow(self._hasAccount(username))

    async def _hasAccount(self, username: str) -> bool:
        account = await self._find(username, isUrgent=False)
        return account is not None and account.mailbox == username


def _textOf(data: bytes, most: int) -> str | None:
    """
    @return: a name or a password; L{None} if it cannot be sent to the server.
    """
    try:
        return data.decode("utf-8") if len(data) <= most and b"\0" not in data else None
    except UnicodeDecodeError:
        return None
