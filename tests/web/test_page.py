"""
The operator's page, in memory.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.metrics.declarations import key
from pop3svc.web.markup import joined, tag
from pop3svc.web.recent import Recent
from pop3svc.web.server import BoundedSite
from pop3svc.web.streams import Stream, Streams
from pop3svc.web.views import duration, showActivity, showCertificates, showServers, showWorkers
from tests.support.mailboxes import logged
from tests.support.webpages import WebPages, basic

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x1b[2J"


def session(name: str = "17", **more: Any) -> dict[str, Any]:
    return {
        "session": name,
        "user": "alice",
        "address": "192.0.2.7",
        "tls": "TLSv1.3",
        "state": "awake",
        "method": "PASS",
        "seconds": 90.0,
        "messages": 3,
        "messageOctets": 30,
        "octets": 300,
        "deleted": 0,
        "waitsFor": "command",
        **more,
    }


BAN = {"network": "192.0.2.0/32", "seconds": 60, "refused": 4, "isByOperator": False}


@pytest.mark.smoke
def test_thePage() -> None:
    pages = WebPages()
    pages.handler.sessions = [session()]
    pages.handler.bans = [BAN]
    answer = pages.ask("GET /")
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    for each in ("alice", "192.0.2.7", "TLSv1.3", "kick?session=17", "192.0.2.0/32", "1 min"):
        assert each in answer.text
    assert pages.handler.done == []
    assert pages.site.channels == {}


def test_theHeaders() -> None:
    for path in ("/", "/style.css", "/script.js", "/kick?session=1", "/drain", "/drain/x"):
        headers = WebPages().ask(f"GET {path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["server"] == "pop3svc"


def test_nothingIsInline() -> None:
    """
    The policy forbids styles and scripts in the page.
    """
    pages = WebPages()
    pages.handler.sessions = [session()]
    text = pages.ask("GET /").text
    assert "style=" not in text and "<style" not in text and " on" not in text.split("<main")[0]
    assert text.count("<script") == 1 and "//" not in text.replace("<!DOCTYPE html>", "")


def test_theCookie() -> None:
    pages = WebPages()
    answer = pages.ask("GET /")
    written = answer.headers["set-cookie"].lower()
    assert "httponly" in written and "samesite=strict" in written
    again = pages.ask("GET /", f"Cookie: {answer.cookie}")
    assert "set-cookie" not in again.headers and again.token == answer.token
    other = pages.ask("GET /", "Cookie: pop3svc=nonsense")
    assert other.cookie != "pop3svc=nonsense" and other.token != answer.token


# --- forms -----------------------------------------------------------------------------

FORMS: list[tuple[str, dict[str, str], tuple[str, dict[str, str]]]] = [
    ("/kick", {"session": "2.17"}, ("kick", {"target": "2.17", "only": "session"})),
    ("/lift", {"target": "192.0.2.0/32"}, ("lift", {"target": "192.0.2.0/32"})),
    ("/drain", {}, ("drain", {})),
]


@pytest.mark.parametrize(("path", "fields", "done"), FORMS)
def test_aForm(path: str, fields: dict[str, str], done: Any) -> None:
    pages = WebPages()
    page = pages.ask("GET /")
    answer = pages.post(path, f"Cookie: {page.cookie}", token=page.token, **fields)
    assert answer.status == 303 and answer.headers["location"].startswith("./?done=")
    assert pages.handler.done == [done]
    shown = pages.ask(f"GET {answer.headers['location'][1:]}")
    assert 'class="notice"' in shown.text


@pytest.mark.parametrize(("path", "fields", "done"), FORMS)
def test_withoutPermission(path: str, fields: dict[str, str], done: Any) -> None:
    """
    Whatever is missing or wrong, nothing changes.
    """
    pages = WebPages("sesame")
    password = basic("sesame")
    page = pages.ask("GET /", password)
    cookie, token = f"Cookie: {page.cookie}", page.token
    other = pages.ask("GET /", password)

    def post(*headers: str, **more: str) -> int:
        return pages.post(path, *headers, **fields, **more).status

    assert post(password, cookie) == 403
    assert post(password, cookie, token="") == 403
    assert post(password, cookie, token=token[:-1]) == 403
    assert post(password, cookie, token=other.token) == 403
    assert post(password, cookie, token=HOSTILE) == 403
    assert post(password, token=token) == 403
    assert post(password, "Cookie: pop3svc=", token=token) == 403
    assert post(password, cookie, "Sec-Fetch-Site: cross-site", token=token) == 403
    assert post(password, cookie, "Sec-Fetch-Site: same-site", token=token) == 403
    assert post(password, cookie, "Origin: http://evil.example", token=token) == 403
    assert post(password, cookie, "Origin: null", token=token) == 403
    assert post(cookie, token=token) == 401
    for host in ("attacker.example", "x.attacker.example", "x:1:1", "", "[x]"):
        found = pages.ask(
            f"POST {path}", password, cookie, host=host, body=b"token=" + token.encode()
        )
        assert found.status == 421
    for method in ("GET", "HEAD"):
        query = "&".join(f"{name}={value}" for name, value in {**fields, "token": token}.items())
        assert pages.ask(f"{method} {path}?{query}", password, cookie).status in (200, 405)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert pages.ask(f"{method} {path}", password, cookie).status == 405
    assert pages.handler.done == []
    assert post(password, cookie, "Sec-Fetch-Site: same-origin", token=token) == 303
    assert pages.handler.done == [done]


def test_kickEndsNoUsers() -> None:
    """
    The page kicks one session; the name of a user would end all of the user's sessions.
    """
    pages = WebPages()
    page = pages.ask("GET /")
    for name in ("alice", "", "1.", "2.x", HOSTILE):
        answer = pages.post("/kick", f"Cookie: {page.cookie}", token=page.token, session=name)
        assert answer.status == 400
    assert pages.handler.done == []


def test_randomRequests() -> None:
    """
    Nonsense is refused in order: nothing changes, and nothing is a fault of the service.
    """
    pages, chance = WebPages(), Random(1)
    page = pages.ask("GET /")
    kinds = (
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain"),
        *("multipart/form-data", "message/rfc822", "\xff", ""),
    )
    for _ in range(300):
        path = chance.choice(["/", "/kick", "/lift", "/drain", "/events", "/style.css", "/x/%00"])
        body = b"--b\r\n" + chance.randbytes(chance.randint(1, 200)) + b"\r\n--b--"
        method = chance.choice(["POST", "POST", "PUT", "OPTIONS"])
        kind = f"Content-Type: {chance.choice(kinds)}"
        answer = pages.ask(f"{method} {path}", kind, f"Cookie: {page.cookie}", body=body)
        assert answer.status in (403, 404, 405)
    assert pages.handler.done == []


# --- the password ------------------------------------------------------------------------


def test_thePassword() -> None:
    pages = WebPages("sesame")
    assert pages.ask("GET /", basic("sesame")).status == 200
    for path in ("/", "/events", "/kick?session=1", "/style.css", "/drain/x"):
        answer = pages.ask(f"GET {path}")
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic")
    assert pages.ask("GET /healthz").status == 200


def test_guessesAreBanned() -> None:
    """
    Wrong passwords count as wrong passwords of POP3 do, and the ban covers the right password too.
    """
    pages = WebPages("sesame")
    events = logged(
        lambda: [pages.ask("GET /", basic(f"guess{n}"), wait=10).status for n in range(3)]
    )
    texts = [each["log_format"] for each in events if "failed login " in str(each["log_format"])]
    assert texts == ["failed login from {clientIP}: {user}"] * 3
    assert [each.network for each in pages.throttle.bans()] == ["192.0.2.7/32"]
    assert pages.ask("GET /", basic("sesame"), wait=60).status == 401
    assert pages.ask("GET /metrics", basic("sesame"), wait=60).status == 401
    assert pages.ask("GET /", basic("sesame"), ip="198.51.100.1").status == 200


def test_aGuessThatDoesNotWait() -> None:
    """
    A client that leaves before the refusal has guessed all the same.
    """
    pages = WebPages("sesame")
    for number in range(3):
        channel, transport = pages.begin("GET /", basic(f"guess{number}"))
        assert transport.value() == b""
        channel.connectionLost(Failure(ConnectionDone()))
    assert len(pages.throttle.bans()) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8110", 200), ("[::1]:8110", 200), ("evil.example", 421)],
)
def test_theHost(host: str, status: int) -> None:
    pages = WebPages(hosts=frozenset(["localhost", "[::1]"]))
    assert pages.ask("GET /", host=host).status == status
    assert pages.ask("GET /healthz", host=host).status == 200
    assert WebPages(hosts=None).ask("GET /", host=host).status == 200


# --- what is shown -------------------------------------------------------------------------


def test_hostileText() -> None:
    pages = WebPages()
    handler = pages.handler
    handler.sessions = [session(user=HOSTILE, address=HOSTILE, waitsFor=HOSTILE, tls=HOSTILE)]
    handler.bans = [{**BAN, "network": HOSTILE}]
    server = {"name": HOSTILE, "isAvailable": False, "reason": HOSTILE}
    handler.status |= {
        "servers": [server],
        "listeners": [HOSTILE],
        "certificates": [{"path": HOSTILE, "end": 1e10}],
    }
    event = {"time": 1.0, "what": "login", "session": HOSTILE, "user": HOSTILE}
    pages.page._heard([{**event, "address": HOSTILE, "detail": HOSTILE}])
    for path in ("/", "/kick?session=%3Cscript%3Ealert(1)%3C/script%3E", "/?done=%3Cscript%3E"):
        text = pages.ask(f"GET {path}").text
        assert "<script>" not in text and "\u202e" not in text and "\x1b" not in text
        assert "alert(1)" not in text or "&lt;script&gt;alert(1)" in text


def test_markup() -> None:
    assert tag("p", "<", tag("b", 1), None, class_='a"b', hidden=True, id=None) == (
        '<p class="a&quot;b" hidden>&lt;<b>1</b></p>'
    )
    assert tag("input", data_x="&") == '<input data-x="&amp;">'
    assert joined("\n", "é") == "\\né"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_manySessions() -> None:
    """
    The page shows some sessions of many, and does not ask for the rest.
    """
    pages = WebPages()
    pages.handler.sessions = [session(str(number)) for number in range(150)]
    pages.handler.bans = [{**BAN, "network": f"192.0.2.{n}/32"} for n in range(150)]
    text = pages.ask("GET /").text
    assert text.count('href="kick?') == 100 and text.count('form="lift"') == 100
    assert "Only 100 sessions" in text and "Only 100 bans" in text


def test_certificates() -> None:
    def shown(days: float) -> str:
        return str(showCertificates({"certificates": [{"path": "p", "end": days * 86400}]}, 0))

    assert "badge good" in shown(21.5) and "21 days left" in shown(21.5)
    assert "badge warn" in shown(1.5) and "1 day left" in shown(1.5)
    assert "badge bad" in shown(-0.5) and "expired" in shown(-0.5)
    assert "no certificate" in showCertificates({"certificates": []}, 0)


def test_workers() -> None:
    up = {"name": "database x", "isAvailable": True, "reason": ""}
    down = {"name": "database x", "isAvailable": False, "reason": "timeout"}
    status = {
        "listeners": [],
        "workers": [
            {"worker": 1, "pid": 5, "serves": True, "sessions": {"awake": 3}, "servers": [up]},
            {"worker": 2, "pid": 6, "serves": False},
            {"worker": 3, "pid": 7, "serves": True, "servers": [down]},
        ],
    }
    text = showWorkers(status)
    assert text.count("<tr id=") == 3 and text.count("does not answer") == 1
    assert "timeout" in showServers(status) and "badge good" not in showServers(status)


def test_activity() -> None:
    event = {"time": 0, "session": "1", "user": "alice", "address": None}
    text = showActivity(
        [
            {**event, "what": "wake", "detail": "ACTIVITY/NEW"},
            {**event, "what": "sleep", "detail": ""},
            {**event, "what": "refused", "user": None, "detail": "PASS"},
            {"what": "more", "count": 7},
        ]
    )
    for each in ("woke up", "new mail", "fell asleep", "somebody", "7 more events", "this machine"):
        assert each in text


def test_theLastHour() -> None:
    pages = WebPages()
    pages.page.history.startService()
    numbers = pages.numbers.numbers

    def show() -> str:
        pages.clock.advance(1)
        return pages.ask("GET /").text

    numbers[key("pop3svc_logins_total", "PASS", "ok")] = 5
    numbers[key("pop3svc_logins_total", "PASS", "refused")] = 2
    assert "Logins: 5 in 60 minutes, at most 5 in one minute" in show()
    pages.clock.advance(60)
    numbers[key("pop3svc_logins_total", "XLOG", "ok")] = 3
    text = show()
    assert "Logins: 8 in 60 minutes" in text and "<title>5 1 min ago</title>" in text
    assert "<title>3 in this minute</title>" in text
    for _ in range(61):
        pages.clock.advance(60)
    assert "Logins: 0 in 60 minutes" in show()
    pages.page.history.stopService()
    pages.clock.advance(1)
    assert pages.clock.getDelayedCalls() == []


def test_manyRequestsShareALook() -> None:
    """
    Requests at short intervals share one look at the service.  After a form, the page shows new
    bans.
    """
    pages = WebPages()
    page = pages.ask("GET /")
    pages.handler.sessions, pages.handler.bans = [session()], [BAN]
    assert "alice" not in pages.ask("GET /").text
    pages.clock.advance(0.25)
    assert "alice" in pages.ask("GET /").text and "192.0.2.0" not in pages.ask("GET /").text
    pages.post("/lift", f"Cookie: {page.cookie}", token=page.token, target="192.0.2.9")
    assert "192.0.2.0" in pages.ask("GET /").text
    pages.handler.bans = []
    pages.clock.advance(5)
    assert "192.0.2.0" not in pages.ask("GET /").text


def test_recent() -> None:
    clock, asked, answers = Clock(), [], []

    def collect() -> Deferred[Any]:
        asked.append(Deferred())
        return asked[-1]

    recent = Recent(collect, clock)

    def get() -> Deferred[Any]:
        return recent.get().addErrback(lambda _: "failed").addCallback(answers.append)

    get(), get(), get().cancel()
    assert len(asked) == 1 and answers == ["failed"]
    clock.advance(2)
    asked[0].callback("a")
    assert answers == ["failed", "a", "a"]
    # It took two seconds, so it is kept for forty.
    clock.advance(39)
    get()
    assert answers[3:] == ["a"] and len(asked) == 1
    clock.advance(1)
    get()
    recent.forget()
    get()
    asked[2].callback("c")
    asked[1].callback("b")
    assert answers[4:] == ["c", "b"]
    get()
    assert answers[6:] == ["c"]
    recent.forget()
    get()
    asked[3].errback(ValueError())
    get()
    assert answers[7:] == ["failed"] and len(asked) == 5


def test_noWorker() -> None:
    pages = WebPages()
    pages.handler.error = "No worker serves now."
    answer = pages.ask("GET /")
    assert answer.status == 503 and "No worker serves now." in answer.text


def test_aFault() -> None:
    pages = WebPages()
    pages.handler.status = {}
    answers: list[Any] = []
    events = logged(lambda: answers.append(pages.ask("GET /")))
    assert answers[0].status == 500 and "KeyError" not in answers[0].text
    assert len([each for each in events if each.get("log_failure")]) == 1


# --- live ----------------------------------------------------------------------------------


def test_events() -> None:
    pages = WebPages()
    channel, transport = pages.begin("GET /events")
    pages.handler.sessions = [session()]
    assert b"text/event-stream" in transport.value() and not transport.disconnecting
    pages.clock.advance(1)
    assert b"event: sessions\r\n" in transport.value().replace(b"\n", b"\r\n")
    transport.clear()
    [hear] = pages.handler.activity
    event = {"time": 0, "what": "sleep", "session": "17", "user": "bob", "detail": ""}
    hear([{**event, "address": "192.0.2.9"}])
    assert b"event: activity" in transport.value() and b"bob" in transport.value()
    transport.clear()
    # What has not changed is not sent again.
    pages.clock.advance(1)
    assert b"event: sessions" not in transport.value()
    # Another reader gets everything.
    other = pages.begin("GET /events")
    assert b"bob" in other[1].value() and b"192.0.2.7" in other[1].value()
    pages.clock.pump([5] * 4)
    assert not transport.isAborted
    for each in (channel, other[0]):
        each.connectionLost(Failure(ConnectionDone()))
    assert pages.clock.getDelayedCalls() == [] and pages.site.lasting == set()


def test_activityIsAskedAgain() -> None:
    pages = WebPages()
    channel, _ = pages.begin("GET /events")
    pages.handler.activityEnds[0].callback(None)
    assert len(pages.handler.activity) == 2
    pages.handler.error = "No worker serves now."
    pages.handler.activityEnds[1].callback(None)
    pages.clock.advance(1)
    assert len(pages.handler.activity) == 2
    pages.handler.error = None
    pages.clock.advance(5)
    assert len(pages.handler.activity) == 3
    channel.connectionLost(Failure(ConnectionDone()))


def test_aSlowReader() -> None:
    pages = WebPages()
    _, transport = pages.begin("GET /events")
    assert transport.producer is not None
    transport.producer.pauseProducing()
    transport.clear()
    sent = 0
    while not transport.isAborted:
        pages.page._streams.send("x", "y" * 10_000)
        sent += 1
        assert sent < 100
    assert len(transport.value()) <= Stream.BOUND + 10_000


def test_aReaderThatCatchesUp() -> None:
    pages = WebPages()
    _, transport = pages.begin("GET /events")
    for _ in range(100):
        transport.producer.pauseProducing()
        pages.page._streams.send("x", "y" * 10_000)
        transport.producer.resumeProducing()
    assert not transport.isAborted


def test_manyReaders() -> None:
    pages = WebPages()
    begun = [pages.begin("GET /events") for _ in range(Streams.MOST)]
    assert pages.ask("GET /events").status == 503
    assert pages.ask("HEAD /events").status == 200
    assert pages.ask("GET /").status == 200
    # Readers do not take the places of others.
    for _ in range(BoundedSite.MOST):
        pages.begin("GET /healthz")
    assert not any(each.isAborted for _, each in begun)
    begun[0][0].connectionLost(Failure(ConnectionDone()))
    assert not pages.begin("GET /events")[1].disconnecting
    pages.site.abortAll()
    assert all(each.isAborted for _, each in begun[1:])


def test_aReaderEnds() -> None:
    """
    The connection of a reader ends after an hour, and the browser makes another one.
    """
    pages = WebPages()
    channel, transport = pages.begin("GET /events")
    pages.clock.advance(BoundedSite.LASTING - 1)
    assert not transport.isAborted
    pages.clock.advance(2)
    assert transport.isAborted
    channel.connectionLost(Failure(ConnectionDone()))


def test_noReadersCostNothing() -> None:
    pages = WebPages()
    pages.ask("GET /")
    assert pages.clock.getDelayedCalls() == [] and pages.handler.activity == []
