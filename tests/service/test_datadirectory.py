"""
The data directory of the embedded default.
"""

from __future__ import annotations

from pathlib import Path

from pop3svc.accounts.apppasswordlines import addAppPassword, readAppPasswords
from pop3svc.accounts.passwordfile import readPasswordFile
from pop3svc.service.datadirectory import DataDirectory


def test_formerUsers(tmp_path: Path) -> None:
    """
    The first user has no application passwords of a former user of that name.
    """
    data = DataDirectory(str(tmp_path))
    data.makeAccounts()
    for name in ("demo", "ann"):
        addAppPassword(data.passwordFile, name, "Phone")
    (tmp_path / "users").unlink()
    data.makeAccounts()
    assert set(readPasswordFile(data.passwordFile).hashes) == {"demo"}
    assert [each.user for each in readAppPasswords(data.passwordFile)[0].values()] == ["ann"]
    # Later starts change nothing.
    addAppPassword(data.passwordFile, "demo", "Phone")
    data.makeAccounts()
    assert len(readAppPasswords(data.passwordFile)[0]) == 2
