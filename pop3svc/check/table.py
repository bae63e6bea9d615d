"""
The table of rules: declare a rule, and run the rules.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectError

from pop3svc.check.client import Broken
from pop3svc.check.target import CannotLogIn, NotApplicable, Target

__all__ = ["Given", "Level", "Outcome", "Result", "Rule", "check", "inOrder", "rule"]

# The groups in the order in which they run. The rules that delete messages run after the other
# rules. The rules that examine the replies of all other rules run last.
_GROUPS = (
    "greeting",
    "command lines",
    "states",
    "arguments",
    "NOOP, RSET, QUIT",
    "STAT and LIST",
    "RETR",
    "TOP",
    "UIDL",
    "CAPA",
    "PIPELINING",
    "UTF8 and LANG",
    "login",
    "SASL",
    "TLS",
    "extensions",
    "deletion",
    "replies",
)

# The time limit of a rule, as a multiple of the time limit of an answer.
_WAITS = 12

Body = Callable[..., Awaitable[str | None]]


class Given(Enum):
    """
    The arguments of the body of a rule: the target, or the target and a client.

    @cvar NOTHING: the target.
    @cvar LOGINS: the target; the rule is skipped if the login fails.
    @cvar FRESH: the target and a client that has read the greeting.
    @cvar SHARED: the target and a client that is logged in, which other rules also use; the rule is
        skipped if the login fails.
    """

    NOTHING = "nothing"
    LOGINS = "logins"
    FRESH = "fresh"
    SHARED = "shared"


class Level(Enum):
    """
    The requirement level of a rule.  RFC 1939 seldom says MUST.  If this RFC describes a behaviour
    and gives the server no choice, the level is MUST.
    """

    MUST = "must"
    SHOULD = "should"
    INFORMATION = "information"


class Outcome(Enum):
    """
    The outcome of a rule.
    """

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    SKIPPED = "skipped"
    NOTED = "noted"


@dataclass(frozen=True)
class Rule:
    """
    A requirement on POP3 servers, with its test.

    @ivar name: the name of the body.
    @ivar reference: the RFC and the section with the requirement.
    @ivar given: the arguments of the body.
    @ivar needs: the capabilities that the server must announce; otherwise the rule does not apply.
    @ivar destructive: whether the rule deletes messages.
    @ivar sentence: the requirement, as a sentence.
    @ivar body: the function that tests the server.
    """

    name: str
    group: str
    reference: str
    level: Level
    given: Given
    needs: tuple[str, ...]
    destructive: bool
    sentence: str
    body: Body


@dataclass(frozen=True)
class Result:
    """
    The result of a rule.

    @ivar seen: the server's behaviour, or the reason why the rule did not run; it may be empty.
    """

    rule: Rule
    outcome: Outcome
    seen: str = ""


_RULES: dict[str, Rule] = {}


def inOrder() -> list[Rule]:
    """
    @return: the declared rules, in the order in which they run.
    """
    return sorted(_RULES.values(), key=lambda rule: _GROUPS.index(rule.group))


def rule(
    group: str,
    reference: str,
    *needs: str,
    given: Given = Given.SHARED,
    level: Level = Level.MUST,
    destructive: bool = False,
) -> Callable[[Body], Body]:
    """
    Declare the decorated function as the body of a rule.  Its docstring is the sentence of the
    rule.  The body may return a remark.  If the server breaks the rule, the body raises L{Broken}
    with the server's behaviour.  If the rule does not apply, the body raises L{NotApplicable}.

    @param needs: the capabilities that the server must announce; otherwise the rule does not apply.
    @raise ValueError: the table already has a rule with this name, or has no group with this name.
    """

    def declare(body: Body) -> Body:
        name = getattr(body, "__name__", "")
        if name in _RULES or group not in _GROUPS:
            raise ValueError(f"{name} is declared already, or there is no group {group}")
        sentence = " ".join((body.__doc__ or "").split())
        _RULES[name] = Rule(
            name, group, reference, level, given, needs, destructive, sentence, body
        )
        return body

    return declare


async def _runBody(rule: Rule, target: Target) -> str | None:
    if rule.given in (Given.NOTHING, Given.LOGINS):
        return await rule.body(target)
    client = await (target.fresh() if rule.given is Given.FRESH else target.shared())
    return await rule.body(target, client)


async def _result(rule: Rule, target: Target) -> Result:
    limit = _WAITS * target.timeout

    async def run() -> str | None:
        return await _runBody(rule, target)

    running: Deferred[Any] = Deferred.fromCoroutine(run())
    running.addTimeout(limit, target.reactor)
    outcome = Outcome.PASSED
    try:
        seen = await running or ""
    except NotApplicable as error:
        return Result(rule, Outcome.NOT_APPLICABLE, str(error))
    except (Broken, CannotLogIn) as error:
        seen, outcome = str(error), Outcome.FAILED
    except (CancelledError, TimeoutError):
        seen, outcome = f"the rule takes more than {limit:g} seconds", Outcome.FAILED
    except (OSError, ConnectError) as error:
        seen, outcome = f"no connection: {error}", Outcome.FAILED
    except Exception as error:
        # Catch every exception, because a server may send anything, and one rule must not end the
        # run.
        seen, outcome = f"the answer cannot be parsed: {error!r}", Outcome.FAILED
    return Result(rule, Outcome.NOTED if rule.level is Level.INFORMATION else outcome, seen)


def _notRun(rule: Rule, target: Target, destructive: bool) -> Result | None:
    """
    @return: the result of a rule that cannot run; L{None} if the rule can run.
    """
    if rule.destructive and not destructive:
        return Result(rule, Outcome.SKIPPED, "the rule deletes messages")
    if target.greetingError is not None and rule.group != "greeting":
        return Result(rule, Outcome.SKIPPED, "the greeting cannot be used")
    if target.loginError is not None and rule.given in (Given.SHARED, Given.LOGINS):
        return Result(rule, Outcome.SKIPPED, "the login fails")
    for tag in rule.needs:
        if not target.has(tag):
            return Result(rule, Outcome.NOT_APPLICABLE, f"{tag} is not announced")
    return None


async def check(
    target: Target,
    destructive: bool = False,
    only: Collection[str] = (),
    report: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
    """
    Run the rules on a target.  Call L{Target.begin} before this function.

    @param destructive: whether to run the rules that delete messages.
    @param only: the names of the rules to run; all rules if empty.
    """
    results = []
    for each in inOrder():
        if only and each.name not in only:
            continue
        result = _notRun(each, target, destructive)
        if result is None:
            result = await _result(each, target)
            isClean = result.outcome in (Outcome.PASSED, Outcome.NOT_APPLICABLE)
            if not isClean or each.destructive:
                # End the session, because unread replies would confuse the next rule.
                await target.release()
            await target.closeOthers()
        results.append(result)
        report(result)
    await target.release()
    return results
