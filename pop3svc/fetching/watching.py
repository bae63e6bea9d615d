"""
Fetch mail again and again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred

from pop3svc.client.failures import ClientError, CommandRefused, LoginRefused, ServerUnavailable
from pop3svc.client.protocol import POP3Client
from pop3svc.errors import POP3ResponseError
from pop3svc.fetching.fetcher import Fetcher
from pop3svc.transfer.failures import NotPossible, TryAgain

__all__ = ["LONGEST_PAUSE", "Ending", "Visit", "Watch", "unexpected"]

# Each failure after the first doubles the pause before the next attempt, up to this number of
# seconds.
LONGEST_PAUSE = 900


def unexpected(name: str, error: Exception) -> str:
    """
    @param name: the name of the account.
    @param error: the unexpected error.  The sentence does not contain the text of the error, which
        might contain a secret.
    @return: a sentence for the operator.
    """
    return f"{name}: an unexpected error ({type(error).__name__})"


class Ending:
    """
    Tells the parts of a command that the operator wants to end it.

    @ivar hasBegun: whether the command has to end.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._waiting: list[Deferred[None]] = []
        self.hasBegun = False

    def begin(self) -> None:
        """
        Tell all parts to end soon.
        """
        self.hasBegun = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def pause(self, seconds: float) -> None:
        """
        Wait for some seconds, or until the command has to end.
        """
        if self.hasBegun:
            return
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        timer = self._clock.callLater(seconds, self._over, waiter)
        try:
            await waiter
        finally:
            if timer.active():
                timer.cancel()

    def _over(self, waiter: Deferred[None]) -> None:
        self._waiting.remove(waiter)
        waiter.callback(None)


