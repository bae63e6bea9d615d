"""
Surrogates of messages with UTF-8 in their header fields.
"""

from __future__ import annotations

from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pop3svc.downgrading.converter import SurrogateConverter, surrogateSize
from pop3svc.downgrading.fields import asciiField
from pop3svc.downgrading.lexical import encodedText


def convert(message: bytes, size: int = 0) -> bytes:
    """
    @param size: octets of a block; 0 for the whole message.
    """
    converter = SurrogateConverter()
    size = size or len(message) or 1
    blocks = [message[first : first + size] for first in range(0, len(message), size)]
    return b"".join(map(converter.feed, blocks)) + converter.finish()


def field(text: str) -> str:
    return asciiField(text.encode("utf-8") + b"\r\n").decode("ascii").replace("\r\n", "|")


def parsed(message: bytes) -> EmailMessage:
    found: Any = message_from_bytes(message, policy=policy.SMTPUTF8)
    return found


INVALID = "<invalid@internationalized-address.invalid>"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Subject: plain", "Subject: plain|"),
        ("Subject: ü", "Subject: =?utf-8?B?w7w=?=|"),
        ("Subject:ü", "Subject:=?utf-8?B?w7w=?=|"),
        ("Subject: a ü  é b", "Subject: a =?utf-8?B?w7wgIMOp?= b|"),
        ("X-Any: a\r\n\tü", "X-Any: a\t=?utf-8?B?w7w=?=|"),
        # White space beside another encoded-word has to be encoded, too.
        ("Subject: =?a?q?x?= ü =?a?q?y?=", "Subject: =?a?q?x?= =?utf-8?B?IMO8IA==?= =?a?q?y?=|"),
        # A client must not find a line end in the text.
        ("Subject: ü\rX: y", "Subject: =?utf-8?B?w7wgWDo=?= y|"),
        ("Subject: ü\u2028x\x85", "Subject: =?utf-8?B?w7wgeCA=?=|"),
        ("Subject: ü" + " " * 40 + "x", "Subject: =?utf-8?B?w7w=?= x|"),
        ("From: Jürgen <j@x>", "From: =?utf-8?B?SsO8cmdlbg==?= <j@x>|"),
        ("From: Jürgen<j@x>", "From: =?utf-8?B?SsO8cmdlbg==?= <j@x>|"),
        ('From: "Ü, \\"x" a <j@x>', "From: =?utf-8?B?w5wsICJ4?= a <j@x>|"),
        ('From: "ü"é <j@x>', "From: =?utf-8?B?w7zDqQ==?= <j@x>|"),
        ("From: j@x (Jürgen (é) x)", "From: j@x (=?utf-8?B?SsO8cmdlbg==?= (=?utf-8?B?w6k=?=) x)|"),
        ("From: <j@x> (ü)", "From: <j@x> (=?utf-8?B?w7w=?=)|"),
        ("From: <j@x>ü", "From: <j@x> =?utf-8?B?w7w=?=|"),
        ("From: <ü@x>", f"From: =?utf-8?B?PMO8QHg+?= {INVALID}|"),
        ("From: ü@x", f"From: =?utf-8?B?w7xAeA==?= {INVALID}|"),
        ("From: ü@x (a)", f"From: =?utf-8?B?w7xAeA==?= {INVALID} (a)|"),
        ("To: a@b,  c@bücher.example", "To: a@b,  c@xn--bcher-kva.example|"),
        ("To: <c@bücher.example>", "To: <c@xn--bcher-kva.example>|"),
        # IDNA 2003 would make strasse.example of it.
        ("To: c@straße.example", f"To: =?utf-8?B?Y0BzdHJhw59lLmV4YW1wbGU=?=| {INVALID}|"),
        ("To: c@ü b", f"To: =?utf-8?B?Y0DDvCBi?= {INVALID}|"),
        ("To: c@ü..b", f"To: =?utf-8?B?Y0DDvC4uYg==?= {INVALID}|"),
        ("To: Té: a@b, Zoë <z@x>;", "To: =?utf-8?B?VMOp?= : a@b, =?utf-8?B?Wm/Dqw==?= <z@x>;|"),
        ("Message-ID: <ü@x>", "Downgraded-Message-ID: =?utf-8?B?PMO8QHg+?=|"),
        ("Message-ID: <a@x> (ü)", "Message-ID: <a@x> (=?utf-8?B?w7w=?=)|"),
        (
            "References: <a@x> <ü@x> <b@x>",
            "References: <a@x> <b@x>|Downgraded-References: =?utf-8?B?PGFAeD4gPMO8QHg+IDxiQHg+?=|",
        ),
        ("In-Reply-To: <ü@x>", "Downgraded-In-Reply-To: =?utf-8?B?PMO8QHg+?=|"),
        ("Return-Path: <ü@x>", "Downgraded-Return-Path: =?utf-8?B?PMO8QHg+?=|"),
        ("Date: Thu, 1 Jan 2026 00:00 (ü)", "Date: Thu, 1 Jan 2026 00:00 (=?utf-8?B?w7w=?=)|"),
        ("List-Post: <mailto:ü@x> (ü)", "List-Post: <mailto:%C3%BC@x> (=?utf-8?B?w7w=?=)|"),
        ("List-ID: Ü <a.b>", "List-ID: =?utf-8?B?w5w=?= <a.b>|"),
        ("List-ID: Ü <ü.b>", "Downgraded-List-ID: =?utf-8?B?w5wgPMO8LmI+?=|"),
        ("Fäld: x", "Downgraded-Line: =?utf-8?B?RsOkbGQ6IHg=?=|"),
        ("no field ü", "Downgraded-Line: =?utf-8?B?bm8gZmllbGQgw7w=?=|"),
        ("Content-Type: text/plain; name=ü", "Content-Type: text/plain; name*=utf-8''%C3%BC|"),
        ("Content-Type: a/b (ü); c=d", "Content-Type: a/b (=?utf-8?B?w7w=?=); c=d|"),
        ("Content-Type: ü/b; c=d", "Downgraded-Content-Type: =?utf-8?B?w7wvYjsgYz1k?=|"),
        ("Content-Type: a/b; ü=d", "Downgraded-Content-Type: =?utf-8?B?YS9iOyDDvD1k?=|"),
        (
            'Content-Disposition: attachment; filename="ü \\"x\\".txt" (é)',
            "Content-Disposition: attachment; filename*=utf-8''%C3%BC%20%22x%22.txt|",
        ),
        ("Content-Type: a/b; n*=utf-8''ü", "Content-Type: a/b; n*=utf-8''%C3%BC|"),
        (
            "Content-Type: a/b; n*0=ü; n*1=ü",
            "Content-Type: a/b; n*0*=utf-8''%C3%BC; n*1*=%C3%BC|",
        ),
    ],
)
def test_fields(before: str, after: str) -> None:
    assert field(before) == after


