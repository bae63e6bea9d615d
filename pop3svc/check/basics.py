"""
Rules about the greeting, command lines, states, arguments, NOOP, RSET and QUIT.
"""

from __future__ import annotations

import re

from pop3svc.check.client import Client, Closed, Reply, expect, show
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import NotApplicable, Target

__all__: list[str] = []

_TIMESTAMP = re.compile(rb"<[!-;=?-~]+@[!-;=?-~]+>")
# These numbers are 1 modulo 2 to the power of 8, 16, 32 and 64. If a server's integers overflow,
# the server reads these numbers as 1.
_WRAPPED = [b"%d" % (2**bits + 1) for bits in (8, 16, 32, 64)]


# --- greeting ------------------------------------------------------------------


@rule("greeting", "RFC 1939 section 4", given=Given.NOTHING)
async def greetingIsPositive(target: Target) -> None:
    """
    The server greets with +OK when the connection is made.
    """
    client = await target.connected()
    reply = await client.reply(b"(the greeting)")
    expect(reply.first.startswith(b"+OK"), str(reply))


@rule("greeting", "RFC 2449 sections 3 and 4", given=Given.NOTHING)
async def greetingHasItsForm(target: Target) -> None:
    """
    The greeting is one line of at most 512 octets of printable ASCII, with CRLF at its end.
    """
    client = await target.connected()
    line = await client.line()
    expect(len(line) <= 512, f"{len(line)} octets")
    expect(re.fullmatch(rb"[ -~]*\r\n", line) is not None, show(line))


@rule("greeting", "RFC 1939 section 4", given=Given.NOTHING)
async def greetingIsOneLine(target: Target) -> None:
    """
    The server sends nothing between the greeting and the answer to the first command.
    """
    client = await target.greeted()
    reply = await client.command(b"QUIT")
    rest = await client.ended()
    expect(not rest, f"{show(reply.first + rest)} follows the greeting and QUIT")


@rule("greeting", "RFC 1939 section 7, APOP", given=Given.NOTHING)
async def timestampDiffers(target: Target) -> None:
    """
    A timestamp in the greeting has the form of a msg-id, and differs in each greeting.
    """
    seen = []
    for _ in range(2):
        client = await target.connected()
        seen.append(await client.line())
        await client.close()
    if not any(b"<" in line for line in seen):
        raise NotApplicable("there is no timestamp in the greeting")
    found = [_TIMESTAMP.search(line) for line in seen]
    for match, line in zip(found, seen, strict=True):
        expect(match is not None, show(line))
    first, second = (match.group() for match in found if match is not None)
    expect(first != second, f"{show(first)} twice")


# --- command lines -------------------------------------------------------------


@rule("command lines", "RFC 1939 section 3")
async def verbsInLowerCase(target: Target, client: Client) -> None:
    """
    A keyword in lower case is the same command.
    """
    for command in (b"noop", b"stat", b"rset"):
        await client.accepted(command)
    await client.fetched(b"list")


@rule("command lines", "RFC 1939 section 3", given=Given.FRESH)
async def verbsInMixedCase(target: Target, client: Client) -> None:
    """
    A keyword in mixed case is the same command, even before login.
    """
    await client.accepted(b"qUiT")


@rule("command lines", "RFC 1939 section 3", given=Given.FRESH)
async def unknownBeforeLogin(target: Target, client: Client) -> None:
    """
    An unknown command before login is refused, and the session goes on.
    """
    await client.refused(b"XYZZ")
    await client.accepted(b"QUIT")


@rule("command lines", "RFC 1939 section 3")
async def unknownAfterLogin(target: Target, client: Client) -> None:
    """
    An unknown command after login is refused, and the session goes on.
    """
    await client.refused(b"XYZZ", b"XYZZ 1 2 3")
    await client.accepted(b"NOOP")


@rule("command lines", "RFC 1939 section 3")
async def keywordsAreWhole(target: Target, client: Client) -> None:
    """
    The server refuses a keyword with additional letters, and a part of a keyword.
    """
    await client.refused(b"NOOPX", b"STATUS", b"NOO", b"LIS")


@rule("command lines", "RFC 1939 section 3")
async def emptyLine(target: Target, client: Client) -> None:
    """
    An empty line is refused.
    """
    await client.refused(b"")


@rule("command lines", "RFC 1939 section 3")
async def controlOctets(target: Target, client: Client) -> None:
    """
    The server refuses a line that contains NUL, or closes the connection.
    """
    try:
        await client.refused(b"NOOP\0")
    except Closed:
        return


