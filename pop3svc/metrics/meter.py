"""
Count the work of the sessions of a process.

A service without metrics has no meter, and nothing is counted.  With a meter the table of commands,
the counters of a session and its calls to the provider are replaced by ones that also count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface.interface import InterfaceClass, Method

from pop3svc import interfaces
from pop3svc.awaiting import ensureStarted, isAwaitable
from pop3svc.errors import POP3ResponseError
from pop3svc.metrics.declarations import BY_NAME, CALL_BUCKETS, Numbers, key
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.remarks import HELD, remarkHeld
from pop3svc.protocol.replies import Reply

__all__ = ["Histogram", "Meter"]

Run = Callable[..., "Reply | Awaitable[Reply]"]

# The methods of providers, of mailboxes and of their optional interfaces.  Only these are labels,
# so that the labels have a bounded set of values.  The throttle delays answers on purpose.
_CALLS = frozenset(
    name
    for interface in vars(interfaces).values()
    if isinstance(interface, InterfaceClass) and interface is not interfaces.ILoginThrottle
    for name, attribute in interface.namesAndDescriptions(all=True)
    if isinstance(attribute, Method)
) - frozenset(interfaces.ILoginThrottle.names(all=True))


class Histogram:
    """
    Counts observations by their size.

    @ivar counts: the number of observations in each bucket, and above the last one.
    @ivar total: the sum of the observations.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, name: str) -> None:
        """
        @param name: of a metric.
        """
        self._bounds = BY_NAME[name].buckets
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """
        Count an observation.
        """
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def numbers(self) -> list[float]:
        """
        @return: the value in L{Numbers}.
        """
        return [*self.counts, self.total]


class _CallHistogram(Histogram):
    """
    Counts the calls of one method.

    @ivar faults: how many have failed.
    """

    __slots__ = ("faults",)

    def __init__(self) -> None:
        super().__init__("pop3svc_provider_call_seconds")
        self.faults = 0


class _Record(SessionRecord):
    """
    The counters of a session, which are added to those of the process at its end.
    """

    __slots__ = ()
    meter: Meter

    def tell(self, info: Any, tls: str | None, now: float, reason: str) -> None:
        meter = self.meter
        meter.ended(self)
        if meter.hear is not None and self.user is not None:
            meter.hear("end", info, self.user, reason)
        super().tell(info, tls, now, reason)


class _Calls(ProviderCalls):
    """
    Calls to the provider, whose time is measured.
    """

    __slots__ = ()
    meter: Meter

    def start(self, call: Callable[..., Any], *arguments: Any) -> Any:
        # Repeats the method of the base class, and calls no other method of its own, because this
        # runs some ten times in the shortest session.
        histogram = self.meter.calls.get(getattr(call, "__name__", ""))
        if histogram is None:
            return super().start(call, *arguments)
        seconds = self._seconds
        began = seconds()
        try:
            answer = call(*arguments)
            if isAwaitable(answer):
                answer = ensureStarted(answer)
                if isinstance(answer, Deferred):
                    return answer.addBoth(self._answered, histogram, began)
        except Exception as error:
            histogram.observe(seconds() - began)
            histogram.faults += _isFault(error)
            raise
        finally:
            took = seconds() - began
            if took > HELD:
                remarkHeld(call, took)
        histogram.counts[bisect_left(CALL_BUCKETS, took)] += 1
        histogram.total += took
        return answer

    def _answered(self, answer: Any, histogram: _CallHistogram, began: float) -> Any:
        histogram.observe(self._seconds() - began)
        if isinstance(answer, Failure):
            error = answer.value
            # A call that is cancelled while the client is there has reached its time limit.
            isFault = not self.isOver if isinstance(error, CancelledError) else _isFault(error)
            histogram.faults += isFault
        return answer


def _isFault(error: BaseException | None) -> bool:
    """
    @return: whether a call failed.  L{NotImplementedError} says that there is no such feature, and
        most errors of L{POP3ResponseError} are answers.
    """
    if isinstance(error, POP3ResponseError):
        return error.code == "SYS/TEMP"
    return not isinstance(error, NotImplementedError)


class _Exchange:
    """
    An unfinished AUTH, whose result is counted.
    """

    def __init__(self, command: Any, respond: Callable[[bytes], Awaitable[Reply]]) -> None:
        self.command = command
        self.respond = respond


# The results of logins, by the code of the reply (RFC 2449 section 8, RFC 3206).
_RESULTS = {"AUTH": "refused", "IN-USE": "busy", "LOGIN-DELAY": "busy", "SYS/TEMP": "fault"}