def test_otherCharsetStays() -> None:
    """
    A field that is not UTF-8 goes out as it is.
    """
    old = b"Subject: gr\xfc\xdfe\r\n"
    assert asciiField(old) == old
    message = old + b"From: \xc3\xbc <a@b>\r\n\r\n\xfc"
    assert convert(message) == old + b"From: =?utf-8?B?w7w=?= <a@b>\r\n\r\n\xfc\r\n"
    assert surrogateSize([old, b"\r\nx"]) == 0


MULTIPART = """\
Subject: Grüße
Content-Type: multipart/mixed; boundary="a b"

Vorwort ü
--a b \t
Content-Disposition: attachment; filename=ü.txt

ü
--a bc
-
--
--a b
Content-Type: multipart/mixed; boundary=inner

--inner
X-Name: ü

ü
--inner--
ü: no header
--a b
X: ü
--a b--
Nachwort: ü
""".replace("\n", "\r\n").encode()


@pytest.mark.parametrize("size", range(1, 60))
def test_partsAtEverySplit(size: int) -> None:
    expected = MULTIPART
    for before, after in [
        ("Subject: Grüße", "Subject: =?utf-8?B?R3LDvMOfZQ==?="),
        ("filename=ü.txt", "filename*=utf-8''%C3%BC.txt"),
        ("X-Name: ü", "X-Name: =?utf-8?B?w7w=?="),
        ("X: ü", "X: =?utf-8?B?w7w=?="),
    ]:
        expected = expected.replace(before.encode(), after.encode())
    assert convert(MULTIPART, size) == expected
    assert convert(MULTIPART.replace(b"\r\n", b"\n"), size) == expected
    assert surrogateSize([MULTIPART]) == len(expected)


