"""
Run the targets of L{tests.fuzz} with the corpus, with mutated inputs, and with random octets.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz

LONG = bool(os.environ.get("POP3SVC_TEST_LONG"))
ENTRIES = [(target, path) for target in fuzz.TARGETS for path in fuzz.entries(target)]


@pytest.mark.parametrize(
    ("target", "path"), ENTRIES, ids=[f"{target}-{path.name}" for target, path in ENTRIES]
)
def test_corpus(target: str, path: Path) -> None:
    fuzz.TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_likeTheCorpus(target: str) -> None:
    corpus = [path.read_bytes() for path in fuzz.entries(target)]

    @settings(
        max_examples=5000 if LONG else 150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.sampled_from(corpus), st.integers(0, 2**32))
    def changed(data: bytes, seed: int) -> None:
        fuzz.TARGETS[target](fuzz.changed(data, target, corpus, random.Random(seed)))

    changed()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_anyOctets(target: str) -> None:
    tokens = st.sampled_from(fuzz.TOKENS[target])

    @settings(max_examples=2000 if LONG else 100, deadline=None)
    @given(st.lists(st.one_of(tokens, tokens, st.binary(max_size=8)), max_size=12))
    def octets(pieces: list[bytes]) -> None:
        fuzz.TARGETS[target](b"".join(pieces))

    octets()
