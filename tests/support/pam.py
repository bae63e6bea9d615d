"""
PAM services and users of a system, in a mount namespace that hides those of this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

from passlib.hash import sha512_crypt

__all__ = ["System", "hasNamespaces"]

_DAY = 86_400
# Binds the files of a system over those of the machine, and runs a command.
_SCRIPT = """
set -e
mount --bind "$1/pam.d" /etc/pam.d
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
shift
exec "$@"
"""

UNIX = "auth required pam_unix.so nodelay\naccount required pam_unix.so\n"


@cache
def hasNamespaces() -> bool:
    """
    @return: whether this process may make mount namespaces.
    """
    if os.geteuid() or shutil.which("unshare") is None or not os.path.isdir("/etc/pam.d"):
        return False
    command = ["unshare", "-m", "mount", "--bind", "/tmp", "/tmp"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class System:
    """
    The users and the PAM services of a system.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: an empty directory that every user may enter.
        """
        self.path = path
        (path / "pam.d").mkdir()
        self._passwd = ["root:x:0:0::/root:/bin/sh\n", "nobody:x:65534:65534::/nonexistent:\n"]
        self._shadow: list[str] = []
        self.service("pop3svc", UNIX)
        self.service("other", "auth required pam_deny.so\naccount required pam_deny.so\n")
        self._write()

    def service(self, name: str, rules: str) -> None:
        """
        Define a PAM service.
        """
        (self.path / "pam.d" / name).write_text(rules)

    def user(
        self, name: str, uid: int, password: str, aging: str = "0:99999:7::", changed: int = -10
    ) -> Path:
        """
        Add a user with a home, which has mode 0700 unless it is root's.

        @param aging: the fields of shadow(5) after the time of the change.
        @param changed: the day of the last change of the password, counted from today.
        @return: the home.
        """
        home = self.path / "home" / name
        home.mkdir(parents=True, mode=0o755)
        if uid:
            home.chmod(0o700)
            os.chown(home, uid, uid)
        self._passwd.append(f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n")
        hashed = sha512_crypt.using(rounds=1000).hash(password) if password else ""
        today = int(time.time() // _DAY)
        self._shadow.append(f"{name}:{hashed}:{today + changed}:{aging}:\n")
        self._write()
        return home

    def _write(self) -> None:
        (self.path / "passwd").write_text("".join(self._passwd))
        shadow = self.path / "shadow"
        shadow.write_text("".join(self._shadow))
        shadow.chmod(0o640)
        shutil.chown(shadow, 0, "shadow")

    def command(self, command: list[str]) -> list[str]:
        """
        @return: a command that runs another one on this system.
        """
        return ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(self.path), *command]
