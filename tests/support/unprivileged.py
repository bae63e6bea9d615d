"""
Processes of an unprivileged user, which root starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from tests.support.running import environment, withCheckout

__all__ = ["SERVICE", "capable", "hasRoot", "pop3svc", "pythonForOthers", "twistd", "unprivileged"]

# A user who owns nothing.
SERVICE = 65534


def hasRoot() -> bool:
    """
    @return: whether this process may become other users.
    """
    if os.geteuid() or shutil.which("setpriv") is None:
        return False
    done = subprocess.run(capable(["true"]), capture_output=True, check=False)
    return done.returncode == 0


def unprivileged(command: list[str], uid: int = SERVICE, groups: str = "") -> list[str]:
    """
    @param groups: the supplementary groups, separated by commas.
    @return: a command that runs another one as a user without privileges.
    """
    chosen = [f"--groups={groups}"] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *chosen, "--inh-caps=-all", *command]


def capable(
    command: list[str], capabilities: str = "+setuid,+setgid", groups: str = ""
) -> list[str]:
    """
    @param capabilities: the capabilities to keep.
    @return: a command like that of L{unprivileged}, except that it keeps some capabilities.
    """
    start = unprivileged([], groups=groups)[:-1]
    return [
        *start,
        f"--inh-caps=-all,{capabilities}",
        f"--ambient-caps=-all,{capabilities}",
        *command,
    ]


# Starts a second Python, as a service starts its workers.
_PROBE = """
import subprocess, sys
import pop3svc.service.tap, twisted.internet.reactor, OpenSSL
sys.exit(subprocess.call([sys.executable, "-c", ""]))
"""


@cache
def pythonForOthers() -> tuple[str, ...] | None:
    """
    @return: the beginning of a command with which any user can run Python with this checkout;
        L{None} if other users cannot run Python.
    """
    if not hasRoot():
        return None
    packages = sysconfig.get_path("purelib")
    found = os.pathsep.join([withCheckout(), packages])
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # The Python of this process may be in a private directory.
    for python in (sys.executable, f"/usr/bin/{version}"):
        command = ("env", f"PYTHONPATH={found}", python)
        done = subprocess.run(
            unprivileged([*command, "-c", _PROBE]),
            cwd="/",
            env=environment(Path("/")),
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return command
    return None


def twistd(*options: str) -> list[str]:
    """
    @return: a command with which any user can run C{twistd -n pop3svc}.
    """
    python = pythonForOthers()
    assert python is not None
    program = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
    return [*python, "-c", program, "-n", "--pidfile=", "pop3svc", *options]


def pop3svc(*arguments: str) -> list[str]:
    """
    @return: a command with which any user can run C{pop3svc}.
    """
    python = pythonForOthers()
    assert python is not None
    return [*python, "-m", "pop3svc", *arguments]
