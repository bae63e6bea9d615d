"""
Split structured header fields into tokens (RFC 5322 section 3.2), encode text as encoded-words (RFC
2047), and fold header fields.  All functions take linear time and need no recursion, because an
attacker can send any field.

Stores save the size of each converted message (a surrogate, RFC 6858).  The same text must
therefore always become the same octets, even with another version of Python.  This module does not
use the methods C{fold} of the package C{email}, because they have changed from version to version.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

__all__ = [
    "Kind",
    "Token",
    "asciiComment",
    "encodedText",
    "fold",
    "phrase",
    "scan",
    "splitAt",
    "unquoted",
    "unstructured",
]

# The most octets of text in an encoded-word.  With this number of octets, an encoded-word has 68
# characters, and fits into one line with the name of most fields.  RFC 2047 section 2 allows 75
# characters.
_OCTETS = 42
# The most characters of a line, without its CRLF.
_LINE = 76
# The most spaces in a row.  A longer run of spaces becomes one space, because a line cannot be
# folded inside the run.
_SPACES = 32
_PIECES = re.compile(r"([ \t]*)([^ \t]*)")
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=")
# Control characters and line separators.  A client that decodes such a character could take the
# text after it for another header field.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^ \t\"(<,;:]+|.", re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_PARENTHESIS = re.compile(r"((?:[^()\\]|\\.)*\\?)([()]?)", re.DOTALL)


# --- encoded-words -------------------------------------------------------------------


class Word(NamedTuple):
    """
    A word of a header field.

    @ivar space: the white space before the word.
    @ivar raw: the word as the field has it.
    @ivar text: the word's text, such as the content of a quoted string.
    """

    space: str
    raw: str
    text: str


def encodedText(text: str) -> str:
    """
    @return: the text as a sequence of encoded-words, with spaces between them.
    """
    words: list[bytes] = []
    piece = b""
    for character in _CONTROL.sub(" ", text):
        data = character.encode("utf-8")
        if len(piece) + len(data) > _OCTETS:
            words.append(piece)
            piece = b""
        piece += data
    words.append(piece)
    return " ".join(f"=?utf-8?B?{b64encode(each).decode('ascii')}?=" for each in words)


def encodeWords(words: list[Word]) -> str:
    """
    Encode the words that are not ASCII, and keep all other words.

    @return: printable ASCII, except for control characters that were there before.
    """
    written: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word.raw.isascii():
            written += [word.space, word.raw]
            index += 1
            continue
        # Clients ignore white space between two encoded-words (RFC 2047 section 6.2), so the space
        # has to be inside one of them.
        text = word.text
        if index and _ENCODED_WORD.fullmatch(words[index - 1].raw):
            text = word.space + text
        first, index = word, index + 1
        while index < len(words) and not words[index].raw.isascii():
            text += words[index].space + words[index].text
            index += 1
        if index < len(words) and _ENCODED_WORD.fullmatch(words[index].raw):
            text += words[index].space
        written += [first.space, encodedText(text)]
    return "".join(written)


def unstructured(text: str) -> str:
    """
    @param text: the unfolded body of an unstructured field, such as Subject, or part of a comment.
    @return: the text in ASCII.
    """
    words = [Word(space, raw, raw) for space, raw in _PIECES.findall(text)]
    return encodeWords(words)


def fold(name: str, body: str) -> bytes:
    """
    Fold a header field into lines of at most 76 characters.  Only a word that does not fit makes a
    longer line.

    @param name: the name of the field, in ASCII.
    @param body: the unfolded body, in ASCII.
    @return: the field with its line ends.
    """
    lines: list[str] = []
    line = f"{name}:"
    isFirst = True
    for space, word in _PIECES.findall(_CONTROL.sub(" ", body)):
        if len(space) > _SPACES:
            space = " "
        if word and space and not isFirst and len(line) + len(space) + len(word) > _LINE:
            lines.append(line)
            line = ""
        line += space + word
        isFirst = isFirst and not word
    lines.append(line)
    return "".join(f"{each}\r\n" for each in lines).encode("ascii")


# --- tokens --------------------------------------------------------------------------


class Kind(Enum):
    """
    The kind of a token.
    """

    SPACE = "white space"
    COMMENT = "comment"
    QUOTED = "quoted string"
    ANGLE = "text between < and >"
    SEPARATOR = "comma, semicolon or colon"
    TEXT = "other text"


class Token(NamedTuple):
    """
    A token of a structured field.
    """

    kind: Kind
    raw: str


def scan(text: str) -> Iterator[Token]:
    """
    Yield the tokens of a text.  The tokens, joined in their order, give the text again.  A
    quotation mark, a parenthesis or a C{<} without its counterpart is plain text.
    """
    position, unclosed = 0, set[str]()
    while position < len(text):
        first = text[position]
        end = -1
        kind = Kind.TEXT
        if first in " \t":
            kind, end = Kind.SPACE, position + 1
            while end < len(text) and text[end] in " \t":
                end += 1
        elif first in ",;:":
            kind, end = Kind.SEPARATOR, position + 1
        elif first in _CLOSED and first not in unclosed:
            # After a search in vain, do not search for this closing character again.  If a text has
            # thousands of opening characters, a search for each of them would take quadratic time.
            kind, find = _CLOSED[first]
            end = find(text, position)
            if end < 0:
                unclosed.add(first)
                kind = Kind.TEXT
        if end < 0:
            found = _PLAIN.match(text, position)
            assert found is not None, "the pattern matches any character"
            end = found.end()
        yield Token(kind, text[position:end])
        position = end


def _endOfQuoted(text: str, position: int) -> int:
    end = position + 1
    while end < len(text):
        if text[end] == '"':
            return end + 1
        end += 2 if text[end] == "\\" else 1
    return -1


def _endOfComment(text: str, position: int) -> int:
    depth, end = 0, position
    while end < len(text):
        if text[end] == "\\":
            end += 1
        elif text[end] == "(":
            depth += 1
        elif text[end] == ")":
            depth -= 1
            if not depth:
                return end + 1
        end += 1
    return -1


def _endOfAngle(text: str, position: int) -> int:
    end = position + 1
    while end < len(text):
        if text[end] == ">":
            return end + 1
        if text[end] == '"':
            end = _endOfQuoted(text, end) - 1
            if end < 0:
                return -1
        end += 1
    return -1


_CLOSED = {
    '"': (Kind.QUOTED, _endOfQuoted),
    "(": (Kind.COMMENT, _endOfComment),
    "<": (Kind.ANGLE, _endOfAngle),
}


def splitAt(separators: str, text: str) -> Iterator[tuple[list[Token], str]]:
    """
    Split a text at separators that are outside quoted strings, comments and angles.

    @return: yields pairs of the tokens of a part and the separator after this part.  After the last
        part, the separator is empty.
    """
    tokens: list[Token] = []
    for token in scan(text):
        if token.kind is Kind.SEPARATOR and token.raw in separators:
            yield tokens, token.raw
            tokens = []
        else:
            tokens.append(token)
    yield tokens, ""


def unquoted(token: Token) -> str:
    """
    @return: the text of a token: the content of a quoted string, otherwise the token itself.
    """
    if token.kind is Kind.QUOTED:
        return _QUOTED_PAIR.sub(r"\1", token.raw[1:-1])
    return token.raw


def asciiComment(raw: str) -> str:
    """
    @param raw: a comment with its parentheses.  The comment may contain other comments.
    @return: the comment in ASCII (RFC 2047 section 5, rule 2).
    """
    if raw.isascii():
        return raw
    written: list[str] = []
    for text, parenthesis in _PARENTHESIS.findall(raw):
        written += [
            text if text.isascii() else unstructured(_QUOTED_PAIR.sub(r"\1", text)),
            parenthesis,
        ]
    return "".join(written)


def phrase(tokens: list[Token]) -> str:
    """
    @param tokens: the tokens of a display name or of another phrase.
    @return: the phrase in ASCII (RFC 2047 section 5, rule 3).
    """
    words: list[Word] = []
    space, isOpen = "", False
    for token in tokens:
        if token.kind is Kind.SPACE:
            space, isOpen = token.raw, False
            continue
        raw = asciiComment(token.raw) if token.kind is Kind.COMMENT else token.raw
        text = raw if token.kind is Kind.COMMENT else unquoted(token)
        if isOpen:
            # No space stands between this token and the previous token, so both become one
            # encoded-word.
            last = words.pop()
            words.append(Word(last.space, last.raw + raw, last.text + text))
        else:
            words.append(Word(space, raw, text))
        space, isOpen = "", True
    return encodeWords(words) + space
