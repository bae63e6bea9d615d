"""
A server without faults passes the rules, and each mutant fails its rules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pop3svc.check.table import Level, inOrder
from pop3svc.check.target import plainResponse
from tests.check.mutants import INNOCENT, MUTANTS, OTHERWISE, PASSWORD, USER

Outcomes = dict[str, list[str]]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcomes]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.check.mutants", "--quiet"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        timeout=500,
    )
    assert ended.returncode == 0
    found: dict[str, Outcomes] = json.loads(ended.stdout)
    return found


def test_theWholeServerPasses(outcomes: dict[str, Outcomes]) -> None:
    """
    The server without faults passes all rules that apply to it.  The other rules pass with another
    server without faults.
    """
    found = outcomes["whole"]
    assert list(found) == [rule.name for rule in inOrder()]
    for rule in inOrder():
        expected = "noted" if rule.level is Level.INFORMATION else "passed"
        if rule.name in OTHERWISE:
            assert found[rule.name][0] == "not applicable" and found[rule.name][1]
            found[rule.name] = outcomes[OTHERWISE[rule.name].__name__][rule.name]
        assert found[rule.name][0] == expected, (rule.name, found[rule.name])


@pytest.mark.parametrize("rule", INNOCENT)
def test_innocent(outcomes: dict[str, Outcomes], rule: str) -> None:
    found = outcomes[INNOCENT[rule].__name__]
    assert found[rule][0] == "passed", found


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(outcomes: dict[str, Outcomes], name: str) -> None:
    for rule in MUTANTS[name].rules:
        assert outcomes[name].get(rule, [""])[0] == "failed", outcomes[name]
        assert outcomes[name][rule][1], "it does not say what was seen"


def test_everyRuleHasAMutant() -> None:
    broken = {rule for each in MUTANTS.values() for rule in each.rules}
    assert broken == {rule.name for rule in inOrder() if rule.level is not Level.INFORMATION}


def test_rulesSayWhatHolds() -> None:
    for rule in inOrder():
        assert rule.sentence.endswith("."), rule.name
        assert rule.reference, rule.name
        # Without --destructive the check skips only the rules of this group.
        assert rule.destructive == (rule.group == "deletion"), rule.name


def test_noSecretIsTold(outcomes: dict[str, Outcomes]) -> None:
    """
    No report contains the password, in clear text or in a response of SASL.
    """
    told = json.dumps(outcomes)
    for secret in (PASSWORD, plainResponse(USER, PASSWORD)[8:]):
        assert secret.decode() not in told
