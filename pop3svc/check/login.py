"""
Rules about logging in: USER and PASS, and SASL of RFC 5034.
"""

from __future__ import annotations

import re

from pop3svc.check.client import Broken, Client, Closed, Reply, expect, show
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import NotApplicable, Target, plainResponse

__all__: list[str] = []

# RFC 5034 section 5.
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
# Client-first mechanisms (RFC 4616, 4422, 5802, 7628, 4505).
_CLIENT_FIRST = re.compile(r"PLAIN|EXTERNAL|ANONYMOUS|OAUTHBEARER|SCRAM-.*")
# A command that starts a mechanism has at most 255 octets (RFC 5034 section 4).
_INITIAL_MOST = 255 - len(b"AUTH PLAIN \r\n")
# The lengths of passwords, in octets. With each of the last two, the line is longer than a server
# must accept.
_SHORT, _LONG, _LONGER = 20, 300, 1000


def _mechanisms(target: Target) -> list[str]:
    found = (target.before or {}).get("SASL", [])
    if not found:
        raise NotApplicable("SASL is not announced before login")
    return found


def _needsPLAIN(target: Target) -> None:
    if "PLAIN" not in _mechanisms(target):
        raise NotApplicable("SASL PLAIN is not announced before login")


# --- USER and PASS ---------------------------------------------------------------------


@rule("login", "RFC 1939 section 4", given=Given.NOTHING)
async def loginWorks(target: Target) -> None:
    """
    The user can log in, and the server accepts STAT after the login.
    """
    client = await target.loggedIn()
    await client.accepted(b"STAT")


@rule("login", "RFC 1939 section 7", given=Given.LOGINS)
async def wrongPassword(target: Target) -> None:
    """
    A wrong password is refused, with [AUTH] if AUTH-RESP-CODE is announced (RFC 3206).
    """
    # Test several requirements with one wrong password, because servers ban clients after a few
    # failures.
    await target.release()
    client = await target.fresh()
    if target.before is not None and "USER" not in target.before:
        raise NotApplicable("USER is not announced before login")
    await client.command(b"USER " + target.user)
    reply = await client.command(b"PASS " + target.password + b"-wrong")
    expect(reply.first[:4].upper() == b"-ERR", str(reply))
    if target.has("AUTH-RESP-CODE"):
        expect(reply.code == b"AUTH", f"no [AUTH]: {reply}")
    try:
        stat = await client.command(b"STAT")
    except Closed:
        # A server may close the connection after a failed login.
        return
    expect(not stat.positive, f"after a wrong password: {stat}")


async def _goodLogin(target: Target) -> None:
    """
    Log in and out, so that a server that counts failures resets its count and bans nobody.
    """
    await (await target.loggedIn()).close()


async def _wrong(target: Target, way: str, octets: int) -> Reply:
    """
    Try a wrong password of the given length.

    @param way: C{"PASS"}, C{"XLOG"}, or C{"AUTH"} for AUTH PLAIN.
    @raise Broken: the server does not answer the password.
    """
    await _goodLogin(target)
    client = await target.fresh()
    password = b"x" * octets
    if way == "XLOG":
        return await client.command(b"XLOG " + target.user + b" " + password)
    if way == "PASS":
        await client.accepted(b"USER " + target.user)
        return await client.command(b"PASS " + password)
    await _started(client, "PLAIN")
    reply = await client.challenge(plainResponse(target.user, password))
    if not isinstance(reply, Reply):
        raise Broken("AUTH PLAIN asks twice")
    return reply


@rule(
    "login",
    "RFC 2449 section 4, RFC 5034 section 4",
    "SASL",
    given=Given.LOGINS,
    level=Level.SHOULD,
)
async def longPasswords(target: Target) -> None:
    """
    PASS, and XLOG if announced, accept passwords of the same lengths as AUTH PLAIN.
    """
    _needsPLAIN(target)
    if "USER" not in (target.before or {}):
        raise NotApplicable("USER is not announced before login")
    short = None if target.has("AUTH-RESP-CODE") else await _wrong(target, "PASS", _SHORT)

    def isWrong(reply: Reply) -> bool:
        return reply.code == b"AUTH" if short is None else reply.first == short.first

    try:
        reply = await _wrong(target, "AUTH", _LONGER)
    except Broken as error:
        raise NotApplicable(f"AUTH PLAIN with a password of {_LONGER} octets: {error}")
    if not isWrong(reply):
        raise NotApplicable(f"AUTH PLAIN with a password of {_LONGER} octets: {reply}")
    ways = [("PASS", _LONG), ("PASS", _LONGER)]
    for way, octets in [*ways, ("XLOG", _LONGER)] if target.has("XLOG") else ways:
        try:
            reply = await _wrong(target, way, octets)
        except Broken as error:
            raise Broken(f"{way} with a wrong password of {octets} octets: {error}")
        expect(isWrong(reply), f"{way} with a wrong password of {octets} octets: {reply}")
    await _goodLogin(target)


