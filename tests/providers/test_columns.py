"""
A large Maildir has the same listing by columns as in the general way.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pop3svc import listings
from pop3svc.listings import UniqueIDList
from pop3svc.providers.files import folders, scanning
from pop3svc.providers.files.folders import areIdentified
from pop3svc.providers.files.scanning import sortInSlices
from pop3svc.providers.files.sizes import GONE, MailboxSizes, MessageInfo, infosOf
from pop3svc.providers.files.snapshot import PlaceColumns, readFolder
from pop3svc.providers.maildir import columns, scan
from pop3svc.providers.maildir.names import sizesIn
from pop3svc.providers.maildir.scan import MaildirFormat

# Parts of names, the usual ones first.
MIDDLES = [".M{us}P1.host", ".M{us}P1Q{n}.host,S=10,W=12", ".P1M{us}.h", ".x{n}", ".", ".h.M{us}"]
FLAGS = [":2,S", ":2,", "", ":2,S:2,", ":1,x", ":", ",S=1,W=2:2,S", ":2,,S=1,W=2"]
ODD = [
    "17{n}",
    "name{n}",
    "{s}x.M{us}.h",
    "1700000000{n:011}.too.many.digits",
    "\u0661700000000.M1.h{n}",
    "{s}.M{us}.h {n}",
    "{s}.M{us}.h\n{n}",
    "{s}.M{us}.\udcff{n}",
    "{s}.{n:080}",
    "{s}.M\u0661{us}.h{n}",
    "_{n}",
    "pop3svc-{n}",
    "{s}.,S=1,W=1234567890123{n}",
]


def someNames(chance: random.Random, oddity: float) -> list[str]:
    """
    @param oddity: the probability that a name has an unusual form.
    """
    names = []
    digits = chance.choice([1, 5, 10, 20])
    middles = chance.sample(MIDDLES, chance.randint(1, len(MIDDLES)))
    flags = chance.sample(FLAGS, chance.randint(1, len(FLAGS)))
    separator = chance.choice(":::;!_")
    spread = chance.choice([2, 30, 10**9])
    for number in range(chance.randint(1, 40)):
        seconds = chance.randrange(spread) + chance.choice([0, 10 ** (digits - 1)])
        values = {"s": f"{seconds:0{digits}}", "us": chance.randrange(2000), "n": number}
        if chance.random() < oddity:
            names.append(chance.choice(ODD).format(**values))
        else:
            name = values["s"] + chance.choice(middles).format(**values)
            names.append(f"{name}{chance.choice(flags).replace(':', separator)}")
    return names


def fill(chance: random.Random, box: Path, names: list[str]) -> None:
    for folder in ("new", "cur", "tmp"):
        (box / folder).mkdir(parents=True)
    first: Path | None = None
    for name in names:
        path = box / chance.choice(["new", "cur", "cur"]) / name
        if first is not None and chance.random() < 0.01:
            os.link(first, path)
        elif not path.exists():
            path.write_bytes(b"")
            first = path


def someSizes(chance: random.Random, found: Any) -> MailboxSizes:
    """
    @param found: the listing of the mailbox.
    @return: entries that an earlier session may have recorded.
    """
    sizes = MailboxSizes()
    sizes.isLoaded = True
    share = chance.choice([0, 0, 0.5, 1])
    wrong = chance.choice([0, 0, 0.05])
    for uniqueID, (_, _, inode) in found.items():
        if chance.random() < share:
            where = chance.choice([sizes.known, sizes.known, sizes.seen, sizes.claims])
            mistake = chance.random() < wrong
            kind = GONE if mistake and chance.random() < 0.5 else "."
            where[uniqueID] = MessageInfo(1, inode + mistake, kind=kind)
    return sizes


def outcome(box: Path, sizes: MailboxSizes, listedBy: Counter[str]) -> Any:
    """
    @return: all that a session sees of a listing, or the error.
    """
    format = MaildirFormat(believesNames=True)
    root = os.open(box, os.O_RDONLY)
    try:
        found, stamp = format.scan(root, sizes)
    except Exception as error:
        return repr(error)
    finally:
        os.close(root)
    listedBy["columns" if isinstance(found.places, PlaceColumns) else "general"] += 1
    ids = found.listed.uniqueIDs
    assert [found.get(each) for each in ids] == list(found.places)
    assert all(found.uniqueIDOf(found.places[index]) for index in range(len(found)))
    names = [place[1] for place in found.places]
    return (
        *(ids, list(found.places), found.links, found.isSure, found.separator, stamp),
        *(format.sizesInNames(names), list(found.listed.hashes()), dict(found.listed.numbers())),
        *(sizes.known, sizes.seen, sizes.claims),
    )


def test_sameAsInGeneral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Treat a small Maildir like a large one, so that stat() is not called for each file.
    monkeypatch.setattr(folders, "_STATTED", -1)
    monkeypatch.setattr(scanning, "stampOf", lambda *_: (((1, 1, 1, 1),) * 2, True))
    listedBy: Counter[str] = Counter()
    for seed in range(400):
        chance = random.Random(seed)
        box = tmp_path / "box"
        fill(chance, box, someNames(chance, chance.choice([0, 0, 0.05, 0.5])))
        monkeypatch.setattr(columns, "LEAST", 10**9)
        root = os.open(box, os.O_RDONLY)
        found, _ = MaildirFormat().scan(root, MailboxSizes())
        os.close(root)
        monkeypatch.setattr(listings, "_SLICE", chance.choice([1, 3, 100]))
        state = chance.getstate()
        outcomes = []
        for least in (10**9, 1):
            chance.setstate(state)
            monkeypatch.setattr(columns, "LEAST", least)
            outcomes.append(outcome(box, someSizes(chance, found), listedBy))
        assert outcomes[0] == outcomes[1], f"seed {seed}"
        shutil.rmtree(box)
    # About half of the Maildirs have nothing but usual names.
    assert 100 < listedBy["columns"] < 300, listedBy


@pytest.mark.parametrize(
    "head", ["", "1.", "12345", "1234.", ".234.", "1.34.", "123x.", "1x3.", "12\u00b2.x"]
)
def test_areSeconds(head: str) -> None:
    width = len("123.")
    assert columns._areSeconds(["123.", "000."], width)
    assert not columns._areSeconds(["123.", head, "123."], width)
    assert not columns._areSeconds(["12\u00b2.", "123."], width)
    assert not columns._areSeconds(["12\u0661.", "123."], width)
    # A name without a period, and more digits than the general way reads.
    assert not columns._areSeconds(["", ""], 0)
    assert not columns._areSeconds([".", "."], 1)
    assert columns._areSeconds(["1" * 20 + "."], 21)
    assert not columns._areSeconds(["1" * 21 + "."], 22)


def test_sortInSlices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_SLICE", 20)
    monkeypatch.setattr(scanning, "_SAMPLED", 2)
    chance = random.Random(1)
    for length in (0, 1, 20, 40, 41, 60, 199, 1000):
        values = chance.sample(range(5000), length)
        names = [str(each) for each in values]
        assert sortInSlices(list(names)) == sorted(names)
        assert sortInSlices(list(range(length)), values.__getitem__) == sorted(
            range(length), key=values.__getitem__
        )
        # Sorted values stay sorted.
        assert sortInSlices(sorted(names)) == sorted(names)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("1.x,S=3,W=4:2,S", 4),
        ("1.x,S=3,W=4,S=5,W=6", 4),
        ("1.x,S=3,W=1234567890123,S=5,W=6", 6),
        ("1.x,W=4", None),
        ("1.x,S=3,W=:2,S", None),
        (",S=\u0661,W=4", None),
        ("", None),
    ],
)
def test_sizesIn(name: str, size: int | None) -> None:
    assert sizesIn([name]) == [size]
    usual = "1.y,S=1,W=2:2,"
    assert sizesIn([usual, name, usual]) == [2, size, 2]
    assert sizesIn([usual, usual]) == [2, 2]


def test_infosOf() -> None:
    infos = infosOf(["a", "b", "c"], [1, None, 0], [7, 8, 9])
    assert infos == {"a": MessageInfo(1, 7), "c": MessageInfo(0, 9)}
    assert type(infos["a"]) is MessageInfo and infos["a"].kind == "."


def test_areIdentified() -> None:
    sizes = MailboxSizes()
    assert areIdentified(["a", "b"], [1, 2], sizes)
    sizes.known["a"] = MessageInfo(5, 1)
    assert areIdentified(["a", "b"], [1, 2], sizes)
    assert not areIdentified(["a", "b"], [3, 2], sizes)
    sizes.claims["b"] = MessageInfo(-1, 2, kind=GONE)
    assert not areIdentified(["a", "b"], [1, 2], sizes)
    sizes.claims["b"] = MessageInfo(-1, 2)
    assert areIdentified(["a", "b"], [1, 2], sizes)


def test_readFolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = tmp_path / "box"
    fill(random.Random(1), box, ["1.a", "2.b"])
    (box / "cur" / ".hidden").touch()
    (box / "cur" / "directory").mkdir()
    (box / "cur" / "link").symlink_to("1.a")
    root = os.open(box, os.O_RDONLY)

    def read() -> dict[str, int]:
        found = [*readFolder(root, "cur").places(), *readFolder(root, "new").places()]
        return {name: inode for _, name, inode in found}

    assert read() == {path.name: path.stat().st_ino for path in box.glob("*/[12].?")}
    assert list(readFolder(root, "missing").places()) == []
    # The inodes that the directory reports may differ from the inodes of the files.
    monkeypatch.setattr("pop3svc.providers.files.snapshot._areInodesReliable", lambda _: False)
    assert read() == {"1.a": 0, "2.b": 0}
    os.close(root)


def test_largeMaildirsUseColumns(tmp_path: Path) -> None:
    assert columns.LEAST > folders._STATTED
    assert scan.listByColumns is columns.listByColumns


def test_listOfChecked() -> None:
    listed = UniqueIDList.ofChecked(["b", "a"])
    assert (list(listed), listed.number("a"), listed.number("x"), len(listed)) == (
        *(["b", "a"], 2, None),
        2,
    )
