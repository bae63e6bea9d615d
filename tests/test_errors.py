"""
Allowed texts and codes of errors.
"""

from __future__ import annotations

import pytest

from pop3svc.errors import POP3ResponseError


@pytest.mark.parametrize("text", ["", "a\r\nb", "[a]", "a]", "ä", "x" * 401, "a\tb"])
def test_badTexts(text: str) -> None:
    with pytest.raises(ValueError, match="text"):
        POP3ResponseError(text)


@pytest.mark.parametrize("code", ["", "A B", "A]", "[A", "A/", "/A", "A//B", "Ä", "x" * 101])
def test_badCodes(code: str) -> None:
    with pytest.raises(ValueError, match="code"):
        POP3ResponseError("text", code)


@pytest.mark.parametrize("code", ["AUTH", "IN-USE", "SYS/TEMP", "UID/NOT-FOUND", "A\\^_"])
def test_goodCodes(code: str) -> None:
    error = POP3ResponseError("Some text.", code, critical=True)
    assert (error.text, error.code, error.critical) == ("Some text.", code, True)
