"""
Look up the users of the operating system.  NSS finds them, for example in C{/etc/passwd} or LDAP.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pop3svc.awaiting import CallTimeout, awaitWithTimeout
from pop3svc.bounded import BoundedDict
from pop3svc.errors import POP3ResponseError
from pop3svc.files import disk
from pop3svc.threadpool import BoundedThreadPool, Executor, InlineExecutor

__all__ = ["SystemUser", "SystemUsers", "lookUp"]

# Use several threads, because a server may not answer.  A look-up that waits for the server then
# does not stop all others.  A look-up in files takes some microseconds.
_lookups = BoundedThreadPool("pop3svc-users", threads=4, waiting=1000)


class SystemUser(NamedTuple):
    """
    A user of the system.

    @ivar home: the path of the home directory.
    @ivar groups: the groups of the user, including the primary one.
    @ivar name: the name of the user.  It may differ in case from the name that was looked up,
        because some systems ignore case.
    """

    uid: int
    gid: int
    home: str
    groups: tuple[int, ...]
    name: str = ""


def lookUp(username: str) -> SystemUser | None:
    """
    Look up a user.  Blocks.

    @return: the user; L{None} if the system knows no such user.
    @raise OSError: the look-up failed, and a later one may succeed.
    """
    try:
        entry = pwd.getpwnam(username)
    except (KeyError, ValueError):
        # A name with NUL or with octets that are not UTF-8 raises ValueError.
        return None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return SystemUser(entry.pw_uid, entry.pw_gid, entry.pw_dir, groups, entry.pw_name)


class SystemUsers:
    """
    The users of the system, looked up in threads, and remembered for a short time.
    """

    # The time limit of a look-up in seconds.  A login waits for the look-up.
    TIMEOUT = 10.0
    # How many seconds the result of a look-up is remembered.  LIFE applies if the user exists, and
    # ABSENT applies if the user does not exist.  ABSENT is short, because an operator tries a new
    # user at once.
    LIFE, ABSENT = 60.0, 5.0
    # The most users that are remembered.  Each takes some 300 octets.
    BOUND = 10_000

    def __init__(
        self,
        executor: Executor | None = None,
        clock: Any = None,
        look: Callable[[str], SystemUser | None] = lookUp,
    ) -> None:
        """
        @param executor: runs look-ups.
        @param clock: used for the time limit of a look-up; the reactor if not given.
        @param look: the function that looks up a user.  It blocks.
        """
        if executor is None:
            # In a program without a reactor, the look-up runs at once in this thread.
            executor = disk() if isinstance(disk(), InlineExecutor) else _lookups
        self._executor = executor
        self._clock = clock
        self._seconds = time.monotonic if clock is None else clock.seconds
        self._look = look
        self._known: BoundedDict[str, tuple[float, SystemUser | None]] = BoundedDict(self.BOUND)

    async def find(self, username: str) -> SystemUser | None:
        """
        @return: the user; L{None} if the system knows no such user.
        @raise POP3ResponseError: C{SYS/TEMP}: the system cannot answer now.
        """
        now = self._seconds()
        known = self._known.get(username)
        if known is not None and now < known[0]:
            return known[1]
        try:
            looking = self._executor.run(self._look, username)
            if looking.called:
                user = await looking
            else:
                user = await awaitWithTimeout(looking, self._timer(), self.TIMEOUT)
        except (OSError, CallTimeout):
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP")
        life = self.ABSENT if user is None else self.LIFE
        self._known.put(username, (self._seconds() + life, user))
        return user

    def _timer(self) -> Any:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = reactor
        return self._clock
