"""
Show the results of a run as text or as JSON, and the rules as a table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from pop3svc.check.table import Level, Outcome, Result, inOrder

__all__ = ["asJSON", "asLine", "asTable", "summary"]


def asLine(result: Result) -> str:
    """
    @return: one line; two lines for a failed rule.
    """
    rule = result.rule
    seen = f": {result.seen}" if result.seen else ""
    if result.outcome is not Outcome.FAILED:
        return f"{result.outcome.value:14} {rule.name}{seen}"
    return (
        f"{'FAILED':14} {rule.name} ({rule.reference}, {rule.level.value}): {rule.sentence}\n"
        f"{'':14} {result.seen}"
    )


def summary(results: Sequence[Result]) -> str:
    """
    @return: the number of rules for each outcome, in one line.
    """
    counted = Counter(result.outcome for result in results)
    parts = [f"{counted[outcome]} {outcome.value}" for outcome in Outcome if counted[outcome]]
    return f"{len(results)} rules: {', '.join(parts)}"


def asJSON(about: dict[str, object], results: Iterable[Result]) -> str:
    """
    @param about: the name of the server and other facts about the run.
    @return: a JSON object with the items of C{about}, and with C{results}, a list that has an
        object for each rule.
    """
    listed = [
        {
            "rule": result.rule.name,
            "group": result.rule.group,
            "reference": result.rule.reference,
            "level": result.rule.level.value,
            "destructive": result.rule.destructive,
            "sentence": result.rule.sentence,
            "outcome": result.outcome.value,
            "seen": result.seen,
        }
        for result in results
    ]
    return json.dumps({**about, "results": listed}, indent=2)


def asTable() -> str:
    """
    @return: all rules as a list-table of reStructuredText.
    """
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - rule",
        "     - requirement",
        "     - reference",
        "     - level",
    ]
    group = ""
    for rule in inOrder():
        if rule.group != group:
            group = rule.group
            lines += [f"   * - **{group}**", "     -", "     -", "     -"]
        level = "" if rule.level is Level.INFORMATION else rule.level.value
        lines += [
            f"   * - ``{rule.name}``",
            f"     - {rule.sentence}",
            f"     - {rule.reference}",
            f"     - {level}",
        ]
    return "\n".join(lines)
