"""
Bounds of the settings.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from pop3svc.policy import Policy


def test_everySettingHasAReason() -> None:
    for item in fields(Policy):
        assert len(item.metadata["reason"]) > 20, item.name


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ({"cleartextLogin": "sometimes"}, "cleartextLogin is one of"),
        ({"idleTimeout": 599}, "idleTimeout is a whole number, 600 or more"),
        ({"maxLineLength": 254}, "maxLineLength"),
        ({"loginTimeout": 0}, "loginTimeout"),
        ({"loginTimeout": "9"}, "loginTimeout"),
    ],
)
def test_outOfBounds(setting: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Policy(**setting)  # type: ignore[arg-type]
