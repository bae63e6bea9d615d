"""
Measure pop3svc and other POP3 servers.  Run C{python -m bench} in the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NoReturn

from bench.mail import Mail, Sizes
from bench.measure import Failed, Load, adopt, makeGroup
from bench.rows import ROWS, Bench, Row
from bench.servers import SERVERS, CannotRun, Server, Site, aptInstall, without, withSetting
from bench.switches import SWITCHES
from bench.table import Results

HERE = Path(__file__).parent
PACKAGES = ["gcc", "libc6-dev", "libssl-dev", "openssl"]
PEERS = ["dovecot-pop3d"]
# Smaller numbers, for a run that shows whether the benchmark works, and not how fast the servers
# are.
SHORT = Sizes(
    users=32,
    messages=20,
    fetched=30,
    many=500,
    big=5_000_000,
    huge=1_000,
    idle=40,
    million=5_000,
    downloads=20,
    medium=500_000,
)
SHORT_SERVERS = ["pop3svc", "dovecot", "twisted", "limit"]
SECONDS, SHORT_SECONDS = 3.0, 0.1


class Parser(argparse.ArgumentParser):
    """
    A parser that says in one sentence which option is wrong.
    """

    def error(self, message: str) -> NoReturn:
        """
        See L{argparse.ArgumentParser.error}.
        """
        say(f"bench: {message}")
        sys.exit(1)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    @return: the options of the command line.
    """
    parser = Parser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--short",
        action="store_true",
        help="run a short benchmark, which only shows that all parts work",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 3, or 1 with --short")
    parser.add_argument(
        "--only", metavar="ROW[,ROW]", help="measure only the rows with these numbers"
    )
    parser.add_argument(
        "--servers",
        metavar="NAME[,NAME]",
        help="measure only these servers, of "
        + ",".join(SERVERS)
        + "; default: all, or with --short "
        + ",".join(SHORT_SERVERS),
    )
    parser.add_argument(
        "--also",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="measure pop3svc also with this setting; may be repeated",
    )
    parser.add_argument(
        "--without",
        metavar="NAME",
        action="append",
        default=[],
        help="measure pop3svc also without this optimisation (docs/fast.rst); may be repeated",
    )
    parser.add_argument("--output", metavar="FILE", help="also write the tables to this file")
    found = parser.parse_args(arguments)
    numbers = {str(row.number) for row in ROWS}
    if found.rounds is None:
        found.rounds = 1 if found.short else 3
    if found.rounds < 1:
        parser.error("--rounds: at least 1")
    found.only = found.only.split(",") if found.only else sorted(numbers)
    default = SHORT_SERVERS if found.short else list(SERVERS)
    found.servers = found.servers.split(",") if found.servers else default
    for what, names, known in (
        ("row", found.only, numbers),
        ("server", found.servers, set(SERVERS)),
        ("optimisation", found.without, set(SWITCHES)),
    ):
        for name in names:
            if name not in known:
                parser.error(f"there is no {what} {name}")
    return found


