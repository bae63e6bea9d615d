"""
Rules that delete messages: DELE, RSET, QUIT, lost connections, and DELI, CORE, SLEE and QAUT.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pop3svc.check.client import Client, Reply, expect
from pop3svc.check.table import Given, rule
from pop3svc.check.target import NotApplicable, Target

__all__: list[str] = []


async def _mailbox(client: Client, atLeast: int) -> list[bytes]:
    """
    @return: the unique-ids in the order of the messages; the sizes if the server has no UIDL.
    @raise NotApplicable: the mailbox has too few messages.
    """
    reply = await client.command(b"UIDL", multiLine=True)
    if not reply.positive:
        reply = await client.fetched(b"LIST")
    found = [line.partition(b" ")[2] for line in reply.lines]
    if len(found) < atLeast:
        raise NotApplicable(f"there are fewer than {atLeast} messages")
    return found


async def _marked(client: Client, command: bytes) -> Reply:
    reply = await client.command(command)
    if reply.code == b"READ-ONLY":
        raise NotApplicable(str(reply))
    expect(reply.positive, str(reply))
    return reply


async def _expectMessages(target: Target, expected: list[bytes], what: str) -> None:
    """
    Expect these messages, and no other messages, in a new session.
    """
    found = await _mailbox(await target.loggedIn(), 0)
    expect(
        found == expected, f"{what} the messages are {found[:9]!r}, they should be {expected[:9]!r}"
    )


@rule("deletion", "RFC 1939 sections 3 and 5", given=Given.FRESH, destructive=True)
async def deleBeforeLogin(target: Target, client: Client) -> None:
    """
    DELE is refused before login.
    """
    await client.refused(b"DELE 1")


@rule("deletion", "RFC 1939 section 5", given=Given.LOGINS, destructive=True)
async def deleArguments(target: Target) -> None:
    """
    The server refuses DELE without a number, with 0, with too large a number, and with two numbers.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 1)
    beyond = b"DELE %d" % (len(before) + 1)
    await client.refused(b"DELE", b"DELE 0", b"DELE -1", b"DELE x", beyond, b"DELE 1 1")
    expect(await _mailbox(client, 0) == before, "a refused DELE has marked a message")


@rule("deletion", "RFC 1939 section 5", given=Given.LOGINS, destructive=True)
async def deleHides(target: Target) -> None:
    """
    The server neither lists nor counts a marked message, and refuses commands that name it.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 2)
    sizes = await target.sizes(client)
    await _marked(client, b"DELE 1")
    await client.refused(b"LIST 1", b"RETR 1", b"DELE 1")
    if target.has("TOP"):
        await client.refused(b"TOP 1 0")
    if target.has("UIDL"):
        await client.refused(b"UIDL 1")
    left = await target.sizes(client)
    sizes.pop(1)
    expect(left == sizes, f"after DELE 1 LIST gives {list(left.items())[:9]}")
    expect(await _mailbox(client, 0) == before[1:], "after DELE 1 UIDL lists it")
    stat = await client.accepted(b"STAT")
    expect(stat.text.split(b" ")[0] == b"%d" % len(left), f"after DELE 1 {stat}")


@rule("deletion", "RFC 1939 section 5", given=Given.LOGINS, destructive=True)
async def rsetUnmarks(target: Target) -> None:
    """
    RSET removes the marks, and QUIT then deletes nothing.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 1)
    await _marked(client, b"DELE 1")
    await client.accepted(b"RSET")
    expect(await _mailbox(client, 0) == before, "after RSET the listing differs")
    await client.accepted(b"LIST 1")
    await client.accepted(b"QUIT")
    await client.ended()
    await _expectMessages(target, before, "after DELE, RSET and QUIT")


@rule("deletion", "RFC 1939 section 6", given=Given.LOGINS, destructive=True)
async def lostConnectionDeletesNothing(target: Target) -> None:
    """
    A session that ends without QUIT deletes nothing.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 1)
    await _marked(client, b"DELE 1")
    await client.close()
    await _expectMessages(target, before, "after DELE and a lost connection")


@rule("deletion", "RFC 1939 section 6", given=Given.LOGINS, destructive=True)
async def quitDeletes(target: Target) -> None:
    """
    QUIT deletes the marked messages, and no others.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 2)
    await _marked(client, b"DELE 2")
    await client.accepted(b"QUIT")
    await client.ended()
    await _expectMessages(target, [before[0], *before[2:]], "after DELE 2 and QUIT")


