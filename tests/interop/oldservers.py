"""
Debian's Dovecot and Courier, each on a free port of this machine, with Maildirs of the tests.
"""

from __future__ import annotations

import os
import poplib
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from tests.support.running import freePort

__all__ = ["PASSWORD", "Courier", "Dovecot", "OldServer"]

PASSWORD = "correct-horse"
_HOST = "127.0.0.1"
# Seconds until a server must answer, or must have ended; and the pause between two attempts.
_PATIENCE = 30.0
_POLL = 0.05

_DOVECOT = """
protocols = pop3
listen = 127.0.0.1
base_dir = {base}/run
state_dir = {base}/state
log_path = {base}/log
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{base}/mail/%u
mail_uid = nobody
mail_gid = nogroup
first_valid_uid = 1
first_valid_gid = 1
default_internal_user = dovecot
default_login_user = dovenull
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service stats {{
  chroot =
}}
service anvil {{
  chroot =
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={base}/mail/%u
}}
{more}
"""


class OldServer:
    """
    @ivar port: the port for POP3.
    @ivar mail: the directory that has a Maildir for each user.
    """

    def __init__(self, base: Path) -> None:
        """
        @param base: an existing directory that every user may enter.
        """
        self.base = base
        self.mail = base / "mail"
        self.mail.mkdir(exist_ok=True)
        shutil.chown(self.mail, "nobody", "nogroup")
        self.port = freePort()

    def makeMaildir(self, user: str) -> Path:
        """
        Make an empty Maildir.
        """
        path = self.mail / user
        for folder in ("", "tmp", "new", "cur"):
            (path / folder).mkdir(parents=True, exist_ok=True)
            shutil.chown(path / folder, "nobody", "nogroup")
        return path

    def deliver(self, user: str, number: int, message: bytes) -> str:
        """
        Deliver a message as an MDA does.

        @return: the name of its file.
        """
        path = self.makeMaildir(user)
        name = f"{1_600_000_000 + number}.M{number}P{os.getpid()}.mx.example.test"
        (path / "tmp" / name).write_bytes(message)
        shutil.chown(path / "tmp" / name, "nobody", "nogroup")
        (path / "tmp" / name).rename(path / "new" / name)
        return name

    def login(self, user: str) -> poplib.POP3:
        """
        Log in to the server.
        """
        client = poplib.POP3(_HOST, self.port, _PATIENCE)
        client.user(user)
        client.pass_(PASSWORD)
        return client

    def uniqueIDs(self, user: str) -> list[str]:
        """
        @return: the unique-ids that UIDL lists.
        """
        client = self.login(user)
        try:
            return [line.decode("ascii").partition(" ")[2] for line in client.uidl()[1]]
        finally:
            client.quit()

    def stop(self) -> None:
        """
        Stop the server, and wait for its end.
        """
        raise NotImplementedError

    def _awaitGreeting(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                poplib.POP3(_HOST, self.port, _PATIENCE).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the old server does not answer"
                time.sleep(_POLL)


class Dovecot(OldServer):
    """
    Debian's Dovecot.
    """

    @staticmethod
    def whyNot() -> str:
        """
        @return: why it cannot be started; empty if it can.
        """
        if not Path("/usr/lib/dovecot/pop3").exists():
            return "Dovecot is not installed: apt-get install dovecot-pop3d"
        return "" if os.geteuid() == 0 else "Dovecot has to be started by root"

    def __init__(self, base: Path, more: str = "") -> None:
        """
        @param more: further settings.
        """
        super().__init__(base)
        config = base / "dovecot.conf"
        config.write_text(_DOVECOT.format(base=base, port=self.port, password=PASSWORD, more=more))
        self._process = subprocess.Popen(["/usr/sbin/dovecot", "-F", "-c", str(config)])
        try:
            self._awaitGreeting()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """
        See L{OldServer.stop}.
        """
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_PATIENCE)


# The directory with Courier's unpacked packages, or "/" if Courier is installed.  Debian's Courier
# and Dovecot cannot both be installed.
_COURIER = Path(os.environ.get("COURIER_ROOT", "/"))
_PROGRAM = _COURIER / "usr/lib/courier/courier/courierpop3d"


class Courier(OldServer):
    """
    Debian's Courier.  Its program C{courierpop3d} serves a session after the login, on the standard
    input and output.  This class does the login instead of Courier's authentication daemon.
    """

    @staticmethod
    def whyNot() -> str:
        """
        @return: why it cannot be started; empty if it can.
        """
        if _PROGRAM.exists():
            return ""
        return (
            "Courier is not installed: unpack courier-pop, courier-base, courier-authlib and "
            "libcourier-unicode4 (as .ci/run does), and set COURIER_ROOT"
        )

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        # Name the directories of unpacked libraries.  Installed libraries are found without that.
        unpacked = _COURIER != Path("/")
        libraries = {str(each.parent) for each in _COURIER.glob("usr/lib/**/lib*.so*") if unpacked}
        self._environment = os.environ | {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
        self._listener = socket.create_server((_HOST, self.port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(_PATIENCE)
                try:
                    user = self._authenticate(connection)
                except OSError:
                    continue
                if user:
                    # Remove the timeout, because courierpop3d expects a blocking socket.
                    connection.settimeout(None)
                    subprocess.run(
                        [str(_PROGRAM), str(self.mail / user)],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=subprocess.DEVNULL,
                        env=self._environment | {"AUTHENTICATED": user},
                        check=False,
                    )

    def _authenticate(self, connection: socket.socket) -> str:
        """
        @return: the name of the user; empty if the client ends the connection.
        """
        connection.sendall(b"+OK Hello there.\r\n")
        user, line = "", b""
        while octet := connection.recv(1):
            line += octet
            if octet != b"\n":
                continue
            verb, _, argument = line.decode("ascii").strip().partition(" ")
            line = b""
            if verb.upper() == "USER":
                user = argument
                connection.sendall(b"+OK Password required.\r\n")
            elif verb.upper() == "PASS" and argument == PASSWORD:
                return user
            elif verb.upper() == "CAPA":
                connection.sendall(b"+OK\r\nUSER\r\nUIDL\r\nTOP\r\n.\r\n")
            elif verb.upper() == "QUIT":
                connection.sendall(b"+OK\r\n")
                return ""
            else:
                connection.sendall(b"-ERR Invalid command.\r\n")
        return ""

    def stop(self) -> None:
        """
        See L{OldServer.stop}.
        """
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_PATIENCE)