def build(directory: Path) -> None:
    """
    Compile the load generator and the server C{limit}.

    @raise CannotRun: a program cannot be compiled.
    """
    for name in ("load", "limit"):
        done = subprocess.run(
            [
                *("cc", "-O2", "-o", str(directory / name), str(HERE / f"{name}.c")),
                *("-lssl", "-lcrypto"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotRun(f"{name}.c cannot be compiled: {done.stderr.strip()}")


def machine() -> str:
    """
    @return: a line about this machine.
    """
    model = "unknown processor"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.release()}"


def say(text: str) -> None:
    """
    Print a line about the progress of the benchmark.
    """
    print(text, file=sys.stderr, flush=True)


def oneRound(turn: int, rows: list[Row], servers: list[Server], bench: Bench, out: Results) -> None:
    """
    Measure each row with every server, one server after the other.  Each round begins with another
    server.
    """
    turn %= len(servers)
    servers = servers[turn:] + servers[:turn]
    try:
        for server in servers:
            server.start()
        for server in list(servers):
            try:
                server.waitUntilUp()
            except CannotRun as error:
                out.absent[server.name] = str(error)
                servers.remove(server)
                server.stop()
        for row in rows:
            for server in list(servers):
                if out.hasFailed(row, server.name):
                    continue
                if server.rows is not None and row.number not in server.rows:
                    continue
                try:
                    measures = row.run(bench, server)
                except Failed as error:
                    say(f"row {row.number}, {server.title}: {error}")
                    out.fail(row, server.name, str(error))
                    try:
                        server.restart()
                    except Failed as error:
                        out.absent[server.name] = str(error)
                        servers.remove(server)
                        server.stop()
                    continue
                out.add(row, server.name, measures)
                for each in measures:
                    values = ", ".join(f"{one.value:.4g} {one.unit}" for one in each.figures)
                    say(f"row {row.number} {each.label}, {server.title}: {values} {each.note}")
    finally:
        for server in servers:
            server.stop()


def run(found: argparse.Namespace, directory: Path) -> tuple[str, list[str]]:
    """
    @return: the text with the tables, and a sentence for each error of pop3svc or of C{limit}.
    @raise CannotRun: the benchmark cannot run on this machine.
    """
    programs = directory / "bin"
    programs.mkdir()
    build(programs)
    say("making mail")
    mail = Mail(directory / "mail", SHORT if found.short else Sizes())
    site = Site(directory, programs, mail)
    rows = [row for row in ROWS if str(row.number) in found.only]
    kinds = [SERVERS[name] for name in found.servers]
    kinds += [withSetting(each) for each in found.also]
    kinds += [without(each) for each in found.without]
    results = Results(rows, kinds)
    servers: list[Server] = []
    for kind in kinds:
        try:
            servers.append(kind(site))
        except CannotRun as error:
            results.absent[kind.name] = str(error)
    bench = Bench(Load(programs / "load", directory), SHORT_SECONDS if found.short else SECONDS)
    for turn in range(found.rounds):
        say(f"round {turn + 1} of {found.rounds}")
        there = [each for each in servers if each.name not in results.absent]
        if there:
            oneRound(turn, rows, there, bench, results)
    group = makeGroup("how")
    group.close()
    lines = [
        f"{date.today()}, {machine()}; rounds: {found.rounds}, medians"
        + (", a short run whose figures say nothing" if found.short else ""),
        "",
        *(
            f"- {each.title}: {each.version()}"
            for each in servers
            if each.name not in results.absent
        ),
        *(
            f"- {each.title}: not run: {results.absent[each.name]}"
            for each in kinds
            if each.name in results.absent
        ),
        f"- processor time of a server: {group.how}; memory: Pss of its processes",
        *(
            f"- row {row.number}: {row.whyNot() or 'no server here can do it'}"
            for row in results.empty()
        ),
        "",
        "The numbers in brackets, and those for the best peer, are pop3svc's figure "
        "divided by the peer's figure.",
        "",
        results.main(),
        "",
        "Time and memory of the runs.  The columns with the word load are about the load "
        "generator.",
        "",
        results.machine(),
    ]
    wrong = [each for kind in kinds if kind.isPeer for each in results.failures(kind.name)]
    if wrong:
        lines += ["", "What went wrong:", "", *(f"- {each}" for each in wrong)]
    return "\n".join(lines) + "\n", [
        each
        for kind in kinds
        if not kind.isPeer
        for each in [*results.failures(kind.name), *_absence(results, kind)]
    ]


def _absence(results: Results, kind: type[Server]) -> list[str]:
    why = results.absent.get(kind.name)
    return [] if why is None else [f"{kind.name} does not run: {why}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    @return: the exit status, which is 1 if pop3svc or C{limit} made an error, or if the benchmark
        could not run.
    """
    found = options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    adopt()
    try:
        aptInstall(PACKAGES)
        if {"dovecot", "tuned", "courier"} & set(found.servers):
            with contextlib.suppress(CannotRun):
                # Go on without Dovecot.  The result says that Dovecot was not run.
                aptInstall(PEERS)
        directory = Path(tempfile.mkdtemp(prefix="pb"))
        try:
            directory.chmod(0o755)
            tables, faults = run(found, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except (CannotRun, OSError) as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(tables, end="")
    if found.output:
        Path(found.output).write_text(tables)
    for fault in faults:
        say(f"bench: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
