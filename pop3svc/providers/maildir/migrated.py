"""
Keep the unique-ids that the previous server of a Maildir has sent to its clients.

Unless the store is read-only, the first complete listing copies these unique-ids to the file
C{pop3svc-uidl} in the Maildir.  After that, the file of the previous server is not needed, and
changes of it have no effect unless the settings change.  A unique-id that this service has sent to
a client therefore stays the same, even if the previous server still gives numbers to new mail for
IMAP.  The first line of the copy contains its version, a checksum and the settings.  The other
lines are for one message each, in the order of message numbers.  Such a line contains the
unique-id, a space and the base name.
"""

from __future__ import annotations

import errno
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import NamedTuple
from zlib import crc32

from twisted.logger import Logger

from pop3svc.files import (
    FileStamp,
    areStampsTrustworthy,
    closeQuietly,
    openFile,
    openRegular,
    stampFrom,
)
from pop3svc.listings import areUniqueIDs, countDistinct, isDerived
from pop3svc.migration.headers import HEADER, valueInHeader
from pop3svc.migration.records import DamagedFile, Kept
from pop3svc.migration.schemes import LARGEST, Scheme
from pop3svc.once import Once
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.folders import OpenFolders
from pop3svc.providers.files.sizes import Key, keyOf
from pop3svc.providers.paths import PathTemplate, Root, openBelow, uniqueIDFor
from pop3svc.threadpool import mustStop

__all__ = ["COPY", "FormerServer", "KeptIDs", "MigratedMaildir"]

log = Logger(namespace="pop3svc")
# The texts about Maildirs that were logged already.
_logged = Once()

COPY = "pop3svc-uidl"
# The new file, before it replaces the copy.  The name is always the same, so that processes that
# are killed leave at most one such file.
_NEXT = "pop3svc-uidl.new"
_VERSION = "pop3svc-uidl 1"
# Dovecot's directory for the control files of INBOX has one of these names, for the layouts
# Maildir++ and fs.  If neither exists, the file is directly in the user's control directory.
_INBOXES = (".INBOX", "INBOX")
# The most attempts to read a file that changes while it is read.
_READS = 5
# The most messages in the cache, of all Maildirs together.  A message takes some 400 octets.  The
# Maildir that was added last stays in the cache even if it has more messages.
_BOUND = 300_000
# A value that is less than all times of delivery.  Messages that the previous server has numbered
# get this value, because they come first.
_FIRST = -(1 << 63)

# A L{MessageRef<pop3svc.providers.files.folders.MessageRef>} without the place.  Messages are
# sorted by these values, so that they come in the order of the previous server's numbers.
_Head = tuple[int, int, str, str]


class KeptIDs:
    """
    The unique-ids that the messages of a Maildir have from the previous server.

    @ivar heads: by base name, the values of each message's
        L{MessageRef<pop3svc.providers.files.folders.MessageRef>} without the place.
    """

    def __init__(self, uniqueIDs: Mapping[str, str]) -> None:
        """
        @param uniqueIDs: the unique-ids by base name, in the order of message numbers.
        """
        self.heads: dict[str, _Head] = {
            base: (_FIRST, number, base, uniqueID)
            for number, (base, uniqueID) in enumerate(uniqueIDs.items())
        }
        self._reserved = frozenset(uniqueIDs.values())

    def uniqueIDFor(self, base: str) -> str:
        """
        @return: the unique-id that the previous server has given to the message.  If it has given
            none, the result is a unique-id that it has given to no other message.
        """
        head = self.heads.get(base)
        if head is not None:
            return head[3]
        uniqueID = uniqueIDFor(base)
        return uniqueIDFor(base, "new") if uniqueID in self._reserved else uniqueID


@dataclass(frozen=True)
class _Cached:
    """
    @ivar copy: the stamp that the copy had when it was read; L{None} if there was no copy.
    @ivar former: the stamp of the previous server's file; L{None} if the unique-ids do not come
        from this file.  The stamp is empty if the file must be read again.
    """

    kept: KeptIDs
    copy: FileStamp | None
    former: FileStamp | tuple[()] | None = None
    isCopy: bool = False


