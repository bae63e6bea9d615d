"""
The pages of a real service in a real browser.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop3svc.admin.client import ask
from tests.support.browser import Browser, browserFor
from tests.support.running import Connection, Running, freePort


class Site:
    """
    A running service, and a browser.
    """

    def __init__(self, running: Running, port: int, web: int, browser: Browser) -> None:
        self.running = running
        self.port = port
        self.web = web
        self.browser = browser
        self.admin = str(running.home / "data" / "admin.sock")
        netrc = running.home / "data" / "demo.netrc"
        self.password = netrc.read_bytes().split()[-1] if netrc.exists() else b"secret"

    def connect(self, name: bytes = b"demo") -> Connection:
        connection = Connection(self.port)
        connection.line()
        connection.logIn(name, self.password)
        return connection

    def session(self, name: str = "demo") -> str:
        [found] = [each for each in ask(self.admin, "who") if each["user"] == name]
        return str(found["session"])


def leave(client: Connection) -> None:
    """
    End a session.  The service waits some seconds for a client that does not close its end.
    """
    client.say(b"QUIT")
    client.socket.close()


def begun(home: Path, browser: Browser, *options: str) -> Iterator[Site]:
    port, web = freePort(), freePort()
    with Running(
        home,
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(home / "data")),
        *("--web", f"tcp:{web}:interface=127.0.0.1"),
        *options,
    ) as running:
        running.up()
        running.waitFor("made a self-signed certificate")
        yield Site(running, port, web, browser)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browserFor() as made:
        yield made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    yield from begun(tmp_path_factory.mktemp("home"), browser)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    running.browser.base = f"http://127.0.0.1:{running.web}/"
    running.browser.use()
    running.browser.complaints()
    yield running
    # A session that a test has left open would keep the mailbox locked.
    ask(running.admin, "kick", target="demo")
    # Neither errors of the script nor violations of the policy.
    assert running.browser.complaints() == []


# --- the operator's page ---------------------------------------------------------------


def test_sessionsLive(site: Site) -> None:
    browser = site.browser
    browser.go("")
    browser.see("Live", ".state.on")
    browser.seeNot("demo", "#live-sessions")
    client = site.connect()
    browser.see("demo", "#live-sessions")
    browser.see("logged in", "#live-activity")
    client.say(b"SLEE")
    browser.see("asleep", "#live-sessions")
    browser.see("fell asleep", "#live-activity")
    client.say(b"WAKE")
    browser.see("woke up", "#live-activity")
    browser.see("no new mail", "#live-activity")
    browser.see("awake", "#live-sessions")
    assert len(browser.all("#live-charts svg")) == 4
    browser.until(lambda: browser.all(".chart.sleep rect"), "a wake in the chart")
    browser.see("days left", "#live-certificates")
    browser.see("serves", "#live-workers")
    browser.see(f"127.0.0.1:{site.port}", "#live-workers")
    browser.see("no database", "#live-servers")
    leave(client)
    browser.seeNot("demo", "#live-sessions")


def test_kicking(site: Site) -> None:
    browser, client = site.browser, site.connect()
    browser.go("")
    number = site.session()
    browser.click(f"#kick-{number}")
    browser.see(f"End session {number} at once?")
    browser.click("main a[href='.']")
    browser.see("demo", "#live-sessions")
    assert client.say(b"NOOP").startswith(b"+OK")
    browser.click(f"#kick-{number}")
    browser.click("form button")
    browser.see("The session has ended.", ".notice")
    assert client.line() == b""


def test_lifting(site: Site) -> None:
    browser = site.browser
    browser.go("")
    browser.see("Nobody is banned.")
    ask(site.admin, "ban", address="192.0.2.77")
    browser.see("192.0.2.77", "#live-bans")
    browser.click("#live-bans button")
    browser.see("The ban is lifted.", ".notice")
    browser.see("Nobody is banned.")
    assert ask(site.admin, "bans") == []


def test_keyboard(site: Site) -> None:
    """
    A session is kicked without a mouse, while the page changes.
    """
    from selenium.webdriver.common.keys import Keys

    browser, client = site.browser, site.connect()
    number = site.session()
    browser.go("")
    browser.see("Live", ".state.on")
    browser.press(Keys.TAB)
    assert browser.focused("class") == "skip"
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.focused() == "content", "the focus")
    browser.press(Keys.TAB)
    assert browser.focused() == f"kick-{number}"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"
    # The focus stays where it is when the page is updated.
    other = Connection(site.port)
    browser.until(lambda: len(browser.all("#live-sessions tbody tr")) == 2, "the other session")
    assert browser.focused() == f"kick-{number}"
    browser.press(Keys.ENTER)
    browser.see("at once?")
    # The button of the form has the focus.
    browser.press(Keys.ENTER)
    browser.see("The session has ended.", ".notice")
    assert client.line() == b""
    other.socket.close()


@pytest.mark.parametrize("path", ["", "playground", "drain"])
def test_screens(site: Site, path: str) -> None:
    """
    The page fits the width of the screen, and the dark scheme has another background.
    """
    browser, client = site.browser, site.connect()
    client.say(b"UIDL")
    client.lines()
    colors = set()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            browser.use(width, scheme)
            browser.go(path)
            if path:
                browser.find("button")
            else:
                browser.see("Live", ".state.on")
            assert browser.run("return document.documentElement.scrollWidth") <= width
            colors.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
            browser.shoot(f"{path or 'service'}-{width}-{scheme}")
    assert len(colors) == 2
    leave(client)


def test_withoutScripts(site: Site) -> None:
    browser, client = site.browser, site.connect()
    number = site.session()
    browser.use(hasScripts=False)
    browser.go("")
    assert "demo" in browser.text and not browser.find("#state").is_displayed()
    browser.click(f"#kick-{number}")
    browser.click("form button")
    browser.see("The session has ended.", ".notice")
    assert client.line() == b""
    browser.go("playground")
    browser.click("#login")
    browser.see("+OK Logged in.", ".transcript")
    browser.find("#line").send_keys("RETR 1")
    browser.click("#talk .primary")
    browser.see("Welcome to pop3svc", ".transcript")
    browser.click("button[value=QUIT]")
    browser.see("the connection has ended", ".transcript")
    browser.use()


# --- the playground -----------------------------------------------------------------------


def test_aMinuteWithTheExtensions(site: Site) -> None:
    browser = site.browser
    browser.go("playground")
    browser.click("#login")
    browser.see("+OK Logged in.", ".transcript")
    for command, reply in (
        ("CAPA", "SLEE-WAKE"),
        ("SLEE", "+OK Asleep"),
        ("random", ""),
        ("WAKE", "[ACTIVITY/NEW]"),
        ("UIDL", "Unique-ids follow"),
    ):
        browser.click(f"button[value={command}]")
        browser.see(reply, ".transcript")
    browser.see("without another login", ".transcript .note")
    browser.click("button[value^='RETR UID:']")
    browser.see("Hello demo,", ".transcript")
    browser.click("button[value^='DELI UID:']")
    browser.see("+OK Deleted message. UID:", ".transcript")
    browser.see("deletes one message at once", ".transcript .note")
    browser.see("DELI UID:", "#live-talks")
    assert site.password.decode("ascii") not in browser.text
    assert browser.run("return location.hash") == ""
    browser.click("button[value=QUIT]")
    browser.see("the connection has ended", ".transcript")


def test_typing(site: Site) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = site.browser
    browser.go("playground")
    browser.find("#line").send_keys("XLOG demo wrong", Keys.ENTER)
    browser.see("XLOG demo ****", ".transcript")
    browser.see("-ERR [AUTH]", ".transcript")
    assert browser.focused() == "line" and browser.find("#line").get_attribute("value") == ""
    browser.press("QUIT", Keys.ENTER)
    browser.see("the connection has ended", ".transcript")


def mailsOf(site: Site) -> list[bytes]:
    client = site.connect()
    count = int(client.say(b"STAT").split()[1])
    mails = []
    for number in range(1, count + 1):
        assert client.say(b"RETR %d" % number).startswith(b"+OK")
        mails.append(b"".join(client.lines()))
        client.say(b"DELE %d" % number)
    leave(client)
    return mails


def test_aMail(site: Site) -> None:
    browser = site.browser
    mailsOf(site)
    browser.go("playground")
    subject = browser.find("#subject")
    subject.clear()
    subject.send_keys("Grüße <b>")
    browser.find("#text").send_keys(" Bye!")
    browser.click("form[action=mail] button")
    browser.see("The message has arrived in the mailbox.", ".notice")
    [mail] = mailsOf(site)
    assert b"Nice to meet you. Bye!" in mail and b"Subject: =?utf-8?" in mail
    browser.click("form[action=random] button")
    browser.see("The message has arrived", ".notice")
    assert len(mailsOf(site)) == 1
    recipient = browser.find("#to")
    recipient.clear()
    recipient.send_keys("nobody")
    browser.click("form[action=mail] button")
    browser.see("There is no such user.", ".notice.bad")
    assert mailsOf(site) == []


_DROP = """
const files = new DataTransfer();
files.items.add(new File(["Subject: dropped\\n\\nx\\n"], "x.eml"));
const form = document.querySelector(".drop");
for (const type of ["dragover", "drop"]) {
    form.dispatchEvent(new DragEvent(type, {dataTransfer: files, bubbles: true, cancelable: true}));
}
"""


def test_files(site: Site, tmp_path: Path) -> None:
    browser = site.browser
    path = tmp_path / "mail.eml"
    path.write_bytes(b"Subject: chosen\n\ny\n")
    mailsOf(site)
    browser.go("playground")
    browser.find("#file").send_keys(str(path))
    browser.click("form[action=upload] button")
    browser.see("The message has arrived", ".notice")
    browser.run(_DROP)
    browser.click("form[action=upload] button")
    browser.see("The message has arrived", ".notice")
    assert [each.splitlines()[0] for each in mailsOf(site)] == [
        b"Subject: chosen",
        b"Subject: dropped",
    ]


def test_conversationsLive(site: Site) -> None:
    """
    The page shows what a mail program says, in two columns.
    """
    browser = site.browser
    browser.go("playground")
    browser.see("Live", ".state.on")
    client = site.connect()
    client.say(b"SLEE")
    number = site.session()
    talk = f"#talk-{number}"
    browser.see("SLEE: the session sleeps", f"{talk} .client .note")
    browser.see("PASS ****", f"{talk} .client")
    browser.see("+OK Asleep", f"{talk} .server")
    assert site.password.decode("ascii") not in browser.text
    left, right = (browser.find(f"{talk} {side}").rect["x"] for side in (".client", ".server"))
    assert right > left + 100
    leave(client)
    browser.see("ended", f"{talk} h3")


# --- hostile names -----------------------------------------------------------------------

HOSTILE = "<script>document.title='bad'</script>"


def test_hostileNamesAndDraining(tmp_path: Path, browser: Browser) -> None:
    """
    A user has a name that is a script.  The operator drains the service.
    """
    options = ("--provider", "memory:", "--auth", f"memory:{HOSTILE}:secret")
    for site in begun(tmp_path / "home", browser, *options):
        browser.base = f"http://127.0.0.1:{site.web}/"
        browser.use()
        client = site.connect(HOSTILE.encode("ascii"))
        for path in ("", "playground"):
            browser.go(path)
            browser.see(HOSTILE, "main")
            browser.see("Live", ".state.on")
            assert "bad" not in browser.driver.title
        client.say(b"SLEE")
        browser.see(HOSTILE, "#live-talks")
        browser.go("")
        browser.click("a[href=drain]")
        browser.click("form button")
        browser.see("admits no more logins", ".notice")
        browser.see("draining", "#live-summary")
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(browser.base + "readyz", timeout=60)
        raised.value.close()
        assert raised.value.code == 503
        assert client.say(b"NOOP").startswith(b"+OK")
        leave(client)
        assert site.running.end() == 0
