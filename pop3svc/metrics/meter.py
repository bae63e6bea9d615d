"""
Count the work of the sessions of a process.

A service without metrics has no meter, and counts nothing.  With a meter, the service replaces
three objects: the table of commands, the counters of a session, and the object that calls the
provider for a session.  The replacements also count.

A busy service must spend only a few percent of its time on metrics.  Therefore the times of
frequent commands are samples (L{CommandHistogram}), and the time of a call is measured only if the
call does not return at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import wraps
from types import CoroutineType
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface.interface import InterfaceClass, Method

from pop3svc import interfaces
from pop3svc.awaiting import ensureStarted, startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.metrics.declarations import BY_NAME, Numbers, key
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.remarks import HELD, remarkHeld
from pop3svc.protocol.replies import Reply

__all__ = ["Histogram", "Meter"]

Run = Callable[..., "Reply | Awaitable[Reply]"]

# The seconds within which a call returns if it only reads memory or opens a file.  A call that
# takes longer has not returned at once.
_QUICK = 0.001
# If a command runs more often than this in a second, only one of L{_SAMPLED} runs is measured.  A
# measurement takes some two microseconds.
_OFTEN = 200
# A prime number, because clients send commands in repeated patterns.  With another number, each
# measured run of a command could have the same place in the pattern.
_SAMPLED = 11

# The methods of providers, of mailboxes and of their optional interfaces.  Only the names of these
# methods are labels, so that the set of labels is bounded.  The methods of the throttle are
# missing, because the throttle delays answers on purpose.
_CALLS = frozenset(
    name
    for interface in vars(interfaces).values()
    if isinstance(interface, InterfaceClass) and interface is not interfaces.ILoginThrottle
    for name, attribute in interface.namesAndDescriptions(all=True)
    if isinstance(attribute, Method)
) - frozenset(interfaces.ILoginThrottle.names(all=True))


class Histogram:
    """
    Counts observed values in buckets, by their size.

    @ivar counts: the number of values in each bucket, and the number of values above the last
        bucket.
    @ivar total: the sum of the values.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, name: str) -> None:
        """
        @param name: the name of the metric.
        """
        self._bounds = BY_NAME[name].buckets
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """
        Count a value.

        @param count: how many times to count the value.
        """
        self.counts[bisect_left(self._bounds, seconds)] += count
        self.total += seconds * count

    def numbers(self) -> list[float]:
        """
        @return: the value of this histogram in L{Numbers}.
        """
        return [*self.counts, self.total]


class CommandHistogram(Histogram):
    """
    Counts the runs of a command by the time that they take.  If a command runs often, the meter
    measures only one of L{_SAMPLED} runs, and counts the measured time L{_SAMPLED} times.

    @ivar step: 1 to measure each run, or L{_SAMPLED} to measure one of L{_SAMPLED} runs.
    """

    __slots__ = ("_before", "step")

    def __init__(self) -> None:
        super().__init__("pop3svc_command_seconds")
        self.step = 1
        self._before = 0

    def adapt(self) -> None:
        """
        Choose L{step}.  Call this once a second.
        """
        count = sum(self.counts)
        self.step = _SAMPLED if count - self._before > _OFTEN else 1
        self._before = count


class _CallHistogram(Histogram):
    """
    Counts the calls of one method by the time that they take.

    @ivar faults: the number of calls that have failed.
    """

    __slots__ = ("faults",)

    def __init__(self) -> None:
        super().__init__("pop3svc_provider_call_seconds")
        self.faults = 0


class _Record(SessionRecord):
    """
    The counters of a session.  At the end of the session, and at each QAUT, its counters are added
    to the counters of the process.
    """

    __slots__ = ()
    meter: Meter

    def tell(self, info: Any, tls: str | None, now: float, reason: str) -> None:
        meter = self.meter
        meter.messages += self.messagesSent
        meter.messageOctets += self.messageOctets
        meter.deleted += self.messagesDeleted
        meter.octets += self.octetsSent
        if meter.hear is not None and self.user is not None:
            meter.hear("end", info, self.user, reason)
        super().tell(info, tls, now, reason)


