"""
Let Postfix deliver mail over LMTP and by C{pop3svc deliver}, and let fetchmail fetch all of it.
Run C{python -m bench.postfix} in the checkout, as root.

Every message must arrive exactly once.  With C{--full} the mail is on a small tmpfs, which becomes
full.  Postfix then keeps the messages for which there is no room, fetchmail makes room, and no
message may be lost.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["CannotRun", "Report", "deliverAll", "main"]

CHECKOUT = Path(__file__).parent.parent.absolute()
NOBODY = 65534
PASSWORD = "correct-horse"
# The seconds within which all messages must arrive, and the seconds between two looks at the queue.
PATIENCE, LOOK = 900, 0.2

MAIN = """
compatibility_level = 3.6
queue_directory = {home}/spool
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file_prefixes = {home}
maillog_file = {home}/postfix.log
myhostname = mx.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
relay_domains = lmtp.test, pipe.test
smtpd_recipient_restrictions = reject_unauth_destination
transport_maps = inline:{{
  {{ lmtp.test = lmtp:unix:{home}/run/lmtp }}, {{ pipe.test = pop3svc: }} }}
pop3svc_destination_recipient_limit = 1
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
transport_retry_time = 1s
"""

MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
showq unix n - n - - showq
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
error unix - - n - - error
retry unix - - n - - error
lmtp unix - - n - - lmtp
postlog unix-dgram n - n - 1 postlogd
pop3svc unix - n n - 8 pipe
  flags=u user=nobody null_sender= argv={deliver}
"""

CONFIG = """
data = "{home}/pop3svc"
lmtp = ["unix:{home}/run/lmtp"]
local-domain = ["lmtp.test", "pipe.test"]

[[listener]]
endpoint = "tcp:{pop3}:interface=127.0.0.1"

[[store]]
kind = "maildir"
path = "{home}/mail"
auth = ["passwd:{home}/users"]
"""

FETCHMAIL = """
set pidfile "{home}/fetchmail.pid"
set no bouncemail
set no syslog
poll 127.0.0.1 protocol pop3 port {pop3} auth password timeout 60 no uidl
  user "alice" password "{password}" no keep fetchall no rewrite
  sslproto '' no sslcertck mda "/bin/cat >> {home}/fetched"
"""


class CannotRun(Exception):
    """
    This machine lacks something that the program needs.  The text is one sentence.
    """


class Report:
    """
    The result of a run.

    @ivar sent: the subjects of all messages.
    @ivar fetched: the number of times that each subject was fetched.
    @ivar deferred: the number of times that Postfix has deferred a delivery.
    @ivar seconds: the time from the first message until Postfix's queue was empty, in seconds.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.fetched: Counter[str] = Counter()
        self.deferred = 0
        self.seconds = 0.0

    def faults(self) -> list[str]:
        """
        @return: a sentence for each kind of fault; empty if each message was fetched exactly once.
        """
        lost = [each for each in self.sent if not self.fetched[each]]
        twice = [each for each, times in self.fetched.items() if times > 1]
        unknown = [each for each in self.fetched if each not in set(self.sent)]
        return [
            f"{len(those)} messages {what}: {', '.join(those[:5])}"
            for what, those in (("lost", lost), ("twice", twice), ("unknown", unknown))
            if those
        ]


def _interpreter() -> tuple[str, str]:
    """
    @return: a Python that the user nobody may run, and its C{PYTHONPATH}.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    path = os.pathsep.join([str(CHECKOUT), *(each for each in sys.path if "site-packages" in each)])
    for each in (sys.executable, f"/usr/bin/{version}"):
        try:
            done = subprocess.run(
                [each, "-c", "import pop3svc.service.delivercommand"],
                user=NOBODY,
                cwd="/",
                env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if not done.returncode:
            return each, path
    raise CannotRun("the user nobody may not run this Python or read this checkout")


def _freePort() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def _home(size: int | None) -> Iterator[Path]:
    """
    Make a directory that everybody may enter.

    @param size: the octets of the file system for mail; L{None} if the mail gets no file system of
        its own.
    """
    home = Path(tempfile.mkdtemp(prefix="pop3svc-postfix-"))
    home.chmod(0o755)
    isMounted = False
    try:
        for name in ("spool", "data", "run", "mail", "pop3svc"):
            (home / name).mkdir()
        if size is not None:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", home / "mail"],
                capture_output=True,
                check=False,
            )
            if done.returncode:
                raise CannotRun("a tmpfs cannot be mounted here")
            isMounted = True
        for name in ("run", "mail", "pop3svc"):
            os.chown(home / name, NOBODY, NOBODY)
        yield home
    finally:
        if isMounted:
            subprocess.run(["umount", "-l", home / "mail"], check=False)
        shutil.rmtree(home, ignore_errors=True)


