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
    @param verifies: whether the certificate has to be valid.
    @return: a client with TLS, by STLS or from the first octet.  The client has read the greeting.
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
    The certificate is valid for the name of the server.
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
    After QUIT over TLS the server sends a close alert before it closes the connection.
    """
    client = await _secure(target)
    await client.accepted(b"QUIT")
    await client.ended()
    expect(client.endedInOrder, "the connection is closed without a close alert")


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def noSTLSInsideTLS(target: Target) -> None:
    """
    STLS is not announced inside TLS.
    """
    client = await _secure(target)
    found = capabilities(await client.fetched(b"CAPA"))
    expect("STLS" not in found, "CAPA lists STLS")


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def stlsSendsNoGreeting(target: Target) -> None:
    """
    After STLS the server sends no second greeting, and answers the next command.
    """
    client = await target.withSTLS()
    await client.accepted(b"STLS")
    await client.startTLS(target.forSTLS())
    await client.refused(b"XYZZ")
    await client.fetched(b"CAPA")


@rule("TLS", "RFC 1939 section 7, RFC 2595 section 4", given=Given.LOGINS)
async def stlsForgetsTheUser(target: Target) -> None:
    """
    After STLS the server has forgotten an earlier USER, and refuses PASS.
    """
    await target.release()
    client = await target.withSTLS()
    # A server may refuse USER without TLS.
    await client.command(b"USER " + target.user)
    await client.accepted(b"STLS")
    await client.startTLS(target.forSTLS())
    await client.refused(b"PASS " + target.password)


@rule("TLS", "RFC 2595 section 4", given=Given.NOTHING)
async def stlsDropsWhatFollows(target: Target) -> str:
    """
    Inside TLS the server does not answer a command that was sent unencrypted after STLS.
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
        # The server reads the command as TLS, or closes the connection. Both reactions are safe.
        return str(error)
    try:
        reply = await client.command(b"XYZZ")
    except Closed:
        return "the connection is closed"
    expect(not reply.positive, f"inside TLS comes {show(reply.first)}")
    return "the command is dropped"