class _Cache:
    """
    A cache of the unique-ids of a store's Maildirs.  If it is full, it drops the Maildirs that were
    not used for the longest time.  The cache is thread-safe.
    """

    def __init__(self) -> None:
        self._mailboxes: OrderedDict[Key, _Cached] = OrderedDict()
        self._messages = 0
        self._lock = Lock()

    def get(self, key: Key) -> _Cached | None:
        with self._lock:
            cached = self._mailboxes.get(key)
            if cached is not None:
                self._mailboxes.move_to_end(key)
            return cached

    def put(self, key: Key, cached: _Cached) -> None:
        with self._lock:
            former = self._mailboxes.pop(key, None)
            self._messages -= 0 if former is None else len(former.kept.heads) + 1
            self._mailboxes[key] = cached
            self._messages += len(cached.kept.heads) + 1
            while self._messages > _BOUND and len(self._mailboxes) > 1:
                _, dropped = self._mailboxes.popitem(last=False)
                self._messages -= len(dropped.kept.heads) + 1


class FormerServer:
    """
    The previous server of the Maildirs of a store.

    @ivar source: a text that is different for different settings.
    """

    def __init__(self, scheme: Scheme, control: str, readOnly: bool) -> None:
        """
        @param control: the path of the directory that contains the server's file, with
            placeholders; empty if the Maildir contains the file.
        @param readOnly: whether no copies are written.
        @raise ValueError: C{control} cannot be used.  The text is a sentence for the operator.
        """
        self.scheme = scheme
        self.readOnly = readOnly
        self.source = f"{scheme.text} {control}" if control else scheme.text
        self.cache = _Cache()
        self._control = None
        if control:
            try:
                self._control = PathTemplate(control)
            except ValueError as error:
                raise ValueError(f"control: {error}")

    def maildirOf(self, username: str, maildir: Root) -> MigratedMaildir:
        """
        @param maildir: the path of this user's Maildir.
        """
        if self._control is None:
            return MigratedMaildir(self, maildir.path, maildir, True)
        control = self._control.placeFor(username)
        return MigratedMaildir(self, maildir.path, control, False)


class _Copy(NamedTuple):
    source: str
    uniqueIDs: dict[str, str]


