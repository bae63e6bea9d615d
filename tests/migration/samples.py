"""
Maildirs that Dovecot 2.3.19.1 and Courier 5.0.13 served, and what these servers then told.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
NAMES = sorted(each.name for each in SAMPLES.iterdir())


@dataclass
class Sample:
    """
    @ivar maildir: the Maildir.
    @ivar control: directory of Dovecot's file if it is not in the Maildir.
    @ivar uidl: the value of C{uidl=}.
    @ivar recorded: unique-id and file of the messages that clients have seen, in order.
    @ivar others: files of messages that no client has seen.
    """

    maildir: Path
    control: Path | None
    uidl: str
    duplicates: str
    xuidl: bool
    recorded: list[tuple[str, str]]
    others: list[str]


def unpack(name: str, directory: Path) -> Sample:
    """
    @param directory: an empty directory.
    """
    source = SAMPLES / name
    with tarfile.open(source / "maildir.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    maildir, control = directory / "Maildir", None
    if name == "dovecot-control":
        control = maildir / "ctl"
        maildir = maildir / "Maildir"
    settings = dict(
        line.partition(" = ")[::2] for line in (source / "settings").read_text().splitlines()
    )
    uidl = settings.get("pop3_uidl_format", "dovecot")
    recorded: list[tuple[str, str]] = []
    others: list[str] = []
    for line in (source / "expect.tsv").read_text().splitlines():
        if not line.startswith("#"):
            _, uniqueID, _, file, isListed = line.split("\t")
            if isListed == "yes":
                recorded.append((uniqueID, file))
            else:
                others.append(file)
    return Sample(
        maildir,
        control,
        "courier" if name.startswith("courier") else uidl,
        settings.get("pop3_uidl_duplicates", "allow"),
        settings.get("pop3_reuse_xuidl") == "yes",
        recorded,
        others,
    )


def baseOf(file: str) -> str:
    """
    @return: the base name of C{cur/NAME:2,FLAGS}.
    """
    return file.partition("/")[2].partition(":")[0]
