"""
What an import reads: every message once, whole, in order, or named as unreadable.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc.lineendings import CRLFNormalizer
from pop3svc.providers.mbox.delivery import storedText
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from pop3svc.transfer.fingerprints import Fingerprint
from pop3svc.transfer.mboxes import MboxSource, arrivalIn
from pop3svc.transfer.source import Source, fitArrivals
from pop3svc.transfer.sources import Choice, makeSources
from tests.migration.samples import unpack
from tests.support.maildirs import deliver

ENVELOPE = b"From a@x.test Thu Jan  1 00:00:10 1970\n"


def fingerprint(*pieces: bytes) -> tuple[str, int]:
    found = Fingerprint()
    for each in pieces:
        found.feed(each)
    return found.digest(), found.octets()


LINES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b"From x", b">From y", b"X-UIDL: 1", b"a: b", b" c"])
)


@given(LINES, st.data())
def test_fingerprintOfPieces(lines: list[bytes], data: st.DataObject) -> None:
    """
    A fingerprint depends neither on the pieces nor on the form of the line ends.
    """
    message = b"".join(lines)
    cut = data.draw(st.integers(0, len(message)))
    whole = fingerprint(message)
    assert fingerprint(message[:cut], message[cut:]) == whole
    normalizer = CRLFNormalizer()
    sent = normalizer.feed(message) + normalizer.finish()
    assert fingerprint(sent) == whole and whole[1] == len(sent)


def test_fingerprintInAnMbox() -> None:
    message = b"a: b\n\nFrom x\n>From y\n"
    digest = fingerprint(message)[0]
    assert fingerprint(b"X-UIDL: 1\n continued\na: b\nContent-Length: 7\n\n>From x\n>>From y\n")[
        0
    ] == (digest)
    assert fingerprint(b"a: b\n")[0] == fingerprint(b"a: b\n\n")[0]
    others = [b"a: b\n\nFrom x\n>From y\nz", b"a: c\n\nFrom x\n>From y\n", b"\nX-UIDL: 1\n", b"\n"]
    assert len({digest, *(fingerprint(each)[0] for each in others)}) == 5


@given(st.lists(st.integers(0, 20)))
def test_fitArrivals(arrivals: list[int]) -> None:
    fitted = fitArrivals(arrivals)
    assert fitted == sorted(fitted) and set(fitted) <= set(arrivals)
    assert len(fitted) == len(arrivals)
    if arrivals == sorted(arrivals):
        assert fitted == arrivals


def test_fitOneWrongArrival() -> None:
    assert fitArrivals([1, 99, 2, 0, 3]) == [1, 1, 2, 2, 3]


def only(path: Path | str, **choice: object) -> Source:
    [source], _ = makeSources([str(path)], Choice(**choice))  # type: ignore[arg-type]
    return source


def contents(source: Source) -> list[bytes]:
    return [b"".join(source.pieces(each)) for each in source.messages()]


def test_maildir(tmp_path: Path) -> None:
    deliver(tmp_path, "3.M2P1.h:2,S", b"c", "cur")
    deliver(tmp_path, "3.M1P1.h", b"b")
    deliver(tmp_path, "2.P1.h,S=9:2,", gzip.compress(b"packed\n"), "cur")
    deliver(tmp_path, "half", b"half", "tmp")
    source = only(tmp_path)
    assert contents(source) == [b"packed\n", b"b", b"c"]
    found = source.messages()
    assert [each.uniqueID for each in found] == ["2.P1.h,S=9", "3.M1P1.h", "3.M2P1.h"]
    assert [each.arrival for each in found] == [2, 3.000001, 3.000002]


def test_maildirThatChanges(tmp_path: Path) -> None:
    source = only(deliver(tmp_path, "1.a", b"a").parent.parent)
    deliver(tmp_path, "2.b", b"b")
    messages = source.messages()
    assert not source.hasMore()
    # A client has read the first message.
    os.rename(tmp_path / "new" / "1.a", tmp_path / "cur" / "1.a:2,S")
    assert b"".join(source.pieces(messages[0])) == b"a"
    os.unlink(tmp_path / "new" / "2.b")
    with pytest.raises(Unreadable, match="gone") as caught:
        list(source.pieces(messages[1]))
    assert caught.value.isTemporary
    assert not source.hasMore()
    deliver(tmp_path, "3.c", b"c")
    assert source.hasMore()


def test_fileThatGrowsWhileItIsRead(tmp_path: Path) -> None:
    path = deliver(tmp_path, "1.a", b"a" * 300_000)
    source = only(tmp_path)
    pieces = source.pieces(source.messages()[0])
    next(pieces)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(Unreadable, match="meanwhile"):
        list(pieces)


def test_maildirWithTwins(tmp_path: Path) -> None:
    deliver(tmp_path, "1.a", b"a")
    deliver(tmp_path, "1.a:2,S", b"b", "cur")
    with pytest.raises(NotPossible, match=r"2 messages of the name 1\.a"):
        only(tmp_path).messages()


def test_damaged(tmp_path: Path) -> None:
    deliver(tmp_path, "1.a", gzip.compress(b"packed\n")[:-9])
    # A link is no message for the service either.
    os.symlink("/etc/passwd", tmp_path / "new" / "2.b")
    source = only(tmp_path)
    [message] = source.messages()
    with pytest.raises(Unreadable, match="damaged"):
        list(source.pieces(message))


def test_folders(tmp_path: Path) -> None:
    deliver(tmp_path, "1.a", b"inbox")
    deliver(tmp_path / ".Sent", "1.b", b"sent")
    sources, leftOut = makeSources([str(tmp_path)], Choice())
    assert (len(sources), leftOut) == (1, 1)
    sources, leftOut = makeSources([str(tmp_path)], Choice(folders=True))
    assert leftOut == 0
    assert [contents(each) for each in sources] == [[b"inbox"], [b"sent"]]


@pytest.mark.parametrize("name", ["dovecot-default", "dovecot-order", "courier-v2"])
def test_uniqueIDsOfAnotherServer(name: str, tmp_path: Path) -> None:
    sample = unpack(name, tmp_path)
    uidl = "courier" if name.startswith("courier") else sample.uidl
    found = [each.uniqueID for each in only(sample.maildir, uidl=uidl).messages()]
    recorded = [uniqueID for uniqueID, _ in sample.recorded]
    assert found[: len(recorded)] == recorded
    assert len(found) == len(recorded) + len(sample.others)


def test_mh(tmp_path: Path) -> None:
    for name in ("10", "9", ",8", "note", ".mh_sequences"):
        (tmp_path / name).write_bytes(name.encode())
    os.utime(tmp_path / "9", (77, 77))
    source = only(tmp_path)
    assert contents(source) == [b"9", b"10"]
    assert source.messages()[0].arrival == 77
    assert [each.uniqueID for each in source.messages()] == [None, None]
    assert not source.hasMore()
    (tmp_path / "11").touch()
    assert source.hasMore()


def test_eml(tmp_path: Path) -> None:
    for name in ("b.EML", "a.eml", ".c.eml", "d.txt"):
        (tmp_path / name).write_bytes(b"X-UIDL: " + name.encode() + b"\n\n")
    source = only(tmp_path, uidl="x-uidl")
    assert [each.uniqueID for each in source.messages()] == ["a.eml", "b.EML"]
    messages = source.messages()
    os.unlink(tmp_path / "a.eml")
    with pytest.raises(Unreadable, match="gone"):
        list(source.pieces(messages[0]))
    os.symlink("b.EML", tmp_path / "a.eml")
    with pytest.raises(Unreadable, match="regular"):
        list(source.pieces(messages[0]))


MESSAGES = [
    b"",
    b"a: b\n",
    b"a: b\n\nFrom x\n>From y\n\n\n",
    b"\n\0\n",
    b"From x\n",
    b"x" * 300_000 + b"\n",
]


@pytest.mark.parametrize("variant", ["mboxrd", "mboxcl2"])
def test_mbox(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    with path.open("wb") as file:
        for each in MESSAGES:
            content = tmp_path / "message"
            content.write_bytes(each)
            with content.open("rb") as opened:
                file.writelines(storedText(ENVELOPE, b"", opened, variant))
    source = MboxSource(str(path), variant, usesXUIDL=False)
    found = contents(source)
    digests = [fingerprint(each)[0] for each in found]
    assert digests == [fingerprint(each)[0] for each in MESSAGES]
    if variant == "mboxrd":
        assert found == MESSAGES
    assert {each.arrival for each in source.messages()} == {10}
    assert not source.hasMore()
    with path.open("ab") as file:
        file.write(ENVELOPE)
    assert source.hasMore()
    source.close()


def test_mboxWithEqualMessages(tmp_path: Path) -> None:
    (tmp_path / "mbox").write_bytes((ENVELOPE + b"X-UIDL: u\n\na\n\n") * 3)
    plain = [each.uniqueID for each in only(tmp_path / "mbox").messages()]
    assert len(set(plain)) == 3 and plain[1] == f"{plain[0]}.2"
    kept = [each.uniqueID for each in only(tmp_path / "mbox", uidl="x-uidl").messages()]
    assert kept == ["u", plain[0], plain[1]]


@pytest.mark.parametrize(
    ("variant", "end"),
    [
        ("mboxo", b"a: b\n\nhalf of a li"),
        ("mboxo", b"a: "),
        ("mboxcl2", b"Content-Length: 99\n\na line\n"),
    ],
)
def test_mboxThatEndsInTheMiddle(variant: str, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(ENVELOPE + b"a: b\n\nwhole\n\n" + ENVELOPE + end)
    source = only(path, variant=variant)
    first, last = source.messages()
    assert b"".join(source.pieces(first)) == b"a: b\n\nwhole\n"
    with pytest.raises(Unreadable, match="ends in the middle"):
        list(source.pieces(last))


def test_mboxThatChanges(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(ENVELOPE + b"a: b\n\nwhole\n")
    source = only(path)
    [message] = source.messages()
    path.write_bytes(ENVELOPE + b"a: b\n\nother\n")
    with pytest.raises(Unreadable, match="changed") as caught:
        list(source.pieces(message))
    assert caught.value.isTemporary


def test_mboxThatIsLocked(tmp_path: Path) -> None:
    from pop3svc.providers.mbox.locks import lockFile

    path = tmp_path / "mbox"
    path.write_bytes(ENVELOPE + b"a: b\n")
    with path.open("r+b") as file:
        lockFile(file.fileno())
        with pytest.raises(TryAgain, match="locked"):
            only(path).messages()


@pytest.mark.parametrize(
    ("date", "arrival"),
    [
        (b"Thu Jan  1 00:00:10 1970", 10),
        (b"Thu Jan  1 01:00:10 +0100 1970", 10),
        (b"Thu, 1 Jan 1970 00:00:10 +0000", 10),
        (b"nonsense", None),
    ],
)
def test_arrivalIn(date: bytes, arrival: float | None) -> None:
    assert arrivalIn(b"From a b@c " + date + b"\r\n") == arrival


def test_notPossible(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no mbox\n")
    for path, choice, says in (
        (tmp_path / "empty", {}, "not clearly"),
        (tmp_path / "empty", {"kind": "maildir"}, "new or cur is missing"),
        (tmp_path / "none", {}, "No such file"),
        (tmp_path / "text", {"kind": "mh"}, "not a directory"),
        (tmp_path / "text", {"uidl": "dovecot"}, "x-uidl"),
        (tmp_path / "text", {}, "envelope line"),
        ("/dev/null", {}, "not a regular file"),
    ):
        with pytest.raises(NotPossible, match=says):
            only(path, **choice).messages()