@rule("deletion", "RFC 1939 section 5", given=Given.LOGINS, destructive=True)
async def deletedByAnotherSession(target: Target) -> None:
    """
    After another session has deleted a message, STAT, LIST and RETR of other messages still work.
    """
    # Send no command in this session before the deletion, because the server might keep the sizes
    # that it has counted for an earlier command.
    client = await target.loggedIn()
    other = await target.fresh()
    reply = await target.tryLogIn(other)
    if not reply.positive:
        raise NotApplicable(f"a second session is refused: {reply}")
    before = await _mailbox(other, 2)
    sizes = await target.sizes(other)
    await _marked(other, b"DELE 1")
    await other.accepted(b"QUIT")
    await other.ended()
    stat = await client.accepted(b"STAT")
    left = await target.sizes(client)
    # The server may list the deleted message with its size, list it with 0, or not list it.
    others = {number: left.get(number) for number in sizes if number != 1}
    expect(
        others == {number: sizes[number] for number in others},
        f"with message 1 gone {stat}, and LIST gives {list(left.items())[:9]}",
    )
    await client.accepted(b"LIST 2")
    await client.fetched(b"RETR 2")
    await client.close()
    await _expectMessages(target, before[1:], "after DELE 1 and QUIT in another session")


@rule("deletion", "UID-PARAM", "UID-PARAM", given=Given.LOGINS, destructive=True)
async def deleByUniqueID(target: Target) -> None:
    """
    DELE takes a unique-id, and QUIT deletes that message.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 1)
    await _marked(client, b"DELE UID:" + before[-1])
    await client.refused(b"RETR UID:" + before[-1])
    await client.accepted(b"QUIT")
    await client.ended()
    await _expectMessages(target, before[:-1], "after DELE UID: and QUIT")


@rule("deletion", "DELI", "DELI", given=Given.LOGINS, destructive=True)
async def deliDeletesAtOnce(target: Target) -> None:
    """
    DELI deletes at once: neither RSET nor a lost connection restores the message.
    """
    client = await target.loggedIn()
    before = await _mailbox(client, 2)
    await client.refused(b"DELI", b"DELI 0")
    await _marked(client, b"DELE 2")
    await client.refused(b"DELI 2")
    await _marked(client, b"DELI 1")
    await client.refused(b"LIST 1", b"DELI 1")
    await client.accepted(b"RSET")
    await client.refused(b"LIST 1")
    expect(await _mailbox(client, 0) == before[1:], "after DELI 1 and RSET it is listed")
    await client.close()
    await _expectMessages(target, before[1:], "after DELI 1 and a lost connection")


async def _commitsBy(
    target: Target, command: bytes, then: Callable[[Client], Awaitable[object]]
) -> None:
    client = await target.loggedIn()
    before = await _mailbox(client, 1)
    await _marked(client, b"DELE 1")
    await client.accepted(command)
    await then(client)
    expect(await _mailbox(client, 0) == before[1:], f"after {command.decode()} the listing differs")
    await client.close()
    await _expectMessages(
        target, before[1:], f"after DELE 1, {command.decode()} and a lost connection"
    )


async def _nothing(client: Client) -> None:
    """
    Do nothing.
    """


@rule("deletion", "CORE", "CORE", given=Given.LOGINS, destructive=True)
async def coreDeletes(target: Target) -> None:
    """
    CORE deletes the marked messages, and renumbers the others.
    """
    await _commitsBy(target, b"CORE", _nothing)


@rule("deletion", "SLEE and WAKE", "SLEE-WAKE", given=Given.LOGINS, destructive=True)
async def sleeDeletes(target: Target) -> None:
    """
    SLEE deletes the marked messages, and WAKE renumbers the others.
    """
    await _commitsBy(target, b"SLEE", lambda client: client.accepted(b"WAKE"))


@rule("deletion", "QAUT", "QAUT", given=Given.LOGINS, destructive=True)
async def qautDeletes(target: Target) -> None:
    """
    QAUT deletes the marked messages.
    """
    await _commitsBy(target, b"QAUT", target.tryLogIn)
