"""
The example of a feed as a mailbox.
"""

from __future__ import annotations

import email
import email.policy
import http.server
import poplib
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import feedmail
import pytest
from feedmail import FeedMailbox, FeedStore, fetch, parse

from pop3svc.errors import POP3ResponseError
from pop3svc.testing import MailboxContract
from tests.examples.serving import addUser, logIn, messages, service

RSS = """<?xml version="1.0"?>
<rss version="2.0" xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>
<title>News</title>
<item><title>Second\n day</title><link>https://example.org/2?a&amp;b</link>
<description>short</description><content:encoded>&lt;b&gt;long&lt;/b&gt;</content:encoded>
<pubDate>Tue, 24 Nov 2026 12:00:00 +0100</pubDate></item>
<item><title>First =?utf-8?q?a=0D=0ABcc:_x?=</title><description>.\n..</description></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>News</title>
<entry><title>Ünique</title><id>urn:1</id><link href="https://example.org/1"/>
<updated>2026-11-24T11:00:00Z</updated><summary>1 &lt; 2</summary></entry></feed>"""


class Store:
    """
    A substitute for L{FeedStore}.
    """

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def messages(self) -> dict[str, bytes]:
        return dict(self.found)


class FeedMailboxTests(MailboxContract, unittest.TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.store: Any = Store()
        for message in messages:
            self.deliver(message)
        return self.again()

    def again(self) -> Any:
        return FeedMailbox(self.store)

    def deliver(self, message: bytes) -> str:
        uniqueID = str(len(self.store.found))
        self.store.found[uniqueID] = message
        return uniqueID


def read(data: str) -> list[Any]:
    found = [each.replace(b"\r\n", b"\n") for each in parse(data.encode()).values()]
    return [email.message_from_bytes(each, policy=email.policy.default) for each in found]


def test_rss() -> None:
    first, second = read(RSS)
    assert second["Subject"] == "Second day"
    assert second["Date"].datetime.isoformat() == "2026-11-24T12:00:00+01:00"
    url = "https://example.org/2?a&amp;b"
    assert second.get_content() == f'<b>long</b>\n<p><a href="{url}">{url}</a></p>\n'
    assert "Date" not in first and "Bcc" not in first
    assert first.get_content() == ".\n..\n"


def test_atom() -> None:
    (entry,) = read(ATOM)
    assert entry["Subject"] == "Ünique"
    assert entry["Date"].datetime.isoformat() == "2026-11-24T11:00:00+00:00"
    assert entry.get_content().startswith("1 &lt; 2\n<p>")


def test_uniqueIDs() -> None:
    """
    An unchanged entry keeps its unique-id, and a changed entry is a new message.
    """
    before = parse(RSS.encode())
    assert parse(RSS.encode()) == before
    after = parse(RSS.replace("short", "other").replace("long", "longer").encode())
    assert list(after)[0] == list(before)[0] and list(after)[1] != list(before)[1]
    assert all(len(each) <= 70 for each in before)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><rss>&b;</rss>'
    with pytest.raises(ValueError, match="document type"):
        parse(bomb.encode())
    with pytest.raises(ParseError):
        parse(b"<rss>")
    monkeypatch.setattr(feedmail, "MOST", 1)
    assert [each["Subject"] for each in read(RSS)] == ["Second day"]
    monkeypatch.setattr(feedmail, "LARGEST", 10)
    (tmp_path / "feed").write_text(RSS)
    with pytest.raises(ValueError, match="too large"):
        fetch(str(tmp_path / "feed"))


@pytest.fixture
def trickle() -> Iterator[str]:
    """
    A server that sends an octet now and then.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.01)
            except OSError:
                pass

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_slow(trickle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedmail, "LONGEST", 0.2)
    with pytest.raises(ValueError, match="too slow"):
        fetch(trickle)


def test_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While the feed cannot be read, the store serves the messages of the last successful attempt.
    """
    feed = tmp_path / "feed"
    store = FeedStore(str(feed))
    with pytest.raises(POP3ResponseError):
        store.messages()
    # The store does not read the feed again at once.
    feed.write_text(RSS)
    with pytest.raises(POP3ResponseError):
        store.messages()
    monkeypatch.setattr(feedmail, "INTERVAL", 0)
    store = FeedStore(str(feed))
    assert len(store.messages()) == 2
    feed.write_text("<rss>")
    assert len(store.messages()) == 2


def test_served(tmp_path: Path) -> None:
    addUser(tmp_path, "alice", "secret")
    (tmp_path / "feed.xml").write_text(RSS)
    options = "--provider", "feedmail.serve:feed.xml", "--auth", "passwd:users"
    with service(tmp_path, *options) as port:
        client = logIn(port, "alice", "secret")
        assert b"Subject: Second day\n" in messages(client)[1]
        with pytest.raises(poplib.error_proto, match="READ-ONLY"):
            client.dele(1)
        client.quit()
