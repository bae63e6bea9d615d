r""" Serve a web feed (RSS or Atom, from a URL or a file) as a read-only mailbox, in which each
entry is a message.

Add a user, and start the service::

    echo secret | pop3svc user add alice --file users
    PYTHONPATH=. twistd -n --pidfile= pop3svc \
        --provider feedmail.serve:https://example.org/feed.xml --auth passwd:users
"""

from __future__ import annotations

import hashlib
import time
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import parsedate_to_datetime
from html import escape
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import NoReturn
from urllib.request import urlopen
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser, tostring

from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IMailboxStore, IPOP3ConnectionInfo, IPOP3Mailbox, IReadOnlyMailbox
from pop3svc.threads import InThreads

log = Logger()

# The most octets of a feed, the most messages, and the most seconds to fetch the feed.
LARGEST, MOST, LONGEST = 5_000_000, 1_000, 30.0
# The least number of seconds between two fetches of the feed.
INTERVAL = 300


class _Builder(TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        # Refuse a document type declaration, because it can define entities that grow without a
        # limit.
        raise ValueError("a feed with a document type is refused")


def fetch(place: str) -> bytes:
    """
    @param place: a URL or the path of a file.
    """
    url = place if "://" in place else Path(place).absolute().as_uri()
    data, deadline = bytearray(), time.monotonic() + LONGEST
    with urlopen(url, timeout=LONGEST) as source:
        # Check the time after each piece, because a server may send one octet at a time.
        while chunk := source.read1(65536):
            data += chunk
            if len(data) > LARGEST or time.monotonic() > deadline:
                raise ValueError("the feed is too large or too slow")
    return bytes(data)


def _find(entry: Element, *names: str) -> Element | None:
    found = {each.tag.rpartition("}")[2]: each for each in reversed(entry)}
    return next((found[name] for name in names if name in found), None)


def _text(entry: Element, *names: str) -> str:
    found = _find(entry, *names)
    return "" if found is None else " ".join("".join(found.itertext()).split())


def _html(entry: Element) -> str:
    body, link = _find(entry, "encoded", "content", "description", "summary"), _find(entry, "link")
    html = ""
    if body is not None:
        kind = body.get("type", "text" if entry.tag.endswith("entry") else "html")
        html = tostring(body, "unicode", "html") if len(body) else body.text or ""
        html = escape(html) if kind == "text" else html
    if link is not None:
        url = escape(link.get("href") or link.text or "")
        html += f'\n<p><a href="{url}">{url}</a></p>'
    return html


def asMessage(entry: Element) -> bytes:
    """
    @return: the message.  The same entry must always give the same octets, because the unique-id is
        a digest of the octets.
    """
    message = EmailMessage(SMTP)
    message["From"] = "feed@localhost"
    # Break each encoded word of the entry, because an encoded word could contain line ends.
    message["Subject"] = _text(entry, "title")[:500].replace("=?", "= ?")
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            message["Date"] = read(_text(entry, "published", "updated", "pubDate", "date"))
            break
        except ValueError:
            # If neither function can parse the date, the message has no date.
            continue
    message.set_content(_html(entry), "html")
    return message.as_bytes()


def parse(data: bytes) -> dict[str, bytes]:
    """
    @return: the messages by unique-id, the oldest message first.  A feed begins with the newest
        entry.
    """
    parser = XMLParser(target=_Builder())
    parser.feed(data)
    root: Element = parser.close()
    entries = [each for each in root.iter() if each.tag.rpartition("}")[2] in ("item", "entry")]
    messages = [asMessage(each) for each in reversed(entries[:MOST])]
    # The unique-id is a digest of the message, because a changed entry has to be another message.
    return {hashlib.sha256(each).hexdigest(): each for each in messages}


@implementer(IPOP3Mailbox, IReadOnlyMailbox)
class FeedMailbox:
    """
    The entries of a feed.
    """

    def __init__(self, store: FeedStore) -> None:
        self._store = store
        self._messages: dict[str, bytes] = {}

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        self._messages = self._store.messages()
        return list(self._messages)

    def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        # Make a new dictionary instead of changing this one, because other sessions use the same
        # dictionary.
        self._messages = self._messages | self._store.messages()
        return uniqueID in self._messages

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        raise NotImplementedError

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        return self._messages[uniqueID]

    def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        raise POP3ResponseError("Mailbox is read-only.", "READ-ONLY")


@implementer(IMailboxStore)
class FeedStore:
    """
    A store that serves the same feed to every user.
    """

    name = "feed"

    def __init__(self, place: str) -> None:
        self._place = place
        self._guard = Lock()
        self._until = 0.0
        self._messages: dict[str, bytes] | None = None

    def messages(self) -> dict[str, bytes]:
        """
        @return: the messages by unique-id.  The caller must not change this dictionary.
        """
        with self._guard:
            if time.monotonic() >= self._until:
                try:
                    self._messages = parse(fetch(self._place))
                except (OSError, ValueError, HTTPException, ParseError) as error:
                    # Until the feed is available again, serve the messages fetched before.
                    log.error("{place}: {error}", place=self._place, error=error)
                self._until = time.monotonic() + INTERVAL
            if self._messages is None:
                raise POP3ResponseError("The feed is not available.", "SYS/TEMP")
            return self._messages

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FeedMailbox:
        return FeedMailbox(self)


def serve(place: str) -> InThreads:
    """
    @return: the provider for C{--provider feedmail.serve:PLACE}.
    """
    return InThreads(FeedStore(place))
