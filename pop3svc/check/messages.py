"""
Rules about listings and messages: STAT, LIST, RETR, TOP, UIDL.
"""

from __future__ import annotations

import re

from pop3svc.check.client import Client, expect, show
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import NotApplicable, Target

__all__: list[str] = []

_UNIQUE_ID = re.compile(rb"[!-~]{1,70}")
_WHOLE = 99_999_999
# Three numbers for the rule retrEndsWithItsLastOctets: how many messages it reads, how many times
# it reads each message, and for how many messages the last line must arrive alone before the rule
# fails.
_LARGEST = 4
_READS = 3
_APART = 2


# --- STAT and LIST ---------------------------------------------------------------


@rule("STAT and LIST", "RFC 1939 section 5")
async def statHasItsForm(target: Target, client: Client) -> None:
    """
    The answer to STAT is +OK, the count and the octets, separated by single spaces.
    """
    reply = await client.accepted(b"STAT")
    form = rb"\+OK [0-9]+ [0-9]+(?: [ -~]*)?\r\n"
    expect(re.fullmatch(form, reply.first) is not None, str(reply))


@rule("STAT and LIST", "RFC 1939 section 5", level=Level.SHOULD)
async def nothingAfterTheSizes(target: Target, client: Client) -> None:
    """
    Nothing follows the octets in the answers to STAT and LIST.
    """
    reply = await client.accepted(b"STAT")
    expect(len(reply.text.split(b" ")) == 2, str(reply))
    for line in (await client.fetched(b"LIST")).lines:
        expect(len(line.split(b" ")) == 2, f"LIST lists {show(line)}")


@rule("STAT and LIST", "RFC 1939 section 5")
async def statCountsMessages(target: Target, client: Client) -> None:
    """
    The count of STAT is the number of messages that LIST lists.
    """
    reply = await client.accepted(b"STAT")
    lines = (await client.fetched(b"LIST")).lines
    expect(reply.text.split(b" ")[0] == b"%d" % len(lines), f"{reply}, LIST lists {len(lines)}")


@rule("STAT and LIST", "RFC 1939 section 5", level=Level.SHOULD)
async def statAddsUpSizes(target: Target, client: Client) -> None:
    """
    The octets of STAT are the sum of the sizes of LIST (preferred by RFC 6856 section 2.1).
    """
    reply = await client.accepted(b"STAT")
    total = sum((await target.sizes(client)).values())
    expect(reply.text.split(b" ")[1:2] == [b"%d" % total], f"{reply}, LIST's sum is {total}")


@rule("STAT and LIST", "RFC 1939 section 5")
async def listHasItsForm(target: Target, client: Client) -> None:
    """
    Each line of LIST is a number, a space and a size.
    """
    for line in (await client.fetched(b"LIST")).lines:
        expect(re.match(rb"[0-9]+ [0-9]+(?: |$)", line) is not None, f"LIST lists {show(line)}")


@rule("STAT and LIST", "RFC 1939 section 4")
async def listNumbersFromOne(target: Target, client: Client) -> None:
    """
    Before any deletion the messages have the numbers 1, 2, 3 and so on.
    """
    numbers = list(await target.sizes(client))
    expect(numbers == list(range(1, len(numbers) + 1)), f"LIST numbers them {numbers[:20]}")


@rule("STAT and LIST", "RFC 1939 section 5")
async def listOfOneMessage(target: Target, client: Client) -> None:
    """
    LIST n gives the number and the size that LIST gives for message n.
    """
    sizes = await target.sizes(client)
    for number in await target.sample(client):
        reply = await client.accepted(b"LIST %d" % number)
        expected = b"%d %d" % (number, sizes[number])
        expect(
            b" ".join(reply.text.split(b" ")[:2]) == expected,
            f"{reply}, LIST gives {show(expected)}",
        )


# --- RETR ------------------------------------------------------------------------


@rule("RETR", "RFC 1939 sections 5 and 11")
async def retrSendsItsSize(target: Target, client: Client) -> None:
    """
    LIST gives the number of octets that RETR sends, without dot-stuffing.
    """
    sizes = await target.sizes(client)
    for number in await target.sample(client):
        sent = len((await client.fetched(b"RETR %d" % number)).content)
        expect(
            sent == sizes[number],
            f"RETR {number} sends {sent} octets, LIST gives {sizes[number]}",
        )


