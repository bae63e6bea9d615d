"""
Configure and start the servers that are measured.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.mail import GUESSED, NOBODY, Mail
from bench.measure import Failed, Group, makeGroup
from bench.sqlmail import SQLMail
from bench.switches import SWITCHES
from pop3svc.accounts.hashes import hashPassword
from pop3svc.drivers import makeDriver
from tests.support.postgresql import PostgreSQL, whyNoPostgreSQL
from tests.support.running import checkCopy

__all__ = ["SERVERS", "CannotRun", "Server", "Site", "aptInstall", "withSetting"]

CHECKOUT = Path(__file__).parent.parent
CORES = os.cpu_count() or 1
# The seconds within which a server must send a greeting after its start.
PATIENCE = 30


class CannotRun(Exception):
    """
    A server cannot be measured on this machine.  The text gives the reason in a few words.
    """


@dataclass
class Site:
    """
    The files that all servers use.

    @ivar path: a directory that everybody may enter.
    @ivar programs: the directory of the programs C{load} and C{limit}.
    """

    path: Path
    programs: Path
    mail: Mail
    certificate: Path = field(init=False)
    key: Path = field(init=False)
    users: Path = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = self.path / "cert.pem"
        self.key = self.path / "key.pem"
        self.users = self.path / "users"
        lines = [f"{name}:{{PLAIN}}secret\n" for name in [*self.mail.users(), "million"]]
        lines = [each for each in lines if not each.startswith(GUESSED)]
        self.users.write_text("".join(lines) + f"{GUESSED}:{{ARGON2ID}}{hashPassword('secret')}\n")
        _run(
            *("openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-keyout", str(self.key), "-out", str(self.certificate)),
        )


def _run(*command: str) -> str:
    """
    @return: the output of a command.
    @raise CannotRun: the command has failed, or does not exist.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotRun(f"{command[0]}: {error.strerror}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise CannotRun(f"{command[0]}: {last}")
    return done.stdout.strip()


def _freePort() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port: int = each.getsockname()[1]
        return port


class Server:
    """
    A server with its own Maildirs.

    @cvar name: the name of the server on the command line.
    @cvar title: the name of the server in the table.
    @cvar isPeer: whether this is another POP3 server, and not pop3svc or the limit.
    @cvar sleeps: whether the server supports SLEE and WAKE.
    @cvar standsCrowds: whether the server takes part in row 17.
    @cvar rows: the rows that are measured with the server; L{None} for all rows.
    """

    name = ""
    title = ""
    isPeer = True
    sleeps = False
    standsCrowds = False
    rows: frozenset[int] | None = None
    # Whether the server needs Maildirs.
    hasMail = True
    # Whether pop3svc takes the sizes of messages from file names.  Some other servers always do.
    believesNames = False

    def __init__(self, site: Site, mail: Path | None = None) -> None:
        """
        @param mail: the Maildirs to serve; L{None} to make the server's own.
        @raise CannotRun: the server cannot run on this machine.
        """
        self.site = site
        self.home = site.path / self.name
        self.home.mkdir(exist_ok=True)
        self.mail = self.home / "mail" if mail is None else mail
        if mail is None and self.hasMail:
            self.mail.mkdir()
            site.mail.makeMaildirs(self.mail)
        self.plain = self.tls = 0
        self.group = Group()
        self._process: subprocess.Popen[bytes] | None = None

    def version(self) -> str:
        """
        @return: the version of the server and of its libraries.
        """
        raise NotImplementedError

    def command(self) -> list[str]:
        """
        @return: the command that starts the server in the foreground, on the ports C{self.plain}
            and C{self.tls}.
        """
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """
        @return: the environment variables of the server.
        """
        clean = {key: each for key, each in os.environ.items() if not key.startswith("XDG_")}
        return clean | {"HOME": str(self.home)}

    def remakeFetched(self) -> None:
        """
        Make the mailboxes C{del0} and so on again, because clients delete messages from them.
        """
        self.site.mail.remakeFetched(self.mail)

    def forget(self, user: str) -> None:
        """
        Remove the files that the server has written beside the mail of a user.
        """
        self.site.mail.forget(self.mail, user)

    def left(self, user: str) -> int:
        """
        @return: the number of messages in a mailbox.
        """
        return sum(1 for _ in (self.mail / user).glob("[cn]*/*P1.bench*"))

    def start(self) -> None:
        """
        Start the server.  L{waitUntilUp} waits until the server serves.
        """
        self.plain, self.tls = _freePort(), _freePort()
        self.group = makeGroup(self.name)
        command = self.group.wrap(self.command())
        with (self.home / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.home,
                env=self.environment(),
            )
        self.group.root = self._process.pid

    def waitUntilUp(self) -> None:
        """
        Wait until the server sends a greeting.

        @raise CannotRun: the server has not sent a greeting in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.plain), PATIENCE) as each:
                    if each.recv(1024).startswith(b"+OK"):
                        with socket.create_connection(("127.0.0.1", self.tls), PATIENCE):
                            return
            except OSError:
                pass
            time.sleep(0.05)
        written = (self.home / "output").read_text(errors="replace").strip().splitlines()
        raise CannotRun((written or ["it does not greet"])[-1][-200:])

    def stop(self) -> None:
        """
        Kill all processes of the server.
        """
        if self._process is not None:
            self.group.kill()
            self._process.kill()
            self._process.wait()
            self.group.close()
            self._process = None

    def restart(self) -> None:
        """
        Stop the server, and start it again.
        """
        self.stop()
        self.start()
        try:
            self.waitUntilUp()
        except CannotRun as error:
            raise Failed(str(error))


class Pop3svc(Server):
    """
    The service of this checkout, run by the same Python as the benchmark.
    """

    name = "pop3svc"
    title = "pop3svc"
    isPeer = False
    sleeps = standsCrowds = True
    options: tuple[str, ...] = ()
    _twistd = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

    def version(self) -> str:
        """
        See L{Server.version}.
        """
        from cryptography.hazmat.backends.openssl import backend

        import twisted

        try:
            commit = _run("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty")
        except CannotRun:
            commit = "unknown"
        return (
            f"checkout {commit}, Python {platform.python_version()}, "
            f"Twisted {twisted.__version__}, {backend.openssl_version_text()}"
        )

    def environment(self) -> dict[str, str]:
        """
        See L{Server.environment}.
        """
        checkCopy(str(CHECKOUT))
        return super().environment() | {"PYTHONPATH": str(CHECKOUT)}

    def provider(self) -> str:
        """
        @return: the value of --provider.
        """
        return f"maildir:{self.mail}{':sizes=names' * self.believesNames}"

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        return [
            *(*self._twistd, "-n", "--pidfile=", f"--logfile={self.home / 'log'}", "pop3svc"),
            *("--endpoint", f"tcp:{self.plain}:interface=127.0.0.1"),
            *("--endpoint", f"ssl:{self.tls}:interface=127.0.0.1"),
            *("--provider", self.provider()),
            *("--auth", f"passwd:{self.site.users}"),
            *("--certificate", str(self.site.certificate), "--private-key", str(self.site.key)),
            *("--data", str(self.home / "data")),
            *("--set", "maxConnections=20000", "--set", "maxUnauthenticated=20000"),
            *self.options,
        ]


class Pop3svcWorkers(Pop3svc):
    """
    pop3svc with two workers, in rows with many clients at the same time, because Dovecot and
    Courier use several cores.
    """

    name = "workers"
    title = "pop3svc, 2 workers"
    rows = frozenset([1, 2, 3, 14])
    options = ("--workers", "2")


class Pop3svcMetrics(Pop3svc):
    """
    pop3svc with a port for metrics, so that it counts the work of sessions.
    """

    name = "metrics"
    title = "pop3svc, metrics"
    rows = frozenset([1, 4])

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        return [*super().command(), "--web", f"unix:{self.home / 'web'}"]


class Pop3svcSQLite(Pop3svc):
    """
    pop3svc with mailboxes in SQLite.
    """

    name = "sqlite"
    title = "pop3svc, SQLite"
    rows = frozenset([1, 4, 5, 6, 11, 12, 14])
    hasMail = standsCrowds = False

    def __init__(self, site: Site, mail: Path | None = None) -> None:
        super().__init__(site, mail)
        self._contents = SQLMail(makeDriver(self.dsn(), mayCreate=True), site.mail)

    def dsn(self) -> str:
        """
        @return: the DSN of the database.
        """
        return f"sqlite:{self.home}/mail.db"

    def provider(self) -> str:
        """
        See L{Pop3svc.provider}.
        """
        return f"sql:{self.dsn()}"

    def remakeFetched(self) -> None:
        """
        See L{Server.remakeFetched}.
        """
        self._contents.remakeFetched()

    def forget(self, user: str) -> None:
        """
        Do nothing, because the server stores nothing in addition to the mail.
        """

    def left(self, user: str) -> int:
        """
        See L{Server.left}.
        """
        return self._contents.left(user)


class Pop3svcPostgreSQL(Pop3svcSQLite):
    """
    pop3svc with mailboxes in its own PostgreSQL server.
    """

    name = "postgresql"
    title = "pop3svc, PostgreSQL"

    def __init__(self, site: Site, mail: Path | None = None) -> None:
        if whyNoPostgreSQL():
            raise CannotRun(whyNoPostgreSQL())
        self._server = PostgreSQL().__enter__()
        atexit.register(self._server.__exit__, None, None, None)
        super().__init__(site, mail)

    def dsn(self) -> str:
        """
        See L{Pop3svcSQLite.dsn}.
        """
        return self._server.dsn


class Dovecot(Server):
    """
    Dovecot in its default configuration, but with limits of processes and memory that are high
    enough for the rows.
    """

    name = "dovecot"
    title = "Dovecot"
    standsCrowds = True
    more = ""

    def __init__(self, site: Site, mail: Path | None = None) -> None:
        if os.getuid() != 0:
            raise CannotRun("it needs root")
        if shutil.which("dovecot") is None:
            raise CannotRun("Dovecot is not installed")
        super().__init__(site, mail)

    def version(self) -> str:
        """
        See L{Server.version}.
        """
        return f"{_run('dovecot', '--version')}, {_run('openssl', 'version')}"

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        configuration = self.home / "dovecot.conf"
        configuration.write_text(f"""
base_dir = {self.home}/run
state_dir = {self.home}/state
log_path = {self.home}/log
protocols = pop3
listen = 127.0.0.1
ssl = yes
ssl_cert = <{self.site.certificate}
ssl_key = <{self.site.key}
disable_plaintext_auth = no
auth_mechanisms = plain
first_valid_uid = {NOBODY}
first_valid_gid = {NOBODY}
mail_location = maildir:{self.mail}/%u
mail_max_userip_connections = 0
default_vsz_limit = 2G
passdb {{
  driver = passwd-file
  args = {self.site.users}
}}
userdb {{
  driver = static
  args = uid={NOBODY} gid={NOBODY} home={self.mail}/%u
}}
service auth {{
  client_limit = 5000
}}
service anvil {{
  client_limit = 5000
}}
service pop3 {{
  process_limit = 2000
}}
service pop3-login {{
  process_limit = 2000
  inet_listener pop3 {{
    port = {self.plain}
  }}
  inet_listener pop3s {{
    port = {self.tls}
    ssl = yes
  }}
}}
{self.more}""")
        return ["dovecot", "-F", "-c", str(configuration)]


class TunedDovecot(Dovecot):
    """
    Dovecot as its documentation advises for many logins.  Login processes serve many connections
    each, and processes are used again.  Dovecot also writes no flags, because POP3 does not need
    them.
    """

    name = "tuned"
    title = "Dovecot tuned"
    more = f"""
pop3_no_flag_updates = yes
service pop3-login {{
  service_count = 0
  client_limit = 5000
  process_min_avail = {CORES}
  process_limit = {CORES}
}}
service pop3 {{
  service_count = 1000
  process_min_avail = {CORES}
}}
"""


# Start Courier in its own mount namespace, in which it seems to be installed.  The paths of Courier
# are compiled in, and dpkg does not install Courier beside Dovecot.
COURIER_START = """
set -e
mount -t overlay overlay -o lowerdir=$ROOT/usr:/usr /usr
makeuserdb -f $ROOT/etc/courier/userdb
mount -t overlay overlay -o lowerdir=$ROOT/etc:/etc /etc
mount -t tmpfs tmpfs /run
mkdir -p /run/courier/authdaemon
touch /run/courier/sessions
set -a
. /etc/courier/authdaemonrc
. /etc/courier/pop3d
. /etc/courier/pop3d-ssl
TLS_CERTFILE=/etc/courier/pop3d.pem TLS_CACHEFILE=/run/courier/sessions
login="/usr/lib/courier/courier/courierpop3login /usr/lib/courier/courier/courierpop3d"
/usr/lib/courier/courier-authlib/authdaemond &
set -- couriertcpd -address=127.0.0.1 -maxprocs=2000 -maxperip=2000 -nodnslookup -noidentlookup
POP3_TLS=1 POP3_STARTTLS=NO \\
    "$@" $TLSPORT /usr/bin/couriertls -server -tcpd $login . &
exec "$@" $PLAINPORT $login .
"""


class Courier(Server):
    """
    Courier as Debian configures it, except that userdb has the accounts, and that more processes
    may run at the same time.
    """

    name = "courier"
    title = "Courier"
    packages = (
        *("courier-pop", "courier-base", "courier-authlib", "courier-authlib-userdb"),
        *("libcourier-unicode4", "libgamin0", "libpcre3", "libidn12", "libltdl7"),
    )

    def __init__(self, site: Site, mail: Path | None = None) -> None:
        if os.getuid() != 0:
            raise CannotRun("it needs root")
        super().__init__(site, mail)
        self._root = self.home / "root"
        packages = self.home / "packages"
        packages.mkdir()
        _run("sh", "-c", 'cd "$0" && apt-get download -qq "$@"', str(packages), *self.packages)
        for package in packages.iterdir():
            _run("dpkg", "-x", str(package), str(self._root))
        # Copy the libraries to /usr/lib, as on a system where /lib is the same directory as
        # /usr/lib.
        shutil.copytree(
            self._root / "lib", self._root / "usr" / "lib", symlinks=True, dirs_exist_ok=True
        )
        configuration = self._root / "etc" / "courier"
        (configuration / "authdaemonrc").write_text(
            'authmodulelist="authuserdb"\nauthmodulelistorig="authuserdb"\ndaemons=5\n'
            "authdaemonvar=/run/courier/authdaemon\n"
        )
        (configuration / "pop3d.pem").write_text(
            site.key.read_text() + site.certificate.read_text()
        )
        # Use the cheapest hash that Courier can check, because the other servers compare plain
        # text.
        password = _run("perl", "-e", 'print crypt("secret", "ab")')
        users = configuration / "userdb"
        users.write_text(
            "".join(
                f"{name}\tuid={NOBODY}|gid={NOBODY}|home={self.mail / name}"
                f"|mail={self.mail / name}|systempw={password}\n"
                for name in site.mail.users()
            )
        )
        users.chmod(0o600)

    def version(self) -> str:
        """
        See L{Server.version}.
        """
        (package,) = (self.home / "packages").glob("courier-pop_*")
        return f"{package.name.split('_')[1]}, GnuTLS"

    def environment(self) -> dict[str, str]:
        """
        See L{Server.environment}.
        """
        return super().environment() | {
            "ROOT": str(self._root),
            "PLAINPORT": str(self.plain),
            "TLSPORT": str(self.tls),
            "LD_LIBRARY_PATH": "/usr/lib:/usr/lib/courier-authlib",
        }

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        return ["unshare", "-m", "sh", "-c", COURIER_START]


class TwistedMail(Server):
    """
    The protocol of twisted.mail with a small mailbox of this benchmark; see L{bench.twistedmail}.
    """

    name = "twisted"
    title = "twisted.mail"

    def version(self) -> str:
        """
        See L{Server.version}.
        """
        import twisted

        return f"{twisted.__version__}"

    def environment(self) -> dict[str, str]:
        """
        See L{Server.environment}.
        """
        return super().environment() | {"PYTHONPATH": str(CHECKOUT)}

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        return [
            *(sys.executable, "-m", "bench.twistedmail", str(self.plain), str(self.tls)),
            *(str(self.mail), str(self.site.users)),
            *(str(self.site.certificate), str(self.site.key)),
        ]


class Limit(Server):
    """
    A server that sends prepared octets; see C{limit.c}.
    """

    name = "limit"
    title = "limit"
    isPeer = False
    hasMail = False
    rows = frozenset({1, 2, 3, 5, 6, 7, 10})

    def version(self) -> str:
        """
        See L{Server.version}.
        """
        return "bench/limit.c, which sends prepared bytes"

    def command(self) -> list[str]:
        """
        See L{Server.command}.
        """
        mail = self.site.mail
        return [
            *(str(self.site.programs / "limit"), str(self.plain), str(self.tls)),
            *(str(self.site.certificate), str(self.site.key)),
            f"user:{mail.sizes.messages}:{mail.pack('small')}",
            f"many:{mail.sizes.many}:{mail.pack('small')}",
            f"crlf:1:{mail.pack('crlf')}",
        ]


SERVERS: dict[str, type[Server]] = {
    each.name: each
    for each in (
        *(Pop3svc, Pop3svcWorkers, Pop3svcMetrics, Pop3svcSQLite, Pop3svcPostgreSQL),
        *(Dovecot, TunedDovecot, Courier, TwistedMail, Limit),
    )
}


def withSetting(setting: str) -> type[Pop3svc]:
    """
    @param setting: a setting and its value, C{NAME=VALUE}.
    @return: pop3svc with this setting, to compare with pop3svc without the setting.
    """

    class Changed(Pop3svc):
        """
        pop3svc with another setting.
        """

        # Replace "=", because the name becomes part of a path in an argument, where "=" has a
        # meaning.
        name = f"pop3svc-{setting.replace('=', '-')}"
        title = f"pop3svc, {setting}"
        options = ("--set", setting)

    return Changed


def without(name: str) -> type[Pop3svc]:
    """
    @param name: the name of an optimisation, a key of L{SWITCHES<bench.switches.SWITCHES>}.
    @return: pop3svc without this optimisation, to compare with pop3svc with the optimisation.
    """
    base = SERVERS[SWITCHES[name].server]
    assert issubclass(base, Pop3svc)

    class Without(base):  # type: ignore[misc, valid-type]
        """
        pop3svc without an optimisation.
        """

    Without.name = f"{base.name}-without-{name}"
    Without.title = f"{base.title} without {name}"
    Without._twistd = (sys.executable, "-m", "bench.switches", name)
    return Without


def aptInstall(packages: list[str]) -> None:
    """
    Install those of the given Debian packages that are missing.

    @raise CannotRun: a package cannot be installed.
    """
    status = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    missing = [each for each in packages if not re.search(rf"^{re.escape(each)} ii", status, re.M)]
    if not missing:
        return
    if os.getuid() != 0:
        raise CannotRun(f"these packages are missing, and only root can install them: {missing}")
    for step in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
        _run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *step)
