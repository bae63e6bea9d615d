"""
LANG (RFC 6856 section 3): the language of the texts of replies.
"""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from pop3svc.errors import POP3ResponseError
from pop3svc.languages import LANGUAGES, languages
from pop3svc.policy import Policy
from pop3svc.protocol.replies import err, ok
from pop3svc.protocol.session import keepLanguage
from pop3svc.protocol.wire import PLAIN, LineStyle, firstLine
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider
from tests.support.connections import advance
from tests.support.conversations import MESSAGES, provider

pytestmark = pytest.mark.smoke


def client(**options: object) -> Client:
    made = Client(POP3Factory(provider(), clock=Clock(), **options))  # type: ignore[arg-type]
    made.received()
    return made


def loggedIn(mail: object = None, **options: object) -> Client:
    mail = provider() if mail is None else mail
    made = Client(POP3Factory(mail, clock=Clock(), **options))  # type: ignore[arg-type]
    made.logIn()
    return made


def say(client: Client, line: str) -> str:
    return client.say(line.encode()).decode("utf-8")


def test_listing() -> None:
    """
    The listing is UTF-8 also before a language is chosen, and in both states.
    """
    wanted = (
        "+OK Languages follow _\r\nen English\r\nar العربية\r\nde Deutsch\r\nfr Français\r\n.\r\n"
    )
    assert say(client(), "LANG") == wanted
    assert say(loggedIn(), "LANG ") == wanted


@pytest.mark.parametrize("isLoggedIn", [False, True])
def test_switching(isLoggedIn: bool) -> None:
    """
    The reply to LANG is in the new language, as are all later replies; C{*} is English.
    """
    user = loggedIn() if isLoggedIn else client()
    assert say(user, "LANG de") == "+OK de Sprache geändert.\r\n"
    assert say(user, "APOP a b") == "-ERR Unbekannter Befehl.\r\n"
    assert say(user, "lang FR-ca") == "+OK fr Langue modifiée.\r\n"
    assert say(user, "APOP a b") == "-ERR Commande inconnue.\r\n"
    assert say(user, "LANG ar") == "+OK ar تم تغيير اللغة.\r\n"
    assert say(user, "APOP a b") == "-ERR أمر غير معروف.\r\n"
    assert say(user, "LANG *") == "+OK en Language changed.\r\n"
    assert say(user, "APOP a b") == "-ERR Unknown command.\r\n"


def test_refusedLanguage() -> None:
    """
    An unknown language changes nothing, and the refusal is in the present language.
    """
    user = client()
    assert say(user, "LANG uga") == "-ERR No such language.\r\n"
    say(user, "LANG fr")
    for line in ("LANG uga", "LANG de_DE", "LANG ../de", "LANG \u00e4"):
        assert say(user, line) == "-ERR Cette langue n'existe pas.\r\n"
    assert say(user, "LANG de en") == "-ERR Cette commande attend une langue au plus.\r\n"
    assert say(user, "PASS x") == "-ERR Envoyez d'abord USER.\r\n"


def test_pipelined() -> None:
    """
    A language applies from its own reply on, not to earlier replies of the same segment.
    """
    user = loggedIn()
    user.send(b"NOOP\r\nLANG de\r\nNOOP\r\nLANG en\r\nNOOP\r\n")
    assert user.received().decode().split("\r\n") == [
        "+OK Done.",
        "+OK de Sprache geändert.",
        "+OK Erledigt.",
        "+OK en Language changed.",
        "+OK Done.",
        "",
    ]


def test_onlyTextsChange() -> None:
    """
    Codes, numbers, unique-ids, multi-line content and marks stay as they are.
    """
    plain, german = loggedIn(), loggedIn()
    say(german, "LANG de")
    for line in ("STAT", "LIST 2", "UIDL 3", "UIDL 9x"):
        if line.startswith("UIDL 9"):
            assert say(plain, line).startswith("-ERR ")
        else:
            assert say(plain, line) == say(german, line)
    for line in ("LIST", "UIDL", "RETR 1", "TOP 2 1", "CAPA"):
        first, rest = german.say(line.encode()).split(b"\r\n", 1)
        assert first.endswith(b" _")
        assert rest == plain.say(line.encode()).split(b"\r\n", 1)[1]
    assert say(german, "LIST").startswith("+OK 3 Nachrichten _\r\n")
    assert say(german, "RETR UID:none") == "-ERR [UID/NOT-FOUND] Diese Nachricht gibt es nicht.\r\n"
    assert say(german, "DELI 3") == "+OK Nachricht gelöscht. UID:message-3\r\n"
    assert say(german, "DELE 1") == "+OK Die Nachricht ist zum Löschen markiert.\r\n"
    assert say(german, "CORE") == "+OK [ACTIVITY/NONE] Aktualisiert.\r\n"
    assert say(german, "LIST").startswith("+OK 1 Nachricht _\r\n")
    assert say(german, "SLEE") == "+OK Im Ruhezustand, 0 gelöscht.\r\n"
    # LANG is not valid in the SLEEP state.
    assert say(german, "LANG en") == "-ERR Der Befehl ist in diesem Zustand nicht erlaubt.\r\n"
    assert say(german, "WAKE") == "+OK [ACTIVITY/NONE] Wieder aktiv.\r\n"
    assert say(german, "DELE 1").startswith("+OK")
    assert say(german, "QUIT") == "+OK Auf Wiedersehen, 1 gelöscht.\r\n"


