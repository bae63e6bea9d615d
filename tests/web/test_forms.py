"""
Fields of forms.
"""

from __future__ import annotations

import pytest

from pop3svc.web.forms import fieldsIn

_PARTS = (
    b'--b\r\nContent-Disposition: form-data; name="to"\r\n\r\nalice\r\n'
    b'--b\r\ncontent-disposition: form-data; filename="name=x"; name="file"\r\n'
    b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n--not the boundary\r\n\r\n"
    b"--b--\r\nignored"
)
_MANY = b"".join(b'--b\r\nContent-Disposition: f; name="%d"\r\n\r\n\r\n' % n for n in range(50))


@pytest.mark.parametrize(
    ("kind", "body", "fields"),
    [
        (b"application/x-www-form-urlencoded", b"a=1&b=%3C+&a=2&c=", {b"a": [b"1", b"2"], b"b": [b"< "], b"c": [b""]}),
        (b"Application/X-WWW-Form-Urlencoded; charset=utf-8", b"a=1", {b"a": [b"1"]}),
        (b"application/x-www-form-urlencoded", b"&".join([b"a=1"] * 50), {}),
        (b"application/x-www-form-urlencoded", b"\xff=\xfe", {b"\xff": [b"\xfe"]}),
        (b"multipart/form-data; boundary=b", _PARTS, {b"to": [b"alice"], b"file": [b"Subject: x\r\n\r\n--not the boundary\r\n"]}),
        (b'multipart/form-data; boundary="b"', b"", {}),
        (b"multipart/form-data", _PARTS, {}),
        (b"multipart/form-data; boundary=" + b"x" * 100, _PARTS, {}),
        (b"text/plain", b"a=1", {}),
        (b"", b"a=1", {}),
    ],
)  # fmt: skip
def test_fields(kind: bytes, body: bytes, fields: dict[bytes, list[bytes]]) -> None:
    assert fieldsIn(kind, body) == fields


def test_manyParts() -> None:
    assert len(fieldsIn(b"multipart/form-data; boundary=b", _MANY)) == 20
