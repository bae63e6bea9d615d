"""
The readers of other servers' files.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from pop3svc.migration import DamagedFile, parseScheme, uniqueIDInHeader, uniqueIDsOf
from pop3svc.migration.courier import readSizeList
from pop3svc.migration.dovecot import readUIDList
from pop3svc.migration.formats import MessageNames, UIDLFormat
from pop3svc.migration.records import OldMessage, keep
from tests.migration.samples import NAMES, baseOf, unpack

LIST = (
    b"3 V1795645556 N5 G00ff Xext\n"
    b"1 W156 :abc\n"
    b"3 POLD-UIDL-3 O2 :1.M1P1.mx:2,S\n"
    b"5 P :2.M1P1.mx\n"
    b"6 Pspaced x   O1 :3.M1P1.mx\n"
    b"8 O1 Gdeadbeef W999 S888 Qext :4 blank\\057.mx\n"
)


def idsOf(data: bytes, format: str = "%u") -> dict[str, str]:
    return parseScheme(format).read(data).uniqueIDs


# --- real servers' answers ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, tmp_path: Path) -> None:
    """
    The messages that clients have seen keep unique-ids and order.
    """
    sample = unpack(name, tmp_path)
    control = None if sample.control is None else str(sample.control / ".INBOX")
    found = uniqueIDsOf(str(sample.maildir), sample.uidl, control, sample.duplicates, sample.xuidl)
    expected = [(uniqueID, baseOf(file)) for uniqueID, file in sample.recorded]
    bases = {base for _, base in expected}
    ordered = sorted(found, key=lambda base: found[base][1])
    assert [(found[base][0], base) for base in ordered if base in bases] == expected
    # These never had an entry in the file.
    assert not {baseOf(file) for file in sample.others} & set(found)


# Seen with Dovecot 2.3.19.1 for UID 1 and UIDVALIDITY 1795645556.
SEEN = {
    "%08Xu%08Xv": "000000016b076074",
    "%08Xv%08Xu": "6b07607400000001",
    "%XUv": "6B076074",
    "%v.%u": "1795645556.1",
    "%2.3v": "956",
    "%3.4v": "5645",
    "%05u": "00001",
    "%8Xu": "1",
    "x%ux": "x1x",
    "%%u%u": "%u1",
    "%-3v": "179",
    "%RXv": f"{6555465971:x}",
    "%XRv": "470670b6",
}


@pytest.mark.parametrize("format", SEEN)
def test_formatsSeen(format: str) -> None:
    names = MessageNames(1, 1795645556, "abc", "abc")
    # Some formats are refused alone, because they are the same for all messages.
    assert UIDLFormat(f"{format} %u").expand(names) == f"{SEEN[format]} 1"


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("%f", "abc"),
        ("%g", "guid"),
        ("%Mf", "900150983cd24fb0d6963f7d28e17f72"),
        ("%MUf", "900150983CD24FB0D6963F7D28E17F72"),
        ("%UMf", hashlib.md5(b"ABC").hexdigest()),
        ("%Rf", "cba"),
        ("%Xf", "0"),
        ("%1.1f", "b"),
        ("%-2.1f", "b"),
        # The real Dovecot and this module agreed on names of other lengths as well.
        ("%Hf", f"{((ord('a') * 16 + ord('b')) * 16 + ord('c')):x}"),
        ("%7Hf", f"{((ord('a') * 16 + ord('b')) * 16 + ord('c')) % 7:x}"),
        ("%Nf", "3cd24fb0"),
        ("%{uid | hex(8)}%{uidvalidity | hex(8)}", "00000001000000ff"),
        ("%{uidvalidity | hex(1)}", "f"),
        ("%{uidvalidity | hex(-1)}", "f"),
        ("%{uid | hex(-3)}", "100"),
        ("%{uidvalidity|hex|upper}", "FF"),
        ("%{filename | md5}", "900150983cd24fb0d6963f7d28e17f72"),
        ("%{filename | substr(1)}-%{filename | substr(0, 2)}-%{guid | substr(-2)}", "bc-ab-id"),
        ("%{uidvalidity}.%{uid}", "255.1"),
    ],
)
def test_formats(format: str, expected: str) -> None:
    names = MessageNames(1, 255, "abc", "guid")
    assert UIDLFormat(f"{format} %u").expand(names) == f"{expected} 1"


@pytest.mark.parametrize(
    ("format", "part"),
    [
        ("%m", "%m is only for mbox"),
        ("%d", "%d is not known"),
        ("%u%", "not known from % on"),
        ("%{uid", "not known from %{uid on"),
        ("%{user}", "%{user} is not known"),
        ("%{uid | sha256}", "the filter sha256 is not known"),
        ("%{uid | hex(9999)}", "too large"),
        ("%99999u", "too large"),
        ("%{filename | md5 | upper}", "last filter"),
        ("%%", "nothing that differs"),
        ("%v", "nothing that differs"),
        ("%{uidvalidity | hex(8)}", "nothing that differs"),
        ("%Xf", "nothing that differs"),
        ("%u" * 501, "too long"),
    ],
)
def test_unknownFormat(format: str, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        UIDLFormat(format)


# --- Dovecot --------------------------------------------------------------------------


def test_uidList() -> None:
    found = readUIDList(LIST)
    assert (found.uidValidity, found.nextUID) == (1795645556, 9)
    messages = found.messages(UIDLFormat("%v.%u/%g"))
    ids = {each.base: each.uniqueID for each in messages}
    assert ids == {
        "abc": "1795645556.1/abc",
        "1.M1P1.mx": "OLD-UIDL-3",
        "2.M1P1.mx": "2.M1P1.mx",
        "3.M1P1.mx": "spaced",
        "4 blank\\057.mx": "1795645556.8/deadbeef",
    }
    # Messages with O come first, by O and then by UID.  The others follow by UID.
    assert list(keep(messages).uniqueIDs) == [
        "3.M1P1.mx",
        "4 blank\\057.mx",
        "1.M1P1.mx",
        "abc",
        "2.M1P1.mx",
    ]


def test_laterLineHolds() -> None:
    assert idsOf(b"3 V7 N1\n1 :a\n2 :b\n3 :a\n") == {"b": "2", "a": "3"}


def test_orderIsANumber() -> None:
    assert list(idsOf(b"3 V7 N9\n1 O10 :a\n2 O9 :b\n")) == ["b", "a"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"2 7 1\n",
        b"3 N1\n",
        b"3 V7\n",
        b"3 V0 N1\n",
        b"1 7\n",
        b"3 V7 N1\n1 :a",
        b"3 V7 N3\n1 :a\n1 :b\n",
        b"3 V7 N3\n2 :a\n1 :b\n",
        b"3 V7 N3\n0 :a\n",
        b"3 V7 N3\nx :a\n",
        b"3 V7 N3\n1 a\n",
        b"3 V7 N3\n1 :\n",
        b"3 V7 N3\n1 ::2,S\n",
        b"3 V7 N3\n1 :../a\n",
        b"3 V7 N3\n1 Ox :a\n",
        b"3 V7 N3\n\n1 :a\n",
        b"3 V7 N3\n99999999999 :a\n",
        b"1 7 3\n1 a/b\n",
        b"\0" * 64,
    ],
)
def test_damagedUIDList(data: bytes) -> None:
    with pytest.raises(DamagedFile):
        readUIDList(data)


# --- Courier --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"2.b:2, 10\n1.a'\" + x:2,S 10\n", {"1.a'\" + x": "1.a+27+22+20+2B+20x", "2.b": "2.b"}),
        (b"/1 9\n1.a 10 7\n", {"1.a": "UID7"}),
        (b"/2 9 55\n1.a 10 7:55\n2.b 10 8:0\n3.c 1 0:55\n", None),
        (b"/3 9 55\n1.a 10 7:55:0\n2.b 10 8:0:1\n3.c 1 0:0:0\n", None),
        (b"/3 9 55\n", {}),
    ],
)
def test_sizeList(data: bytes, expected: dict[str, str] | None) -> None:
    if expected is None:
        expected = {"1.a": "UID7-55", "2.b": "UID8", "3.c": "3.c"}
    found = keep(readSizeList(data)).uniqueIDs
    assert list(found.items()) == list(expected.items())


def test_courierOrder() -> None:
    """
    The order is that of the number at the start of the name, then of the octets of the name.
    """
    data = b"/3 9 5\n" + b"".join(
        b"%b 1 %d:5:0\n" % (name, number)
        for number, name in enumerate([b"10.a", b"9.Z", b"9.a", b"x"], 1)
    )
    assert list(keep(readSizeList(data)).uniqueIDs) == ["x", "9.Z", "9.a", "10.a"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"/4 1 2\n",
        b"/3 1\n",
        b"/3 1 2\na 1 2:3\n",
        b"/3 1 2\na 1 2:3:0",
        b"/3 1 2\n 1 2:3:0\n",
        b"/3 1 2\na/b 1 2:3:0\n",
        b"/2 1 2\n:2,S 1 2:3\n",
        b"name\n",
    ],
)
def test_damagedSizeList(data: bytes) -> None:
    with pytest.raises(DamagedFile):
        readSizeList(data)


# --- choosing -------------------------------------------------------------------------


def choose(*uniqueIDs: str, present: set[str] | None = None, renames: bool = False) -> object:
    messages = [OldMessage(str(each), uniqueID, each) for each, uniqueID in enumerate(uniqueIDs)]
    kept = keep(messages, present, renames)
    return kept.uniqueIDs, kept.illegal, kept.repeated


def test_repeatedUniqueIDs() -> None:
    assert choose("a", "a", "b") == ({"0": "a", "2": "b"}, 0, 1)
    expected = {"0": "a", "1": "a-2", "2": "a-3"}
    assert choose("a", "a", "a", renames=True) == (expected, 0, 0)
    # A message has the unique-id with -2 already.
    assert choose("a", "a-2", "a", renames=True) == ({"0": "a", "1": "a-2"}, 0, 1)


def test_presentMessagesComeFirst() -> None:
    """
    A file that is gone does not take the unique-id of a message that clients know.
    """
    assert choose("a", "a", present={"1"}) == ({"1": "a"}, 0, 0)
    assert choose("a", "b", present={"1"}) == ({"0": "a", "1": "b"}, 0, 0)
    assert choose("a", "a", "a", present={"1", "2"}, renames=True) == (
        {"1": "a", "2": "a-2"},
        0,
        0,
    )


@pytest.mark.parametrize("uniqueID", ["", "a b", "x" * 71, "é", "\x7f", "_", "H-" + "0" * 64])
def test_illegalUniqueIDs(uniqueID: str) -> None:
    assert choose("a", uniqueID) == ({"0": "a"}, 1, 0)


# --- the other sources ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"Subject: x\r\nX-UIDL: abc \r\nX-UIDL: def\r\n\r\n", "abc"),
        (b"x-uidl:\t#$=.!\n\nbody", "#$=.!"),
        (b"Subject: x\n\nX-UIDL: body\n", None),
        (b"X-UIDL: two words\n\n", None),
        (b"X-UIDL: folded\n more\n\n", None),
        (b"X-UIDL: " + b"x" * 71 + b"\n\n", None),
        (b"X-UIDL:\n\n", None),
        (b"X-UIDL: \xe9\n\n", None),
        (b"\nX-UIDL: abc\n", None),
        (b"", None),
    ],
)
def test_header(data: bytes, expected: str | None) -> None:
    assert uniqueIDInHeader(data) == expected


def test_headersOfADirectory(tmp_path: Path) -> None:
    (tmp_path / "cur").mkdir()
    (tmp_path / "cur" / "2:2,S").write_bytes(b"X-UIDL: two\n\n")
    (tmp_path / "cur" / "1:2,").write_bytes(b"X-UIDL: one\n\n")
    (tmp_path / "cur" / "3:2,").write_bytes(b"Subject: none\n\n")
    assert uniqueIDsOf(str(tmp_path), "xuidl") == {"1": ("one", 0), "2": ("two", 1)}


def test_cyrus(tmp_path: Path) -> None:
    for name in ("10.", "9.", "cyrus.index", "0.", "7"):
        (tmp_path / name).touch()
    found = uniqueIDsOf(str(tmp_path), "cyrus:1700000000")
    assert found == {"9.": ("1700000000.9", 0), "10.": ("1700000000.10", 1)}
    other = uniqueIDsOf(str(tmp_path), "cyrus:255:dovecot")
    assert other["10."] == ("0000000a000000ff", 1)
    assert uniqueIDsOf(str(tmp_path), "cyrus:255:uidonly")["9."] == ("9", 0)
    assert uniqueIDsOf(str(tmp_path), "cyrus:255:courier")["9."] == ("255-9", 0)


@pytest.mark.parametrize(
    ("uidl", "part"),
    [
        ("cyrus", "needs the UIDVALIDITY"),
        ("cyrus:1:x", "one of cyrus, uidonly"),
        ("qpopper", "uidl is dovecot, courier"),
        ("", "uidl is dovecot, courier"),
    ],
)
def test_unknownScheme(uidl: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=part):
        uniqueIDsOf(str(tmp_path), uidl)


def test_schemeOptions() -> None:
    with pytest.raises(ValueError, match="allow or rename"):
        parseScheme("dovecot", "drop")
    with pytest.raises(ValueError, match="courier has neither"):
        parseScheme("courier", "rename")
    with pytest.raises(ValueError, match="courier has neither"):
        parseScheme("courier", xuidl=True)


def test_damagedFileIsNamed(tmp_path: Path) -> None:
    (tmp_path / "dovecot-uidlist").write_bytes(b"3 V1 N2\n1 :a\n?\n")
    with pytest.raises(DamagedFile, match="dovecot-uidlist is damaged: line 3 is damaged"):
        uniqueIDsOf(str(tmp_path), "dovecot")


def test_missingFile(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        uniqueIDsOf(str(tmp_path), "courier")
