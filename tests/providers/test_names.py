"""
User names in paths, file names as unique-ids.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pop3svc.protocol.maildrop import isUniqueID
from pop3svc.providers.names import PathTemplate, isSafeName, uniqueIDFor

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


@pytest.mark.parametrize("name", BAD_NAMES)
def test_refused(name: str, tmp_path: Path) -> None:
    assert not isSafeName(name)
    assert PathTemplate(str(tmp_path)).pathFor(name) is None
    template = PathTemplate(f"{tmp_path}/{{domain}}/{{local}}")
    assert template.pathFor(f"{name}@example.org") is None
    assert template.pathFor(f"alice@{name}") is None


@pytest.mark.parametrize("name", ["alice", "alice@example.org", "ä.ö+x", "a" * 64 + "@b.c", "a..b"])
def test_taken(name: str, tmp_path: Path) -> None:
    assert PathTemplate(str(tmp_path)).pathFor(name) == f"{tmp_path}/{name}"


def test_placeholders(tmp_path: Path) -> None:
    at = PathTemplate(f"{tmp_path}/{{user}}/Maildir").pathFor
    assert at("a@b") == f"{tmp_path}/a@b/Maildir"
    at = PathTemplate(f"{tmp_path}/{{domain}}/{{local}}").pathFor
    assert at("a@x@example.org") == f"{tmp_path}/example.org/a@x"
    assert at("alice") is None
    assert at("@example.org") is None
    assert at("alice@") is None
    assert at("alice@{user}") == f"{tmp_path}/{{user}}/alice"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "a path is needed"),
        ("/nowhere/at/all", "/nowhere/at/all is not a directory"),
        ("/nowhere/{user}", "/nowhere is not a directory"),
        ("/tmp/{name}", "the placeholders are"),
        ("/tmp/{}", "the placeholders are"),
        ("/tmp/{user", "the placeholders are"),
    ],
)
def test_badTemplates(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PathTemplate(template)


def test_uniqueIDs() -> None:
    assert uniqueIDFor("1600000000.M1P2.host") == "1600000000.M1P2.host"
    names = ["a b", "ä", os.fsdecode(b"\xff"), "x" * 71, "_", "", "a\tb"]
    derived = [uniqueIDFor(name) for name in names]
    derived += [uniqueIDFor(each) for each in derived] + [uniqueIDFor("a", taken=True)]
    assert all(isUniqueID(each) for each in derived)
    assert len(set(derived)) == len(derived)
    assert uniqueIDFor("a b") == uniqueIDFor("a b")
