"""
Accounts in an LDAP directory.  The service searches for the entry of a user, or makes the DN of the
entry from the user's name.
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
# The most octets of a name that is looked up.  A mail address has at most 254 octets (RFC 5321
# section 4.5.3.1).
_LONGEST_NAME = 512
# A thread may run this number of seconds longer than the time limit of its requests.  Usually the
# requests then end first, and the thread is not lost.
_GRACE = 1.0
# If one of these attributes of a user's entry changes, the user's sleeping sessions end.  The
# attributes contain the identity of the entry (RFC 4530, Active Directory) or the time at which the
# password was changed.
_MARKS = (
    "entryUUID",
    "objectGUID",
    "pwdChangedTime",
    "pwdLastSet",
    "krbLastPwdChange",
    "shadowLastChange",
)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# Finds the attribute that a filter, or the first part of a DN, compares with the whole name of the
# user.
_COMPARED = re.compile(r"\(([A-Za-z][A-Za-z0-9-]*)=\{user\}\)|^([A-Za-z][A-Za-z0-9-]*)=\{user\},")
ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class Template:
    """
    A text with the placeholders C{{user}}, C{{local}} and C{{domain}}.
    """

    def __init__(self, name: str, text: str) -> None:
        """
        @param name: the name of the option, for the texts of errors.
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
        # The attribute that is compared with the name of the login; None unless there is exactly
        # one.
        self.attribute: str | None = compared.pop() if len(compared) == 1 else None

    def fill(self, name: str, escape: Callable[[str], str]) -> str | None:
        """
        @param escape: escapes the value of a placeholder.
        @return: the text for a user; L{None} if the name does not have a value for each
            placeholder, for example no domain.
        """
        local, at, domain = name.rpartition("@")
        values = {"user": name, "local": local if at else name, "domain": domain if at else ""}
        if not all(values[each] for each in self._used):
            return None
        # Replace all placeholders in one pass, because a value may contain braces.
        return _PLACEHOLDER.sub(lambda found: escape(values[found[1]]), self._text)


class _BadAccount(Exception):
    """
    The entry of a user cannot be used.  The text of the exception is the reason.
    """


class _Account(NamedTuple):
    """
    An account.

    @ivar mailbox: the name of the mailbox.
    @ivar marks: values that change if the password changes, or if another account takes the place
        of this account.
    """

    dn: str
    mailbox: str
    marks: Sequence[bytes]


