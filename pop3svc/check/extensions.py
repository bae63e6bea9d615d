"""
Rules about the extensions that pop3svc implements: UID-PARAM, SLEE and WAKE, CORE, QAUT, XLOG
and X-TLS.
"""

from __future__ import annotations

from pop3svc.check.client import Client, expect
from pop3svc.check.table import Given, rule
from pop3svc.check.target import Target, capabilities

__all__: list[str] = []

_NOBODY = b"no-message-has-this-unique-id"
_ACTIVITY = (b"ACTIVITY/NEW", b"ACTIVITY/NONE")


async def _first(target: Target, client: Client) -> tuple[int, bytes]:
    """
    @return: the number and the unique-id of a message.
    """
    number = (await target.sample(client))[0]
    return number, (await client.accepted(b"UIDL %d" % number)).text.partition(b" ")[2]


@rule("extensions", "UID-PARAM", "UID-PARAM")
async def messagesByUniqueID(target: Target, client: Client) -> None:
    """
    LIST, UIDL, RETR and TOP take UID: and a unique-id instead of a number.
    """
    number, uniqueID = await _first(target, client)
    for prefix in (b"UID:", b"uid:"):
        named = prefix + uniqueID
        for command, isMultiLine in (
            (b"LIST %s", False),
            (b"UIDL %s", False),
            (b"RETR %s", True),
            (b"TOP %s 1", True),
        ):
            byNumber = await client.accepted(command % b"%d" % number, isMultiLine)
            byName = await client.accepted(command % named, isMultiLine)
            expect(
                (byNumber.text, byNumber.body) == (byName.text, byName.body),
                f"{byNumber}, {byName}",
            )


@rule("extensions", "UID-PARAM", "UID-PARAM")
async def noSuchUniqueID(target: Target, client: Client) -> None:
    """
    A unique-id that no message has is refused with [UID/NOT-FOUND].
    """
    for command in (b"RETR UID:", b"LIST UID:", b"UIDL UID:"):
        for uniqueID in (_NOBODY, b"", b"x" * 71):
            reply = await client.command(command + uniqueID)
            expect(not reply.positive and reply.code == b"UID/NOT-FOUND", str(reply))


@rule("extensions", "SLEE and WAKE", "SLEE-WAKE")
async def sleepAndWake(target: Target, client: Client) -> None:
    """
    After SLEE only NOOP, WAKE and QUIT work, and the reply to WAKE has [ACTIVITY/...].
    """
    before = await client.fetched(b"UIDL")
    await client.refused(b"WAKE")
    await client.accepted(b"SLEE")
    await client.refused(b"STAT", b"CAPA", b"RETR 1", b"SLEE", b"USER x")
    await client.accepted(b"NOOP")
    reply = await client.accepted(b"WAKE")
    expect(reply.code in _ACTIVITY, str(reply))
    after = await client.fetched(b"UIDL")
    if reply.code == b"ACTIVITY/NONE":
        expect(after.body == before.body, "[ACTIVITY/NONE], but UIDL differs")


@rule("extensions", "SLEE and WAKE", "SLEE-WAKE", given=Given.LOGINS)
async def sleepReleasesTheMailbox(target: Target) -> None:
    """
    While a session sleeps, another session can open the mailbox, and QUIT ends the sleeping
    session.
    """
    client = await target.loggedIn()
    await client.accepted(b"SLEE")
    other = await target.fresh()
    reply = await target.tryLogIn(other)
    expect(reply.positive, f"while the first is asleep {reply}")
    await other.accepted(b"STAT")
    await client.accepted(b"QUIT")


@rule("extensions", "CORE", "CORE")
async def coreRefreshes(target: Target, client: Client) -> None:
    """
    CORE makes a new listing, and its reply has [ACTIVITY/...].
    """
    before = await client.fetched(b"UIDL")
    reply = await client.accepted(b"CORE")
    expect(reply.code in _ACTIVITY, str(reply))
    after = await client.fetched(b"UIDL")
    if reply.code == b"ACTIVITY/NONE":
        expect(after.body == before.body, "[ACTIVITY/NONE], but UIDL differs")


@rule("extensions", "QAUT", "QAUT", given=Given.LOGINS)
async def qautLogsOut(target: Target) -> None:
    """
    QAUT logs the user out, and another login in the same session works.
    """
    client = await target.loggedIn()
    await client.accepted(b"QAUT")
    await client.refused(b"STAT", b"PASS " + target.password)
    reply = await target.tryLogIn(client)
    expect(reply.positive, f"after QAUT {reply}")
    await client.accepted(b"STAT")


@rule("extensions", "XLOG", "XLOG", given=Given.LOGINS)
async def xlogLogsIn(target: Target) -> None:
    """
    XLOG with user and password in one line logs in, and XLOG without a password is refused.
    """
    await target.release()
    client = await target.fresh()
    await client.refused(b"XLOG " + target.user)
    await client.accepted(b"XLOG " + target.user + b" " + target.password)
    await client.accepted(b"STAT")
    await client.refused(b"XLOG " + target.user + b" " + target.password)


@rule("extensions", "X-TLS", "X-TLS", given=Given.FRESH)
async def xTLSIsTrue(target: Target, client: Client) -> None:
    """
    The argument of X-TLS is True on a connection with TLS, and False without TLS.
    """
    found = capabilities(await client.fetched(b"CAPA")).get("X-TLS")
    expect(found == [str(client.isSecure)], f"CAPA lists X-TLS {found}")