class MigratedMaildir:
    """
    A Maildir whose previous server is a L{FormerServer}.
    """

    def __init__(
        self, server: FormerServer, path: str, place: Root | None, isInMaildir: bool
    ) -> None:
        """
        @param path: the path of the Maildir, for messages to the operator.
        @param place: the directory that contains the server's file; L{None} if this user has no
            such directory.
        @param isInMaildir: whether this directory is the Maildir itself.
        """
        self._server = server
        self._path = path
        self._place = place
        self._isInMaildir = isInMaildir
        self._file = f"{path if place is None else place.path}/{server.scheme.file}"

    def kept(self, root: int, places: Callable[[], Mapping[str, Place]], isSure: bool) -> KeptIDs:
        """
        Find the unique-ids that messages keep.  A file is read again only if its stamp has changed.
        Blocks.

        @param root: a descriptor of the Maildir.
        @param places: returns the places of the messages by base name.
        @param isSure: whether these are the places of all messages.
        @raise OSError: a file cannot be read.
        """
        key, cache = keyOf(root), self._server.cache
        stamp = _stampAt(COPY, root)
        cached = cache.get(key)
        if (
            cached is not None
            and cached.copy == stamp
            and (cached.isCopy or cached.former == self._formerStamp(root))
        ):
            return cached.kept
        copy = None if stamp is None else self._readCopy(root)
        if copy is not None and copy.source == self._server.source:
            cached = _Cached(KeptIDs(copy.uniqueIDs), stamp, isCopy=True)
        else:
            cached = self._import(root, places(), isSure, stamp, copy)
        cache.put(key, cached)
        return cached.kept

    # --- the previous server's file ---------------------------------------------------------

    def _import(
        self,
        root: int,
        places: Mapping[str, Place],
        isSure: bool,
        stamp: FileStamp | None,
        copy: _Copy | None,
    ) -> _Cached:
        """
        @param stamp: the stamp of the copy.
        @param copy: a copy that was made with other settings; L{None} if there is none.
        """
        former, data = self._readFormer(root)
        if data is None:
            if copy is not None:
                # Use the copy with other settings, because the file of the previous server does not
                # exist any more.
                return _Cached(KeptIDs(copy.uniqueIDs), stamp, isCopy=True)
            kept = Kept({})
        else:
            try:
                with OpenFolders(root) as opened:
                    inHeader = partial(_valueIn, opened, places)
                    kept = self._server.scheme.read(data, places, inHeader)
            except DamagedFile as error:
                self._log("{file} is damaged, and nothing is imported from it: {error}", error)
                return _Cached(KeptIDs({}), stamp, former)
            self._logNew(kept)
        ids = KeptIDs(kept.uniqueIDs)
        if self._server.readOnly or not isSure or not places:
            # Write no copy for a read-only store or a delivery, if not all messages were found, or
            # if there are no messages.
            return _Cached(ids, stamp, former)
        try:
            stamp = _writeCopy(root, self._server.source, kept.uniqueIDs)
        except OSError as error:
            self._log("cannot write {path}/pop3svc-uidl: {error}", error)
            return _Cached(ids, _stampAt(COPY, root), former)
        return _Cached(ids, stamp, isCopy=True)

    @contextmanager
    def _formerDirectory(self, root: int) -> Iterator[int]:
        """
        Open the directory that contains the previous server's file.

        @raise FileNotFoundError: the directory does not exist.
        """
        if self._isInMaildir:
            yield root
            return
        control = None if self._place is None else self._place.open()
        if control is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            for name in _INBOXES:
                try:
                    inbox = openBelow(name, control)
                except FileNotFoundError:
                    continue
                try:
                    yield inbox
                finally:
                    closeQuietly(inbox)
                return
            yield control
        finally:
            closeQuietly(control)

    def _formerStamp(self, root: int) -> FileStamp | None:
        try:
            with self._formerDirectory(root) as directory:
                return _stampAt(self._server.scheme.file, directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error)

    def _readFormer(self, root: int) -> tuple[FileStamp | tuple[()] | None, bytes | None]:
        """
        @return: the stamp and the content of the previous server's file.  Both are L{None} if the
            file does not exist.  The stamp is empty if it is so new that a further change of the
            file might not change it.
        @raise OSError: the file cannot be read.
        """
        try:
            with self._formerDirectory(root) as directory:
                for _ in range(_READS):
                    descriptor, status = openFile(self._server.scheme.file, directory)
                    with open(descriptor, "rb") as file:
                        data = file.read(LARGEST + 1)
                        stamp = stampFrom(os.fstat(descriptor))
                    if stamp == stampFrom(status):
                        break
                else:
                    raise OSError(errno.EBUSY, "it changes all the time")
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise self._unreadable(error)
        if len(data) > LARGEST:
            raise OSError(errno.EFBIG, f"{self._file} is larger than {LARGEST} octets")
        return stamp if areStampsTrustworthy([stamp]) else (), data

    def _unreadable(self, error: OSError) -> OSError:
        # Refuse the session, because without the old unique-ids the client would download all
        # messages again.
        return OSError(error.errno, f"{self._file} cannot be read: {error.strerror}")

    # --- the copy ---------------------------------------------------------------------------

    def _readCopy(self, root: int) -> _Copy | None:
        """
        @return: the copy; L{None} if it is damaged.
        @raise OSError: the copy cannot be read.
        """
        try:
            with open(openRegular(COPY, root), "rb") as file:
                data = file.read(LARGEST + 1)
        except FileNotFoundError:
            # The copy counts as damaged, because it is a link or another special file.
            return None
        except OSError as error:
            raise OSError(error.errno, f"{self._path}/{COPY} cannot be read: {error.strerror}")
        copy = None if len(data) > LARGEST else _parseCopy(data)
        if copy is None:
            self._log("{path}/pop3svc-uidl is damaged, and {file} is read again")
        return copy

    # --- the log ------------------------------------------------------------------------------

    def _logNew(self, kept: Kept) -> None:
        if kept.illegal or kept.repeated:
            self._log(
                f"messages of {{path}} that get new unique-ids: {kept.illegal} because "
                f"RFC 1939 does not allow the old ones, {kept.repeated} because other "
                "messages have the same; clients download these messages again"
            )

    def _log(self, text: str, error: Exception | None = None) -> None:
        """
        Log a text about this Maildir, unless it was logged before.
        """
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if _logged.isFirst((self._path, text, reason)):
            log.error(text, path=self._path, file=self._file, error=reason)


