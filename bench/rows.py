"""
The rows of the table.  A row says what clients do with a server, and makes figures from the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bench.mail import SMALL
from bench.measure import Failed, Group, Load, Span
from bench.servers import Server
from bench.stalls import guess, pipeline, probed
from bench.systemcalls import counting, whyNoStrace

__all__ = ["ROWS", "Bench", "Figure", "Measure", "Row"]

# The number of sessions at the same time.
SLOTS = 32
NO_END = 10**9
LOGIN = ("say\t+OK\tUSER %u", "say\t+OK\tPASS secret")
STAT = "say\t+OK\tSTAT"
# The number of pieces of work in the shorter of two runs whose system calls are counted.
CALLS = 100


@dataclass
class Figure:
    """
    A number, with its unit.

    @ivar lowerIsBetter: whether a lower number is better.
    """

    unit: str
    value: float
    lowerIsBetter: bool = True


@dataclass
class Measure:
    """
    The result of one run of a row, or of a variant of the row, with one server.

    @ivar label: the name of the variant; empty if the row has no variants.
    @ivar note: a text that the table shows beside the figures.
    """

    label: str
    span: Span
    figures: list[Figure]
    note: str = ""


@dataclass
class Bench:
    """
    The objects that rows need to run.

    @ivar seconds: the duration of a row that has no end of its own.
    """

    load: Load
    seconds: float

    def run(
        self,
        server: Server,
        users: tuple[str, int],
        steps: list[str],
        tls: str = "no",
        slots: int = 1,
        sessions: int = 1,
        pack: str = "small",
        seconds: float | None = None,
        isAlone: bool = True,
    ) -> list[Span]:
        """
        @param users: the name of the users, and their number; see C{load.c}.
        @param isAlone: whether the server has no other clients.  With other clients, the processor
            time would never stop growing, and is not measured.
        @return: a span for each two successive marks of the load generator.
        @raise Failed: the server gave a wrong answer or none.
        """
        return self.load.run(
            server.group if isAlone else Group(),
            [
                f"port\t{server.plain if tls == 'no' else server.tls}",
                f"tls\t{tls}",
                f"slots\t{slots}",
                f"users\t{users[0]}\t{users[1]}",
                f"sessions\t{sessions}",
                f"limit\t{self.seconds if seconds is None else seconds}",
                f"pack\t{server.site.mail.pack(pack)}",
                *steps,
            ],
        )


@dataclass
class Row:
    """
    One row of the table.

    @ivar run: a function of the bench and a server, which returns an empty list if the server
        cannot do the work of the row.
    @ivar whyNot: a function that returns the reason why the row cannot run on this machine; an
        empty text if it can.
    """

    number: int
    title: str
    run: Callable[[Bench, Server], list[Measure]] = field(repr=False)
    whyNot: Callable[[], str] = field(default=str, repr=False)


def _sessions(bench: Bench, server: Server, label: str, tls: str, steps: list[str]) -> Measure:
    """
    Measure short sessions of many users for some seconds, many sessions at the same time.  Before
    this, each user has one session that does not count.
    """
    users = ("user", server.site.mail.sizes.users)
    bench.run(server, users, steps, slots=SLOTS, sessions=users[1], seconds=NO_END)
    (span,) = bench.run(server, users, steps, tls=tls, slots=SLOTS, sessions=NO_END)
    note = ""
    if tls == "resume":
        note = f"{100 * span.resumed / span.sessions:.0f} % resumed"
    return Measure(
        label,
        span,
        [
            Figure("server CPU ms per session", span.server / span.sessions * 1e3),
            Figure("sessions/s", span.sessions / span.wall, lowerIsBetter=False),
        ],
        note,
    )


def shortSession(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 1.
    """
    return [_sessions(bench, server, "", "no", [*LOGIN, STAT, "quit"])]


