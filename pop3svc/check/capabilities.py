"""
Rules about CAPA and the capabilities that it announces: RFC 2449, and UTF8 and LANG of RFC 6856.
"""

from __future__ import annotations

import re

from pop3svc.check.client import Client, Reply, expect, isText, show
from pop3svc.check.table import Given, Level, rule
from pop3svc.check.target import NotApplicable, Target, capabilities

__all__: list[str] = []

# RFC 2449 section 3: printable ASCII, and no dot in the tag.
_CAPABILITY = re.compile(rb"[!-\-/-~]+(?: [!-~]+)*")
# The forms of the arguments, from the RFCs of the capabilities.
_ARGUMENTS = {
    "TOP": "",
    "USER": "",
    "UIDL": "",
    "STLS": "",
    "RESP-CODES": "",
    "AUTH-RESP-CODE": "",
    "PIPELINING": "",
    "LANG": "",
    "UTF8": "(?:USER)?",
    "LOGIN-DELAY": "[0-9]+(?: USER)?",
    "EXPIRE": "(?:[0-9]+|NEVER)(?: USER)?",
    "IMPLEMENTATION": ".+",
    # RFC 4422 section 3.1.
    "SASL": "[A-Z0-9_-]{1,20}(?: [A-Z0-9_-]{1,20})*",
}
# The RFCs of these capabilities allow a server to announce them in only one state, or with
# different arguments in each state (RFC 2449 section 5).
_OF_ONE_STATE = ("STLS", "IMPLEMENTATION", "LOGIN-DELAY", "EXPIRE", "SASL")


async def _capa(client: Client) -> Reply:
    reply = await client.command(b"CAPA", multiLine=True)
    if not reply.positive:
        raise NotApplicable(str(reply))
    return reply


def _checkForms(reply: Reply) -> None:
    for line in reply.lines:
        expect(
            _CAPABILITY.fullmatch(line) is not None and len(line) <= 510, f"CAPA lists {show(line)}"
        )
    for tag, arguments in capabilities(reply).items():
        form = _ARGUMENTS.get(tag)
        if form is not None:
            joined = " ".join(arguments)
            expect(re.fullmatch(form, joined) is not None, f"CAPA lists '{tag} {joined}'")


@rule("CAPA", "RFC 2449 sections 3, 5 and 6", given=Given.FRESH)
async def capaBeforeLogin(target: Target, client: Client) -> None:
    """
    CAPA before login lists capabilities, each in the form of its RFC, and ends with a dot.
    """
    _checkForms(await _capa(client))
    await client.accepted(b"QUIT")


@rule("CAPA", "RFC 2449 sections 3, 5 and 6")
async def capaAfterLogin(target: Target, client: Client) -> None:
    """
    CAPA after login lists capabilities, each in the form of its RFC, and ends with a dot.
    """
    if target.before is None:
        raise NotApplicable("CAPA does not work before login")
    reply = await client.fetched(b"CAPA")
    _checkForms(reply)
    await client.accepted(b"NOOP")


@rule("CAPA", "RFC 2449 section 5")
async def capaInBothStates(target: Target, client: Client) -> None:
    """
    Each standard capability listed before login is listed after login, unless its RFC allows
    otherwise.
    """
    if target.before is None:
        raise NotApplicable("CAPA does not work before login")
    lost = sorted(set(target.before) - set(target.after or {}) - set(_OF_ONE_STATE))
    # Skip extensions, because other rules may apply to their tags.
    lost = [tag for tag in lost if tag in _ARGUMENTS]
    expect(not lost, f"after login there is no {', '.join(lost)}")


@rule("CAPA", "RFC 5034 section 3", "SASL")
async def saslInBothStates(target: Target, client: Client) -> None:
    """
    The server announces SASL after login if it announces SASL before login.
    """
    if "SASL" not in (target.before or {}):
        raise NotApplicable("SASL is not announced before login")
    expect("SASL" in (target.after or {}), "after login there is no SASL")


@rule("CAPA", "RFC 2449 section 6.1", "TOP")
async def topIsThere(target: Target, client: Client) -> None:
    """
    TOP works if it is announced.
    """
    await target.sizes(client)
    await client.fetched(b"TOP 1 0")


@rule("CAPA", "RFC 2449 section 6.8", "UIDL")
async def uidlIsThere(target: Target, client: Client) -> None:
    """
    UIDL works if it is announced.
    """
    await client.fetched(b"UIDL")


@rule("CAPA", "RFC 2449 section 6.2", "USER", given=Given.FRESH)
async def userIsThere(target: Target, client: Client) -> None:
    """
    The server accepts USER if it announces USER before login.
    """
    if "USER" not in (target.before or {}):
        raise NotApplicable("USER is not announced before login")
    await client.accepted(b"USER " + target.user)


