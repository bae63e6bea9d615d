"""
Accounts that PAM checks, such as the users of the system.
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

# The default name of the PAM service, which is the name of a file in /etc/pam.d.
SERVICE = "pop3svc"
# The time limit of a check in seconds.  Modules of PAM wait some two seconds after a wrong
# password.
TIMEOUT = 15
# The most octets of a name, and of a password.  PAM limits an answer to 512 octets, including the
# final NUL.
_LONGEST_NAME = 255
_LONGEST_PASSWORD = 511
_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d", "/usr/local/etc/pam.d")

# PAM_AUTH_ERR, PAM_USER_UNKNOWN and PAM_MAXTRIES: the password is wrong, or the user does not
# exist.
_WRONG = frozenset([7, 10, 11])
# With these results PAM refuses a user whose password is usually right.
_REFUSED = {
    6: "PAM does not permit it",
    12: "the password has expired and must be changed",
    13: "the account has expired",
    27: "the password has expired, and the account with it",
}


class _Answer(NamedTuple):
    """
    @ivar mailbox: the name of the mailbox; empty if the login is refused.
    @ivar reason: the reason if PAM refuses a user whose password may be right; otherwise empty.
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
    @return: whether the files of PAM seem to contain rules for a service.
    """
    directories = [each for each in _DIRECTORIES if os.path.isdir(each)]
    # PAM converts the name to lower case.  If there is no directory, PAM reads a single file.
    return not directories or any(
        os.path.exists(f"{each}/{service.lower()}") for each in directories
    )


def _text(data: bytes, most: int) -> str:
    """
    @return: a name or a password as a text; empty if PAM must not get it.  A text with a NUL is
        refused, because PAM ignores the NUL and everything after it.  PAM would therefore accept
        the right password with further text after a NUL.
    """
    if len(data) > most or b"\0" in data:
        return ""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _isName(name: str) -> bool:
    """
    @return: whether PAM may get a name.  Some characters are not allowed, because modules of PAM
        use the name in paths and in logs.
    """
    isSafe = not name.startswith((".", "-", "~")) and "/" not in name
    return isSafe and name.isprintable() and not any(each.isspace() for each in name)


@implementer(ICredentialsChecker, IAccountStatus, IProvenAccounts, IReloading)
class PAMAccounts:
    """
    A checker that asks PAM in threads.  PAM first checks the password and then the account, because
    the account may have expired.

    root cannot log in, because otherwise a client could guess the password of root here.
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
        @param timeout: the time limit of a check in seconds.
        @param concurrent: the most checks that run at the same time.
        @param isSystem: whether all users that PAM accepts are users of the system (NSS).  If so,
            the checker provides L{IAccountNames}.
        @param threads: runs the checks; a new pool of threads if not given.
        @param clock: used for the time limits; the reactor if not given.
        @param pam: replaces the library pamela in tests.
        @param look: the function that looks up a user of the system.  It blocks.
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
        @raise POP3ResponseError: C{SYS/TEMP}: PAM has given no answer.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        credentials = asAttempt(credentials)
        name = _text(credentials.username, _LONGEST_NAME)
        # Refuse an empty password, because a module may accept it if the user has no password in
        # the system.
        password = _text(credentials.password, _LONGEST_PASSWORD)
        if not (name and password and _isName(name)):
            raise UnauthorizedLogin()
        answer = await self._checks.check(credentials, self._authenticate, name, password)
        if not answer.mailbox:
            # Count the attempt as a guess, because PAM does not always report whether the user
            # exists.
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
        @raise CheckUnavailable: PAM or the system has given no answer.
        """
        pam = self._pam
        return self._answerOf(
            name,
            # resetcred=0 prevents a call of pam_setcred(), which would change this process, for
            # example its groups.  The password must be str, because pamela would treat bytes as a
            # list of passwords.
            lambda: pam.authenticate(name, password, service=self._service, resetcred=0),
        )

    def _account(self, name: str) -> _Answer:
        """
        Ask PAM whether a user may log in, without a password.

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
        # Use the name as the system spells it.  The system may ignore case, and a user must not
        # have a mailbox for each spelling.
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
        See L{IProvenAccounts.provenMailbox}.  The user has a mailbox if PAM permits the account.
        """
        return await self._find(username) or None

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> str:
        """
        See L{IAccountStatus.credentialsVersion}.  All versions are the same, because PAM does not
        report when a password has changed.
        """
        return "pam"

    async def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> bool:
        """
        See L{IAccountStatus.isStillValid}.  A session is valid if PAM permits the account.
        """
        return bool(await self._find(username))

    async def hasAccount(self, username: str) -> bool:
        """
        See L{IAccountNames.hasAccount}.  Each user of the system except root has an account.
        """
        name = _text(username.encode("utf-8", "surrogateescape"), _LONGEST_NAME)
        if not (name and _isName(name)):
            return False
        user = await self._checks.ask(self._userOf, name)
        # If the mailbox of the user has another name, nobody would read mail that is delivered to
        # this name.
        return user is not None and user.uid != 0 and user.name == name

    def reload(self) -> None:
        """
        See L{IReloading.reload}.  Log each reason again, even if it was logged before.  Nothing
        else is necessary, because PAM reads its files at each check.
        """
        self._reported = Once()