# --- SASL --------------------------------------------------------------------------------


async def _started(client: Client, name: str) -> bytes:
    """
    Begin an exchange.

    @return: the challenge, with its line end.
    """
    challenge = await client.challenge(b"AUTH " + name.encode("latin-1"))
    if isinstance(challenge, Reply):
        expect(False, f"AUTH {name} is announced, but {challenge}")
    assert isinstance(challenge, bytes)
    return challenge


@rule("SASL", "RFC 5034 sections 3 and 4", "SASL", given=Given.NOTHING)
async def mechanismsStart(target: Target) -> str:
    """
    Each announced mechanism starts with a challenge, which is in base64 or empty.
    """
    names = _mechanisms(target)
    for name in names:
        client = await target.fresh()
        challenge = await _started(client, name)
        expect(
            challenge.endswith(b"\r\n") and _BASE64.fullmatch(challenge[:-2]) is not None,
            f"AUTH {name} is answered {show(b'+ ' + challenge)}",
        )
        await client.challenge(b"*")
    return " ".join(names)


@rule("SASL", "RFC 5034 section 4", "SASL", given=Given.NOTHING)
async def emptyChallenge(target: Target) -> None:
    """
    The first challenge of a client-first mechanism is a plus and a space, and nothing else.
    """
    names = [name for name in _mechanisms(target) if _CLIENT_FIRST.fullmatch(name)]
    if not names:
        raise NotApplicable("no client-first mechanism is announced")
    for name in names:
        client = await target.fresh()
        challenge = await _started(client, name)
        expect(challenge == b"\r\n", f"AUTH {name} is answered {show(b'+ ' + challenge)}")
        await client.challenge(b"*")


@rule("SASL", "RFC 5034 section 4", "SASL", given=Given.FRESH)
async def cancelledByAsterisk(target: Target, client: Client) -> None:
    """
    An asterisk cancels an exchange with -ERR, and the session goes on.
    """
    await _started(client, _mechanisms(target)[0])
    reply = await client.challenge(b"*")
    expect(
        isinstance(reply, Reply) and reply.first.startswith(b"-ERR"),
        f"the asterisk is answered {reply if isinstance(reply, Reply) else show(reply)}",
    )
    await client.fetched(b"CAPA")


@rule("SASL", "RFC 5034 section 4", "SASL", given=Given.FRESH)
async def unknownMechanism(target: Target, client: Client) -> None:
    """
    An unknown mechanism is refused, and the session goes on.
    """
    _mechanisms(target)
    await client.refused(b"AUTH X-NOBODY-KNOWS")
    await client.accepted(b"QUIT")


@rule("SASL", "RFC 5034 section 4", "SASL", given=Given.LOGINS)
async def badBase64(target: Target) -> None:
    """
    A response that is not base64 is refused.
    """
    _needsPLAIN(target)
    await target.release()
    client = await target.fresh()
    await _started(client, "PLAIN")
    # A server that ignores characters outside the alphabet would accept this login.
    bad = target.plainResponse[:4] + b"!" + target.plainResponse[4:]
    reply = await client.challenge(bad)
    expect(
        isinstance(reply, Reply) and reply.first.startswith(b"-ERR"),
        f"base64 with ! in it is answered {reply if isinstance(reply, Reply) else show(reply)}",
    )


@rule("SASL", "RFC 5034 sections 4 and 5", "SASL", given=Given.LOGINS)
async def plainLogsIn(target: Target) -> None:
    """
    AUTH with PLAIN in lower case logs in.
    """
    _needsPLAIN(target)
    await target.release()
    client = await target.fresh()
    await _started(client, "plain")
    reply = await client.challenge(target.plainResponse)
    expect(isinstance(reply, Reply) and reply.positive, f"AUTH plain: {reply!s}")
    await client.accepted(b"STAT")


@rule("SASL", "RFC 5034 section 4", "SASL", given=Given.LOGINS)
async def plainAtOnce(target: Target) -> None:
    """
    AUTH PLAIN with an initial response logs in.
    """
    _needsPLAIN(target)
    if len(target.plainResponse) > _INITIAL_MOST:
        raise NotApplicable("user and password are too long for an initial response")
    await target.release()
    client = await target.fresh()
    await client.accepted(b"AUTH PLAIN " + target.plainResponse)
    await client.accepted(b"STAT")


@rule("SASL", "RFC 5034 section 4", level=Level.INFORMATION, given=Given.NOTHING)
async def passwordsInTheClear(target: Target) -> str:
    """
    The result says whether the server accepts USER without TLS.
    """
    if target.mode == "tls":
        raise NotApplicable("TLS is on from the first octet")
    client = await target.greeted()
    reply = await client.command(b"USER " + target.user)
    return f"without TLS {reply}"
