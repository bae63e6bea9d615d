"""
Translate the texts of replies (RFC 6856 section 3).

The code makes every reply in English.  If a session has chosen another language, the text is
translated when the reply becomes octets.  English therefore needs no catalogue.
"""

from __future__ import annotations

import gettext
import os
import re
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["DEFAULT", "LANGUAGES", "TEMPLATES", "Language", "languages", "matching"]

# The tag of the language in which the code makes replies.  Each session begins with this language.
DEFAULT = "en"
# The tag of each language (RFC 5646), and its name in the language itself.
LANGUAGES: Mapping[str, str] = {
    DEFAULT: "English",
    "ar": "العربية",
    "de": "Deutsch",
    "fr": "Français",
}
# The texts that contain a number, a unique-id or a tag of a language.  Each placeholder stands for
# one word.
TEMPLATES = (
    "{count} messages",
    "Asleep, {count} deleted.",
    "Bye, {count} deleted.",
    "Deleted message. UID:{uniqueID}",
    "Log in again not before {seconds} seconds have passed.",
    "{tag} Language changed.",
)

_PLACEHOLDER = re.compile(r"\\\{([A-Za-z]+)\\\}")
# The rule language-range of RFC 4647 section 2.1, without "*".
_RANGE = re.compile(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_PLACEHOLDER.sub(r"(?P<\1>[!-~]+)", re.escape(template)))


_PATTERNS = [(each, _pattern(each)) for each in TEMPLATES]


class Language:
    """
    The translations into one language.
    """

    def __init__(self, catalogue: gettext.NullTranslations) -> None:
        """
        @param catalogue: maps each English text to its translation.
        """
        self._catalogue = catalogue

    def translated(self, text: str) -> str:
        """
        @param text: the text of a reply in English.  It is not empty.
        @return: the text in this language.  If the catalogue does not contain the text, the text is
            returned unchanged.  For example, a provider in another package may have made the text.
        """
        found = self._catalogue.gettext(text)
        if found != text:
            return found
        for template, pattern in _PATTERNS:
            match = pattern.fullmatch(text)
            if match is not None:
                return self._catalogue.gettext(template).format_map(match.groupdict())
        return text


@lru_cache(1)
def languages() -> Mapping[str, Language | None]:
    """
    Read the catalogues.  The first call blocks, so a service makes it when it starts.

    @return: each language by its tag; L{None} for English, which needs no translation.
    """
    directory = os.path.join(os.path.dirname(os.path.abspath(__file__)), "locale")
    found: dict[str, Language | None] = {}
    for tag in LANGUAGES:
        found[tag] = None
        if tag != DEFAULT:
            with open(os.path.join(directory, tag, "LC_MESSAGES", "pop3svc.mo"), "rb") as file:
                found[tag] = Language(gettext.GNUTranslations(file))
    return found


def matching(languageRange: str) -> str | None:
    """
    Find a language by lookup (RFC 4647 section 3.4): C{de-AT} finds C{de}.

    @param languageRange: a basic language range, or C{*} for the default.
    @return: the tag; L{None} if there is no such language.
    """
    if languageRange == "*":
        return DEFAULT
    if _RANGE.fullmatch(languageRange) is None:
        return None
    subtags = languageRange.lower().split("-")
    while subtags:
        tag = "-".join(subtags)
        if tag in LANGUAGES:
            return tag
        subtags.pop()
    return None
