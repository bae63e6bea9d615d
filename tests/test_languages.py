"""
The catalogue: every text of a reply has a translation that fits into a reply.
"""

from __future__ import annotations

import gettext
import re
from pathlib import Path

import pytest
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

from pop3svc import languages as module
from pop3svc.errors import POP3ResponseError
from pop3svc.languages import DEFAULT, LANGUAGES, TEMPLATES, languages, matching
from pop3svc.protocol.replies import err
from pop3svc.protocol.wire import LineStyle, firstLine
from tests.support.texts import PACKAGE, allTexts, textsOf

pytestmark = pytest.mark.smoke

TRANSLATED = [tag for tag in LANGUAGES if tag != DEFAULT]
LONGEST_CODE = "x" * 100


def catalogue(tag: str) -> dict[str, str]:
    """
    @return: the translations in the source of a catalogue by their English text.
    """
    path = PACKAGE / "locale" / tag / "LC_MESSAGES" / "pop3svc.po"
    with open(path, "rb") as file:
        return {str(each.id): str(each.string) for each in read_po(file) if each.id}


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{[^{}]*\}", text))


def faultOf(text: str, translation: str) -> str:
    """
    @return: why a translation is not allowed; empty if it is allowed.
    """
    if not translation.strip():
        return "it is empty"
    if placeholders(text) != placeholders(translation):
        return "its placeholders differ"
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", translation):
        return "it has a control character"
    if re.search(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", translation):
        return "it has a directional formatting character"
    if translation != translation.strip() or translation.endswith("_"):
        return "it begins or ends with a space, or ends with the mark of a multi-line reply"
    if "[" in translation or "]" in translation:
        return "it has a bracket"
    if ("." in translation) != ("." in text):
        return "it has a dot and the English text has none, or the reverse"
    style = LineStyle.of(True)
    plain = firstLine(err("", LONGEST_CODE), style)
    # A placeholder stands for at most 70 octets, the length of the longest unique-id.
    size = len(re.sub(r"\{[^{}]*\}", "x" * 70, translation).encode("utf-8"))
    if len(plain) + 1 + size + len(" _") > 512:
        return "it is too long for the first line of a reply"
    return ""


@pytest.mark.parametrize("tag", TRANSLATED)
def test_everyTextIsTranslated(tag: str) -> None:
    """
    The catalogue has exactly the texts of the package.
    """
    texts, translations = allTexts(), catalogue(tag)
    assert sorted(texts - set(translations)) == []
    assert sorted(set(translations) - texts) == []


@pytest.mark.parametrize("tag", TRANSLATED)
def test_translationsFit(tag: str) -> None:
    for text, translation in catalogue(tag).items():
        assert faultOf(text, translation) == "", text


@pytest.mark.parametrize(
    ("text", "translation", "fault"),
    [
        ("Bye.", "", "empty"),
        ("Bye.", "Ende {count}.", "placeholders"),
        ("Bye, {count} deleted.", "Ende.", "placeholders"),
        ("Bye.", "En\r\nde.", "control"),
        ("Bye.", "En\u2028de.", "control"),
        ("Bye.", "\u200fEnde.", "directional"),
        ("Bye.", " Ende.", "space"),
        ("List follows", "Liste _", "mark"),
        ("Bye.", "[AUTH] Ende.", "bracket"),
        ("List follows", "Liste.", "dot"),
        ("Bye.", "Ende", "dot"),
        ("Bye.", "Ä" * 250 + ".", "too long"),
        ("Bye.", "Ende.", ""),
    ],
)
def test_faultsAreFound(text: str, translation: str, fault: str) -> None:
    assert fault in faultOf(text, translation)
    assert bool(fault) == bool(faultOf(text, translation))


@pytest.mark.parametrize("tag", TRANSLATED)
def test_compiledCatalogueIsCurrent(tag: str) -> None:
    """
    The compiled catalogue, which the service reads, equals its source.  If this test fails, run
    C{pybabel compile -D pop3svc -d pop3svc/locale}.
    """
    path = PACKAGE / "locale" / tag / "LC_MESSAGES" / "pop3svc.mo"
    with open(path, "rb") as file:
        compiled = {str(each.id): str(each.string) for each in read_mo(file) if each.id}
    assert compiled == catalogue(tag)


def test_catalogues() -> None:
    """
    There is a catalogue for each announced language except English, and for no other.
    """
    directories = [each.name for each in (PACKAGE / "locale").iterdir()]
    assert sorted(directories) == sorted(TRANSLATED)


def test_templates() -> None:
    """
    C{TEMPLATES} has each text with a placeholder, and the pattern of a template matches no other
    text.
    """
    assert sorted(TEMPLATES) == sorted(each for each in allTexts() if "{" in each)
    for template, pattern in module._PATTERNS:
        others = [each for each in allTexts() if each != template]
        assert not [each for each in others if pattern.fullmatch(each)]


def test_textsOf() -> None:
    """
    L{textsOf} reads texts from literals, f-strings, alternatives, functions and dictionaries.  It
    fails if the text of a reply has another form.
    """
    source = """
_TEXTS = {"a": "From a dictionary."}
def _made(count):
    return "One." if count == 1 else f"{count} things"
def run():
    ok(f"{a} {b}")
    ok("Literal.", code="X")
    err(_made(2))
    raise POP3ResponseError(_TEXTS[code], code)
    raise BadArguments(text="By name.")
    other("Not a reply.")
"""
    assert textsOf(source) == {
        "Literal.",
        "One.",
        "{count} things",
        "From a dictionary.",
        "By name.",
    }
    for bad in ("ok(text)", "err(_missing())", "ok(_TEXTS[0])", "ok()", "ok('a' + b)"):
        with pytest.raises(AssertionError):
            textsOf(bad)


def test_translated() -> None:
    german = languages()["de"]
    assert german is not None
    assert german.translated("Done.") == "Erledigt."
    assert german.translated("12 messages") == "12 Nachrichten"
    assert german.translated("Deleted message. UID:a{b}c") == "Nachricht gelöscht. UID:a{b}c"
    # A text that the catalogue does not have stays unchanged.
    for text in ("Disk quota exceeded.", "2 320", "1 Done.", "Bye, 1 2 deleted.", "{count} x"):
        assert german.translated(text) == text
    assert languages() is languages()
    assert languages()[DEFAULT] is None


@pytest.mark.parametrize(
    ("asked", "tag"),
    [
        ("*", "en"),
        ("en", "en"),
        ("DE", "de"),
        ("de-AT", "de"),
        ("de-Latn-DE-1996", "de"),
        ("fr-x-private", "fr"),
        ("ar-EG", "ar"),
        ("x-nobody-speaks", None),
        ("i-default", None),
        ("MUL", None),
        ("deutsch", None),
        ("de-", None),
        ("-de", None),
        ("de--AT", None),
        ("de-abcdefghi", None),
        ("de_DE", None),
        ("dé", None),
        ("de\udcff", None),
        ("../de", None),
        ("*-CH", None),
        ("", None),
    ],
)
def test_matching(asked: str, tag: str | None) -> None:
    assert matching(asked) == tag


def test_errorsTakeTheEnglishTexts() -> None:
    for text in allTexts():
        POP3ResponseError(re.sub(r"\{.*?\}", "9", text))


def test_missingCatalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An incomplete installation does not start.
    """
    monkeypatch.setattr(module, "__file__", str(tmp_path / "languages.py"))
    languages.cache_clear()
    with pytest.raises(FileNotFoundError):
        languages()
    monkeypatch.undo()
    assert isinstance(languages()["de"], module.Language)


def test_noCodeOfTheCatalogueRuns() -> None:
    """
    A text without a translation stays in English.
    """
    language = module.Language(gettext.NullTranslations())
    assert language.translated("3 messages") == "3 messages"