class _Site:
    """
    A running Postfix and a running pop3svc.
    """

    def __init__(self, home: Path, cleanup: ExitStack) -> None:
        self.home = home
        self._python, self._path = _interpreter()
        self.ports = {"smtp": _freePort(), "pop3": _freePort()}
        (home / "users").write_text(f"alice:{{PLAIN}}{PASSWORD}\n")
        os.chown(home / "users", NOBODY, NOBODY)
        self._serve(cleanup)
        self._startPostfix(cleanup)

    def _serve(self, cleanup: ExitStack) -> None:
        config = self.home / "pop3svc.toml"
        config.write_text(CONFIG.format(home=self.home, **self.ports))
        log = cleanup.enter_context((self.home / "pop3svc.log").open("wb"))
        process = subprocess.Popen(
            [self._python, "-m", "pop3svc", "serve", "--config", config],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            env={"PYTHONPATH": self._path, "PATH": "/usr/bin:/bin", "HOME": str(self.home)},
            stdout=log,
            stderr=log,
        )
        cleanup.callback(lambda: (process.terminate(), process.wait()))
        self.wait(lambda: (self.home / "run" / "lmtp").exists() or process.poll() is not None)
        if process.poll() is not None:
            raise CannotRun((self.home / "pop3svc.log").read_text().strip().splitlines()[-1])

    def _startPostfix(self, cleanup: ExitStack) -> None:
        config = self.home / "postfix"
        config.mkdir()
        shutil.chown(self.home / "data", "postfix")
        deliver = (
            f"/usr/bin/env PYTHONPATH={self._path} {self._python} -m pop3svc deliver "
            f"--config {self.home}/pop3svc.toml --return-path ${{sender}} --delivered-to "
            "${recipient}"
        )
        (config / "main.cf").write_text(MAIN.format(home=self.home))
        (config / "master.cf").write_text(MASTER.format(deliver=deliver, **self.ports))
        self._postfix("start")
        cleanup.callback(self._postfix, "stop")

    def _postfix(self, action: str) -> None:
        done = subprocess.run(
            ["postfix", "-c", self.home / "postfix", action],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and action == "start":
            raise CannotRun(f"postfix does not start: {' '.join(done.stderr.split())[-300:]}")

    def wait(self, isOver: object, patience: float = PATIENCE) -> None:
        """
        Wait until a function returns true.
        """
        assert callable(isOver)
        end = time.monotonic() + patience
        while not isOver():
            if time.monotonic() > end:
                raise CannotRun(f"nothing more happens; see {self.home}")
            time.sleep(LOOK)

    def queue(self) -> int:
        """
        @return: the number of messages that wait in Postfix's queue.
        """
        done = subprocess.run(
            ["postqueue", "-c", self.home / "postfix", "-j"], capture_output=True, check=False
        )
        return len(done.stdout.splitlines())

    def send(self, subjects: Sequence[str], size: int) -> None:
        """
        Hand messages to Postfix.  Half of them go by LMTP, and the other half by C{pop3svc
        deliver}.
        """
        body = ("y" * 70 + "\r\n") * (size // 72)
        with smtplib.SMTP("127.0.0.1", self.ports["smtp"], timeout=60) as client:
            for number, subject in enumerate(subjects):
                domain = "pipe.test" if number % 2 else "lmtp.test"
                text = f"From: s@y.test\r\nSubject: {subject}\r\n\r\n{body}"
                client.sendmail("s@y.test", [f"alice+{number}@{domain}"], text)

    def fetch(self) -> None:
        """
        Fetch and delete all mail.
        """
        settings = self.home / "fetchmailrc"
        settings.write_text(FETCHMAIL.format(home=self.home, password=PASSWORD, **self.ports))
        settings.chmod(0o600)
        done = subprocess.run(
            ["fetchmail", "--nodetach", "--fetchmailrc", settings],
            capture_output=True,
            text=True,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            check=False,
        )
        if done.returncode not in (0, 1):
            raise CannotRun(f"fetchmail fails: {done.stdout.strip()[-300:]} {done.stderr[-300:]}")


def deliverAll(messages: int, isFull: bool) -> Report:
    """
    Send messages to Postfix, let it deliver them, and fetch them.

    @param isFull: whether the disk with the mail has room for only a few messages.
    @raise CannotRun: this machine lacks something that the program needs.
    """
    if os.geteuid():
        raise CannotRun("Postfix has to be started by root")
    for program in ("postfix", "fetchmail"):
        if shutil.which(program) is None:
            raise CannotRun(f"there is no {program} here")
    report = Report()
    with _home(262_144 if isFull else None) as home, ExitStack() as cleanup:
        site = _Site(home, cleanup)
        report.sent = [f"message-{number}" for number in range(messages)]
        began = time.monotonic()
        site.send(report.sent, 16_384 if isFull else 1024)
        if isFull:
            # Wait until a delivery has found the disk full.
            site.wait(lambda: _deferrals(home) > 0)
            end = time.monotonic() + PATIENCE
            while site.queue():
                site.fetch()
                time.sleep(LOOK)
                if time.monotonic() > end:
                    break
        else:
            site.wait(lambda: not site.queue())
        report.seconds = time.monotonic() - began
        site.fetch()
        report.deferred = _deferrals(home)
        fetched = (home / "fetched").read_text() if (home / "fetched").exists() else ""
        report.fetched.update(re.findall(r"^Subject: (.*)$", fetched, re.M))
        maildir = home / "mail" / "alice"
        left = [path for part in ("tmp", "new", "cur") for path in (maildir / part).iterdir()]
        report.fetched.update(f"{path.name} (in the Maildir)" for path in left)
    return report


def _deferrals(home: Path) -> int:
    log = home / "postfix.log"
    return log.read_text(errors="replace").count("status=deferred") if log.exists() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """
    @return: the exit status, which is 1 if a message was not fetched exactly once, or if the
        program cannot run here.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.postfix", description=__doc__)
    parser.add_argument(
        "--messages",
        type=int,
        default=2000,
        help="the number of messages; half of them go over LMTP, and the others to pop3svc deliver",
    )
    parser.add_argument(
        "--full", action="store_true", help="put the mail on a disk that becomes full"
    )
    options = parser.parse_args(arguments)
    try:
        report = deliverAll(options.messages, options.full)
    except CannotRun as error:
        print(f"bench: {error}")
        return 1
    faults = report.faults()
    print(
        f"{len(report.sent)} messages in {report.seconds:.0f} s, {report.deferred} deferrals: "
        + ("; ".join(faults) or "each was fetched exactly once")
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