class Visit:
    """
    Fetches the mail of one account once.

    @ivar name: the name of the server, for sentences to the operator.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[POP3Client]],
        fetcher: Fetcher,
        isRefusalFinal: bool = True,
    ) -> None:
        """
        @param name: the name of the server, for sentences to the operator.
        @param connect: connects to the server and logs in.
        @param isRefusalFinal: whether to give up after a refused login.  A login with a token is
            tried again, because the token may be renewed.
        """
        self.name = name
        self._isRefusalFinal = isRefusalFinal
        self._connect = connect
        self.fetcher = fetcher

    async def connect(self) -> POP3Client:
        """
        Connect to the server, and log in.

        @raise NotPossible: the server refuses the user.
        @raise TryAgain: a later attempt may succeed.
        """
        try:
            return await self._connect()
        except (LoginRefused, ServerUnavailable) as error:
            raise self._failure(error)
        except POP3ResponseError as error:
            raise TryAgain(error.text)

    def _failure(self, error: ClientError) -> Exception:
        if isinstance(error, LoginRefused):
            if error.code in (None, "SYS/PERM"):
                kind = NotPossible if self._isRefusalFinal else TryAgain
                return kind(f"{self.name} refuses the login")
            return TryAgain(f"{self.name} accepts no login now ({error.code})")
        if isinstance(error, CommandRefused):
            return TryAgain(f"{self.name} refuses a command")
        return TryAgain(f"{self.name} {error}")

    async def fetch(self, client: POP3Client) -> int:
        """
        Fetch the new messages.

        @return: the number of messages that were stored.
        @raise NotPossible: nothing can be fetched.
        @raise TryAgain: a later attempt may succeed.
        """
        try:
            return await self.fetcher.fetch(client)
        except ClientError as error:
            client.abort("was disconnected")
            raise self._failure(error)
        except POP3ResponseError as error:
            # No thread is free for the work.
            client.abort("was disconnected")
            raise TryAgain(error.text)
        except BaseException:
            client.abort("was disconnected")
            raise

    async def quit(self, client: POP3Client) -> None:
        """
        Delete the marked messages, and end the session.
        """
        try:
            await client.quit()
        except ClientError as error:
            raise self._failure(error)

    async def run(self) -> int:
        """
        Connect to the server, fetch the new messages, and end the session.

        @return: the number of messages that were stored.
        @raise NotPossible: nothing can be fetched.
        @raise TryAgain: a later attempt may succeed.
        """
        client = await self.connect()
        stored = await self.fetch(client)
        await self.quit(client)
        return stored


class Watch:
    """
    Fetches the mail of one account until the operator ends the command.  If the server has SLEE,
    one connection sleeps, and wakes up for each poll.  Otherwise each poll makes a new connection.
    """

    def __init__(
        self,
        visit: Visit,
        ending: Ending,
        interval: float,
        say: Callable[[str], object],
        fetched: Callable[[int], object],
    ) -> None:
        """
        @param interval: the seconds between two polls.
        @param say: called with a sentence without a period about a failure, to tell the operator.
            It is not called again for the same sentence before a poll has worked.
        @param fetched: called with the number of stored messages, after each poll that has stored
            any.
        """
        self._visit = visit
        self._ending = ending
        self._interval = interval
        self._say = say
        self._fetched = fetched
        self._lastFailure = ""
        self._failures = 0
        # If messages were left out, _skipped is the number of polls until they are tried again, and
        # _retries is the number of such attempts so far.
        self._skipped = self._retries = 0

    async def run(self) -> None:
        """
        Fetch again and again until the operator ends the command.

        @raise NotPossible: the server refuses the user.
        """
        while not self._ending.hasBegun:
            try:
                await self._once()
            except TryAgain as error:
                self._failed(str(error))
            except NotPossible:
                raise
            except Exception as error:
                # Go on, because an error of this program at one message must not end all fetching.
                self._failed(unexpected(self._visit.name, error))
            if not self._ending.hasBegun:
                await self._ending.pause(self._pause())

    def _pause(self) -> float:
        if not self._failures:
            return self._interval
        doubled: float = self._interval * 2 ** min(self._failures - 1, 20)
        return max(min(doubled, LONGEST_PAUSE), self._interval)

    def _failed(self, text: str) -> None:
        self._failures += 1
        if text != self._lastFailure:
            self._lastFailure = text
            self._say(text)

    def _worked(self, stored: int) -> None:
        self._failures = 0
        self._lastFailure = ""
        if stored:
            self._fetched(stored)

    async def _once(self) -> None:
        visit = self._visit
        client = await visit.connect()
        try:
            await self._use(client)
        except BaseException as error:
            # End the connection, because it would keep the mailbox locked.
            client.abort("was disconnected")
            if isinstance(error, NotPossible):
                # Try again, because the disk may be full, or the program of mda may be missing
                # while it is upgraded.
                raise TryAgain(str(error))
            raise

    async def _use(self, client: POP3Client) -> None:
        visit = self._visit
        stored = await visit.fetch(client)
        if not (client.has("SLEE-WAKE") or client.has("SLEEPING")):
            await visit.quit(client)
            self._worked(stored)
            return
        await self._sleepAndWake(client, stored)

    async def _sleepAndWake(self, client: POP3Client, stored: int) -> None:
        try:
            await client.sleep()
            while True:
                self._worked(stored)
                await self._ending.pause(self._interval)
                if self._ending.hasBegun:
                    await client.quit()
                    return
                stored = 0
                if await self._hasNews(client):
                    await client.wake()
                    stored = await self._visit.fetch(client)
                    await client.sleep()
        except CommandRefused:
            # Make a new connection later.  Another session may be using the mailbox, and the answer
            # to the new connection will show the reason.
            client.leave()
        except ServerUnavailable:
            # Report no failure, because a connection that has slept for a long time may be lost
            # although the server works.
            pass

    def _mustRetry(self) -> bool:
        """
        @return: whether to try again to fetch the messages that were left out before.  Each attempt
            doubles the number of polls before the next attempt, because a target may refuse the
            messages forever.
        """
        if not self._visit.fetcher.isIncomplete:
            self._skipped = self._retries = 0
            return False
        if self._skipped:
            self._skipped -= 1
            return False
        self._skipped = int(min(2**self._retries, max(LONGEST_PAUSE / self._interval, 1)))
        self._retries = min(self._retries + 1, 20)
        return True

    async def _hasNews(self, client: POP3Client) -> bool:
        if self._mustRetry():
            return True
        # Send both commands at once, so that a poll takes one round trip.
        woken, asleep = client.wake(), client.sleep()
        try:
            hasNews = await woken
        except ClientError as error:
            asleep.addErrback(lambda _: None)
            if not (isinstance(error, CommandRefused) and error.code == "IN-USE"):
                raise
            # Poll again later, because another session uses the mailbox now.
            return False
        await asleep
        return hasNews
