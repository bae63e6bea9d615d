"""
The folder store keeps the contract of mailboxes, and lists the right files.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from zope.interface.verify import verifyObject

from pop3svc.interfaces import IMailboxStore
from pop3svc.providers.folder import FolderStore
from pop3svc.testing import Inline, MailboxContract, conversation
from tests.anybody import Anybody
from tests.support.maildirs import failMoving


class FolderTests(MailboxContract, TestCase):
    readOnly = False

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.store = FolderStore(self.directory.name, self.readOnly, Inline())

    def makeMailbox(self, messages: list[bytes]) -> Any:
        for number, message in enumerate(messages):
            Path(self.directory.name, f"message {number}.eml").write_bytes(message)
        return self.again()

    def again(self) -> Any:
        return self.store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> str:
        name = f"next-{len(os.listdir(self.directory.name)):02}.eml"
        Path(self.directory.name, name).write_bytes(message)
        return name

    def failDeletion(self) -> None:
        failMoving(self, "message 2")


class ReadOnlyFolderTests(FolderTests):
    readOnly = True


def test_folder(tmp_path: Path) -> None:
    for name in ("b.eml", "A.EML", "notes.txt", ".hidden.eml"):
        (tmp_path / name).write_text("x\n")
    store = FolderStore(str(tmp_path), runner=Inline())
    verifyObject(IMailboxStore, store)
    conversation(
        Anybody(store),
        "S: +OK…\nC: USER x\nS: +OK…\nC: PASS y\nS: +OK…\n"
        "C: UIDL\nS: +OK…\nS: 1 A.EML\nS: 2 b.eml\nS: .\nC: DELE 1\nS: +OK…\nC: QUIT\nS: +OK…\nS: (closed)",
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        ".hidden.eml",
        "b.eml",
        "notes.txt",
        "pop3svc-removed",
    ]


def test_edited(tmp_path: Path) -> None:
    """
    A file that was edited is another message, with another unique-id and size.
    """
    file = tmp_path / "note.eml"
    store = FolderStore(str(tmp_path), runner=Inline())
    unique = []
    for text in ("x\r\n", "longer\r\n", "y\r\n"):
        file.write_text(text, newline="")
        os.utime(file, (1000 + len(unique), 1000 + len(unique)))
        client = conversation(
            Anybody(store),
            "S: +OK…\nC: USER x\nS: +OK…\nC: PASS y\nS: +OK…\n"
            f"C: LIST 1\nS: +OK 1 {len(text)}\nC: RETR 1\nS: +OK…\nS: {text.strip()}\nS: .",
        )
        unique.append(client.say(b"UIDL 1").split()[2])
        client.say(b"QUIT")
    assert unique[0] == b"note.eml" and len(set(unique)) == 3
    # The store has written no file of sizes.
    assert [each.name for each in tmp_path.glob("pop3svc-s*")] == []


def test_noFolder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        FolderStore(str(tmp_path / "nowhere"))