class _Calls(ProviderCalls):
    """
    Makes calls to the provider, and measures the time of each call that does not return at once.
    """

    __slots__ = ()
    meter: Meter

    def start(self, call: Callable[..., Any], *arguments: Any) -> Any:
        # This method repeats the code of the base class instead of calling it, and reads the clock
        # no more often than the base class does.  The reason is that this method runs some ten
        # times even in the shortest session.
        seconds = self._seconds
        late = seconds() + _QUICK
        try:
            answer = call(*arguments)
            if hasattr(answer, "__await__"):
                return self._awaited(call, ensureStarted(answer), late - _QUICK)
        except Exception as error:
            self._count(call, late - _QUICK, error)
            raise
        if seconds() > late:
            self._count(call, late - _QUICK)
        return answer

    def _awaited(self, call: Callable[..., Any], answer: Any, began: float) -> Any:
        if isinstance(answer, Deferred):
            took = self._seconds() - began
            if took > HELD:
                remarkHeld(call, took)
            return answer.addBoth(self._answered, call, began)
        self._count(call, began)
        return answer

    def _count(
        self, call: Callable[..., Any], began: float, error: BaseException | None = None
    ) -> None:
        """
        Count a call that has ended without a Deferred.
        """
        took = self._seconds() - began
        if took > HELD:
            remarkHeld(call, took)
        histogram = self._histogram(call)
        if histogram is not None:
            histogram.faults += error is not None and _isFault(error)
            if took > _QUICK:
                histogram.observe(took)

    def _histogram(self, call: Callable[..., Any]) -> _CallHistogram | None:
        return self.meter.calls.get(getattr(call, "__name__", ""))

    def _answered(self, answer: Any, call: Callable[..., Any], began: float) -> Any:
        histogram = self._histogram(call)
        if histogram is None:
            return answer
        histogram.observe(self._seconds() - began)
        if isinstance(answer, Failure):
            error = answer.value
            # If a call is cancelled while the client is still connected, the call has reached its
            # time limit.
            isFault = not self.isOver if isinstance(error, CancelledError) else _isFault(error)
            histogram.faults += isFault
        return answer


def _measured(run: Run, seconds: Callable[[], float], histogram: Histogram, count: int = 1) -> Run:
    """
    @param count: the number of runs for which each measured run counts.
    @return: the body of a command.  The body adds the time of each run to the histogram.
    """

    @wraps(run)
    def measured(*arguments: Any) -> Reply | Awaitable[Reply]:
        began = seconds()
        try:
            answer = run(*arguments)
            if isinstance(answer, CoroutineType):
                answer = startNow(answer)
        except BaseException:
            histogram.observe(seconds() - began, count)
            raise
        if not isinstance(answer, Reply):
            return awaitMeasured(answer, began)
        histogram.observe(seconds() - began, count)
        return answer

    async def awaitMeasured(answer: Awaitable[Reply], began: float) -> Reply:
        try:
            return await answer
        finally:
            histogram.observe(seconds() - began, count)

    return measured


def _sampled(run: Run, seconds: Callable[[], float], histogram: CommandHistogram) -> Run:
    """
    @return: the body of a command.  The body adds the time of each run, or of some runs, to the
        histogram (see L{CommandHistogram}).
    """
    all = _measured(run, seconds, histogram)
    some = _measured(run, seconds, histogram, _SAMPLED)
    # "left" is the number of runs until the next measured run.  "step" says how many times the next
    # measured run counts.
    left = step = 1

    @wraps(run)
    def sampled(*arguments: Any) -> Reply | Awaitable[Reply]:
        # Keep this function short, because it runs once for each command.
        nonlocal left, step
        left -= 1
        if left:
            return run(*arguments)
        measured = all if step == 1 else some
        left = step = histogram.step
        return measured(*arguments)

    return sampled


def _isFault(error: BaseException | None) -> bool:
    """
    @return: whether an error is a failure of the provider.  L{NotImplementedError} is not a
        failure, because it means that a feature does not exist.  Most L{POP3ResponseError}s are
        normal answers.
    """
    if isinstance(error, POP3ResponseError):
        return error.code == "SYS/TEMP"
    return not isinstance(error, NotImplementedError)


class _Exchange:
    """
    The SASL exchange of an AUTH command that has not finished.  The meter counts its result.
    """

    def __init__(self, command: Any, respond: Callable[[bytes], Awaitable[Reply]]) -> None:
        self.command = command
        self.respond = respond


