"""
Ask a mailbox for the sizes and the contents of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from pop3svc.awaiting import ValueOrDeferred, isAwaitable, settled, startNow, then
from pop3svc.downgrading.converter import SurrogateConverter
from pop3svc.errors import POP3ResponseError, ProviderMistake
from pop3svc.interfaces import IBulkMessageSizes, IPOP3ConnectionInfo, ISurrogates
from pop3svc.lineendings import WireForm
from pop3svc.protocol.content import MessageBody, countByReading
from pop3svc.protocol.maildrop import Maildrop, MessageRef
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.remarks import nameOf, warnOnce
from pop3svc.protocol.replies import Body, Lines
from pop3svc.timing import TimeSlice

__all__ = ["Messages", "SurrogateBody"]

# If a mailbox returns more sizes than this number, the check of the sizes runs in a separate time
# slice.
_MANY = 100_000

# The sizes of messages in octets; None for a size that is not available.
Sizes = list[int | None]


def _listOf(call: Any, values: Iterable[Any]) -> Callable[[], list[Any]]:
    """
    @param call: the method of the mailbox that has returned the values.
    @param values: the values.  They may come from a generator, which runs code of the mailbox.
    @return: a function that makes a list of the values.  The function has the name of the method,
        because the name appears in the warning about a call that blocks the reactor.
    """

    def make() -> list[Any]:
        return list(values)

    make.__qualname__ = nameOf(call)
    return make


def _octets(call: Any, size: object) -> int:
    """
    @param call: the method of the mailbox that has returned the size.
    @param size: the value that the method has returned.
    @return: the size in octets.
    @raise ProviderMistake: the value is not a size.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ProviderMistake(
            f"{nameOf(call)} returned {type(size).__name__} for a size: return the octets of "
            "the message as an int, 0 or more"
        )
    return size


def _hasSurrogates(mailbox: Any) -> bool:
    return ISurrogates.providedBy(mailbox) and mailbox.hasSurrogates


class SurrogateBody(MessageBody):
    """
    A body that converts another L{MessageBody} to its surrogate while it is read
    (L{SurrogateConverter}).

    @ivar hasChanged: whether the octets that were read so far differ from the message.
    """

    form = WireForm.LINES

    def __init__(self, body: MessageBody) -> None:
        """
        @param body: the message.  It is closed when this body is closed.
        """
        self._body = body
        self._converter: SurrogateConverter | None = SurrogateConverter()
        self.hasChanged = False

    def next(self) -> Any:
        """
        See L{pop3svc.protocol.replies.Body.next}.
        """
        if self._converter is None:
            return None
        chunk = self._body.next()
        return self._later(chunk) if isAwaitable(chunk) else self._converted(chunk)

    async def _later(self, chunk: Any) -> bytes:
        return self._converted(await chunk)

    def _converted(self, chunk: bytes | None) -> bytes:
        converter = self._converter
        assert converter is not None, "the end was read already"
        if chunk is None:
            self._converter = None
            converted = converter.finish()
        else:
            converted = converter.feed(chunk)
        self.hasChanged = converter.hasChanged
        return converted

    def close(self) -> None:
        """
        See L{pop3svc.protocol.replies.Body.close}.
        """
        self._body.close()


async def _needsByReading(body: SurrogateBody, clock: IReactorTime) -> bool:
    """
    Read a message until it is known whether the message needs a surrogate.  Then close the message.
    """
    turns = TimeSlice(clock)
    try:
        while not body.hasChanged:
            chunk = body.next()
            if isAwaitable(chunk):
                chunk = await chunk
            if chunk is None:
                return False
            await turns.yieldIfDue()
        return True
    finally:
        body.close()


def _knownSizes(maildrop: Maildrop) -> Body:
    sizes = maildrop.sizes()
    if maildrop.isWhole:
        return Lines(f"{number} {octets or 0}" for number, octets in enumerate(sizes, 1))
    return Lines(f"{each.number} {sizes[each.number - 1] or 0}" for each in maildrop.present())