@rule("command lines", "RFC 1939 section 3")
async def linesInPieces(target: Target, client: Client) -> None:
    """
    The server accepts a command that arrives octet by octet.
    """
    whole = await client.accepted(b"STAT")
    await client.sendInPieces(b"STAT\r\n")
    reply = await client.reply(b"STAT")
    expect(reply.first == whole.first, f"octet by octet: {reply}")


@rule("command lines", "RFC 2449 section 4", given=Given.FRESH)
async def linesOf255Octets(target: Target, client: Client) -> None:
    """
    A line of 255 octets with its CRLF is read as one command, and the session goes on.
    """
    if target.before is None:
        raise NotApplicable("without CAPA a server may limit lines to 47 octets")
    await client.command(b"USER " + b"a" * 248)
    await client.accepted(b"QUIT")


@rule("command lines", "RFC 1939 section 3", given=Given.FRESH)
async def linesThatAreTooLong(target: Target, client: Client) -> None:
    """
    The server refuses a line of more than 20,000 octets, or closes the connection, and does not
    hang.
    """
    client.send(b"XYZZ " + b"a" * 20_000 + b"\r\n")
    try:
        reply = await client.reply(b"a line of 20,007 octets")
    except Closed:
        return
    expect(not reply.positive, str(reply))


@rule("command lines", "RFC 1939 section 3", level=Level.INFORMATION)
async def bareLineFeed(target: Target, client: Client) -> str:
    """
    The result says how the server answers a command that ends with a bare LF.
    """
    client.send(b"NOOP\n")
    return str(await client.reply(b"NOOP and LF"))


@rule("command lines", "RFC 1939 section 3", level=Level.INFORMATION)
async def spacesAtTheEnd(target: Target, client: Client) -> str:
    """
    The result says how the server answers a command with a space at its end.
    """
    return str(await client.command(b"NOOP "))


# --- states --------------------------------------------------------------------


@rule("states", "RFC 1939 sections 3 and 5", given=Given.NOTHING)
async def mailboxBeforeLogin(target: Target) -> None:
    """
    STAT, LIST, RETR and RSET are refused before login.
    """
    for command in (b"STAT", b"LIST", b"RETR 1", b"RSET"):
        # Some servers close the connection after a few of these commands.
        client = await target.fresh()
        await client.refused(command)


@rule("states", "RFC 1939 sections 3 and 5", given=Given.FRESH)
async def noopBeforeLogin(target: Target, client: Client) -> None:
    """
    NOOP is refused before login.
    """
    await client.refused(b"NOOP")


@rule("states", "RFC 1939 section 7", given=Given.NOTHING)
async def optionalBeforeLogin(target: Target) -> None:
    """
    TOP and UIDL are refused before login.
    """
    for command in (b"TOP 1 0", b"UIDL"):
        client = await target.fresh()
        await client.refused(command)


@rule("states", "RFC 1939 section 7", given=Given.FRESH)
async def passWithoutUser(target: Target, client: Client) -> None:
    """
    PASS is refused if the client has not sent USER.
    """
    await client.refused(b"PASS x")


@rule("states", "RFC 1939 section 7")
async def loginAfterLogin(target: Target, client: Client) -> None:
    """
    USER and PASS are refused after login.
    """
    await client.refused(b"USER " + target.user, b"PASS x")


@rule("states", "RFC 5034 section 4", "SASL")
async def authAfterLogin(target: Target, client: Client) -> None:
    """
    AUTH is refused after login.
    """
    await client.refused(b"AUTH PLAIN")


@rule("states", "RFC 2595 section 4")
async def stlsAfterLogin(target: Target, client: Client) -> None:
    """
    STLS is refused after login.
    """
    await client.refused(b"STLS")


# --- arguments -----------------------------------------------------------------


@rule("arguments", "RFC 1939 sections 3 and 5")
async def missingMessage(target: Target, client: Client) -> None:
    """
    RETR without a message-number is refused.
    """
    await client.refused(b"RETR", b"RETR ")


@rule("arguments", "RFC 1939 sections 3 and 5")
async def superfluousArguments(target: Target, client: Client) -> None:
    """
    An argument of a command that takes no argument is refused.
    """
    await client.refused(b"STAT 1", b"NOOP 1", b"RSET 1")


@rule("arguments", "RFC 1939 sections 3 and 5")
async def tooManyArguments(target: Target, client: Client) -> None:
    """
    A second argument of LIST and RETR is refused.
    """
    await target.sizes(client)
    await client.refused(b"LIST 1 1", b"RETR 1 1")


