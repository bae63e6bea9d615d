"""
Rules about TLS: STLS of RFC 2595, and RFC 8314.
"""

from __future__ import annotations

from pop3svc.check.client import Client, Closed, expect, show
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import Target, capabilities

__all__: list[str] = []


async def _secure(target: Target, verifies: bool = False) -> Client:
    """
    @param verifies: is the certificate to be valid?
    @return: a client that has TLS on, by STLS or from the first octet, and was
        greeted.
    """
    if target.mode == "tls":
        return await target.greeted()
    client = await target.withSTLS()
    await client.accepted(b"STLS")
    await client.startTLS(target.connectionCreator() if verifies else target.forSTLS())
    return client


@rule("TLS", "RFC 8314 section 4.4, RFC 2595 section 2.4", given=Given.NOTHING)
async def certificateIsValid(target: Target) -> str:
    """
    The certificate is valid, and for the name that was connected to.
    """
    client = await _secure(target, True)
    return client.tlsVersion


@rule("TLS", "RFC 8314 section 4.1", given=Given.NOTHING)
async def tlsIsRecent(target: Target) -> str:
    """
    TLS 1.2 or later is supported.
    """
    client = await _secure(target)
    version = client.tlsVersion
    expect(version in ("TLSv1.2", "TLSv1.3"), f"{version} is negotiated")
    return version


@rule("TLS", "RFC 8314 section 3.4", given=Given.NOTHING, level=Level.SHOULD)
async def closeAlert(target: Target) -> None:
    """
    After QUIT over TLS a close alert comes before the connection is closed.
    """
    client = await _secure(target)
    await client.accepted(b"QUIT")
    await client.ended()
    expect(client.endedInOrder, "the connection is closed without a close alert")


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def noSTLSInsideTLS(target: Target) -> None:
    """
    Inside TLS, STLS is not announced.
    """
    client = await _secure(target)
    found = capabilities(await client.fetched(b"CAPA"))
    expect("STLS" not in found, "CAPA says STLS")


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def stlsIsQuiet(target: Target) -> None:
    """
    After STLS the server waits for a command, which is answered: it does not greet again.
    """
    client = await target.withSTLS()
    await client.accepted(b"STLS")
    await client.startTLS(target.forSTLS())
    await client.refused(b"XYZZ")
    await client.fetched(b"CAPA")


@rule("TLS", "RFC 1939 section 7, RFC 2595 section 4", given=Given.LOGINS)
async def stlsForgetsTheUser(target: Target) -> None:
    """
    A user name from before STLS is no user name inside TLS: PASS is refused.
    """
    await target.release()
    client = await target.withSTLS()
    # It may be refused in the clear.
    await client.say(b"USER " + target.user)
    await client.accepted(b"STLS")
    await client.startTLS(target.forSTLS())
    await client.refused(b"PASS " + target.password)


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def stlsDropsWhatFollows(target: Target) -> str:
    """
    A command behind STLS in the clear is not answered inside TLS.
    """
    client = await target.withSTLS()
    client.send(b"STLS\r\nQUIT\r\n")
    try:
        reply = await client.reply(b"STLS")
        if not reply.positive:
            return str(reply)
        handshake = client.startTLS(target.forSTLS())
    except Closed:
        return "the connection is closed"
    try:
        await handshake
    except Exception as error:
        # It reads the command as TLS, or hangs up: nobody is fooled.
        return str(error)
    try:
        reply = await client.say(b"XYZZ")
    except Closed:
        return "the connection is closed"
    expect(not reply.positive, f"inside TLS comes {show(reply.first)}")
    return "the command is dropped"