def _knownTotal(maildrop: Maildrop) -> tuple[int, int]:
    octets = maildrop.octets()
    if octets is None:
        sizes = maildrop.sizes()
        octets = sum(sizes[each.number - 1] or 0 for each in maildrop.present())
    return maildrop.count(), octets


def _check(call: Any, sizes: Sizes, count: int) -> None:
    """
    @raise ProviderMistake: the sizes break a rule.
    """
    if len(sizes) != count:
        raise ProviderMistake(
            f"{nameOf(call)} returned {len(sizes)} sizes for {count} messages: "
            "return one for each, in the order asked"
        )
    for octets in set(sizes):
        if octets is not None:
            _octets(call, octets)


def _notImplemented(failure: Failure) -> None:
    failure.trap(NotImplementedError)


class Messages:
    """
    Asks the mailbox of one session for sizes and contents, and checks the values that it returns.

    @ivar refuses: whether messages with UTF-8 in header fields are refused.
    """

    __slots__ = ("_calls", "_converts", "_info", "_mailbox", "_user", "refuses")

    def __init__(
        self,
        calls: ProviderCalls,
        info: IPOP3ConnectionInfo,
        mailbox: Any,
        user: str,
        utf8Headers: str = "",
    ) -> None:
        """
        @param user: the name of the user, for the log.
        @param utf8Headers: C{convert} or C{refuse} if messages with UTF-8 in header fields are
            converted or refused (L{pop3svc.policy.Policy}); empty if they are sent unchanged.
        """
        self._converts = utf8Headers == "convert" and _hasSurrogates(mailbox)
        self.refuses = utf8Headers == "refuse"
        self._calls = calls
        self._info = info
        self._mailbox = mailbox
        self._user = user

    def sizes(self, uniqueIDs: list[str]) -> ValueOrDeferred[Sizes]:
        """
        @return: the size of each message in octets; L{None} if the size cannot be found.
        @raise POP3ResponseError: the mailbox raised a critical error; or C{SYS/TEMP}: there are
            several messages, and no size can be found now.
        """
        if self._converts:
            found = self._manySizes(self._mailbox.surrogateSizes, uniqueIDs)
        elif IBulkMessageSizes.providedBy(self._mailbox):
            found = self._manySizes(self._mailbox.messageSizes, uniqueIDs)
        else:
            found = None

        def orOneByOne(sizes: Sizes | None) -> ValueOrDeferred[Sizes]:
            return startNow(self._sizesOneByOne(uniqueIDs)) if sizes is None else sizes

        return then(found, orOneByOne)

    def _manySizes(self, call: Any, uniqueIDs: list[str]) -> ValueOrDeferred[Sizes | None]:
        """
        @param call: C{messageSizes} or C{surrogateSizes}.
        @return: the size of each message; L{None} for a message that does not exist any more.  If
            the method is not implemented, the result is L{None} instead of a list.
        """
        try:
            answer: Any = self._calls.ask(call, self._info, uniqueIDs)
        except NotImplementedError:
            return None
        count = len(uniqueIDs)
        if isAwaitable(answer):
            later: Any = answer
            checked: Deferred[Sizes | None] = later.addCallbacks(
                lambda answer: self._checkedSizes(call, answer, count), _notImplemented
            )
            return checked
        return self._checkedSizes(call, answer, count)

    def _checkedSizes(self, call: Any, answer: Any, count: int) -> ValueOrDeferred[Sizes | None]:
        """
        Check the sizes that a mailbox has returned.

        @param count: the number of messages that were asked for.
        """
        if isinstance(answer, str | bytes) or not isinstance(answer, Iterable):
            raise ProviderMistake(
                f"{nameOf(call)} returned {type(answer).__name__}: return a list with the size of "
                "each message, or None for one that has gone"
            )
        sizes: Sizes
        sizes = list(answer) if type(answer) is list else self._calls.start(_listOf(call, answer))
        if len(sizes) > _MANY:
            # Begin a new time slice, because each loop over so many messages takes a long time.
            return startNow(self._checkedInSlices(call, sizes, count))
        _check(call, sizes, count)
        return sizes

    async def _checkedInSlices(self, call: Any, sizes: Sizes, count: int) -> Sizes | None:
        turns = TimeSlice(self._calls.clock)
        await turns.next()
        _check(call, sizes, count)
        await turns.next()
        return sizes

    async def _sizesOneByOne(self, uniqueIDs: list[str]) -> list[int | None]:
        """
        Ask for one size after the other.  If only some sizes cannot be found, raise no error,
        because STAT and LIST without an argument have no C{-ERR} (RFC 1939 section 5).  The client
        gets the error when it asks for the message.

        @return: the size of each message; L{None} if the size cannot be found.
        @raise POP3ResponseError: the error is critical; or C{SYS/TEMP}: there are several messages,
            and no size can be found now.
        """
        sizes: list[int | None] = []
        faults: list[POP3ResponseError] = []
        turns = TimeSlice(self._calls.clock)
        for uniqueID in uniqueIDs:
            octets = None
            try:
                octets = await self.size(uniqueID)
            except POP3ResponseError as error:
                if error.critical:
                    raise
                faults.append(error)
            except (CancelledError, ProviderMistake):
                raise
            except Exception:
                call = self._mailbox.messageSize
                warnOnce(
                    call,
                    "{call}, or reading the message, failed for a message of {user}; STAT and "
                    "LIST count its size as 0",
                    user=self._user,
                    log_failure=Failure(),
                )
            sizes.append(octets)
            await turns.yieldIfDue()
        if len(faults) == len(uniqueIDs) > 1 and all(each.code == "SYS/TEMP" for each in faults):
            raise faults[0]
        return sizes

    async def size(self, uniqueID: str) -> int:
        """
        @return: the number of octets that RETR sends for a message, without dot-stuffing.
        """
        sizes = None
        if self._converts:
            sizes = await settled(self._manySizes(self._mailbox.surrogateSizes, [uniqueID]))
            if sizes is not None and sizes[0] is not None:
                return sizes[0]
        call, octets = self._mailbox.messageSize, None
        if sizes is not None or not self._converts:
            # If surrogateSizes has returned None for the message, messageSize or messageContent
            # raises an error with the reason.
            try:
                octets = await settled(self._calls.ask(call, self._info, uniqueID))
            except NotImplementedError:
                pass
        if self._converts:
            return await countByReading(await settled(self.open(uniqueID)), self._calls.clock)
        if octets is None:
            return await countByReading(await settled(self.content(uniqueID)), self._calls.clock)
        return _octets(call, octets)

    def sizeIn(self, maildrop: Maildrop, found: MessageRef) -> ValueOrDeferred[int]:
        """
        @param found: a message.
        @return: the number of octets that RETR sends for the message, without dot-stuffing.
        """
        octets = None if self.refuses else maildrop.size(found)
        return startNow(self._learnSize(maildrop, found)) if octets is None else octets

    async def _learnSize(self, maildrop: Maildrop, found: MessageRef) -> int:
        if self.refuses:
            await self.refuseUTF8(found.uniqueID)
        octets = maildrop.size(found)
        if octets is None:
            octets = await self.size(found.uniqueID)
            maildrop.setSizes([found], [octets])
        return octets

    def sizesIn(self, maildrop: Maildrop) -> ValueOrDeferred[Body]:
        """
        @return: the number and the size in octets of each message that is not deleted.
        """
        return then(self._learnSizes(maildrop), lambda _: _knownSizes(maildrop))

    def totalIn(self, maildrop: Maildrop) -> ValueOrDeferred[tuple[int, int]]:
        """
        @return: the number of messages that are not deleted, and their total size in octets.
        """
        octets = maildrop.octets()
        if octets is not None:
            return maildrop.count(), octets
        return then(self._learnSizes(maildrop), lambda _: _knownTotal(maildrop))

    def _learnSizes(self, maildrop: Maildrop) -> ValueOrDeferred[None]:
        """
        Ask for the sizes that are not known yet.
        """
        known = maildrop.sizes()
        if known and None not in known:
            return None
        isBulk = IBulkMessageSizes.providedBy(self._mailbox)
        if isBulk and not known and maildrop.isWhole and len(maildrop.listed) > 1:
            unknown: list[MessageRef] = []
            uniqueIDs = maildrop.listed.uniqueIDs
        else:
            unknown = [
                each for each in maildrop.present() if not known or known[each.number - 1] is None
            ]
            if not unknown:
                return None
            uniqueIDs = [each.uniqueID for each in unknown]
        # A size that was not found stays unknown, so that the next STAT or LIST asks again.
        return then(self.sizes(uniqueIDs), lambda sizes: maildrop.setSizes(unknown, sizes))

    async def refuseUTF8(self, uniqueID: str) -> None:
        """
        Check that a message may be sent to the client.

        @raise POP3ResponseError: C{UTF8}: the message has UTF-8 in header fields, and the client
            has not sent UTF8 (RFC 6856 section 5).
        """
        needs = None
        mailbox = self._mailbox
        if _hasSurrogates(mailbox):
            # Ask for the size first.  While the mailbox finds the size, it may learn the answer
            # that needsUTF8 returns.
            await settled(self._manySizes(mailbox.surrogateSizes, [uniqueID]))
            needs = mailbox.needsUTF8(self._info, uniqueID)
        if needs is None:
            body = SurrogateBody(await settled(self.content(uniqueID)))
            needs = await _needsByReading(body, self._calls.clock)
        if needs:
            raise POP3ResponseError("Message needs UTF-8 mode.", "UTF8")

    def open(self, uniqueID: str) -> ValueOrDeferred[MessageBody]:
        """
        Open a message for the client.

        @return: the content or the surrogate of the message.  The caller closes it.
        @raise POP3ResponseError: see L{refuseUTF8}.
        """
        if self.refuses:
            return then(startNow(self.refuseUTF8(uniqueID)), lambda _: self.content(uniqueID))
        if self._converts and self._mailbox.needsUTF8(self._info, uniqueID) is not False:
            return then(self.content(uniqueID), SurrogateBody)
        return self.content(uniqueID)

    def content(self, uniqueID: str) -> ValueOrDeferred[MessageBody]:
        """
        Open a message, and do not convert it.

        @return: the content of the message.  The caller closes it.
        """
        call = self._mailbox.messageContent
        content = self._calls.finish(call, self._info, uniqueID)
        return then(content, lambda content: self._bodyOf(content, call))

    def _bodyOf(self, content: Any, call: Any) -> MessageBody:
        body = MessageBody(content, self._calls.clock, self._calls.timeout, call)
        if self._calls.isOver:
            body.close()
            raise CancelledError()
        return body

    def warnOfOtherSize(self, said: int, sent: int) -> None:
        """
        Log once that a mailbox has returned a wrong size for a message.

        @param said: the size in octets that the mailbox has returned.
        @param sent: the number of octets that were sent.
        """
        mailbox = self._mailbox
        call = mailbox.messageSize
        if self._converts:
            call = mailbox.surrogateSizes
        elif IBulkMessageSizes.providedBy(mailbox):
            call = mailbox.messageSizes
        warnOnce(
            call,
            "{call} returned {said} octets for a message of {user}, but {sent} were sent: return "
            "the size with CRLF line ends, or raise NotImplementedError to have it counted",
            said=said,
            sent=sent,
            user=self._user,
        )