def shortSessionTLS(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 2.
    """
    steps = [*LOGIN, STAT, "quit"]
    return [
        _sessions(bench, server, "full handshake", "full", steps),
        _sessions(bench, server, "client resumes", "resume", steps),
    ]


def pollByReconnecting(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 3.
    """
    steps = [*LOGIN, f"list\t{server.site.mail.sizes.messages}\tUIDL", "quit"]
    return [
        _sessions(bench, server, "full handshake", "full", steps),
        _sessions(bench, server, "client resumes", "resume", steps),
    ]


def pollByWaking(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 4.
    """
    if not server.sleeps:
        return []
    sizes = server.site.mail.sizes
    uidl = f"list\t{sizes.messages}\tUIDL"
    steps = [*LOGIN, uidl, "barrier", "say\t+OK\tSLEE", "say\t+OK\tWAKE", uidl]
    steps += [f"again\t3\t{NO_END}", "barrier", "quit"]
    found = []
    for label, tls in (("plain", "no"), ("TLS", "full")):
        span = bench.run(server, ("user", sizes.users), steps, tls=tls, slots=SLOTS)[1]
        polls = span.agains + SLOTS
        found.append(
            Measure(
                label,
                span,
                [
                    Figure("server CPU ms per poll", span.server / polls * 1e3),
                    Figure("polls/s", polls / span.wall, lowerIsBetter=False),
                ],
            )
        )
    return found


def _retrieve(bench: Bench, server: Server, ahead: int, seconds: float) -> list[Measure]:
    many = server.site.mail.sizes.many
    # Do not measure the first session with a mailbox, because Dovecot is quicker in that session.
    bench.run(server, ("many", 0), [*LOGIN, STAT, "quit"])
    steps = [*LOGIN, STAT, "barrier", f"retr\t1\t{many}\t{ahead}", "barrier", "quit"]
    span = bench.run(server, ("many", 0), steps, seconds=seconds)[1]
    return [
        Measure(
            "",
            span,
            [
                Figure("server CPU µs per message", span.server / span.messages * 1e6),
                Figure("messages/s", span.messages / span.wall, lowerIsBetter=False),
            ],
        )
    ]


def pipelined(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 5.
    """
    return _retrieve(bench, server, 20, 5 * bench.seconds)


def oneAtATime(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 6.
    """
    return _retrieve(bench, server, 1, bench.seconds)


def _big(user: str, pack: str, tls: str) -> Callable[[Bench, Server], list[Measure]]:
    def run(bench: Bench, server: Server) -> list[Measure]:
        retr = "retr\t1\t1\t1"
        bench.run(server, (user, 0), [*LOGIN, STAT, "quit"], pack=pack)
        steps = [*LOGIN, STAT, retr, "barrier", retr, f"again\t1\t{NO_END}", "barrier", "quit"]
        span = bench.run(server, (user, 0), steps, tls=tls, pack=pack)[1]
        return [
            Measure(
                "",
                span,
                [
                    Figure("MB/s", span.octets / span.wall / 1e6, lowerIsBetter=False),
                    Figure("server CPU ms per message", span.server / span.messages * 1e3),
                ],
            )
        ]

    return run


def _hugeSession(bench: Bench, server: Server, user: str, sessions: int) -> list[Measure]:
    count = server.site.mail.sizes.huge
    # Check the sizes.  Finding them takes most of the time, and a server that guesses them must not
    # count as faster.
    stat = f"say\t+OK {count} {count * SMALL}\tSTAT"
    steps = [*LOGIN, stat, f"list\t{count}\tLIST", f"list\t{count}\tUIDL", "quit"]
    (span,) = bench.run(server, (user, 0), steps, sessions=sessions, seconds=NO_END)
    return [
        Measure(
            "",
            span,
            [
                Figure("ms wall", span.wall / span.sessions * 1e3),
                Figure("server CPU ms", span.server / span.sessions * 1e3),
            ],
        )
    ]


def hugeWarm(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 11.
    """
    _hugeSession(bench, server, "huge", 1)
    return _hugeSession(bench, server, "huge", 3)


def _hugeFirst(user: str) -> Callable[[Bench, Server], list[Measure]]:
    def run(bench: Bench, server: Server) -> list[Measure]:
        server.stop()
        server.forget(user)
        server.believesNames = user == "sized"
        server.restart()
        # Let the server load its modules first, because this work does not belong to the mailbox.
        bench.run(server, ("user", SLOTS), [*LOGIN, STAT, "quit"])
        measures = _hugeSession(bench, server, user, 1)
        if server.believesNames:
            server.stop()
            server.believesNames = False
            server.restart()
        return measures

    return run


def fetching(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 14.
    """
    sizes = server.site.mail.sizes
    server.remakeFetched()
    first = sizes.fetched - sizes.messages + 1
    steps = [*LOGIN, f"list\t{sizes.fetched}\tUIDL", f"retr\t{first}\t{sizes.messages}\t1"]
    steps += ["say\t+OK\tDELE 1", "say\t+OK\tDELE 2", "quit"]
    users = sizes.users
    (span,) = bench.run(server, ("del", users), steps, slots=users, sessions=users, seconds=NO_END)
    for number in range(users):
        left = server.left(f"del{number}")
        if left != sizes.fetched - 2:
            raise Failed(f"wrong bytes: {left} messages are left of {sizes.fetched}")
    return [
        Measure(
            "",
            span,
            [
                Figure("server CPU ms per session", span.server / span.sessions * 1e3),
                Figure("sessions/s", span.sessions / span.wall, lowerIsBetter=False),
            ],
        )
    ]


def idle(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 15.
    """
    count = server.site.mail.sizes.idle
    server.restart()
    bench.run(server, ("user", SLOTS), [*LOGIN, STAT, "quit"], tls="full")
    before = server.group.memory()
    # Log in a few at a time, because this row is about memory, and not about many logins at the
    # same time.
    steps = ["ramp\t10", *LOGIN, STAT, "barrier", "quit"]
    span = bench.run(server, ("idle", count), steps, tls="full", slots=count)[0]
    return [Measure("", span, [Figure("KiB each", (span.memory - before) / count / 1024)])]


def _calls(bench: Bench, server: Server, label: str, before: list[str], work: list[str]) -> Measure:
    """
    Count the system calls of one piece of work.  The calls of L{CALLS} pieces are subtracted from
    the calls of twice as many pieces, and the difference is divided by L{CALLS}.  Therefore the
    calls of the steps C{before} do not count.

    @param before: the steps before the work.  Without such steps, each piece of work is a session
        of its own.
    """
    found = []
    for count in (CALLS, 2 * CALLS):
        steps, sessions = work, count
        if before:
            steps = [*before, *work, f"again\t{len(work)}\t{count - 1}", "quit"]
            sessions = 1
        with counting(server.group, server.home / "calls") as counted:
            (span,) = bench.run(
                server, ("user", 1), steps, slots=1, sessions=sessions, seconds=NO_END
            )
        found.append(counted)
    value = (found[1].total - found[0].total) / CALLS
    return Measure(label, span, [Figure("system calls", value)])


def systemCalls(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 16.
    """
    if whyNoStrace():
        return []
    bench.run(server, ("user", 1), [*LOGIN, STAT, "quit"])
    uidl = f"list\t{server.site.mail.sizes.messages}\tUIDL"
    poll = ["say\t+OK\tSLEE", "say\t+OK\tWAKE", uidl]
    found = [_calls(bench, server, "a short session", [], [*LOGIN, STAT, "quit"])]
    if server.sleeps:
        found.append(_calls(bench, server, "SLEE, WAKE, UIDL", [*LOGIN, uidl], poll))
    found.append(_calls(bench, server, "RETR of 4 KiB", [*LOGIN, STAT], ["retr\t1\t1\t1"]))
    return found


def stalls(bench: Bench, server: Server) -> list[Measure]:
    """
    Measure row 17.
    """
    if not server.standsCrowds:
        return []
    sizes = server.site.mail.sizes
    seconds = 3 * bench.seconds
    idle = [f"idle{number}" for number in range(min(100, sizes.idle))]

    def logIn(user: str, count: int, *more: str) -> None:
        server.forget(user)
        steps = [*LOGIN, *more, f"list\t{count}\tUIDL", "quit"]
        bench.run(server, (user, 0), steps, sessions=3, seconds=NO_END, isAlone=False)

    def download() -> None:
        steps = [*LOGIN, STAT, "barrier", "retr\t1\t1\t1", "quit"]
        users, pack = ("down", sizes.downloads), "medium"
        run = partial(bench.run, slots=users[1], pack=pack, seconds=NO_END, isAlone=False)
        run(server, users, steps)

    server.site.mail.lend(server.mail)
    try:
        found = []
        for label, disturb in (
            ("nobody else", lambda: None),
            (f"logins to {sizes.huge:,} messages", lambda: logIn("huge", sizes.huge, STAT)),
            # These clients send no STAT, because a server needs half a minute to read a million
            # messages.
            (f"logins to {sizes.million:,} messages", lambda: logIn("million", sizes.million)),
            (f"{sizes.downloads} downloads", download),
            (f"{len(idle)} clients pipeline", lambda: pipeline(server.plain, idle, seconds)),
            ("passwords are guessed", lambda: guess(server.plain, seconds)),
        ):
            try:
                times, span = probed(server, seconds, disturb)
            except Failed as error:
                if not server.isPeer:
                    raise
                # Go on, because some servers cannot open so many messages in time.
                print(f"row 17, {server.title}, {label}: {error}", file=sys.stderr, flush=True)
                server.restart()
                continue
            figures = [Figure("ms at 99.9 %", times.late), Figure("ms at worst", times.worst)]
            found.append(Measure(label, span, figures))
        return found
    finally:
        server.site.mail.takeBack(server.mail)
        # Start the server again, because it may have banned the addresses of the clients.
        server.restart()


ROWS = [
    Row(1, "short session (USER PASS STAT QUIT), 32 at once", shortSession),
    Row(2, "the same over TLS", shortSessionTLS),
    Row(3, "a poll by reconnecting over TLS (UIDL of 20)", pollByReconnecting),
    Row(4, "a poll by SLEE, WAKE, UIDL", pollByWaking),
    Row(5, "RETR of 4 KiB, 20 ahead", pipelined),
    Row(6, "RETR of 4 KiB, one at a time", oneAtATime),
    Row(7, "RETR of 50 MB, CRLF", _big("crlf", "crlf", "no")),
    Row(8, "RETR of 50 MB, LF", _big("lf", "crlf", "no")),
    Row(9, "RETR of 50 MB, 1 line in 20 with a dot", _big("dots", "dots", "no")),
    Row(10, "RETR of 50 MB, CRLF, over TLS", _big("crlf", "crlf", "full")),
    Row(11, "100,000 messages: STAT LIST UIDL, warm", hugeWarm),
    Row(12, "the same, first time", _hugeFirst("huge")),
    Row(13, "the same, S= and W= in names (sizes=names)", _hugeFirst("sized")),
    Row(14, "64 clients: UIDL, 20 RETR of 200, 2 DELE", fetching),
    Row(15, "idle connection over TLS, logged in", idle),
    Row(17, "a NOOP every 10 ms", stalls),
    Row(16, "system calls, counted by strace", systemCalls, whyNoStrace),
]