# --- PIPELINING ----------------------------------------------------------------------

_TWENTY = [b"NOOP", b"STAT", b"LIST", b"XYZZ", b"UIDL", b"LIST 1", b"RSET", b"NOOP", b"STAT"]
_TWENTY = [*_TWENTY, *_TWENTY, b"LIST 0", b"NOOP"]
_MULTI_LINE = (b"LIST", b"UIDL")


async def _oneByOne(client: Client, commands: list[bytes]) -> list[Reply]:
    return [await client.command(each, multiLine=each in _MULTI_LINE) for each in commands]


async def _answers(client: Client, commands: list[bytes]) -> list[Reply]:
    return [await client.reply(each, multiLine=each in _MULTI_LINE) for each in commands]


def _same(expected: list[Reply], found: list[Reply]) -> None:
    for alone, together in zip(expected, found, strict=True):
        expect(
            (alone.positive, alone.body) == (together.positive, together.body),
            f"alone {alone}, in a row {together}",
        )


@rule("PIPELINING", "RFC 2449 section 6.6", "PIPELINING")
async def twentyInOneSegment(target: Target, client: Client) -> None:
    """
    20 commands in one segment are answered in order.
    """
    alone = await _oneByOne(client, _TWENTY)
    client.send(b"".join(command + b"\r\n" for command in _TWENTY))
    _same(alone, await _answers(client, _TWENTY))


@rule("PIPELINING", "RFC 2449 section 6.6", "PIPELINING")
async def twentyOctetByOctet(target: Target, client: Client) -> None:
    """
    20 commands that arrive octet by octet are answered in order.
    """
    alone = await _oneByOne(client, _TWENTY)
    await client.sendInPieces(b"".join(command + b"\r\n" for command in _TWENTY))
    _same(alone, await _answers(client, _TWENTY))


@rule("PIPELINING", "RFC 2449 section 6.6", "PIPELINING")
async def commandsAfterRetr(target: Target, client: Client) -> None:
    """
    Commands after RETR in the same segment are answered after the message.
    """
    number = (await target.sample(client))[-1]
    retr = b"RETR %d" % number
    whole = await client.fetched(retr)
    stat = await client.accepted(b"STAT")
    client.send(retr + b"\r\nSTAT\r\n" + retr + b"\r\nNOOP\r\n")
    expect((await client.reply(retr, True)).body == whole.body, f"RETR {number} differs in a row")
    reply = await client.reply(b"STAT")
    expect(reply.first == stat.first, f"after RETR {number}: {reply}")
    expect((await client.reply(retr, True)).body == whole.body, f"RETR {number} differs in a row")
    reply = await client.reply(b"NOOP")
    expect(reply.positive, f"after RETR {number}: {reply}")


@rule("PIPELINING", "RFC 2449 section 6.6", "PIPELINING", given=Given.LOGINS)
async def loginInOneSegment(target: Target) -> None:
    """
    USER, PASS and STAT in one segment are answered in order.
    """
    if "USER" not in (target.before or {}):
        raise NotApplicable("USER is not announced before login")
    await target.release()
    client = await target.fresh()
    client.send(b"USER %s\r\nPASS %s\r\nSTAT\r\n" % (target.user, target.password))
    for command in (b"USER", b"PASS", b"STAT"):
        reply = await client.reply(command)
        expect(reply.positive, str(reply))


# --- UTF8 and LANG ---------------------------------------------------------------------


@rule("UTF8 and LANG", "RFC 6856 section 2.1", "UTF8", given=Given.FRESH)
async def utf8TakesNoArgument(target: Target, client: Client) -> None:
    """
    UTF8 with a parameter is refused, because UTF8 takes no parameter.
    """
    await client.refused(b"UTF8 x")


@rule("UTF8 and LANG", "RFC 6856 section 2", "UTF8")
async def utf8AfterLogin(target: Target, client: Client) -> None:
    """
    UTF8 is refused after login.
    """
    await client.refused(b"UTF8")


@rule("UTF8 and LANG", "RFC 6856 section 2.1", "UTF8", given=Given.LOGINS, level=Level.SHOULD)
async def utf8SendsItsSize(target: Target) -> None:
    """
    In UTF-8 mode LIST gives the number of octets that RETR sends.
    """
    await target.release()
    client = await target.fresh()
    reply = await client.command(b"UTF8")
    if not reply.positive:
        # A server may refuse UTF8.
        raise NotApplicable(str(reply))
    reply = await target.tryLogIn(client)
    expect(reply.positive, f"after UTF8: {reply}")
    sizes = await target.sizes(client)
    for number in await target.chosen(client):
        sent = len((await client.fetched(b"RETR %d" % number)).content)
        expect(
            sent == sizes[number],
            f"RETR {number} sends {sent} octets, LIST gives {sizes[number]}",
        )


