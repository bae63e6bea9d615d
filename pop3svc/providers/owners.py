"""
Find the directory of a user's mail, and the user's file rights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pop3svc.awaiting import maybeAwait
from pop3svc.errors import POP3ResponseError
from pop3svc.fileuser import FileUser, asUser
from pop3svc.interfaces import UserFacts
from pop3svc.once import Once
from pop3svc.providers.paths import PathTemplate, Root
from pop3svc.systemusers import SystemUsers
from pop3svc.threadpool import Executor

__all__ = ["FIRST_UID", "Owned", "Owners", "UserExecutor", "executorFor"]

log = Logger(namespace="pop3svc")

# The lowest uid of a person.  Lower uids belong to programs.  The value is Dovecot's default for
# first_valid_uid.
FIRST_UID = 500
# The highest possible uid.  The kernel uses the next higher number to say "no user".
_LAST_UID = 0xFFFFFFFE

T = TypeVar("T")


class Owned(NamedTuple):
    """
    The place of a user's mail, and the user whose rights are necessary for the files.

    @ivar place: the path of the mail.
    @ivar user: the user whose rights are necessary for the files; L{None} if they are opened with
        the rights of the service.
    """

    place: Root
    user: FileUser | None


class UserExecutor:
    """
    Runs work with the file rights of a user.
    """

    def __init__(self, executor: Executor, user: FileUser) -> None:
        self._executor = executor
        self._user = user

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        See L{Executor.run}.
        """
        user = self._user

        def perform() -> T:
            with asUser(user):
                return work(*arguments)

        return self._executor.run(perform, abandoned=abandoned, ended=ended, group=group)

    def isLost(self, group: Hashable) -> bool:
        """
        See L{Executor.isLost}.
        """
        return self._executor.isLost(group)


def executorFor(executor: Executor, user: FileUser | None) -> Executor:
    """
    @return: an executor that runs work with the rights of C{user}.  If C{user} is L{None}, the
        result is C{executor} itself.
    """
    return executor if user is None else UserExecutor(executor, user)


class Owners:
    """
    Finds the mail of the users of one store.

    @ivar areUsers: whether the files of a user are opened with the rights of this user.
    @ivar isDirect: whether the name of a user is enough to find the directory and the rights.
    """

    def __init__(
        self,
        template: PathTemplate,
        areUsers: bool = False,
        firstUID: int = FIRST_UID,
        systemUsers: SystemUsers | None = None,
    ) -> None:
        """
        @param firstUID: the lowest uid of a user whose mail is served.
        @param systemUsers: finds the home directory and the ids of a user if the accounts do not
            have them.
        """
        self.areUsers = areUsers
        self.isDirect = not (areUsers or template.needsHome)
        self._template = template
        self._firstUID = firstUID
        self._system = SystemUsers() if systemUsers is None else systemUsers
        self._source: Any = None
        # Pairs of a user and a reason.  The log already says that the user was refused for this
        # reason.
        self._refused = Once(10_000)

    def useFacts(self, source: Any) -> None:
        """
        See L{pop3svc.interfaces.IUsesUserFacts.useFacts}.
        """
        self._source = source

    def placeFor(self, username: str) -> Root | None:
        """
        @return: the directory of a user's mail; L{None} if the name is not allowed in a path.  Call
            this method only if C{isDirect} is true.
        """
        return self._template.placeFor(username)

    async def find(self, username: str, isUser: bool = False) -> Owned | None:
        """
        @param isUser: whether the caller knows that a user with this name exists.
        @return: the user's mail.  L{None} if the name cannot be used in a path.  Also L{None} if
            the store needs a home directory, a uid or a gid that is not known or not allowed.  This
            reason is logged once if the user exists.
        @raise POP3ResponseError: C{SYS/TEMP}: the accounts or the system cannot answer now.
        """
        if self.isDirect:
            place = self._template.placeFor(username)
            return None if place is None else Owned(place, None)
        # Do not look up a name in the accounts or in the system if it is not allowed in a path.
        if self._template.placeFor(username, "/") is None:
            return None
        facts = UserFacts()
        if self._source is not None:
            told = await maybeAwait(self._source.factsOf, username)
            isUser = isUser or told is not None
            facts = told or facts
        user: FileUser | None = None
        home = facts.home
        isComplete = facts.uid is not None and facts.gid is not None
        if self.areUsers and isComplete:
            user = FileUser(facts.uid or 0, facts.gid or 0, (facts.gid or 0,))
        if (self.areUsers and user is None) or (self._template.needsHome and not home):
            found = await self._system.find(username)
            if found is not None:
                isUser = True
                home = home or found.home
                if self.areUsers and user is None:
                    user = FileUser(found.uid, found.gid, found.groups)
        return self._checked(username, home, user, isUser)

    def _checked(
        self, username: str, home: str, user: FileUser | None, isUser: bool
    ) -> Owned | None:
        reason = ""
        if self.areUsers:
            reason = _faultOf(user, self._firstUID)
        if not reason and self._template.needsHome and not _isHome(home):
            reason = "neither the accounts nor the system know a usable home directory"
        place = self._template.placeFor(username, home)
        if not reason and place is not None:
            return Owned(place, user)
        if isUser and self._refused.isFirst((username, reason)):
            log.warn("{name} has no mailbox here: {reason}", name=username, reason=reason)
        return None

    async def require(self, username: str) -> Owned | None:
        """
        Find the mail of a user who has logged in.

        @return: the user's mail; L{None} if the name cannot be used in a path.
        @raise POP3ResponseError: C{SYS/PERM}: the user has no mailbox here.  C{SYS/TEMP}: see
            L{find}.
        """
        found = await self.find(username, isUser=True)
        if found is None and self._template.placeFor(username, "/") is not None:
            # Raise an error, because the result None would count as a wrong password.
            raise POP3ResponseError("This user has no mailbox here.", "SYS/PERM")
        return found


def _faultOf(user: FileUser | None, firstUID: int) -> str:
    """
    @return: the reason why the service does not use files with the rights of this user, as a text
        for the log; empty if the service uses the files.
    """
    if user is None:
        return "neither the accounts nor the system know a uid and a gid"
    if not max(firstUID, 1) <= user.uid <= _LAST_UID:
        return f"uid {user.uid} is below firstuid={firstUID}, or is no uid"
    if not 1 <= user.gid <= _LAST_UID:
        return f"gid {user.gid} is not allowed"
    return ""


def _isHome(home: str) -> bool:
    """
    @return: whether a path can be a home directory.  The path must be absolute, have no part C{..}
        and no NUL, and not be the root directory.
    """
    parts = home.split("/")
    return home.startswith("/") and any(parts) and ".." not in parts and "\0" not in home