def test_providersText() -> None:
    """
    The text of another package's provider goes out as it is.
    """
    foreign = POP3ResponseError("Shelf is empty.", "SYS/TEMP")
    user = loggedIn(StubProvider(MESSAGES, messageDelete=foreign))
    say(user, "LANG ar")
    assert say(user, "DELI 1") == "-ERR [SYS/TEMP] Shelf is empty.\r\n"


def test_login() -> None:
    """
    A language that was chosen before the login stays, and a login is refused in this language.
    """
    user = client()
    say(user, "LANG de")
    say(user, "USER alice")
    assert say(user, "PASS wrong") == "-ERR [AUTH] Name oder Passwort falsch.\r\n"
    assert say(user, "XLOG alice secret") == "+OK Angemeldet.\r\n"
    assert say(user, "QAUT") == "+OK Abgemeldet.\r\n"
    assert say(user, "USER alice") == "+OK Passwort erforderlich.\r\n"


def test_challengesAreNotTexts() -> None:
    user = client()
    say(user, "LANG fr")
    assert say(user, "AUTH LOGIN") == "+ VXNlcm5hbWU6\r\n"
    assert say(user, "*") == "-ERR Annulé.\r\n"


def test_linesThatAnswerNoCommand() -> None:
    user = client()
    say(user, "LANG de")
    advance(user, 181)
    assert user.received().decode() == "-ERR Zeitüberschreitung bei der Anmeldung.\r\n"
    user = client()
    say(user, "LANG de")
    user.send(b"x" * 300 + b"\r\n")
    assert user.received().decode() == "-ERR Die Zeile ist zu lang.\r\n"


def test_stlsForgetsTheLanguage() -> None:
    """
    STLS resets the language, because an attacker may have chosen it before TLS began.
    """
    user = client(connectionCreator=object())
    say(user, "LANG ar")
    assert say(user, "STLS") == "+OK ابدأ تفاوض TLS.\r\n"
    user.protocol.handshakeCompleted()  # type: ignore[attr-defined]
    assert say(user, "PASS x") == "-ERR Send USER first.\r\n"


def test_ofOneSessionOnly() -> None:
    factory = POP3Factory(provider(), clock=Clock())
    one, other = Client(factory), Client(factory)
    one.received(), other.received()
    say(one, "LANG de")
    assert say(other, "PASS x") == "-ERR Send USER first.\r\n"
    assert say(one, "PASS x") == "-ERR Senden Sie zuerst USER.\r\n"


def test_afterTheConnection() -> None:
    """
    The session does not refer to the sender of a lost connection.
    """
    user = loggedIn()
    session = user.protocol.session  # type: ignore[attr-defined]
    assert session.useLanguage is not keepLanguage
    user.vanish()
    assert session.useLanguage is keepLanguage
    assert session.useLanguage(languages()["de"]) is None


def test_withoutLANG() -> None:
    user = client(policy=Policy(without=frozenset(["LANG"])))
    assert say(user, "LANG de") == "-ERR Unknown command.\r\n"


def test_everyLanguageIsAccepted() -> None:
    user = client()
    for tag in LANGUAGES:
        assert say(user, f"LANG {tag}").startswith(f"+OK {tag} ")


def test_firstLine() -> None:
    german = LineStyle.of(False, languages()["de"])
    assert firstLine(ok("Done."), german) == b"+OK Erledigt.\r\n"
    assert (
        firstLine(err("Internal error.", "SYS/TEMP"), german)
        == b"-ERR [SYS/TEMP] Interner Fehler.\r\n"
    )
    # A catalogue has its header under the empty text.
    assert firstLine(ok(""), german) == b"+OK\r\n"
    # The cache does not mix up the languages.
    assert firstLine(ok("Done."), PLAIN) == b"+OK Done.\r\n"
    assert firstLine(ok("a\r\nb\x85\u2028\udcff\x00\x7f"), german) == b"+OK a??b?????\r\n"
    assert firstLine(ok("ä"), german) == "+OK ä\r\n".encode()
    assert firstLine(ok("ä"), PLAIN) == b"+OK ?\r\n"
    assert LineStyle.of(False) is PLAIN
    assert LineStyle.of(True) is not PLAIN


@pytest.mark.parametrize("before", range(5))
def test_noCharacterIsCut(before: int) -> None:
    """
    A line of UTF-8 is cut to 512 octets, between two characters.
    """
    for style in (LineStyle.of(False, languages()["ar"]), LineStyle.of(True, languages()["ar"])):
        line = firstLine(ok("x" * before + "\U0001f4ec" * 300), style)
        assert 505 <= len(line) <= 512
        assert line.decode("utf-8").endswith("\U0001f4ec\r\n")