def _accountOf(entry: Entry, attribute: str) -> _Account:
    """
    @param attribute: the attribute that contains the name of the mailbox.
    @raise _BadAccount: the entry has no usable name of a mailbox.
    """
    values = entry.values.get(attribute.lower(), ())
    if len(values) != 1:
        # Do not use the first of several values, because the server may return them in any order.
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

    @ivar account: the account; L{None} if the login is refused.
    @ivar isUser: whether the user exists; also true if the service cannot know.
    @ivar reason: the reason why the server refuses the bind; L{None} if the password is right.
    """

    account: _Account | None
    isUser: bool
    reason: str | None = None


class DirectBind:
    """
    Checks a password by a bind with a DN that contains the user's name.
    """

    def __init__(self, template: str, attribute: str | None = None) -> None:
        """
        @param attribute: the attribute of the user's entry that contains the name of the mailbox.
            By default it is the first attribute in the DN, if the value of this attribute is
            C{{user}}.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._template = Template("dn", template)
        if not ldap.dn.is_dn(self._template.fill("x@x", ldap.dn.escape_dn_chars) or "="):
            raise ValueError("dn is not a valid DN")
        self._attribute = _attributeFor(attribute, self._template, "dn")

    def nameOf(self, name: str) -> str | None:
        """
        @return: the DN of a user; L{None} if the name does not have a value for each placeholder.
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
        # Read the right spelling of the name from the entry, because the server ignores case and
        # spaces in the DN of the bind.
        entry = connection.read(dn, [self._attribute])
        if entry is None:
            raise _BadAccount(f"{dn} may not read its own entry")
        return Answer(_accountOf(entry, self._attribute), True)


class Search:
    """
    Checks a password by a search for the entry of the user and a bind with the DN of this entry.
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
        @param attribute: the attribute that contains the name of the mailbox.  By default it is the
            attribute that the filter compares with the user's name.
        @param binder: returns the DN and the password for the search.  Both are empty for an
            anonymous search.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        if not base or not ldap.dn.is_dn(base):
            raise ValueError("base is not a valid DN")
        self._base = base
        self._scope = scope
        self._template = Template("filter", condition)
        _checkFilter(self._template.fill("x@x", ldap.filter.escape_filter_chars) or "")
        self._attribute = _attributeFor(attribute, self._template, "filter")
        self._binder = binder
        # A DN that no entry has.  It is below the base, so that the same server refuses a bind with
        # this DN.
        self._nobody = f"cn={secrets.token_hex(8)},{base}"

    def nameOf(self, name: str) -> str | None:
        """
        @return: the filter that finds a user; L{None} if the name does not have a value for each
            placeholder.
        """
        return self._template.fill(name, ldap.filter.escape_filter_chars)

    def find(self, connection: LDAPConnection, condition: str) -> _Account | None:
        """
        @param condition: the result of C{nameOf}.
        @raise CheckUnavailable: the server gives no usable answer.
        @raise _BadAccount: the entry of the user cannot be used, or there are several entries.
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
        Check a password; see L{DirectBind.check}.  L{_BadAccount} is raised even if the password is
        wrong.
        """
        fault = account = None
        try:
            account = self.find(connection, condition)
        except _BadAccount as error:
            fault = error
        # Bind even if there is no account.  The answer then takes as long as for a wrong password.
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
    @raise ValueError: C{condition} is not a valid filter.
    """
    # No server listens at this address.  This is no problem, because libldap parses the filter
    # before it connects.
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
    A checker that compares the password by a bind with the DN of the user (RFC 4513 section 5.1.3).
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
        @param timeout: the time limit for the check of a password, in seconds.
        @param concurrent: the most checks that run at the same time.
        @param threads: runs the checks; a new pool of threads if not given.
        @param clock: used for the time limits; the reactor if not given.
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
        @raise POP3ResponseError: C{SYS/TEMP}: the server has given no usable answer.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        credentials = asAttempt(credentials)
        name = _textOf(credentials.username, _LONGEST_NAME)
        # Refuse an empty password, because the server would accept the bind as an anonymous bind
        # (RFC 4513 section 5.1.2).
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
        Check a password.  This method runs in a thread.
        """
        way = self._way
        answer: Answer | _BadAccount
        answer = self._inThread(lambda connection: way.check(connection, wanted, password))
        return answer

    def _inThread(self, work: Callable[[LDAPConnection], Any]) -> Any:
        """
        @return: the result of C{work}.  If C{work} raises L{_BadAccount}, the error is returned and
            not raised, so that the connection stays in use.
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
        See L{IReloading.reload}.  Use new connections for further logins.  Log each error again,
        even if it was logged before.
        """
        self._reported = Once()
        self._server.renew()


# The name of the LDAP result code for a wrong password.
_WRONG = "Invalid credentials"


@implementer(IAccountNames, IAccountStatus, IProvenAccounts)
class SearchedAccounts(LDAPAccounts):
    """
    A checker that searches for the entry of a user and then binds with the DN of this entry.  It
    can also look up an account if no password is known.
    """

    def __init__(self, server: LDAPServer, way: Search, *arguments: Any, **named: Any) -> None:
        """
        See L{LDAPAccounts}.
        """
        super().__init__(server, way, *arguments, **named)
        self._secret = secrets.token_bytes(16)
        # For each connection of a client: the version of the entry that provenMailbox() has used.
        # The version is kept until the session asks for it.
        self._versions: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    async def _find(self, name: str, isUrgent: bool) -> _Account | None:
        """
        @return: the account of a user; L{None} if there is no entry, or if the entry cannot be
            used.
        @raise POP3ResponseError: C{SYS/TEMP}: the server has given no usable answer.
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
        Search for an account.  This method runs in a thread.
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
        See L{IAccountStatus.credentialsVersion}.  The version is a keyed digest of the user's entry
        at the time of the login.
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
        See L{IAccountStatus.isStillValid}.  The session is valid if the entry exists and its
        version has not changed.
        """
        # Search for the name of the login, because the mailbox may have another name.
        return startNow(self._isStillValid(info.userNameAtLogin or username, version))

    async def _isStillValid(self, name: str, version: str) -> bool:
        now = await self._currentVersion(name)
        return now != "" and hmac.compare_digest(now, version)

    def hasAccount(self, username: str) -> Any:
        """
        See L{IAccountNames.hasAccount}.  If the mailbox of this user has another name, the result
        is False.  Nobody would read mail that is delivered to this name.
        """
        return startNow(self._hasAccount(username))

    async def _hasAccount(self, username: str) -> bool:
        account = await self._find(username, isUrgent=False)
        return account is not None and account.mailbox == username


def _textOf(data: bytes, most: int) -> str | None:
    """
    @return: the text of a name or a password; L{None} if it cannot be sent to the server.
    """
    try:
        return data.decode("utf-8") if len(data) <= most and b"\0" not in data else None
    except UnicodeDecodeError:
        return None
