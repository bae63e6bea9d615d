"""
The benchmark that compares the times of refusals finds a difference if there is one, and only then.
"""

from __future__ import annotations

import random

import pytest

from bench import logintiming
from bench.logintiming import Row, Samples, effect, probability, rowsOf, run


def sample(chance: random.Random, more: float) -> tuple[list[float], list[float]]:
    """
    @param more: the seconds by which attempts of the first kind take longer.
    @return: the times of attempts of two kinds, one of each kind in each of 200 blocks.  The load
        of the machine changes from block to block.
    """
    loads = [chance.choice([0.001, 0.01, 0.1]) for _ in range(200)]

    def times(more: float) -> list[float]:
        return [1 + each + more + chance.expovariate(2000) for each in loads]

    return times(more), times(0)


def test_difference() -> None:
    """
    A difference of 200 microseconds is found, although the load adds up to 500 times as much.
    """
    one, two = sample(random.Random(1), 0.0002)
    assert 0.0001 < effect(one, two) < 0.0003
    assert effect(two, one) == pytest.approx(-effect(one, two))
    assert probability(one, two) == pytest.approx(probability(two, one))
    assert probability(one, two) < 0.001


def test_noDifference() -> None:
    """
    Without a difference the probabilities are distributed evenly.
    """
    chance = random.Random(1)
    found = [probability(*sample(chance, 0)) for _ in range(400)]
    assert 0.3 < sum(each < 0.5 for each in found) / 400 < 0.7
    assert sum(each < 0.01 for each in found) < 12
    assert probability([1.0, 2.0], [1.0, 2.0]) == 1


def test_told() -> None:
    """
    A difference tells who has an account if it is both certain and large.  This also applies to
    banned clients.
    """

    def isTold(*effects: tuple[float, float]) -> bool:
        return Row("s", "m", {}, list(effects)).isTold(10, 1e-4)

    assert isTold((2e-4, 1e-6), (0, 0.5))
    assert isTold((0, 0.5), (-2e-4, 1e-6))
    assert not isTold((2e-4, 2e-3), (0, 0.5))
    assert not isTold((5e-5, 1e-6), (0, 0.5))


def test_rows() -> None:
    """
    Only blocks with attempts of all four kinds are compared.
    """
    samples = Samples()
    for kind, more in (("wrong", 1), ("unknown", 0), ("banned", 5), ("banned unknown", 7)):
        for block in range(6):
            samples.times[2][kind][block] = block + more
    del samples.times[2]["banned"][3]
    (row,) = rowsOf("s", "m", samples)
    assert [each for each, _ in row.effects] == [1, -2]
    assert row.medians == {"wrong": 3, "unknown": 2, "banned": 7, "banned unknown": 9}


def test_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Real clients are refused by a real service.
    """
    monkeypatch.setattr(logintiming, "WARMING", 0)
    monkeypatch.setattr(logintiming, "REST", 0.1)
    rows, isSame = run("passwd plain", ["SCRAM-SHA-256-PLUS", "EXTERNAL"], 2)
    assert isSame
    assert [each.method for each in rows] == [
        "SCRAM-SHA-256-PLUS, first",
        "SCRAM-SHA-256-PLUS, last",
        "EXTERNAL",
    ]
    # The service sends a refusal one second after the attempt.
    assert min(each.medians["wrong"] for each in rows[1:]) >= 1
    assert len(capsys.readouterr().out.splitlines()) == 3
