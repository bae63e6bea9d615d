"""
The short form of L{tests.proofs.exchanges}.
"""

from __future__ import annotations

from pathlib import Path

from tests.proofs.exchanges import Proof


def test_exchanges(tmp_path: Path) -> None:
    proof = Proof(tmp_path)
    proof.run(2400)
    assert proof.faults == []
    for method in proof.methods:
        assert proof.counts[f"{method} -ERR"] > 20
        assert proof.counts[f"{method} +OK"] > 5