def _stampAt(name: str, directory: int) -> FileStamp | None:
    try:
        return stampFrom(os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _valueIn(opened: OpenFolders, places: Mapping[str, Place], base: str) -> str | None:
    """
    @return: the value of the field C{X-UIDL} of a message; L{None} if the message has no such field
        or was not listed.
    @raise OSError: the message was renamed meanwhile, or the work was cancelled.
    """
    place = places.get(base)
    if place is None:
        return None
    if mustStop():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
    try:
        descriptor, _ = openFile(place[1], opened[place[0]])
    except FileNotFoundError:
        # Stop the import, because a message whose header cannot be read would get another unique-id
        # for ever.
        raise OSError(errno.EBUSY, "messages are renamed meanwhile")
    with open(descriptor, "rb", buffering=0) as file:
        return valueInHeader(file.read(HEADER))


def _parseCopy(data: bytes) -> _Copy | None:
    first, newline, body = data.partition(b"\n")
    try:
        words = first.decode("ascii").split(" ", 3)
        if not newline or " ".join(words[:2]) != _VERSION or int(words[2], 16) != crc32(body):
            return None
        source = json.loads(words[3])
        lines = os.fsdecode(body).split("\n")[:-1]
        pairs = [line.split(" ", 1) for line in lines]
        uniqueIDs = {base: uniqueID for uniqueID, base in pairs}
    except (ValueError, IndexError):
        return None
    # Check everything, because the owner of the Maildir may put any file there.
    ids = [pair[0] for pair in pairs]
    isLegal = areUniqueIDs(ids) and countDistinct(ids) == len(ids) == len(uniqueIDs)
    if not isinstance(source, str) or not isLegal or any(map(isDerived, ids)):
        return None
    return _Copy(source, uniqueIDs)


def _writeCopy(root: int, source: str, uniqueIDs: Mapping[str, str]) -> FileStamp:
    """
    Write the copy.  The write is atomic and durable, because no client may see the unique-ids
    before they are durable.

    @return: the stamp of the copy.
    """
    lines = [f"{uniqueID} {base}\n" for base, uniqueID in uniqueIDs.items()]
    body = os.fsencode("".join(lines))
    first = f"{_VERSION} {crc32(body):x} {json.dumps(source)}\n".encode("ascii")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.unlink(_NEXT, dir_fd=root)
    except FileNotFoundError:
        pass
    descriptor = os.open(_NEXT, flags, 0o600, dir_fd=root)
    try:
        with open(descriptor, "wb") as file:
            file.write(first + body)
            file.flush()
            os.fsync(descriptor)
        os.rename(_NEXT, COPY, src_dir_fd=root, dst_dir_fd=root)
    except OSError:
        os.unlink(_NEXT, dir_fd=root)
        raise
    os.fsync(root)
    stamp = _stampAt(COPY, root)
    if stamp is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return stamp