@rule("arguments", "RFC 1939 sections 3 and 5")
async def malformedNumbers(target: Target, client: Client) -> None:
    """
    A message-number that is not a decimal number is refused.
    """
    await client.refused(b"LIST x", b"RETR x", b"LIST 1x", b"RETR 1.0", b"LIST 0x1")


@rule("arguments", "RFC 1939 section 4")
async def numberZero(target: Target, client: Client) -> None:
    """
    Message-number 0 is refused, because numbers begin with 1.
    """
    await client.refused(b"LIST 0", b"RETR 0")


@rule("arguments", "RFC 1939 section 4")
async def negativeNumbers(target: Target, client: Client) -> None:
    """
    Negative message-numbers are refused.
    """
    await client.refused(b"LIST -1", b"RETR -1")


@rule("arguments", "RFC 1939 section 5")
async def numbersBeyond(target: Target, client: Client) -> None:
    """
    LIST and RETR refuse a number that is one above the last message's number.
    """
    count = (await client.accepted(b"STAT")).text.split(b" ")[0]
    expect(count.isdigit(), f"the count of STAT is {show(count)}")
    beyond = b"%d" % (int(count) + 1)
    await client.refused(b"LIST " + beyond, b"RETR " + beyond)


@rule("arguments", "RFC 1939 section 5")
async def hugeNumbers(target: Target, client: Client) -> None:
    """
    The server refuses numbers that are too large for any mailbox.
    """
    sizes = await target.sizes(client)
    for number in [*_WRAPPED, b"9" * 30]:
        if int(number) not in sizes:
            await client.refused(b"LIST " + number, b"RETR " + number)


@rule("arguments", "RFC 1939 section 4", level=Level.INFORMATION)
async def leadingZeros(target: Target, client: Client) -> str:
    """
    The result says how the server answers a message-number with a leading zero.
    """
    await target.sizes(client)
    return str(await client.command(b"LIST 01"))


# --- NOOP, RSET, QUIT ------------------------------------------------------------


@rule("NOOP, RSET, QUIT", "RFC 1939 section 5")
async def noopDoesNothing(target: Target, client: Client) -> None:
    """
    NOOP is answered +OK, and changes nothing.
    """
    before = await client.accepted(b"STAT")
    await client.accepted(b"NOOP")
    after = await client.accepted(b"STAT")
    expect(before.first == after.first, f"before NOOP {before}, after it {after}")


@rule("NOOP, RSET, QUIT", "RFC 1939 section 5")
async def rsetWithoutMarks(target: Target, client: Client) -> None:
    """
    RSET without marked messages is answered +OK, and changes nothing.
    """
    before = await client.accepted(b"STAT")
    await client.accepted(b"RSET")
    after = await client.accepted(b"STAT")
    expect(before.first == after.first, f"before RSET {before}, after it {after}")


async def _quit(client: Client) -> None:
    client.send(b"QUIT\r\n")
    reply: Reply = await client.reply(b"QUIT")
    expect(reply.positive, str(reply))
    rest = await client.ended()
    expect(not rest, f"{show(rest)} follows the answer to QUIT")


@rule("NOOP, RSET, QUIT", "RFC 1939 section 4", given=Given.FRESH)
async def quitBeforeLogin(target: Target, client: Client) -> None:
    """
    QUIT before login is answered +OK, then the connection is closed.
    """
    await _quit(client)


@rule("NOOP, RSET, QUIT", "RFC 1939 section 6", given=Given.LOGINS)
async def quitAfterLogin(target: Target) -> None:
    """
    QUIT after login is answered +OK, then the connection is closed.
    """
    # This session has read no message, so QUIT deletes nothing even with EXPIRE 0.
    await _quit(await target.loggedIn())


@rule("NOOP, RSET, QUIT", "RFC 1939 section 3", given=Given.FRESH, level=Level.SHOULD)
async def nothingAfterQuit(target: Target, client: Client) -> None:
    """
    Commands after QUIT are not answered.
    """
    client.send(b"QUIT\r\nXYZZ\r\nXYZZ\r\n")
    await client.reply(b"QUIT")
    rest = await client.ended()
    expect(not rest, f"{show(rest)} follows the answer to QUIT")


@rule("NOOP, RSET, QUIT", "RFC 1939 section 4", given=Given.LOGINS, level=Level.INFORMATION)
async def secondSession(target: Target) -> str:
    """
    The result says how the server answers a second session of the user while the first is open.
    """
    first = await target.loggedIn()
    second = await target.fresh()
    reply = await target.tryLogIn(second)
    alive = await first.command(b"NOOP")
    return f"the second: {reply}; the first goes on: {alive}"