@rule("RETR", "RFC 1939 section 3")
async def retrStuffsDots(target: Target, client: Client) -> str:
    """
    RETR sends an additional dot before each line that begins with a dot.
    """
    stuffed = 0
    for number in await target.sample(client):
        body = (await client.fetched(b"RETR %d" % number)).body or b""
        for line in body.split(b"\r\n"):
            if line.startswith(b"."):
                expect(line.startswith(b".."), f"RETR {number} sends the line {show(line)}")
                stuffed += 1
        # If the server has not stuffed a line of a single dot, the rest of the message arrives as
        # the answer to NOOP.
        await client.accepted(b"NOOP")
    if not stuffed:
        raise NotApplicable("no line of the messages read begins with a dot")
    return f"{stuffed} lines begin with a dot"


@rule("RETR", "RFC 1939 section 3")
async def retrEndsLinesWithCRLF(target: Target, client: Client) -> None:
    """
    Each line of a message ends with CRLF, including the last one.
    """
    for number in await target.sample(client):
        body = (await client.fetched(b"RETR %d" % number)).body or b""
        bare = re.search(rb"[^\n]{0,40}(?<!\r)\n", body)
        expect(bare is None, f"RETR {number} sends {show(bare.group()) if bare else ''}")


@rule("RETR", "RFC 1939 section 3")
async def retrEndsOnce(target: Target, client: Client) -> None:
    """
    The next reply follows directly after the last line of a message.
    """
    number = (await target.sample(client))[0]
    stat = await client.accepted(b"STAT")
    await client.fetched(b"RETR %d" % number)
    reply = await client.command(b"STAT")
    expect(reply.first == stat.first, f"after RETR {number}: {reply}")


@rule("RETR", "RFC 1939 section 5", level=Level.SHOULD)
async def retrTwice(target: Target, client: Client) -> None:
    """
    A second RETR of a message sends the same octets again.
    """
    number = (await target.sample(client))[0]
    once = await client.fetched(b"RETR %d" % number)
    twice = await client.fetched(b"RETR %d" % number)
    expect(once.body == twice.body, f"two RETR {number} differ")


@rule("RETR", "RFC 1939 section 3", level=Level.SHOULD)
async def retrEndsWithItsLastOctets(target: Target, client: Client) -> None:
    """
    The final dot of a message comes with the message's last octets, not in a separate piece.
    """
    # By chance a piece may end before the final dot. Therefore the rule fails only if two messages
    # of different sizes have a piece that ends there at each read.
    looked, apart = 0, []
    for number, size in await target.largest(client, _LARGEST):
        isApart = True
        for _ in range(_READS):
            reply = await client.command(b"RETR %d" % number, multiLine=True)
            isApart = isApart and reply.positive and client.endedApart
        looked += reply.positive
        if isApart:
            apart.append(f"RETR {number} of {size} octets")
    if looked < _APART:
        raise NotApplicable("there are no two messages of different sizes")
    expect(len(apart) < _APART, f"{', '.join(apart)}: the last piece is the dot alone each time")


# --- TOP -------------------------------------------------------------------------


def _top(content: bytes, lines: int) -> bytes:
    """
    @return: the part of a message that TOP has to send.
    """
    if content.startswith(b"\r\n"):
        header, body = b"\r\n", content[2:]
    else:
        before, blank, body = content.partition(b"\r\n\r\n")
        header = before + blank
    return header + _firstLines(body, lines)


def _firstLines(body: bytes, lines: int) -> bytes:
    at = 0
    for _ in range(lines):
        end = body.find(b"\r\n", at)
        if end < 0:
            return body
        at = end + 2
    return body[:at]


async def _topIs(target: Target, client: Client, lines: int) -> None:
    for number in await target.sample(client):
        content = (await client.fetched(b"RETR %d" % number)).content
        top = (await client.fetched(b"TOP %d %d" % (number, lines))).content
        expected = _top(content, lines)
        # If a message consists only of a header, the server may add the missing blank line.
        lacksBlank = b"\r\n\r\n" not in content and not content.startswith(b"\r\n")
        expect(
            top == expected or (lacksBlank and top == content + b"\r\n"),
            f"TOP {number} {lines} sends {len(top)} octets that end {show(top[-40:])}; "
            f"it should send the first {len(expected)} of RETR {number}",
        )


@rule("TOP", "RFC 1939 section 7", "TOP")
async def topOfNoLines(target: Target, client: Client) -> None:
    """
    TOP n 0 sends the header and the blank line as in RETR, and nothing else.
    """
    await _topIs(target, client, 0)


@rule("TOP", "RFC 1939 section 7", "TOP")
async def topOfSomeLines(target: Target, client: Client) -> None:
    """
    TOP n k sends the header, the blank line and k lines of the body.
    """
    for lines in (1, 2, 5):
        await _topIs(target, client, lines)


