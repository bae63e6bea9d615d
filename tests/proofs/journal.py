"""
The journal of each message of many mailboxes, and the judge of the replies to clients: each
message exists, or a client or program removed it and was told of success.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.messages import asSent

__all__ = ["Journal", "Message", "tokenIn"]

_MARK = b"Subject: token-"


def tokenIn(content: bytes) -> str | None:
    """
    @return: the token in the first line of a message, which identifies it.
    """
    if not content.startswith(_MARK):
        return None
    return content.partition(b"\n")[0].rstrip(b"\r")[len(b"Subject: ") :].decode("ascii")


@dataclass(eq=False)
class Message:
    """
    A message from its delivery on.

    @ivar base: the name of its file up to the flags.
    @ivar uniqueIDs: the unique-ids with which it was listed.
    @ivar arrived: time of the beginning of its delivery, seconds.
    @ivar removed: whether another program has removed it, or begun to.
    @ivar deleted: time when a client was told that it is deleted, seconds.
    @ivar mayBeDeleted: whether a deletion of it was never answered.
    """

    token: str
    user: str
    base: str
    content: bytes
    path: Path | None = None
    arrived: float = 0.0
    uniqueIDs: set[str] = field(default_factory=set)
    removed: bool = False
    deleted: float | None = None
    mayBeDeleted: bool = False

    @property
    def sent(self) -> bytes:
        """
        The octets that RETR sends, without dot-stuffing.
        """
        return asSent(self.content)

    @property
    def mayBeReplaced(self) -> bool:
        """
        Whether it is gone for good, so that its base name may be used again.
        """
        return self.removed or self.deleted is not None


class Journal:
    """
    All events of messages.  Thread-safe.

    @ivar violations: sentences.
    @ivar counts: number of events by kind.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._messages: dict[str, Message] = {}
        self._named: dict[tuple[str, str], Message] = {}
        self._batches: list[list[Message]] = []
        self._told: set[tuple[str, object]] = set()
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()

    def violated(self, kind: str, text: str, once: object = None) -> None:
        """
        Record a violation.

        @param once: a key, if a violation with this key is recorded only once.
        """
        with self._lock:
            if once is not None:
                if (kind, once) in self._told:
                    return
                self._told.add((kind, once))
            self.counts[f"violation: {kind}"] += 1
            self.violations.append(f"{kind}: {text}")

    def count(self, what: str, times: int = 1) -> None:
        """
        Count an event for the report.
        """
        with self._lock:
            self.counts[what] += times

    # --- other programs -----------------------------------------------------------

    def delivering(self, message: Message) -> None:
        """
        Record that the delivery of a message begins.
        """
        with self._lock:
            message.arrived = self._clock()
            self._messages[message.token] = message

    def withdrawn(self, message: Message) -> None:
        """
        Record that a delivery has failed.
        """
        with self._lock:
            del self._messages[message.token]

    def messages(self, user: str) -> list[Message]:
        """
        @return: all messages that were ever delivered to a user.
        """
        with self._lock:
            return [each for each in self._messages.values() if each.user == user]

    # --- clients ---------------------------------------------------------------------

    def known(self, user: str, uniqueID: str) -> Message | None:
        """
        @return: the message that was read under a unique-id, if any.
        """
        with self._lock:
            return self._named.get((user, uniqueID))

    def listed(self, user: str, uniqueIDs: list[str], began: float) -> None:
        """
        Check a listing of a session.

        @param began: a time before the session requested the listing, seconds.
        """
        with self._lock:
            if len(set(uniqueIDs)) != len(uniqueIDs):
                self.violated("doubled", f"{user}: a listing has a unique-id twice")
            shown: dict[str, str] = {}
            for each in uniqueIDs:
                message = self._named.get((user, each))
                if message is None:
                    continue
                if message.token in shown:
                    where = f"{shown[message.token]} and {each}"
                    self.violated("doubled", f"{user}: {message.token} is listed as {where}")
                shown[message.token] = each
                if not self._mayBeAnother(message):
                    self._isThere(message, began, f"is listed as {each}")

    def _mayBeAnother(self, message: Message) -> bool:
        """
        @return: whether another message was delivered under the name of a message; only
            reading shows which one it is.
        """
        return any(
            each.base == message.base and each is not message
            for each in self.messages(message.user)
        )

    def _isThere(self, message: Message, began: float, how: str) -> None:
        if message.deleted is not None and message.deleted < began:
            self.violated(
                "resurrected",
                f"{message.user}: {message.token} {how} {began - message.deleted:.2f} s after its "
                "deletion was answered with +OK",
                once=message,
            )

    def read(
        self, user: str, uniqueID: str, content: bytes, began: float, size: int | None = None
    ) -> None:
        """
        Check a message that a client got by RETR.

        @param content: without dot-stuffing.
        @param began: a time before the session requested the listing.
        @param size: its size in LIST.
        """
        with self._lock:
            message = self._identified(user, uniqueID, content, began)
            if message is None:
                return
            if content != message.sent:
                self.violated(
                    "content",
                    f"{user}: RETR of {uniqueID} sends {len(content)} octets, {message.token} has "
                    f"{len(message.sent)}, or others",
                )
            if size is not None and size != len(content):
                self.violated(
                    "size",
                    f"{user}: LIST says {size} octets of {uniqueID}, RETR sends {len(content)}",
                )

    def begins(self, user: str, uniqueID: str, content: bytes, began: float) -> None:
        """
        Check the beginning of a message that a client got by TOP.
        """
        with self._lock:
            message = self._identified(user, uniqueID, content, began)
            if message is not None and not message.sent.startswith(content):
                self.violated(
                    "content", f"{user}: TOP of {uniqueID} is not how {message.token} begins"
                )

    def _identified(self, user: str, uniqueID: str, content: bytes, began: float) -> Message | None:
        message = self._messages.get(tokenIn(content) or "")
        if message is None or message.user != user:
            self.violated("content", f"{user}: {uniqueID} is {content[:60]!r}, which is no message")
            return None
        before = self._named.setdefault((user, uniqueID), message)
        if before is not message:
            self.violated(
                "unique-id reused",
                f"{user}: {uniqueID} was {before.token}, is {message.token} in a session that "
                f"listed {began - message.arrived:+.2f} s after that came",
            )
            # From now on, commands with this unique-id refer to that message.
            self._named[user, uniqueID] = message
        message.uniqueIDs.add(uniqueID)
        if len(message.uniqueIDs) > 1:
            self.violated(
                "unique-id changed",
                f"{user}: {message.token} is {' and '.join(sorted(message.uniqueIDs))}",
                once=(message, uniqueID),
            )
        self._isThere(message, began, f"is sent as {uniqueID}")
        return message

    # --- deletion --------------------------------------------------------------------

    def deleting(self, messages: Iterable[Message]) -> None:
        """
        Record that a client sends a command that deletes these messages, all or none.
        """
        with self._lock:
            deleting = list(messages)
            # Messages that are deleted in a second attempt no longer form one set.
            self._batches = [
                batch for batch in self._batches if not any(each in batch for each in deleting)
            ]
            for each in deleting:
                each.mayBeDeleted = True

    def answered(self, messages: list[Message], isDeleted: bool | None, wasOpen: set[str]) -> None:
        """
        Record the reply to that command: C{+OK} or C{-ERR}, or L{None} if there was none.

        @param wasOpen: tokens of messages that may have been deleted before.
        """
        with self._lock:
            if isDeleted is None:
                self.count("deletions never answered", len(messages))
                if not wasOpen:
                    self._batches.append(messages)
                return
            self.count("deleted" if isDeleted else "deletions refused", len(messages))
            for each in messages:
                if isDeleted:
                    each.deleted = min(self._clock(), each.deleted or self._clock())
                elif each.token not in wasOpen:
                    each.mayBeDeleted = False

    # --- the end -----------------------------------------------------------------------

    def judge(self, user: str, onDisk: list[str]) -> None:
        """
        Check a user's Maildir after the end of all activity.

        @param onDisk: the tokens of its files.
        """
        with self._lock:
            there = Counter(onDisk)
            for token, times in there.items():
                if times > 1:
                    self.violated("doubled", f"{user}: {token} is in {times} files")
                if token not in self._messages:
                    self.violated("content", f"{user}: {token} was never delivered")
            for message in self.messages(user):
                if message.token not in there:
                    isRight = message.removed or message.mayBeDeleted
                    if not isRight and message.deleted is None:
                        self.violated("lost", f"{user}: {message.token} ({message.base}) has gone")
                elif message.deleted is not None:
                    self.violated(
                        "resurrected", f"{user}: {message.token} is on disk, though it is deleted"
                    )
            for batch in self._batches:
                if batch and batch[0].user == user:
                    self._allOrNone(batch, there)

    def _allOrNone(self, batch: list[Message], there: Counter[str]) -> None:
        judged = [each for each in batch if not each.removed and each.deleted is None]
        left = [each.token for each in judged if each.token in there]
        if left and len(left) != len(judged):
            self.violated(
                "some of all",
                f"{batch[0].user}: of {len(judged)} deleted together {len(left)} are left: {left[0]}",
            )
