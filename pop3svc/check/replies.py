"""
Rules about all replies of a run.  These rules run after all other rules.
"""

from __future__ import annotations

import re

from pop3svc.check.client import expect, isText
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import Target

__all__: list[str] = []

# RFC 2449 section 3.
_CODE = re.compile(rb"\[[!-.0-\\^-~]+(?:/[!-.0-\\^-~]+)*\]")
_MARK = b" _\r\n"


@rule("replies", "RFC 1939 section 3", given=Given.NOTHING)
async def statusInUpperCase(target: Target) -> None:
    """
    Each reply begins with +OK or -ERR in upper case, followed by a space or the line end.
    """
    for reply in target.record:
        expect(re.match(rb"(?:\+OK|-ERR)(?: |\r?\n)", reply.first) is not None, str(reply))


@rule("replies", "RFC 1939 section 3", given=Given.NOTHING)
async def repliesEndWithCRLF(target: Target) -> None:
    """
    The first line of each reply ends with CRLF.
    """
    for reply in target.record:
        expect(reply.first.endswith(b"\r\n"), str(reply))


@rule("replies", "RFC 2449 section 4", given=Given.NOTHING)
async def firstLinesAreShort(target: Target) -> None:
    """
    The first line of each reply has at most 512 octets with its CRLF.
    """
    for reply in target.record:
        expect(len(reply.first) <= 512, f"{len(reply.first)} octets: {reply}")


@rule("replies", "RFC 2449 section 3", given=Given.NOTHING)
async def repliesArePrintable(target: Target) -> None:
    """
    The first line of each reply is printable ASCII (after LANG it may be UTF-8).
    """
    for reply in target.record:
        isPrintable = re.fullmatch(rb"[ -~]*", reply.first.rstrip(b"\r\n")) is not None
        expect(isPrintable or reply.afterLANG, str(reply))


@rule("replies", "RFC 6856 section 3.2", "LANG", given=Given.NOTHING)
async def textsAreUTF8(target: Target) -> None:
    """
    After LANG the first line of each reply is UTF-8 without control characters.
    """
    for reply in target.record:
        expect(not reply.afterLANG or isText(reply.first.rstrip(b"\r\n")), str(reply))


@rule("replies", "RFC 2449 sections 3, 6.4 and 8", "RESP-CODES", given=Given.NOTHING)
async def responseCodesHaveTheirForm(target: Target) -> str:
    """
    If a text begins with a bracket, it begins with a response code.
    """
    seen = set()
    for reply in target.record:
        if reply.text.startswith(b"["):
            found = _CODE.match(reply.text)
            expect(found is not None, str(reply))
            seen.add(reply.code or b"")
    return b" ".join(sorted(seen)).decode("latin-1")


@rule("replies", "MULTI-LINE-IND", "MULTI-LINE-IND", given=Given.NOTHING)
async def multiLineRepliesAreMarked(target: Target) -> None:
    """
    A first line ends with a space and an underscore if and only if the reply is multi-line.
    """
    for reply in target.record:
        isMultiLine = reply.body is not None
        expect(
            reply.first.endswith(_MARK) == isMultiLine,
            f"{'a multi' if isMultiLine else 'a single'}-line reply: {reply}",
        )


@rule("replies", "RFC 1939 section 3", given=Given.NOTHING, level=Level.SHOULD)
async def noFullStopBeforeTheLines(target: Target) -> None:
    """
    No first line of a multi-line reply has a dot, because some clients take it for the final dot.
    """
    for reply in target.record:
        expect(reply.body is None or b"." not in reply.first, str(reply))