class Meter:
    """
    Counts what the sessions of a process do.

    @ivar clock: measures the times.
    @ivar accepted: how many connections have begun.
    @ivar refused: how many were refused at a limit; C{foreign}: how many because of their network.
    @ivar makeRecord: makes the counters of a session.
    @ivar makeCalls: makes what calls the provider for a session.
    @ivar calls: the calls of each method.
    @ivar hear: called with a word, the L{pop3svc.interfaces.IPOP3ConnectionInfo}, the user and a
        detail when a session has logged in (C{login}, the mechanism), was refused (C{refused}, the
        mechanism; without the user), has fallen asleep (C{sleep}), has woken up (C{wake}, the code
        of the reply), or has ended (C{end}, the reason); L{None} if nobody listens.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.hear: Callable[[str, Any, str | None, str], object] | None = None
        self._seconds = clock.seconds
        self.accepted = self.refused = self.foreign = 0
        # Sums of the sessions that have ended.
        self.messages = self.messageOctets = self.deleted = self.octets = 0
        self._commands: dict[str, Histogram] = {}
        self.calls = {name: _CallHistogram() for name in _CALLS}
        self._logins: Counter[tuple[str, str]] = Counter()
        self._wakes = Counter({"new": 0, "none": 0, "refused": 0})
        self._delay = Histogram("pop3svc_reactor_delay_seconds")
        # Classes with this meter, because an attribute of each session would cost memory and time.
        self.makeRecord = type("Record", (_Record,), {"__slots__": (), "meter": self})
        self.makeCalls = type("Calls", (_Calls,), {"__slots__": (), "meter": self})

    # --- what is replaced -------------------------------------------------------------

    def commands(self, commands: Mapping[str, Command]) -> dict[str, Command]:
        """
        @return: the same commands, which are counted.
        """
        return {
            verb: replace(each, run=self._run(verb, each.run)) for verb, each in commands.items()
        }

    def _run(self, verb: str, run: Run) -> Run:
        histogram = self._commands[verb] = Histogram("pop3svc_command_seconds")
        measured = self._measured(run, histogram)
        if verb in ("PASS", "APOP", "XLOG"):
            return self._login(verb, measured)
        if verb == "AUTH":
            return self._auth(measured, histogram)
        if verb == "WAKE":
            return self._wake(measured)
        if verb == "SLEE":
            return self._sleep(measured)
        return measured

    def _measured(self, run: Run, histogram: Histogram) -> Callable[..., Awaitable[Reply]]:
        # Local names and no call of observe(), because this runs once for each command.
        seconds, counts = self._seconds, histogram.counts

        @wraps(run)
        async def measured(*arguments: Any) -> Reply:
            began = seconds()
            try:
                answer = run(*arguments)
                return answer if isinstance(answer, Reply) else await answer
            finally:
                took = seconds() - began
                counts[bisect_left(CALL_BUCKETS, took)] += 1
                histogram.total += took

        return measured

    def _count(self, session: Any, mechanism: str, result: str) -> None:
        self._logins[mechanism, result] += 1
        if self.hear is None:
            return
        if result == "ok":
            self.hear("login", session.info, session.record.user, mechanism)
        elif result == "refused":
            self.hear("refused", session.info, None, mechanism)

    def _login(self, mechanism: str, run: Callable[..., Awaitable[Reply]]) -> Run:
        @wraps(run)
        async def login(session: Any, *arguments: Any) -> Reply:
            try:
                reply = await run(session, *arguments)
            except BaseException as error:
                self._count(session, mechanism, _result(error))
                raise
            self._count(session, mechanism, "ok" if reply.positive else "refused")
            return reply

        return login

    def _auth(self, run: Callable[..., Awaitable[Reply]], histogram: Histogram) -> Run:
        @wraps(run)
        async def auth(session: Any, name: str | None, initial: bytes | None) -> Reply:
            if name is None:
                return await run(session, name, initial)
            known = name if name in session.mechanisms else "unknown"
            return await self._step(session, known, histogram, run, session, name, initial)

        return auth

    async def _step(
        self,
        session: Any,
        mechanism: str,
        histogram: Histogram,
        run: Callable[..., Awaitable[Reply]],
        *arguments: Any,
    ) -> Reply:
        """
        Run a step of AUTH, and count the login if this is the last step.
        """
        try:
            reply = await run(*arguments)
        except BaseException as error:
            self._count(session, mechanism, _result(error))
            raise
        exchange = session.exchange
        if not reply.isChallenge or exchange is None:
            result = "ok" if reply.positive else _RESULTS.get(reply.code or "", "busy")
            self._count(session, mechanism, result)
            return reply
        measured = self._measured(exchange.respond, histogram)
        session.exchange = _Exchange(
            exchange.command,
            lambda line: self._step(session, mechanism, histogram, measured, line),
        )
        return reply

    def _wake(self, run: Callable[..., Awaitable[Reply]]) -> Run:
        wakes = self._wakes

        @wraps(run)
        async def wake(session: Any) -> Reply:
            try:
                reply = await run(session)
            except BaseException:
                wakes["refused"] += 1
                raise
            wakes["new" if reply.code == "ACTIVITY/NEW" else "none"] += 1
            if self.hear is not None:
                self.hear("wake", session.info, session.record.user, reply.code or "")
            return reply

        return wake

    def _sleep(self, run: Callable[..., Awaitable[Reply]]) -> Run:
        @wraps(run)
        async def sleep(session: Any) -> Reply:
            reply = await run(session)
            if self.hear is not None:
                self.hear("sleep", session.info, session.record.user, "")
            return reply

        return sleep

    # --- counting ---------------------------------------------------------------------

    def ended(self, record: SessionRecord) -> None:
        """
        Count the work of a session that has ended, or of a login after its logout.
        """
        self.messages += record.messagesSent
        self.messageOctets += record.messageOctets
        self.deleted += record.messagesDeleted
        self.octets += record.octetsSent

    def timer(self, clock: IReactorTime) -> TimerService:
        """
        @return: a service that measures how late a timer of each second is.
        """
        last: list[float] = []

        def look() -> None:
            now = clock.seconds()
            if last:
                self._delay.observe(max(0.0, now - last.pop() - 1))
            last.append(now)

        service = TimerService(1, look)
        service.clock = clock
        return service

    def numbers(self) -> Numbers:
        """
        @return: the numbers of this meter, without those of the sessions that go on.
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
        for verb, histogram in self._commands.items():
            found[key("pop3svc_command_seconds", verb)] = histogram.numbers()
        for name, calls in self.calls.items():
            if any(calls.counts):
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
