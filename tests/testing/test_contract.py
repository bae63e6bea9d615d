"""
The tests of the contract pass for mailboxes that keep the contract.  Each of these tests fails for
at least one mailbox that breaks the contract.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import unittest
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from zope.interface import alsoProvides, implementer, implementer_only

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IChunkedContent,
    IExclusiveMailbox,
    IFileContent,
    IMailboxLogout,
    IMessageContent,
    INewMailNotifier,
    IPOP3Mailbox,
    IReadOnlyMailbox,
    ISurrogates,
)
from pop3svc.lineendings import CRLFNormalizer
from pop3svc.testing import MailboxContract

RULES = {name for name in dir(MailboxContract) if name.startswith("test_")}


class Store:
    """
    The messages that the sessions of one user share.
    """

    def __init__(self) -> None:
        self.serial = count(1)
        self.messages: dict[str, bytes] = {}
        self.holder: Any = None
        self.watchers: list[Callable[[], None]] = []
        self.failing = False
        self.queue: list[tuple[Deferred[Any], Callable[[], Any]]] = []
        # The state of a faulty mailbox.
        self.kept: Any = None

    def add(self, message: bytes) -> str:
        uniqueID = f"id-{next(self.serial)}"
        self.messages[uniqueID] = message
        for changed in self.watchers:
            changed()
        return uniqueID


def asSent(message: bytes) -> bytes:
    ends = CRLFNormalizer()
    return ends.feed(message) + ends.finish()


@implementer(IMessageContent)
class Content:
    def __init__(self, message: bytes) -> None:
        self.lines = iter(asSent(message).split(b"\r\n")[:-1])

    def nextLine(self) -> bytes | None:
        return next(self.lines, None)

    def close(self) -> None:
        pass


@implementer(
    *(IPOP3Mailbox, IBulkMessageSizes, IExclusiveMailbox, IMailboxLogout, INewMailNotifier),
    ISurrogates,
)
class Good:
    """
    A mailbox that keeps the contract and provides the optional interfaces named above.
    """

    hasSurrogates = True

    def __init__(self, store: Store) -> None:
        self.store = store

    def lock(self, info: Any, requestRelease: Any) -> Any:
        store = self.store
        if store.holder is not None and not (store.holder() and store.holder is None):
            raise POP3ResponseError("Held.", "IN-USE")
        store.holder = requestRelease

    def unlock(self, info: Any) -> Any:
        self.store.holder = None

    def logout(self) -> Any:
        pass

    def watchMailbox(self, info: Any, changed: Any) -> Any:
        self.store.watchers.append(changed)
        return lambda: self.store.watchers.remove(changed)

    def listMessageUniqueIDs(self, info: Any) -> Any:
        return list(self.store.messages)

    def messageExists(self, info: Any, uniqueID: str) -> Any:
        return uniqueID in self.store.messages

    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return len(asSent(self.message(uniqueID)))

    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        messages = self.store.messages
        return [len(asSent(messages[each])) if each in messages else None for each in uniqueIDs]

    def surrogateSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        messages = self.store.messages
        return [
            surrogateSize([messages[each]]) or len(asSent(messages[each]))
            if each in messages
            else None
            for each in uniqueIDs
        ]

    def needsUTF8(self, info: Any, uniqueID: str) -> Any:
        return surrogateSize([self.message(uniqueID)]) > 0

    def message(self, uniqueID: str) -> bytes:
        try:
            return self.store.messages[uniqueID]
        except KeyError:
            raise POP3ResponseError("It has gone.")

    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Content(self.message(uniqueID))

    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        if self.store.failing:
            raise POP3ResponseError("The disk is full.", "SYS/TEMP")
        for each in uniqueIDs:
            self.store.messages.pop(each, None)


class ReadOnly(Good):
    def __init__(self, store: Store) -> None:
        super().__init__(store)
        alsoProvides(self, IReadOnlyMailbox)

    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        raise AssertionError("never called")


class Late(Good):
    """
    The methods named below return Deferreds, which fire in C{goOn}.
    """

    def later(self, call: Any, *arguments: Any) -> Any:
        def cancel(cancelled: Any) -> None:
            self.store.queue[:] = [each for each in self.store.queue if each[0] is not cancelled]

        answer: Deferred[Any] = Deferred(cancel)
        self.store.queue.append((answer, lambda: call(*arguments)))
        return answer


def makeLate(name: str) -> Any:
    return lambda self, *arguments: self.later(getattr(super(Late, self), name), *arguments)


for each in (
    "lock",
    "unlock",
    "logout",
    "listMessageUniqueIDs",
    "messageSize",
    "messageSizes",
    "surrogateSizes",
    "messageContent",
    "messageDelete",
    "messageExists",
):
    setattr(Late, each, makeLate(each))


class AwaitsFired(Good):
    """
    Its coroutines await Deferreds that have fired already.
    """


class AwaitsFutures(Good):
    """
    Its coroutines await tasks and futures of asyncio that finish later.
    """


def makeCoroutine(kind: type[Good], name: str) -> Any:
    async def fired(self: Any, *arguments: Any) -> Any:
        await succeed(None)
        return getattr(super(kind, self), name)(*arguments)

    async def later(self: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await asyncio.wait_for(future, 60)
        return getattr(super(kind, self), name)(*arguments)

    return fired if kind is AwaitsFired else later


for each in (
    "unlock",
    "logout",
    "listMessageUniqueIDs",
    "messageSize",
    "messageSizes",
    "surrogateSizes",
    "messageContent",
    "messageDelete",
    "messageExists",
):
    for coroutines in (AwaitsFired, AwaitsFutures):
        setattr(coroutines, each, makeCoroutine(coroutines, each))


class AwaitsLate(Late):
    """
    Its coroutines await Deferreds that fire later.
    """


def makeLateCoroutine(name: str) -> Any:
    async def later(self: Any, *arguments: Any) -> Any:
        return await getattr(super(AwaitsLate, self), name)(*arguments)

    return later


for each in ("listMessageUniqueIDs", "messageSize", "messageContent", "messageDelete"):
    setattr(AwaitsLate, each, makeLateCoroutine(each))


class LeavesTheCounting(Good):
    """
    Leaves the counting of sizes to the service.
    """

    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return None

    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [None for each in uniqueIDs]

    def surrogateSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        raise NotImplementedError

    def needsUTF8(self, info: Any, uniqueID: str) -> Any:
        return None


class SendsAllAsTheyAre(Good):
    """
    Has no surrogates.
    """

    hasSurrogates = False


# --- mailboxes that break one rule ----------------------------------------------

BROKEN: list[tuple[type[Good], str, str]] = []


def breaks(rule: str, saying: str = "") -> Callable[[type[Good]], type[Good]]:
    """
    Declare a faulty mailbox.

    @param rule: the name of the test that has to fail, without C{test_}.
    @param saying: a part of the failure's message.
    """
    assert f"test_{rule}" in RULES

    def note(broken: type[Good]) -> type[Good]:
        BROKEN.append((broken, f"test_{rule}", saying))
        return broken

    return note


@breaks("providesItsInterfaces", "write @implementer(IPOP3Mailbox) above the class")
@implementer_only()
class DeclaresNothing(Good):
    pass


@breaks("providesItsInterfaces", "HasMoreThanItSays.messageSizes is never called: the class is")
@implementer_only(IPOP3Mailbox, IExclusiveMailbox, IMailboxLogout, INewMailNotifier)
class HasMoreThanItSays(Good):
    pass


@breaks("providesItsInterfaces", "LacksAnArgument")
class LacksAnArgument(Good):
    def messageExists(self, uniqueID: str) -> Any:
        return False


@breaks("providesItsInterfaces", "logout")
class SaysMoreThanItHas(Good):
    logout = None


@breaks("providesItsInterfaces")
class ContentLacksAnArgument(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        content = Content(self.message(uniqueID))
        content.close = lambda how=0, *, why: None  # type: ignore[method-assign]
        return content


@breaks("surrogateSizes", "SizesOfOriginals.surrogateSizes returned [")
class SizesOfOriginals(Good):
    def surrogateSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return self.messageSizes(info, uniqueIDs)


@breaks("surrogateSizes", "ThinksOneIsASCII.needsUTF8 returned False for 'id-2', not True")
class ThinksOneIsASCII(Good):
    def needsUTF8(self, info: Any, uniqueID: str) -> Any:
        return False


@breaks("surrogatesInASession")
class SurrogatesChangeTheirSize(Good):
    def surrogateSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [size + 1 for size in super().surrogateSizes(info, uniqueIDs)]


@breaks("empty")
class NeverEmpty(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return list(self.store.messages) or ["welcome"]


@breaks("uniqueIDs", "ListsNone.listMessageUniqueIDs returned None; it returns an iterable of str")
class ListsNone(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.listed = list(self.store.messages)


@breaks("empty", "NoneForNothing.listMessageUniqueIDs returned None; it returns an iterable")
class NoneForNothing(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return list(self.store.messages) or None


@breaks("uniqueIDs", "ListsOctets.listMessageUniqueIDs lists b'id-1'; unique-ids are str")
class ListsOctets(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return [each.encode() for each in self.store.messages]


@breaks("uniqueIDs", "ListsNumbers.listMessageUniqueIDs lists 1; unique-ids are str")
class ListsNumbers(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return range(1, len(self.store.messages) + 1)


@breaks("uniqueIDs", "ListsOneString.listMessageUniqueIDs returned 'id-1 id-2")
class ListsOneString(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return " ".join(self.store.messages)


@breaks("uniqueIDs", "ForgetsToAwait.listMessageUniqueIDs returned <coroutine")
class ForgetsToAwait(Good):
    async def listMessageUniqueIDs(self, info: Any) -> Any:
        return self.looked(list(self.store.messages))

    async def looked(self, listed: Any) -> Any:
        return listed


@breaks("uniqueIDs")
class SpacesInUniqueIDs(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return [each.replace("-", " ") for each in self.store.messages]


@breaks("uniqueIDs")
class SameUniqueIDs(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return ["same" for _ in self.store.messages]


class _Renaming(Good):
    """
    The unique-ids of this mailbox differ from those of the store.
    """

    def name(self, number: int, uniqueID: str) -> str:
        raise NotImplementedError

    def renamed(self) -> dict[str, str]:
        return {self.name(number, each): each for number, each in enumerate(self.store.messages, 1)}

    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.names = self.renamed()
        return list(self.names)

    def messageExists(self, info: Any, uniqueID: str) -> Any:
        return uniqueID in self.renamed()

    def message(self, uniqueID: str) -> bytes:
        return super().message(self.names.get(uniqueID, uniqueID))

    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return super().messageSizes(info, [self.names.get(each, each) for each in uniqueIDs])

    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        super().messageDelete(info, [self.names.get(each, each) for each in uniqueIDs])


@breaks("uniqueIDsStayBesideDeletion")
class NumbersForUniqueIDs(_Renaming):
    def name(self, number: int, uniqueID: str) -> str:
        return str(number)


@breaks("uniqueIDsStay")
class UniqueIDsOfASession(_Renaming):
    def name(self, number: int, uniqueID: str) -> str:
        return f"{id(self)}-{uniqueID}"


@breaks("uniqueIDsStay")
class FlagsInUniqueIDs(_Renaming):
    """
    Changes the unique-id of a message that was read, as if the unique-id were the name of a file
    in a Maildir.
    """

    def name(self, number: int, uniqueID: str) -> str:
        self.store.kept = self.store.kept or set()
        return uniqueID + (":2,S" if uniqueID in self.store.kept else "")

    def messageContent(self, info: Any, uniqueID: str) -> Any:
        content = super().messageContent(info, uniqueID)
        self.store.kept.add(self.names[uniqueID])
        return content


@breaks("messageExists")
class BelievesTheClient(Good):
    def messageExists(self, info: Any, uniqueID: str) -> Any:
        return True


@breaks("content")
class NewestFirst(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        return list(self.store.messages)[::-1]


@breaks("content")
class SevenBits(Good):
    def message(self, uniqueID: str) -> bytes:
        return super().message(uniqueID).decode("ascii", "ignore").encode("ascii")


@breaks("retrAndTop")
class CutsLongLines(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return [line[:998] for line in asSent(self.message(uniqueID)).split(b"\r\n")[:-1]]


@implementer(IFileContent)
class Region:
    """
    A file in which a message is stored.
    """

    def __init__(self, message: bytes) -> None:
        self.file = tempfile.TemporaryFile()
        self.file.write(message)
        self.file.flush()
        self.fileno = self.file.fileno()
        self.offset, self.length = 0, len(message)

    def close(self) -> None:
        self.file.close()


@breaks("contentAsItIsSent")
class RegionsWithBareLF(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Region(self.message(uniqueID))


@breaks("contentAsItIsSent")
class RegionsWithDots(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Region(asSent(self.message(uniqueID)))


@breaks("contentTwice")
class OneReaderForAll(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        self.store.kept = self.store.kept or {}
        return self.store.kept.setdefault(uniqueID, Content(self.message(uniqueID)))


@breaks("closings")
class CloseFails(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        content = Content(self.message(uniqueID))

        def close() -> None:
            assert next(content.lines, None) is None, "not read to its end"

        content.close = close  # type: ignore[method-assign]
        return content


@implementer(IChunkedContent)
class Chunks:
    """
    Leaves its descriptor open unless the message is read to its end.
    """

    def __init__(self, message: bytes) -> None:
        self.region = Region(message)
        self.region.file.seek(0)
        # Use a second descriptor, because the finalizer of the region's file closes the first.
        self.descriptor = os.dup(self.region.fileno)

    def nextChunk(self) -> bytes | None:
        chunk = self.region.file.read(65536)
        if not chunk:
            os.close(self.descriptor)
        return chunk or None

    def close(self) -> None:
        self.region.close()


@breaks("closings")
class LeavesFilesOpen(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Chunks(self.message(uniqueID))


@breaks("contentIsBytes", "Text.messageContent returned str; messages are bytes")
class Text(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return self.message(uniqueID).decode("latin-1")


@breaks("contentIsBytes", "LinesOfText.messageContent returned something whose iteration gives str")
class LinesOfText(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return self.message(uniqueID).decode("latin-1").split("\n")


@breaks("contentIsBytes", "FileOfText.messageContent returned something whose read gives str")
class FileOfText(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return io.StringIO(self.message(uniqueID).decode("latin-1"))


@breaks("contentIsBytes", "Content.nextLine gives str; messages are bytes")
class ContentOfText(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        content = Content(self.message(uniqueID))
        content.lines = (line.decode("latin-1") for line in content.lines)  # type: ignore[assignment]
        return content


@breaks("contentIsBytes", "Nothing.messageContent returned NoneType; messages are bytes")
class Nothing(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        self.opened = Content(self.message(uniqueID))


@breaks("sizes", "ThreeMore.messageSize returned 31 octets for 'id-1'")
class ThreeMore(Good):
    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return super().messageSize(info, uniqueID) + 3


@breaks("sizes", "SizesInWords.messageSize returned '28' octets for 'id-1'")
class SizesInWords(Good):
    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return str(super().messageSize(info, uniqueID))


@breaks("bulkSizes", "ThreeFewer.messageSizes returned 25 octets for 'id-1'")
class ThreeFewer(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [each and each - 3 for each in super().messageSizes(info, uniqueIDs)]


@breaks("bulkSizes", "LeavesOutWhatHasGone.messageSizes returned 3 sizes of 4 messages")
class LeavesOutWhatHasGone(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [each for each in super().messageSizes(info, uniqueIDs) if each is not None]


@breaks("bulkSizes", "NothingForWhatHasGone.messageSizes returned 0 for a message that has gone")
class NothingForWhatHasGone(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [each or 0 for each in super().messageSizes(info, uniqueIDs)]


@breaks("bulkSizes", "NoneAsOneHasGone.messageSizes returned [None, None, None, None] after one")
class NoneAsOneHasGone(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        sizes = super().messageSizes(info, uniqueIDs)
        return [None for each in sizes] if None in sizes else sizes


@breaks(
    "gone", "SizeOfWhatHasGone.messageSize returned 0 for a message that has gone; it has to raise"
)
class SizeOfWhatHasGone(Good):
    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return len(asSent(self.store.messages.get(uniqueID, b"")))


@breaks(
    "gone", "ABugForWhatHasGone.messageContent raised KeyError('id-2') for a message that has gone"
)
class ABugForWhatHasGone(Good):
    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Content(self.store.messages[uniqueID])


@breaks("gone", "KeepsWhatHasGone.messageContent returned ")
class KeepsWhatHasGone(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.kept = dict(self.store.messages)
        return list(self.kept)

    def messageContent(self, info: Any, uniqueID: str) -> Any:
        return Content(self.kept[uniqueID])


@breaks("gone")
@breaks("goneInASession")
class OneSpoilsTheOthers(Good):
    listed: Any = ()

    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.listed = super().listMessageUniqueIDs(info)
        return self.listed

    def messageContent(self, info: Any, uniqueID: str) -> Any:
        for each in self.listed:
            self.message(each)
        return super().messageContent(info, uniqueID)


@breaks("sizes")
class SizesAsKept(Good):
    def messageSize(self, info: Any, uniqueID: str) -> Any:
        return len(self.message(uniqueID))


@breaks("sizesInASession")
class SizesWithDotStuffing(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [len(asSent(self.message(each)).replace(b"\r\n.", b"\r\n..")) for each in uniqueIDs]

    def surrogateSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return self.messageSizes(info, uniqueIDs)


@breaks("bulkSizes")
class SizesInItsOwnOrder(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return super().messageSizes(info, sorted(uniqueIDs))


@breaks("bulkSizes", "NoSizesBesideOneThatHasGone.messageSizes fails after one message has gone")
class NoSizesBesideOneThatHasGone(Good):
    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        return [self.messageSize(info, each) for each in uniqueIDs]


@breaks("logout")
class LogoutFails(Good):
    def logout(self) -> Any:
        raise OSError("closed already")


@breaks("lateAnswers")
class OneDeferredForAll(Good):
    """
    Returns the same Deferred each time.  The first session consumes the result, so the next session
    gets L{None}.
    """

    def listMessageUniqueIDs(self, info: Any) -> Any:
        if self.store.kept is None:
            self.store.kept = succeed(super().listMessageUniqueIDs(info))
        return self.store.kept


@breaks("vanishingClient")
class UnlockNeedsAListing(Good):
    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.listed = super().listMessageUniqueIDs(info)
        return self.listed

    def unlock(self, info: Any) -> Any:
        del self.listed
        super().unlock(info)


@breaks("vanishingClient")
class KeepsALockNobodyWaitsFor(Late):
    """
    Takes the lock at once, and keeps it if C{lock} is cancelled before its result comes.
    """

    def lock(self, info: Any, requestRelease: Any) -> Any:
        Good.lock(self, info, requestRelease)
        return self.later(lambda: None)


@breaks("delete")
class DeletesForItselfOnly(Good):
    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.mine = Store()
        self.mine.messages = dict(store.messages)

    def listMessageUniqueIDs(self, info: Any) -> Any:
        return list(self.mine.messages)

    def message(self, uniqueID: str) -> bytes:
        try:
            return self.mine.messages[uniqueID]
        except KeyError:
            raise POP3ResponseError("It has gone.")

    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        for each in uniqueIDs:
            self.mine.messages.pop(each, None)


@breaks("delete")
class ReadsWhatHasGone(Good):
    def message(self, uniqueID: str) -> bytes:
        return self.store.messages.get(uniqueID, b"")


@breaks("deleteTwice")
class MustBeThereToBeDeleted(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        for each in uniqueIDs:
            self.message(each)
        super().messageDelete(info, uniqueIDs)


@breaks("deleteAllOrNone")
class DeletesSome(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        for each in uniqueIDs:
            self.store.messages.pop(each, None)
            super().messageDelete(info, [])


@breaks("deleteAllOrNone")
class FailsSilently(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        if not self.store.failing:
            super().messageDelete(info, uniqueIDs)


@breaks("deleteAllOrNone")
class FailsWithABug(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        if self.store.failing:
            raise OSError("disk")
        super().messageDelete(info, uniqueIDs)


@breaks("deleteAtQUIT")
class SkipsTheFirst(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        super().messageDelete(info, uniqueIDs[1:])


@breaks("deleteAtOnce")
class DeletesWhenItIsLetGo(Good):
    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        self.store.kept = uniqueIDs

    def unlock(self, info: Any) -> Any:
        super().messageDelete(info, self.store.kept or [])
        super().unlock(info)


@breaks("deletionIsFinished")
class RollsBack(Good):
    def lock(self, info: Any, requestRelease: Any) -> Any:
        super().lock(info, requestRelease)
        self.store.kept = dict(self.store.messages)

    def unlock(self, info: Any) -> Any:
        self.store.messages = self.store.kept
        super().unlock(info)


@breaks("readOnly")
class DeletesAllTheSame(ReadOnly):
    def logout(self) -> Any:
        for each in list(self.store.messages)[:1]:
            del self.store.messages[each]


@breaks("lock")
class LocksNothing(Good):
    def lock(self, info: Any, requestRelease: Any) -> Any:
        pass


@breaks("lock")
class RefusesInItsOwnWords(Good):
    def lock(self, info: Any, requestRelease: Any) -> Any:
        try:
            super().lock(info, requestRelease)
        except POP3ResponseError:
            raise POP3ResponseError("Locked.", "SYS/TEMP")


@breaks("lock")
class NeverUnlocks(Good):
    def unlock(self, info: Any) -> Any:
        pass


@breaks("sleep")
class LocksOnce(Good):
    locked = False

    def lock(self, info: Any, requestRelease: Any) -> Any:
        assert not self.locked
        self.locked = True
        super().lock(info, requestRelease)


@breaks("lockInASession")
class UnlocksAtLogout(Good):
    """
    Unlocks in logout, which is too late when a session sleeps.
    """

    def unlock(self, info: Any) -> Any:
        pass

    def lock(self, info: Any, requestRelease: Any) -> Any:
        super().lock(info, requestRelease)
        self.isMine = True

    def logout(self) -> Any:
        self.store.holder = None


@breaks("refusedSession")
class WhoIsRefusedUnlocks(Good):
    def logout(self) -> Any:
        self.store.holder = None


@breaks("requestRelease")
class DoesNotTakeWhatItIsGiven(Good):
    def lock(self, info: Any, requestRelease: Any) -> Any:
        if self.store.holder is not None:
            self.store.holder()
            raise POP3ResponseError("Held.", "IN-USE")
        self.store.holder = requestRelease


@breaks("requestRelease")
class TakesWhatItIsNotGiven(Good):
    def lock(self, info: Any, requestRelease: Any) -> Any:
        if self.store.holder is not None:
            self.store.holder()
        self.store.holder = requestRelease


@breaks("newMail")
class ListsOnce(Good):
    listed: Any = None

    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.listed = self.listed or list(self.store.messages)
        return [each for each in self.listed if each in self.store.messages]


@breaks("arrivedMeanwhile")
class KnowsOnlyWhatItListed(Good):
    listed: Any = ()

    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.listed = super().listMessageUniqueIDs(info)
        return self.listed

    def message(self, uniqueID: str) -> bytes:
        if uniqueID not in self.listed:
            raise POP3ResponseError("Never listed.")
        return super().message(uniqueID)


@breaks("watch")
class DoesNotTell(Good):
    def watchMailbox(self, info: Any, changed: Any) -> Any:
        return lambda: None


@breaks("watch")
class TellsForEver(Good):
    def watchMailbox(self, info: Any, changed: Any) -> Any:
        super().watchMailbox(info, changed)
        return lambda: None


# --- the tests ----------------------------------------------------------------------


def contract(kind: type[Good]) -> unittest.TestResult:
    """
    @return: the result of the contract's tests for a mailbox of this kind.
    """

    class Case(MailboxContract, unittest.TestCase):
        def makeMailbox(self, messages: list[bytes]) -> Any:
            self.store = Store()
            for message in messages:
                self.store.add(message)
            return self.again()

        def again(self) -> Any:
            return kind(self.store)

        def deliver(self, message: bytes) -> str:
            return self.store.add(message)

        def remove(self, uniqueID: str) -> None:
            del self.store.messages[uniqueID]

        def failDeletion(self) -> None:
            self.store.failing = True

        def goOn(self) -> None:
            if self.store.queue:
                answer, call = self.store.queue.pop(0)
                try:
                    value = call()
                except Exception:
                    answer.errback()
                else:
                    answer.callback(value)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.testsRun == len(RULES)
    return result


def names(outcomes: Any) -> set[str]:
    return {case.id().rpartition(".")[2] for case, _ in outcomes}


@pytest.mark.parametrize("kind", (Good, Late, AwaitsFired, AwaitsFutures, AwaitsLate))
def test_goodMailboxKeepsTheContract(kind: type[Good]) -> None:
    result = contract(kind)
    assert result.failures + result.errors == []
    assert names(result.skipped) == {"test_readOnly"}


def test_withoutSurrogates() -> None:
    result = contract(SendsAllAsTheyAre)
    assert result.failures + result.errors == []
    assert names(result.skipped) - {"test_readOnly"}


def test_readOnly() -> None:
    result = contract(ReadOnly)
    assert result.failures + result.errors == []
    assert names(result.skipped) == {
        "test_delete",
        "test_deleteAllOrNone",
        "test_deleteAtOnce",
        "test_deleteAtQUIT",
        "test_deleteTwice",
        "test_deletionIsFinished",
        "test_uniqueIDsStayBesideDeletion",
    }


def test_mailboxWithoutOptionalInterfaces() -> None:
    """
    A mailbox without optional interfaces keeps the contract.  With few hooks, fewer than half of
    the tests are skipped.
    """

    @implementer(IPOP3Mailbox)
    class Least:
        def __init__(self, messages: dict[str, bytes]) -> None:
            self.messages = messages

        def listMessageUniqueIDs(self, info: Any) -> Any:
            return iter(list(self.messages))

        def messageExists(self, info: Any, uniqueID: str) -> Any:
            return False

        def messageSize(self, info: Any, uniqueID: str) -> Any:
            raise NotImplementedError

        def messageContent(self, info: Any, uniqueID: str) -> Any:
            if uniqueID not in self.messages:
                raise POP3ResponseError("Gone.")
            return self.messages[uniqueID]

        def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
            for each in uniqueIDs:
                self.messages.pop(each, None)

    class Case(MailboxContract, unittest.TestCase):
        def makeMailbox(self, messages: list[bytes]) -> Any:
            self.messages = {str(number): each for number, each in enumerate(messages)}
            return self.again()

        def again(self) -> Any:
            return Least(self.messages)

        def remove(self, uniqueID: str) -> None:
            del self.messages[uniqueID]

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.failures + result.errors == []
    assert len(result.skipped) < len(RULES) / 2


def test_deliversTheSameTwice() -> None:
    """
    If C{deliver} returns the same unique-id twice, the failure says so.
    """

    class Case(MailboxContract, unittest.TestCase):
        def makeMailbox(self, messages: list[bytes]) -> Any:
            self.store = Store()
            for each in messages:
                self.store.add(each)
            return self.again()

        def again(self) -> Any:
            return Good(self.store)

        def deliver(self, message: bytes) -> str:
            self.store.messages["late"] = message
            for changed in self.store.watchers:
                changed()
            return "late"

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    caught = result.failures + result.errors
    assert names(caught) == {"test_newMail", "test_watch"}
    assert all("deliver() returned 'late' twice" in text for _, text in caught)


def test_hooksThatAreCoroutines() -> None:
    """
    Each hook except C{goOn} may be a coroutine that awaits tasks of asyncio or Deferreds.
    """

    class Case(MailboxContract, unittest.TestCase):
        async def makeMailbox(self, messages: list[bytes]) -> Any:
            self.store = Store()
            for each in messages:
                self.store.add(each)
            await asyncio.sleep(0)
            return await self.again()

        async def again(self) -> Any:
            return await succeed(Good(self.store))

        async def deliver(self, message: bytes) -> str:
            return self.store.add(message)

        async def remove(self, uniqueID: str) -> None:
            del self.store.messages[uniqueID]

        async def failDeletion(self) -> None:
            self.store.failing = True

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.failures + result.errors == []
    assert names(result.skipped) == {"test_readOnly"}


@pytest.mark.filterwarnings("ignore:coroutine '.*goOn' was never awaited")
def test_hooksThatReturnNoMailbox() -> None:
    """
    The failure names a hook that returns L{None} instead of a mailbox, and a C{goOn} that is a
    coroutine.
    """

    class Forgetful(MailboxContract, unittest.TestCase):
        made: Any = None

        def makeMailbox(self, messages: list[bytes]) -> Any:
            return self.made

        def again(self) -> Any:
            pass

        async def goOn(self) -> None:
            pass

    for made, said in (
        (None, "makeMailbox() returned None"),
        (Good(Store()), "again() returned None"),
        (Deferred(), "goOn() is a plain function"),
    ):
        case, result = Forgetful("test_lock"), unittest.TestResult()
        case.made = made
        case.run(result)
        assert [said in text for _, text in result.failures] == [True]


def test_unknownSizes() -> None:
    """
    A mailbox may leave the counting of sizes to the service.
    """
    caught = names(contract(LeavesTheCounting).failures)
    assert not caught & {"test_sizes", "test_bulkSizes", "test_gone"}


@pytest.mark.filterwarnings("ignore:coroutine 'ForgetsToAwait.looked' was never awaited")
@pytest.mark.parametrize(
    ("kind", "rule", "saying"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_eachBrokenMailboxIsCaught(kind: type[Good], rule: str, saying: str) -> None:
    result = contract(kind)
    caught = result.failures + result.errors
    assert rule in names(caught)
    told = "\n".join(text for case, text in caught if case.id().endswith(f".{rule}"))
    assert saying in told


def test_everyRuleCatchesOne() -> None:
    assert {rule for _, rule, _ in BROKEN} == RULES
