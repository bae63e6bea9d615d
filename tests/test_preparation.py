"""
The preparation of names and passwords (RFC 8265) has the result of the library, even where the
library is not called.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from precis_i18n import get_profile

from pop3svc.preparation import LONGEST_NAME, LONGEST_PASSWORD, prepareName, preparePassword

pytestmark = pytest.mark.smoke

PROFILES: list[tuple[str, Callable[[str], str]]] = [
    ("UsernameCasePreserved", prepareName),
    ("UsernameCaseMapped", lambda name: prepareName(name, True)),
    ("OpaqueString", preparePassword),
]
# Names and passwords are not empty.
ASCII = st.text(st.characters(max_codepoint=127), min_size=1, max_size=60)
TEXTS = (
    ASCII
    | st.text(min_size=1, max_size=40)
    | st.text(st.sampled_from("aÀéßΣσİｕ٠۰אב😀 \u00ad\u0301"), min_size=1)
)


def prepared(prepare: Callable[[str], str], text: str) -> str | None:
    try:
        return prepare(text)
    except ValueError as error:
        # The sentence contains nothing of the text.
        assert str(error).endswith("(RFC 8265)")
        return None


def enforced(profile: str, text: str) -> str | None:
    try:
        return str(get_profile(profile).enforce(text))
    except UnicodeEncodeError:
        return None


@pytest.mark.parametrize(("profile", "prepare"), PROFILES)
def test_everyCharacterOfASCII(profile: str, prepare: Callable[[str], str]) -> None:
    """
    Each ASCII character has the result of the library, at every place in a text.
    """
    for code in range(128):
        character = chr(code)
        for text in (character, character * 2, f"a{character}", f"{character}1", f"a{character}Z"):
            assert prepared(prepare, text) == enforced(profile, text), ascii(text)


@pytest.mark.parametrize(("profile", "prepare"), PROFILES)
@given(text=TEXTS)
def test_likeTheLibrary(profile: str, prepare: Callable[[str], str], text: str) -> None:
    if len(text.encode("utf-8", "surrogateescape")) <= LONGEST_NAME:
        assert prepared(prepare, text) == enforced(profile, text)


@pytest.mark.parametrize(("profile", "prepare"), PROFILES)
@given(text=TEXTS)
def test_preparedTwice(profile: str, prepare: Callable[[str], str], text: str) -> None:
    once = prepared(prepare, text)
    if once is not None and len(once.encode()) <= LONGEST_NAME:
        assert prepared(prepare, once) == once


@pytest.mark.parametrize(
    ("given", "preserved", "mapped"),
    [
        ("Alice", "Alice", "alice"),
        ("Al+x@Example.ORG", "Al+x@Example.ORG", "al+x@example.org"),
        ("ÄNNE", "ÄNNE", "änne"),
        ("A\u0308nne", "Änne", "änne"),
        ("ｕｓｅｒ", "user", "user"),
        ("ΑΣΑ", "ΑΣΑ", "ασα"),
        ("משה", "משה", "משה"),
        # A name with both writing directions.
        ("משהa", None, None),
        ("a b", None, None),
        ("a\u00a0b", None, None),
        ("a\u00adb", None, None),
        ("a\u200db", None, None),
        ("Ⅸ", None, None),
        ("😀", None, None),
        ("a\x85", None, None),
        ("a\tb", None, None),
        ("a\udcff", None, None),
        ("é" * 128, None, None),
        ("e" * 9000, "e" * 9000, "e" * 9000),
    ],
)
def test_names(given: str, preserved: str | None, mapped: str | None) -> None:
    assert prepared(prepareName, given) == preserved
    assert prepared(lambda name: prepareName(name, True), given) == mapped


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" two words ", " two words "),
        ("Pass\u00a0Word\u3000", "Pass Word "),
        ("e\u0301", "é"),
        ("😀ｕ", "😀ｕ"),
        ("משהa", "משהa"),
        ("a\tb", None),
        ("a\0", None),
        ("a\u00adb", None),
        ("\u00ad", None),
        ("a\udcff", None),
        ("é" * 128, "é" * 128),
        ("é" * 129, None),
        ("x" * 9000, "x" * 9000),
    ],
)
def test_passwords(given: str, wanted: str | None) -> None:
    assert prepared(preparePassword, given) == wanted


@pytest.mark.parametrize("character", ["é", "٠", "۰", "・", "\u0301", "日", "😀", "ｱ", "\ud800"])
def test_costIsBounded(character: str) -> None:
    """
    A text that is too long is refused before the library sees it.  The longest allowed text takes
    little time.
    """
    size = len(character.encode("utf-8", "surrogatepass"))
    for prepare, longest in ((prepareName, LONGEST_NAME), (preparePassword, LONGEST_PASSWORD)):
        began = time.thread_time()
        prepared(prepare, character * (longest // size))
        # The time is 4 ms on one machine; the limit leaves room for slower machines.
        assert time.thread_time() - began < 0.2
        assert prepared(prepare, character * (longest // size + 1)) is None
        began = time.thread_time()
        assert prepared(prepare, character * 1_000_000) is None
        assert time.thread_time() - began < 0.2


def test_libraryIsImportedLate() -> None:
    code = (
        "import sys; from pop3svc.preparation import prepareName, preparePassword; "
        "prepareName('Alice@Example.org', True); preparePassword(' two words'); "
        "assert 'precis_i18n' not in sys.modules; "
        "prepareName('älice'); assert 'precis_i18n' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