@rule("TOP", "RFC 1939 section 7", "TOP")
async def topOfAllLines(target: Target, client: Client) -> None:
    """
    TOP n 99999999 sends the same octets as RETR n.
    """
    for number in await target.sample(client):
        whole = (await client.fetched(b"RETR %d" % number)).body or b""
        top = (await client.fetched(b"TOP %d %d" % (number, _WHOLE))).body or b""
        expect(
            top == whole,
            f"TOP {number} {_WHOLE} sends {len(top)} octets, RETR {number} {len(whole)}",
        )


@rule("TOP", "RFC 1939 section 7", "TOP")
async def topArguments(target: Target, client: Client) -> None:
    """
    TOP refuses a missing count, and a count that is not 0 or a positive number.
    """
    await target.sizes(client)
    await client.refused(b"TOP", b"TOP 1", b"TOP 1 x", b"TOP 1 -1", b"TOP x 1", b"TOP 1 1 1")


@rule("TOP", "RFC 1939 section 7", "TOP")
async def topBeyond(target: Target, client: Client) -> None:
    """
    TOP refuses message-number 0, and the number after the last message.
    """
    sizes = await target.sizes(client)
    await client.refused(b"TOP 0 0", b"TOP %d 0" % (len(sizes) + 1))


# --- UIDL ------------------------------------------------------------------------


async def _uniqueIDs(client: Client) -> dict[bytes, bytes]:
    """
    @return: a dictionary from message numbers to unique-ids, both as the server has sent them.
    """
    found = {}
    for line in (await client.fetched(b"UIDL")).lines:
        number, _, uniqueID = line.partition(b" ")
        found[number] = uniqueID
    if not found:
        raise NotApplicable("there are no messages")
    return found


@rule("UIDL", "RFC 1939 section 7", "UIDL")
async def uidlHasItsForm(target: Target, client: Client) -> None:
    """
    A line of UIDL is a number, a space and 1 to 70 characters of 0x21 to 0x7E.
    """
    for number, uniqueID in (await _uniqueIDs(client)).items():
        expect(
            number.isdigit() and _UNIQUE_ID.fullmatch(uniqueID) is not None,
            f"UIDL lists {show(number + b' ' + uniqueID)}",
        )


@rule("UIDL", "RFC 1939 section 7", "UIDL")
async def uidlNumbersAsList(target: Target, client: Client) -> None:
    """
    UIDL lists the messages that LIST lists.
    """
    numbers = [b"%d" % number for number in await target.sizes(client)]
    listed = [line.partition(b" ")[0] for line in (await client.fetched(b"UIDL")).lines]
    expect(listed == numbers, f"UIDL numbers {listed[:20]}, LIST {numbers[:20]}")


@rule("UIDL", "RFC 1939 section 7", "UIDL", level=Level.SHOULD)
async def uidlIsUnique(target: Target, client: Client) -> None:
    """
    Two messages have different unique-ids, even if they are identical copies.
    """
    seen: dict[bytes, bytes] = {}
    for number, uniqueID in (await _uniqueIDs(client)).items():
        expect(
            uniqueID not in seen,
            f"messages {show(seen.get(uniqueID, b''))} and {show(number)} are {show(uniqueID)}",
        )
        seen[uniqueID] = number


@rule("UIDL", "RFC 1939 section 7", "UIDL")
async def uidlOfOneMessage(target: Target, client: Client) -> None:
    """
    UIDL n gives the number and the unique-id that UIDL gives for message n.
    """
    found = await _uniqueIDs(client)
    for number in await target.sample(client):
        reply = await client.accepted(b"UIDL %d" % number)
        expected = b"%d %s" % (number, found.get(b"%d" % number, b""))
        expect(reply.text == expected, f"{reply}, UIDL gives {show(expected)}")


@rule("UIDL", "RFC 1939 section 7", "UIDL")
async def uidlBeyond(target: Target, client: Client) -> None:
    """
    UIDL refuses message-number 0, the number after the last message, and a word.
    """
    sizes = await target.sizes(client)
    await client.refused(b"UIDL 0", b"UIDL %d" % (len(sizes) + 1), b"UIDL x", b"UIDL 1 1")


@rule("UIDL", "RFC 1939 section 7", "UIDL", given=Given.LOGINS)
async def uidlStays(target: Target) -> None:
    """
    Unique-ids stay the same in the next session, even if the first session ended without QUIT.
    """
    client = await target.loggedIn()
    before = await _uniqueIDs(client)
    await client.close()
    after = await _uniqueIDs(await target.loggedIn())
    for number, uniqueID in before.items():
        found = after.get(number, b"")
        expect(
            found == uniqueID,
            f"message {show(number)} was {show(uniqueID)}, in the next session {show(found)}",
        )
