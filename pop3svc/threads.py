"""
Run the methods of a blocking provider in a thread pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock, get_ident
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import blockingCallFromThread
from zope.interface import directlyProvides, implementer, providedBy

from pop3svc.interfaces import (
    IAccountNames,
    IAccountStatus,
    IChunkedContent,
    IDelivery,
    IFileContent,
    IMailboxLogout,
    IMailboxStore,
    IMessageContent,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
    IReloading,
)
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = ["InThreads"]

_PIECE = 65536


# The wrapper provides each of these interfaces that the wrapped object provides, and no other
# interface.
_ABILITIES = (
    IPOP3MailboxProvider,
    IMailboxStore,
    IAccountNames,
    IAccountStatus,
    IDelivery,
    IReloading,
)


class InThreads:
    """
    Wraps a provider or a store whose methods block.  Such methods may, for example, use a blocking
    driver of a database.  The methods of the wrapped object return values and not Deferreds.  No
    two methods of the same mailbox run at the same time.  The content of messages is read in
    threads as well.
    """

    def __init__(
        self, provider: Any, threads: int = 10, waiting: int = 1000, runner: Executor | None = None
    ) -> None:
        """
        @param provider: an L{IPOP3MailboxProvider} or L{IMailboxStore}.  The wrapper provides each
            interface of C{_ABILITIES} that the provider provides.
        @param threads: the number of calls that run at once.
        @param waiting: the number of further calls that may wait.  Calls beyond this number are
            refused with C{[SYS/TEMP]}.
        @raise TypeError: the provider provides neither L{IPOP3MailboxProvider} nor
            L{IMailboxStore}.
        """
        abilities = [each for each in _ABILITIES if each.providedBy(provider)]
        if not set(abilities) & {IPOP3MailboxProvider, IMailboxStore}:
            raise TypeError(
                f"{type(provider).__name__} provides neither IPOP3MailboxProvider nor IMailboxStore"
            )
        directlyProvides(self, *abilities)
        self._provider = provider
        self.name: str = provider.name
        self._runner = (
            BoundedThreadPool("pop3svc-provider", threads, waiting) if runner is None else runner
        )

    async def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        group = self.name, username
        mailbox = await self._runner.run(
            self._provider.authenticate, info, username, password, group=group
        )
        return None if mailbox is None else _Mailbox(mailbox, self._runner, group)

    async def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IMailboxStore.openMailbox}.
        """
        group = self.name, username
        mailbox = await self._runner.run(self._provider.openMailbox, info, username, group=group)
        return None if mailbox is None else _Mailbox(mailbox, self._runner, group)

    def __getattr__(self, name: str) -> Any:
        if not any(name in each and each.providedBy(self) for each in _ABILITIES):
            raise AttributeError(name)
        call = getattr(self._provider, name)
        return lambda *arguments: self._runner.run(call, *arguments)


class _Mailbox:
    """
    A mailbox whose methods run in threads.  It provides the interfaces of the wrapped mailbox.
    L{INewMailNotifier} is an exception, because a blocking mailbox could call C{changed} from any
    thread at any time.
    """

    def __init__(self, mailbox: Any, runner: Executor, group: tuple[str, str]) -> None:
        """
        @param group: see L{Executor.run}.  The group contains the name of the user: while a call
            for this user hangs, further calls for the user are refused.
        """
        self._mailbox = mailbox
        self._runner = runner
        self._group = group
        # The lock is necessary because a cancelled call may still be running when the next call
        # begins.
        self._guard = Lock()
        directlyProvides(self, providedBy(mailbox) - INewMailNotifier)

    def _run(self, call: Callable[..., Any], *arguments: Any, abandoned: Any = None) -> Any:
        def alone() -> Any:
            with self._guard:
                return call(*arguments)

        # Call these methods without a group, because a call that releases resources must not be
        # refused while another call hangs.
        isLast = getattr(call, "__name__", "") in ("unlock", "logout", "close")
        group = None if isLast else self._group
        return self._runner.run(alone, abandoned=abandoned, group=group)

    @property
    def hasSurrogates(self) -> bool:
        """
        See L{pop3svc.interfaces.ISurrogates.hasSurrogates}.
        """
        return bool(self._mailbox.hasSurrogates)

    def needsUTF8(self, info: IPOP3ConnectionInfo, uniqueID: str) -> None:
        """
        Return L{None}, which means "not known".  The wrapped mailbox cannot be asked here, because
        its method may block.
        """

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._mailbox, name)
        return lambda *arguments: self._run(call, *arguments)

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Deferred[None]:
        """
        See L{pop3svc.interfaces.IExclusiveMailbox.lock}.
        """

        reactorThread = get_ident()

        def ask() -> Any:
            if get_ident() == reactorThread:
                return requestRelease()
            from twisted.internet import reactor

            return blockingCallFromThread(IReactorFromThreads(reactor), requestRelease)

        locked: Deferred[None] = self._run(
            self._mailbox.lock,
            info,
            ask,
            abandoned=lambda _: self._run(self._mailbox.unlock, info),
        )
        return locked

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        See L{pop3svc.interfaces.IPOP3Mailbox.messageContent}.
        """
        content = await self._run(self._mailbox.messageContent, info, uniqueID)
        if isinstance(content, bytes) or IFileContent.providedBy(content):
            return content
        return _Content(content, self._run)

    def logout(self) -> Any:
        """
        See L{IMailboxLogout.logout}.
        """
        if IMailboxLogout.providedBy(self._mailbox):
            return self._run(self._mailbox.logout)
        return None


@implementer(IChunkedContent)
class _Content:
    """
    The content of a message.  It is read in threads.
    """

    def __init__(self, content: Any, run: Callable[..., Any]) -> None:
        self._content = content
        self._run = run
        self._next: Callable[[], bytes | None]
        if IChunkedContent.providedBy(content):
            self._next = cast(Callable[[], bytes | None], content.nextChunk)
        elif IMessageContent.providedBy(content):
            self._next = self._lines(iter(content.nextLine, None), always=True)
        elif hasattr(content, "read"):
            self._next = lambda: content.read(_PIECE) or None
        elif isinstance(content, Iterable) and not isinstance(content, str):
            self._next = self._lines(iter(content), always=False)
        else:
            raise TypeError(f"{type(content).__name__} is not a supported type of content")

    @staticmethod
    def _lines(lines: Any, always: bool) -> Callable[[], bytes | None]:
        def piece() -> bytes | None:
            gathered, octets = [], 0
            for line in lines:
                ended = line.endswith(b"\n") and not always
                gathered.append(line if ended else line + b"\r\n")
                octets += len(line)
                if octets >= _PIECE:
                    break
            return b"".join(gathered) or None

        return piece

    def nextChunk(self) -> Any:
        """
        See L{IChunkedContent.nextChunk}.
        """
        return self._run(self._next)

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.
        """
        close = getattr(self._content, "close", None)
        if close is not None:
            self._run(close).addErrback(lambda _: None)
