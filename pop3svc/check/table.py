"""
The table of rules: how one is declared, and how they are run.
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

# The groups in the order they are run: destructive ones late, and last those
# about the replies of all others.
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

# A rule may take as many waits as this.
_WAITS = 12

Body = Callable[..., Awaitable[str | None]]


class Given(Enum):
    """
    What the body of a rule is given: the target, and a client that...
    """

    NOTHING = "is not there"
    LOGINS = "is not there, but logins work"
    FRESH = "was greeted, and nothing else"
    SHARED = "is logged in, and shared with other rules"


class Level(Enum):
    """
    How strongly a rule is meant.  RFC 1939 seldom says MUST; what it describes
    in plain words without a choice counts as one.
    """

    MUST = "must"
    SHOULD = "should"
    INFORMATION = "information"


class Outcome(Enum):
    """
    How a rule came out.
    """

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    SKIPPED = "skipped"
    NOTED = "noted"


@dataclass(frozen=True)
class Rule:
    """
    One thing that holds for a POP3 server.

    @ivar name: the name of its body.
    @ivar reference: where it is written.
    @ivar needs: the capabilities without which it does not apply.
    @ivar destructive: does it delete messages?
    @ivar sentence: what holds.
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
    @ivar seen: what was seen, or why nothing was looked at; may be empty.
    """

    rule: Rule
    outcome: Outcome
    seen: str = ""


_RULES: dict[str, Rule] = {}


def inOrder() -> list[Rule]:
    """
    @return: the rules that were declared, in the order they are run.
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
    Declare a rule: everything about it above its body, which raises L{Broken}
    with what was seen, or L{NotApplicable}, and may return a remark.

    @param needs: see L{Rule}.
    @raise ValueError: there is a rule of that name, or no such group.
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


async def _ran(rule: Rule, target: Target) -> str | None:
    if rule.given in (Given.NOTHING, Given.LOGINS):
        return await rule.body(target)
    client = await (target.fresh() if rule.given is Given.FRESH else target.shared())
    return await rule.body(target, client)


async def _result(rule: Rule, target: Target) -> Result:
    limit = _WAITS * target.timeout

    async def run() -> str | None:
        return await _ran(rule, target)

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
        seen, outcome = f"it takes more than {limit:g} seconds", Outcome.FAILED
    except (OSError, ConnectError) as error:
        seen, outcome = f"no connection: {error}", Outcome.FAILED
    except Exception as error:
        # What a server may say has no end; one rule must not end all.
        seen, outcome = f"what came cannot be read: {error!r}", Outcome.FAILED
    return Result(rule, Outcome.NOTED if rule.level is Level.INFORMATION else outcome, seen)


def _whyNot(rule: Rule, target: Target, destructive: bool) -> Result | None:
    """
    Why a rule is not run, if it is not.
    """
    if rule.destructive and not destructive:
        return Result(rule, Outcome.SKIPPED, "it deletes messages")
    if target.noGreeting is not None and rule.group != "greeting":
        return Result(rule, Outcome.SKIPPED, "no session begins")
    if target.noLogin is not None and rule.given in (Given.SHARED, Given.LOGINS):
        return Result(rule, Outcome.SKIPPED, "nobody can log in")
    for tag in rule.needs:
        if not target.has(tag):
            return Result(rule, Outcome.NOT_APPLICABLE, f"{tag} is not announced")
    return None


async def check(
    target: Target,
    destructive: bool = False,
    only: Collection[str] = (),
    told: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
    """
    Run the rules on a target that has begun.

    @param destructive: also those that delete messages?
    @param only: the names of the rules to run; all if empty.
    @param told: called with each result as it comes.
    """
    results = []
    for each in inOrder():
        if only and each.name not in only:
            continue
        result = _whyNot(each, target, destructive)
        if result is None:
            result = await _result(each, target)
            isClean = result.outcome in (Outcome.PASSED, Outcome.NOT_APPLICABLE)
            if not isClean or each.destructive:
                # Whatever is left of the exchange is no other rule's matter.
                await target.release()
            await target.closeOthers()
        results.append(result)
        told(result)
    await target.release()
    return results