# The results of logins, by the response code of the reply (RFC 2449 section 8, RFC 3206).
_RESULTS = {"AUTH": "refused", "IN-USE": "busy", "LOGIN-DELAY": "busy", "SYS/TEMP": "fault"}


class Meter:
    """
    Counts the work of the sessions of a process.

    @ivar clock: measures the times.
    @ivar accepted: the number of connections that have begun.
    @ivar refused: the number of connections that were refused because of a limit.  C{foreign} is
        the number of connections that were refused because of their network.
    @ivar makeRecord: makes the counters of a session.
    @ivar makeCalls: makes the object that calls the provider for a session.
    @ivar histograms: the times of each command.  C{calls} has the times of each method.
    @ivar hear: a function that is called for each event of a session; L{None} if nobody listens.
        The arguments of the function are a word, the L{pop3svc.interfaces.IPOP3ConnectionInfo}, the
        user, and a detail.  The words C{login} and C{refused} report a login, and the detail is its
        mechanism.  For C{refused} the user is L{None}.  The other words are C{sleep}, C{wake} (the
        detail is the code of the reply) and C{end} (the detail is the reason).
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.hear: Callable[[str, Any, str | None, str], object] | None = None
        self._seconds = clock.seconds
        self.accepted = self.refused = self.foreign = 0
        # The sums of the counters that L{_Record} has added.
        self.messages = self.messageOctets = self.deleted = self.octets = 0
        self.histograms: dict[str, CommandHistogram] = {}
        self.calls = {name: _CallHistogram() for name in _CALLS}
        self._logins: Counter[tuple[str, str]] = Counter()
        self._wakes = Counter({"new": 0, "none": 0, "refused": 0})
        self._delay = Histogram("pop3svc_reactor_delay_seconds")
        # These classes refer to this meter, because an attribute in each session would cost memory
        # and time.
        self.makeRecord = type("Record", (_Record,), {"__slots__": (), "meter": self})
        self.makeCalls = type("Calls", (_Calls,), {"__slots__": (), "meter": self})

    # --- the replaced objects -------------------------------------------------------------

    def commands(self, commands: Mapping[str, Command]) -> dict[str, Command]:
        """
        @return: the same commands, with bodies that count their runs.
        """
        return {
            verb: replace(each, run=self._run(verb, each.run)) for verb, each in commands.items()
        }

    def _run(self, verb: str, run: Run) -> Run:
        histogram = self.histograms[verb] = CommandHistogram()
        if verb == "AUTH":
            return self._auth(_measured(run, self._seconds, histogram), histogram)
        sampled = _sampled(run, self._seconds, histogram)
        if verb in ("PASS", "APOP", "XLOG"):
            return self._login(verb, sampled)
        if verb == "WAKE":
            return self._wake(sampled)
        if verb == "SLEE":
            return self._sleep(sampled)
        return sampled

    def _count(self, session: Any, mechanism: str, result: str) -> None:
        self._logins[mechanism, result] += 1
        if self.hear is None:
            return
        if result == "ok":
            self.hear("login", session.info, session.record.user, mechanism)
        elif result == "refused":
            self.hear("refused", session.info, None, mechanism)

    def _login(self, mechanism: str, run: Run) -> Run:
        @wraps(run)
        def login(session: Any, *arguments: Any) -> Reply | Awaitable[Reply]:
            try:
                reply = run(session, *arguments)
                if isinstance(reply, CoroutineType):
                    reply = startNow(reply)
            except BaseException as error:
                self._count(session, mechanism, _result(error))
                raise
            if not isinstance(reply, Reply):
                return awaitLogin(session, reply)
            self._count(session, mechanism, "ok" if reply.positive else "refused")
            return reply

        async def awaitLogin(session: Any, answer: Awaitable[Reply]) -> Reply:
            try:
                reply = await answer
            except BaseException as error:
                self._count(session, mechanism, _result(error))
                raise
            self._count(session, mechanism, "ok" if reply.positive else "refused")
            return reply

        return login

    def _auth(self, run: Run, histogram: Histogram) -> Run:
        @wraps(run)
        def auth(session: Any, name: str | None, initial: bytes | None) -> Reply | Awaitable[Reply]:
            if name is None:
                return run(session, name, initial)
            known = name if name in session.mechanisms else "unknown"
            return self._step(session, known, histogram, run, session, name, initial)

        return auth

    async def _step(
        self,
        session: Any,
        mechanism: str,
        histogram: Histogram,
        run: Run,
        *arguments: Any,
    ) -> Reply:
        """
        Run one step of an AUTH command, and count the login if the step is the last one.
        """
        try:
            reply = run(*arguments)
            if not isinstance(reply, Reply):
                reply = await reply
        except BaseException as error:
            self._count(session, mechanism, _result(error))
            raise
        exchange = session.exchange
        if not reply.isChallenge or exchange is None:
            result = "ok" if reply.positive else _RESULTS.get(reply.code or "", "busy")
            self._count(session, mechanism, result)
            return reply
        measured = _measured(exchange.respond, self._seconds, histogram)
        session.exchange = _Exchange(
            exchange.command,
            lambda line: self._step(session, mechanism, histogram, measured, line),
        )
        return reply

    def _wake(self, run: Run) -> Run:
        wakes = self._wakes

        @wraps(run)
        def wake(session: Any) -> Reply | Awaitable[Reply]:
            try:
                reply = run(session)
                if isinstance(reply, CoroutineType):
                    reply = startNow(reply)
            except BaseException:
                wakes["refused"] += 1
                raise
            if not isinstance(reply, Reply):
                return awaitWake(session, reply)
            wakes["new" if reply.code == "ACTIVITY/NEW" else "none"] += 1
            if self.hear is not None:
                self.hear("wake", session.info, session.record.user, reply.code or "")
            return reply

        async def awaitWake(session: Any, answer: Awaitable[Reply]) -> Reply:
            try:
                reply = await answer
            except BaseException:
                wakes["refused"] += 1
                raise
            wakes["new" if reply.code == "ACTIVITY/NEW" else "none"] += 1
            if self.hear is not None:
                self.hear("wake", session.info, session.record.user, reply.code or "")
            return reply

        return wake

    def _sleep(self, run: Run) -> Run:
        @wraps(run)
        def sleep(session: Any) -> Reply | Awaitable[Reply]:
            return run(session) if self.hear is None else tell(session)

        async def tell(session: Any) -> Reply:
            reply = run(session)
            if not isinstance(reply, Reply):
                reply = await reply
            if self.hear is not None:
                self.hear("sleep", session.info, session.record.user, "")
            return reply

        return sleep

    # --- counting ---------------------------------------------------------------------

    def timer(self, clock: IReactorTime) -> TimerService:
        """
        @return: a service that runs each second.  It records how late it runs.  For each command,
            it also decides whether the meter measures each run or only one of several; see
            L{CommandHistogram}.
        """
        last: list[float] = []

        def look() -> None:
            now = clock.seconds()
            if last:
                self._delay.observe(max(0.0, now - last.pop() - 1))
            last.append(now)
            for each in self.histograms.values():
                each.adapt()

        service = TimerService(1, look)
        service.clock = clock
        return service

    def numbers(self) -> Numbers:
        """
        @return: the numbers of this meter, without those of the present sessions.
        """
        found: Numbers = {
            key("pop3svc_connections_total"): self.accepted,
            key("pop3svc_connections_refused_total", "limit"): self.refused,
            key("pop3svc_connections_refused_total", "network"): self.foreign,
            key("pop3svc_messages_sent_total"): self.messages,
            key("pop3svc_message_octets_total"): self.messageOctets,
            key("pop3svc_messages_deleted_total"): self.deleted,
            key("pop3svc_octets_sent_total"): self.octets,
            key("pop3svc_reactor_delay_seconds"): self._delay.numbers(),
        }
        for verb, histogram in self.histograms.items():
            found[key("pop3svc_command_seconds", verb)] = histogram.numbers()
        for name, calls in self.calls.items():
            if calls.faults or any(calls.counts):
                found[key("pop3svc_provider_call_seconds", name)] = calls.numbers()
                found[key("pop3svc_provider_faults_total", name)] = calls.faults
        for (mechanism, result), count in self._logins.items():
            found[key("pop3svc_logins_total", mechanism, result)] = count
        for activity, count in self._wakes.items():
            found[key("pop3svc_wakes_total", activity)] = count
        return found


def _result(error: BaseException) -> str:
    """
    @return: the result of a login that has raised an error.
    """
    if isinstance(error, CancelledError | GeneratorExit):
        return "abandoned"
    if isinstance(error, POP3ResponseError):
        return _RESULTS.get(error.code or "", "refused")
    return "fault"
