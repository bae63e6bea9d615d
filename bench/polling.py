"""
Measure the CPU time that a service takes for clients that poll, with and without
C{--remember-checks}.

C{python -m bench.polling [NUMBER]} starts a service without the option, and then one with it.  The
password has an argon2id hash.  The program logs in C{NUMBER} times to each service (100 by
default), and prints the CPU time that each service has taken.
"""

from __future__ import annotations

import os
import poplib
import sys
import tempfile
from pathlib import Path

from pop3svc.accounts.passwordediting import addUser
from tests.support.running import Running, freePort


def cpuTimeOf(pid: int) -> float:
    """
    @return: the CPU time that a process has used, in seconds.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def poll(port: int) -> None:
    """
    Log in, and look for mail.
    """
    client = poplib.POP3("127.0.0.1", port)
    client.user("ann")
    client.pass_("right")
    client.stat()
    client.quit()


def measure(home: Path, number: int, seconds: int) -> float:
    """
    @param seconds: the value of C{--remember-checks}.
    @return: the CPU time of C{number} polls, in seconds.
    """
    port = freePort()
    options = [
        *("--provider", f"maildir:{home / 'mail'}", "--auth", f"passwd:{home / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--remember-checks", str(seconds)),
    ]
    with Running(home / "home", *options) as running:
        running.up()
        poll(port)
        before = cpuTimeOf(running.process.pid)
        for _ in range(number):
            poll(port)
        return cpuTimeOf(running.process.pid) - before


def main() -> None:
    """
    Measure a service without C{--remember-checks}, and then one with this option.
    """
    number = int(sys.argv[1]) if sys.argv[1:] else 100
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "mail" / "ann").mkdir(parents=True)
        addUser(str(home / "users"), "ann", "right")
        for seconds in (0, 300):
            taken = measure(home, number, seconds)
            print(
                f"--remember-checks {seconds}: {taken:.2f} s for {number} polls, "
                f"{taken / number * 1000:.1f} ms each"
            )


if __name__ == "__main__":
    main()
