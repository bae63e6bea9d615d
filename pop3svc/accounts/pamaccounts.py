"""
Accounts that PAM knows, such as those of the system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pamela
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import alsoProvides, implementer

from pop3svc.accounts.blockingchecks import CONCURRENT, BlockingChecks, CheckUnavailable
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
from pop3svc.systemusers import SystemUser, lookUp
from pop3svc.threadpool import Executor

__all__ = ["SERVICE", "TIMEOUT", "PAMAccounts", "checkService"]

log = Logger(namespace="pop3svc")

# The name of the file in /etc/pam.d.
SERVICE = "pop3svc"
# Seconds for one check.  Modules wait some two seconds after a wrong password.
TIMEOUT = 15
# The most octets of a name and of a password.  PAM's limit of an answer is 512 with the final NUL.
_LONGEST_NAME = 255
_LONGEST_PASSWORD = 511
_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d", "/usr/local/etc/pam.d")

# The results with which PAM refuses the password or the name: PAM_AUTH_ERR, PAM_USER_UNKNOWN and
# PAM_MAXTRIES.
_WRONG = frozenset([7, 10, 11])
# The results with which PAM refuses the user, mostly after the right password.
_REFUSED = {
    6: "PAM does not permit it",
    12: "the password has expired and must be changed",
    13: "the account has expired",
    27: "the password has expired, and the account with it",
}


class _Answer(NamedTuple):
    """
    @ivar mailbox: the name of the mailbox; empty if the login is refused.
    @ivar reason: why PAM refuses a user whose password may be right; empty without a reason.
    """

    mailbox: str
    reason: str = ""


def checkService(service: str) -> str:
    """
    Check the name of a PAM service.

    @return: the name.
    @raise ValueError: the name is not valid.  The text is a sentence for the operator.
    """
    if not _SERVICE.fullmatch(service):
        raise ValueError("a PAM service is the name of a file in /etc/pam.d")
    return service


def _hasFile(service: str) -> bool:
    """
    @return: whether PAM seems to have rules for a service, according to its files.
    """
    directories = [each for each in _DIRECTORIES if os.path.isdir(each)]
    # PAM uses the name in lower case.  Without a directory, it reads a single file.
    return not directories or any(
        os.path.exists(f"{each}/{service.lower()}") for each in directories
    )


def _text(data: bytes, most: int) -> str:
    """
    @return: a name or a password in the form for PAM; empty if PAM must not get it.  PAM ignores
        everything after a NUL, so it would accept a right password that is followed by a NUL and
        more text.
    """
    if len(data) > most or b"\0" in data:
        return ""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _isName(name: str) -> bool:
    """
    @return: whether PAM may get a name.  The limits exist because modules use names in paths and in
        logs.
    """
    isSafe = not name.startswith((".", "-", "~")) and "/" not in name
    return isSafe and name.isprintable() and not any(each.isspace() for each in name)


@implementer(ICredentialsChecker, IAccountStatus, IProvenAccounts, IReloading)
class PAMAccounts:
    """
    A checker that asks PAM in threads: for the password, then for the account, which may have
    expired.

    root cannot log in, so that nobody can guess root's password here.
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    def __init__(
        self,
        service: str = SERVICE,
        timeout: float = TIMEOUT,
        concurrent: int = CONCURRENT,
        isSystem: bool = True,
        threads: Executor | None = None,
        clock: IReactorTime | None = None,
        pam: Any = pamela,
        look: Callable[[str], SystemUser | None] = lookUp,
    ) -> None:
        """
        @param service: the name of the PAM service.
        @param timeout: seconds for a check.
        @param concurrent: checks at the same time.
        @param isSystem: whether the users of the system (NSS) are all users.  The checker then
            provides L{IAccountNames}.
        @param threads: runs the checks; separate threads if not given.
        @param clock: the reactor if not given.
        @param pam: the library, in tests another one.
        @param look: looks up a user of the system; blocks.
        @raise ValueError: C{service} cannot be used.  The text is a sentence for the operator.
        """
        self._service = checkService(service)
        self._checks = BlockingChecks(
            f"the PAM service {service}", timeout, concurrent, threads=threads, clock=clock
        )
        self._pam = pam
        self._look = look
        self._reported = Once()
        if isSystem:
            alsoProvides(self, IAccountNames)
        if not _hasFile(service):
            log.warn(
                "PAM has no service {service} in /etc/pam.d, so it uses its service "
                "'other', which usually refuses all logins",
                service=service,
            )

    # --- passwords --------------------------------------------------------------------

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name of the mailbox in UTF-8.
        @raise POP3ResponseError: C{SYS/TEMP} if PAM gives no answer.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        credentials = asAttempt(credentials)
        name = _text(credentials.username, _LONGEST_NAME)
        # A module may accept an empty password if the user has no password in the system.
        password = _text(credentials.password, _LONGEST_PASSWORD)
        if not (name and password and _isName(name)):
            raise UnauthorizedLogin()
        answer = await self._checks.check(credentials, self._authenticate, name, password)
        if not answer.mailbox:
            # PAM does not always report whether the user exists, so the attempt counts as a guess.
            credentials.refused()
            self._report(name, answer.reason)
            raise UnauthorizedLogin()
        return answer.mailbox.encode("utf-8")

    def _report(self, name: str, reason: str) -> None:
        if reason and self._reported.isFirst((name, reason)):
            log.info(
                "{name} cannot log in: {reason} (PAM service {service}; logged once)",
                name=name,
                reason=reason,
                service=self._service,
            )

    # --- in threads -------------------------------------------------------------------

    def _authenticate(self, name: str, password: str) -> _Answer:
        """
        @raise CheckUnavailable: PAM or the system gives no answer.
        """
        pam = self._pam
        return self._answerOf(
            name,
            # pam_setcred() would change this process, such as its groups.  The password must be
            # str, because pamela would treat bytes as a list of passwords.
            lambda: pam.authenticate(name, password, service=self._service, resetcred=0),
        )

    def _account(self, name: str) -> _Answer:
        """
        Ask for an account without a password.

        @raise CheckUnavailable: see L{_authenticate}.
        """
        return self._answerOf(name, lambda: self._pam.check_account(name, service=self._service))

    def _answerOf(self, name: str, ask: Callable[[], object]) -> _Answer:
        user = self._userOf(name)
        if user is not None and user.uid == 0:
            return _Answer("", "root is not served")
        try:
            ask()
        except self._pam.PAMError as error:
            code = error.errno
            if code in _WRONG:
                return _Answer("")
            if code in _REFUSED:
                return _Answer("", _REFUSED[code])
            raise CheckUnavailable(f"{error.message} (PAM error {code})") from None
        # The system may ignore case, but each user must have only one mailbox.
        return _Answer(name if user is None else user.name)

    def _userOf(self, name: str) -> SystemUser | None:
        try:
            return self._look(name)
        except OSError as error:
            raise CheckUnavailable(f"users cannot be looked up: {error.strerror}") from None

    # --- accounts without a password --------------------------------------------------

    async def _find(self, username: str) -> str:
        """
        @return: the name of the mailbox; empty if the user may not log in.
        """
        name = _text(username.encode("utf-8", "surrogateescape"), _LONGEST_NAME)
        if not (name and _isName(name)):
            return ""
        answer = await self._checks.ask(self._account, name, isUrgent=True)
        self._report(name, answer.reason)
        return answer.mailbox

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}: PAM permits the account.
        """
        return await self._find(username) or None

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> str:
        """
        See L{IAccountStatus.credentialsVersion}.  PAM does not report when a password has changed.
        """
        return "pam"

    async def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> bool:
        """
        See L{IAccountStatus.isStillValid}: PAM permits the account.
        """
        return bool(await self._find(username))

    async def hasAccount(self, username: str) -> bool:
        """
        See L{IAccountNames.hasAccount}: the system knows the user.
        """
        name = _text(username.encode("utf-8", "surrogateescape"), _LONGEST_NAME)
        if not (name and _isName(name)):
            return False
        user = await self._checks.ask(self._userOf, name)
        # If the user's mailbox has another name, nobody would read the mail of this name.
        return user is not None and user.uid != 0 and user.name == name

    def reload(self) -> None:
        """
        See L{IReloading.reload}.  Log reasons again that were logged before.  PAM itself reads its
        files at each check.
        """
        self._reported = Once()