@rule("UTF8 and LANG", "RFC 6856 section 2.1", "UTF8")
async def noUTF8UnlessAsked(target: Target, client: Client) -> None:
    """
    Without UTF8 the server sends no message whose header contains UTF-8.
    """
    for number in await target.chosen(client):
        reply = await client.command(b"RETR %d" % number, multiLine=True)
        if reply.positive:
            header = reply.content.partition(b"\r\n\r\n")[0]
            expect(not _holdsUTF8(header), f"RETR {number} sends a header with UTF-8 in it")


def _holdsUTF8(octets: bytes) -> bool:
    if octets.isascii():
        return False
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        # The octets are in another encoding, which RFC 6856 does not cover.
        return False
    return True


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.FRESH)
async def langLists(target: Target, client: Client) -> None:
    """
    LANG without an argument lists language tags, or is refused.
    """
    reply = await client.command(b"LANG", multiLine=True)
    for line in reply.lines:
        expect(
            re.match(rb"[A-Za-z0-9]{1,8}(?:-[A-Za-z0-9]{1,8})*(?: |$)", line) is not None,
            f"LANG lists {show(line)}",
        )
    await client.accepted(b"QUIT")


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.FRESH)
async def langNamesItsChoice(target: Target, client: Client) -> None:
    """
    LANG with a language answers +OK, the tag and a space, or is refused.
    """
    for command in (b"LANG *", b"LANG en"):
        reply = await client.command(command)
        if reply.positive:
            form = rb"\+OK [A-Za-z0-9]{1,8}(?:-[A-Za-z0-9]{1,8})* .*\r\n"
            expect(re.fullmatch(form, reply.first) is not None, str(reply))


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.FRESH)
async def unknownLanguage(target: Target, client: Client) -> None:
    """
    LANG with an unsupported language is refused.
    """
    await client.refused(b"LANG x-nobody-speaks")


async def _listed(client: Client, most: int) -> list[bytes]:
    """
    @return: the first tags that LANG lists.
    @raise NotApplicable: LANG lists no tags.
    """
    reply = await client.command(b"LANG", multiLine=True)
    tags = [line.partition(b" ")[0] for line in reply.lines][:most]
    if not tags:
        raise NotApplicable("LANG lists no languages")
    return tags


async def _loggedIn(target: Target) -> Client:
    await target.release()
    client = await target.fresh()
    reply = await target.tryLogIn(client)
    expect(reply.positive, str(reply))
    return client


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.FRESH)
async def languageNamesAreUTF8(target: Target, client: Client) -> None:
    """
    The names of the languages that LANG lists are UTF-8.
    """
    reply = await client.command(b"LANG", multiLine=True)
    for line in reply.lines:
        expect(isText(line), f"LANG lists {show(line)}")


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.FRESH)
async def listedLanguagesWork(target: Target, client: Client) -> None:
    """
    A language that LANG lists can be chosen, and the reply names the same tag.
    """
    for tag in await _listed(client, 20):
        reply = await client.accepted(b"LANG " + tag)
        named = reply.text.partition(b" ")[0]
        expect(named.lower() == tag.lower(), str(reply))


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.LOGINS)
async def langAfterLogin(target: Target) -> None:
    """
    A language that can be chosen before login can be chosen after login.
    """
    before = await target.fresh()
    tags = await _listed(before, 3)
    chosen = [tag for tag in tags if (await before.command(b"LANG " + tag)).positive]
    client = await _loggedIn(target)
    for tag in chosen:
        await client.accepted(b"LANG " + tag)


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.LOGINS)
async def refusedLanguageChangesNothing(target: Target) -> None:
    """
    After LANG is refused, texts are in the language that was used before.
    """
    client = await _loggedIn(target)
    for tag in await _listed(client, 3):
        await client.command(b"LANG " + tag)
        before = await client.command(b"LIST 99999999")
        await client.refused(b"LANG x-nobody-speaks")
        after = await client.command(b"LIST 99999999")
        expect(before.text == after.text, f"{before}, and after a refused LANG {show(after.first)}")


@rule("UTF8 and LANG", "RFC 6856 section 3.2", "LANG", given=Given.LOGINS)
async def languageChangesOnlyTexts(target: Target) -> None:
    """
    Status indicators, response codes, and the numbers of STAT are the same in each language.
    """
    client = await _loggedIn(target)
    seen: list[str] = []
    for tag in await _listed(client, 3):
        await client.command(b"LANG " + tag)
        total = await client.command(b"STAT")
        missing = await client.command(b"LIST 99999999")
        seen.append(
            f"{total.first[:3]!r} {total.text.split()[:2]} {missing.positive} {missing.code!r}"
        )
        expect(seen[0] == seen[-1], f"after LANG {show(tag)}: {total}, {missing}")
