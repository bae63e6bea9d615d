"""
User names in paths, and file names as unique-ids.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pop3svc.listings import isUniqueID
from pop3svc.providers.paths import PathTemplate, isSafeName, uniqueIDFor

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    ".hidden",
    "-rf",
    "~root",
    "a b",
    "a\0",
    "a\n",
    "a\u2028b",
    "\udcff",
    "a:b",
    "x" * 201,
    "ä" * 101,
    "\u202eabc",
]


def at(template: PathTemplate, name: str) -> str | None:
    place = template.placeFor(name)
    return None if place is None else place.path


@pytest.mark.parametrize("name", BAD_NAMES)
def test_refused(name: str, tmp_path: Path) -> None:
    assert not isSafeName(name)
    assert at(PathTemplate(str(tmp_path)), name) is None
    template = PathTemplate(f"{tmp_path}/{{domain}}/{{local}}")
    assert at(template, f"{name}@example.org") is None
    assert at(template, f"alice@{name}") is None


@pytest.mark.parametrize("name", ["alice", "alice@example.org", "ä.ö+x", "a" * 64 + "@b.c", "a..b"])
def test_taken(name: str, tmp_path: Path) -> None:
    assert at(PathTemplate(str(tmp_path)), name) == f"{tmp_path}/{name}"


def test_placeholders(tmp_path: Path) -> None:
    template = PathTemplate(f"{tmp_path}/{{user}}/Maildir")
    assert at(template, "a@b") == f"{tmp_path}/a@b/Maildir"
    template = PathTemplate(f"{tmp_path}/x-{{domain}}/{{local}}/y")
    assert at(template, "a@x@example.org") == f"{tmp_path}/x-example.org/a@x/y"
    for name in ("alice", "@example.org", "alice@"):
        assert at(template, name) is None
    assert at(template, "alice@{user}") == f"{tmp_path}/x-{{user}}/alice/y"


def test_links(tmp_path: Path) -> None:
    """
    Below the operator's path, a link is followed only in a directory where no other user
    can have created it.
    """
    (tmp_path / "real" / "Maildir").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "alice").symlink_to(tmp_path / "real")
    place = PathTemplate(f"{tmp_path}/home/{{user}}/Maildir").placeFor("alice")
    assert place is not None

    def opens() -> bool:
        try:
            descriptor = place.open()
        except OSError:
            return False
        assert descriptor is not None
        os.close(descriptor)
        return True

    assert opens()
    (tmp_path / "home").chmod(0o777)
    assert not opens()
    (tmp_path / "home").chmod(0o755)
    assert opens()
    if os.geteuid() == 0:
        os.chown(tmp_path / "home", 1, 1)
        assert not opens()
        os.chown(tmp_path / "home", 0, 0)
        os.chown(tmp_path / "home" / "alice", 1, 1, follow_symlinks=False)
        assert not opens()
        os.chown(tmp_path / "home" / "alice", 0, 0, follow_symlinks=False)
    # The same holds for a link to which the operator's link points.
    (tmp_path / "elsewhere" / "Maildir").mkdir(parents=True)
    (tmp_path / "real").rename(tmp_path / "moved")
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "real").symlink_to("../elsewhere")
    (tmp_path / "home" / "alice").unlink()
    (tmp_path / "home" / "alice").symlink_to(tmp_path / "users" / "real")
    assert opens()
    (tmp_path / "users").chmod(0o777)
    assert not opens()
    (tmp_path / "users").chmod(0o755)
    (tmp_path / "users" / "real").unlink()
    (tmp_path / "users" / "real").symlink_to("real")
    assert not opens()
    (tmp_path / "home" / "alice").unlink()
    assert place.open() is None


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "a path is needed"),
        ("/nowhere/at/all", "/nowhere/at/all is not a directory"),
        ("/nowhere/{user}", "/nowhere is not a directory"),
        ("/tmp/{name}", "allowed placeholders are"),
        ("/tmp/{}", "allowed placeholders are"),
        ("/tmp/{user", "allowed placeholders are"),
        ("/tmp/{user}/..", '".." is not allowed'),
    ],
)
def test_badTemplates(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PathTemplate(template)


def test_uniqueIDs() -> None:
    assert uniqueIDFor("1600000000.M1P2.host") == "1600000000.M1P2.host"
    names = ["a b", "ä", os.fsdecode(b"\xff"), "x" * 71, "_", "", "a\tb"]
    derived = [uniqueIDFor(name) for name in names]
    derived += [uniqueIDFor(each) for each in derived] + [
        uniqueIDFor("a", "1"),
        uniqueIDFor("a b", "1"),
    ]
    assert all(isUniqueID(each) for each in derived)
    assert len(set(derived)) == len(derived)
    assert uniqueIDFor("a b") == uniqueIDFor("a b")