def test_boundaryThatIsNotASCII() -> None:
    """
    A boundary that is not ASCII is replaced by the same new boundary in the field and in the body.
    """
    message = (
        'Content-Type: multipart/mixed; boundary="ü"\r\n\r\n--ü\r\n\r\nü\r\n--ü--\r\n'.encode()
    )
    converted = convert(message)
    header, _, body = converted.partition(b"\r\n\r\n")
    assert header.isascii()
    [part] = parsed(converted).get_payload()
    assert part.get_payload(decode=True) == "ü".encode()
    assert convert(message, 1) == converted


def test_attachedMessageStays() -> None:
    message = "Subject: ü\r\nContent-Type: message/rfc822\r\n\r\nSubject: ü\r\n\r\nü\r\n".encode()
    assert convert(message).endswith("\r\n\r\nSubject: ü\r\n\r\nü\r\n".encode())


@pytest.mark.parametrize("size", [0, 1000, 4096])
def test_longFields(size: int) -> None:
    """
    In a field that is too long to be encoded, question marks replace what is not ASCII.
    """
    long, longer = "ü" * 5000, "é " * 40_000
    message = f"A: {long}\r\nB: {longer}\r\n {long}\r\nC: ü\r\n\r\nü".encode()
    expected = (
        f"A: {'?' * 5000}\r\nB: {'?? ' * 40_000}\r\n {'??' * 5000}\r\nC: =?utf-8?B?w7w=?=\r\n"
    )
    assert convert(message, size) == expected.encode() + "\r\nü\r\n".encode()
    latin = b"A: " + b"\xfc" * 9000 + b"\r\n\r\n"
    assert convert(latin, size) == latin


def test_manyFields() -> None:
    """
    Only the first fields of a large header are encoded, because encoding takes time.
    """
    message = ("X: " + "ü" * 2000 + "\r\n").encode() * 20 + b"\r\n"
    converted = convert(message)
    assert converted.isascii()
    assert converted.count(b"X: =?utf-8?B?") == 8
    assert converted.endswith(b"X: " + b"?" * 2000 + b"\r\n\r\n")


def test_deepMultiparts() -> None:
    message = b"".join(
        b"Content-Type: multipart/mixed; boundary=%d.\r\n\r\n--%d.\r\n" % (each, each)
        for each in range(30)
    )
    message += "Subject: ü\r\n\r\n".encode()
    assert convert(message) == message
    longBoundary = b"Content-Type: multipart/mixed; boundary=" + b"x" * 2000 + b"\r\n\r\nx\r\n"
    assert convert(longBoundary) == longBoundary


@pytest.mark.parametrize(
    "octets", [b'"', b"<", b"(", b'<"', b"(\\", b"\xc3\xbc,", b"\xc3\xbc@\xc3\xbc,"]
)
def test_hostileFields(octets: bytes) -> None:
    """
    A field with thousands of unclosed quotes, unclosed brackets or addresses causes no
    L{RecursionError}.
    """
    for name in (b"To", b"Date", b"Content-Type", b"List-ID", b"References", b"Subject"):
        message = name + b": " + octets * (8000 // len(octets)) + b"\xc3\xbc\r\n\r\n"
        assert convert(message).isascii()


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=80)
# Words without the characters of an encoded-word, and with single spaces, because the email package
# would drop other white space.
WORDS = st.lists(
    st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="=?"), min_size=1),
    min_size=1,
    max_size=8,
).map(" ".join)


@settings(deadline=None)
@given(WORDS)
def test_subjectStays(text: str) -> None:
    """
    A client reads the same subject.
    """
    message = f"Subject: {text}\r\n\r\n".encode()
    converted = convert(message)
    assert converted.isascii()
    assert all(len(line) <= 78 or b" " not in line.strip() for line in converted.split(b"\r\n"))
    assert parsed(converted)["subject"] == text


NAME = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.lists(NAME, min_size=1, max_size=5))
def test_displayNamesStay(names: list[str]) -> None:
    addresses = ", ".join(f'"{name}" <a{at}@x.example>' for at, name in enumerate(names))
    converted = convert(f"To: {addresses}\r\n\r\n".encode())
    assert converted.isascii()
    # Use the older parser, because the newer parser of Python 3.11 leaves spaces between
    # encoded-words.
    found = getaddresses([message_from_bytes(converted)["to"].replace("\r\n", "")])
    assert [str(make_header(decode_header(name))) for name, _ in found] == names
    assert [address for _, address in found] == [f"a{at}@x.example" for at in range(len(names))]


@settings(deadline=None)
@given(NAME)
def test_fileNamesStay(name: str) -> None:
    converted = convert(f'Content-Disposition: attachment; filename="{name}.txt"\r\n\r\n'.encode())
    assert converted.isascii()
    assert parsed(converted).get_filename() == f"{name}.txt"


@settings(deadline=None)
@given(TEXT)
def test_encodedWordsAreShort(text: str) -> None:
    assert all(len(word) <= 75 for word in encodedText(text).split(" "))


FIELDS = st.sampled_from(
    ["To", "From", "Date", "Content-Type", "List-ID", "List-Post", "References", "X", "Message-ID"]
)
# Pieces of fields.  The parsers treat most of them specially.
PIECES = st.sampled_from(
    [
        '"',
        "(",
        ")",
        "<",
        ">",
        ",",
        ";",
        ":",
        "@",
        "=",
        "\\",
        " ",
        "\t",
        "\r\n ",
        "ü",
        "a",
        "*0",
        "\0",
    ]
    + [
        "=?utf-8?q?=C3=BC?=",
        "multipart/mixed",
        ";boundary=",
        "xn--",
        ".",
        "\r",
        "\x7f",
        "ß",
        "\ufeff",
    ]
)
HOSTILE = st.builds(lambda name, parts: f"{name}: {''.join(parts)}\r\n", FIELDS, st.lists(PIECES))


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=4), st.binary(max_size=60), st.integers(1, 50))
@example(["Content-Type: multipart/mixed;boundary=ü\r\n"], b"--\xc3\xbc\r\nX: \xc3\xbc\r\n", 1)
def test_anyFields(fields: list[str], body: bytes, size: int) -> None:
    """
    The header becomes ASCII.  The size of the blocks does not change the result, and a second
    conversion changes nothing.  In a body without parts, only line ends change.
    """
    message = "".join(fields).encode() + b"\r\n" + body
    converted = convert(message)
    header, _, rest = converted.partition(b"\r\n\r\n")
    if fields:
        assert header.isascii()
    assert convert(message, size) == converted
    assert convert(converted) == converted
    if b"multipart" not in message and fields:
        whole = SurrogateConverter()
        plain = whole.feed(b"\r\n" + body) + whole.finish()
        assert converted.endswith(plain)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_anyOctets(message: bytes, size: int) -> None:
    converted = convert(message)
    assert convert(message, size) == converted
    assert surrogateSize([message]) in (0, len(converted))
