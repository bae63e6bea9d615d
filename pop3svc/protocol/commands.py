"""
All commands of the service.  The commands of RFC 1939 come first, in the order of the RFC.  The
commands of later RFCs and of extensions follow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from pop3svc.awaiting import settled, then
from pop3svc.errors import BadArguments, POP3ResponseError
from pop3svc.interfaces import IExpiry
from pop3svc.languages import LANGUAGES, languages, matching
from pop3svc.protocol import grammar
from pop3svc.protocol.authentication import Password, Proven
from pop3svc.protocol.challenges import apopDigest
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.grammar import Reference
from pop3svc.protocol.maildrop import MessageRef
from pop3svc.protocol.replies import After, Lines, Pieces, Reply, ok
from pop3svc.protocol.sasl import SASLExchange, offered
from pop3svc.protocol.session import Session, State

__all__ = ["COMMANDS", "capabilities", "command"]

AUTHORIZATION, TRANSACTION, SLEEPING = State.AUTHORIZATION, State.TRANSACTION, State.SLEEPING

COMMANDS: dict[str, Command] = {}

Body = Callable[..., Reply | Awaitable[Reply]]

# These replies never change, so they are made once.
_PASSWORD_REQUIRED, _LOGGED_IN = ok("Password required."), ok("Logged in.")
_DONE, _BYE = ok("Done."), ok("Bye.", then=After.CLOSE)
_MARKED, _UNMARKED = ok("Message marked for deletion."), ok("No message is marked for deletion.")
_NEW, _NONE = ok("Awake.", code="ACTIVITY/NEW"), ok("Awake.", code="ACTIVITY/NONE")


def command(
    verb: str, *, states: Iterable[State], table: dict[str, Command] = COMMANDS, **fields: Any
) -> Callable[[Body], Body]:
    """
    Declare the decorated function as a command.  The function may be a coroutine function.

    @param table: the table to which the command is added; the table of this package if not given.
    @param fields: see L{Command}.
    @raise ValueError: the table already has a command with this verb.
    """
    if verb in table:
        raise ValueError(f"{verb} is declared already")

    def declare(run: Body) -> Body:
        table[verb] = Command(verb, frozenset(states), run, **fields)
        return run

    return declare


def _noCleartextLogin(session: Session) -> POP3ResponseError | None:
    if session.mayLogInHere:
        return None
    return POP3ResponseError("Use TLS to log in.")


def _noMechanism(session: Session) -> POP3ResponseError | None:
    if offered(session):
        return None
    return POP3ResponseError("Use TLS to log in.")


def _noTLS(session: Session) -> POP3ResponseError | None:
    if session.info.isSecure:
        return POP3ResponseError("TLS is already active.")
    if session.isUTF8:
        return POP3ResponseError("STLS is not allowed after UTF8.")
    return None if session.mayStartTLS else POP3ResponseError("TLS is not available.")


def _readOnly(session: Session) -> POP3ResponseError | None:
    transaction = session.transaction
    if transaction is not None and transaction.isReadOnly:
        return POP3ResponseError("Mailbox is read-only.", "READ-ONLY")
    return None


# --- RFC 1939 ----------------------------------------------------------------


@command("QUIT", states=[AUTHORIZATION, TRANSACTION, SLEEPING], nextState=State.CLOSED)
def quit_(session: Session) -> Reply | Awaitable[Reply]:
    """
    Delete the marked messages and end the session (RFC 1939 sections 4 and 6).
    """
    return then(session.quit(), _bye)


def _bye(count: int) -> Reply:
    return ok(f"Bye, {count} deleted.", then=After.CLOSE) if count else _BYE


@command("STAT", states=[TRANSACTION])
def stat(session: Session) -> Reply | Awaitable[Reply]:
    """
    Return the number and the total octets of the messages (RFC 1939 section 5).
    """
    return then(session.active.total(), _total)


def _total(total: tuple[int, int]) -> Reply:
    count, octets = total
    return ok(f"{count} {octets}")


@command("LIST", states=[TRANSACTION], arguments=grammar.optionalMessage)
def list_(session: Session, reference: Reference | None) -> Reply | Awaitable[Reply]:
    """
    Return the size of one message or of each message (RFC 1939 section 5).
    """
    active = session.active
    if reference is None:
        return then(active.sizes(), lambda sizes: ok(_messages(active.count()), body=sizes))

    def size(found: MessageRef) -> Any:
        return then(active.size(found), lambda octets: ok(f"{found.number} {octets}"))

    return then(active.find(reference), size)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


@command("RETR", states=[TRANSACTION], arguments=grammar.message)
def retr(session: Session, reference: Reference) -> Reply | Awaitable[Reply]:
    """
    Send a whole message (RFC 1939 section 5).
    """
    active = session.active
    return then(then(active.find(reference), active.open), _message)


def _message(body: MessageBody) -> Reply:
    return ok("Message follows", body=body)


@command("DELE", states=[TRANSACTION], arguments=grammar.message, unavailable=_readOnly)
def dele(session: Session, reference: Reference) -> Reply | Awaitable[Reply]:
    """
    Mark a message for deletion at QUIT (RFC 1939 section 5).
    """
    active = session.active

    def mark(found: MessageRef) -> Reply:
        active.mark(found)
        return _MARKED

    return then(active.find(reference), mark)


@command("NOOP", states=[TRANSACTION, SLEEPING])
def noop(session: Session) -> Reply:
    """
    Do nothing (RFC 1939 section 5).
    """
    return _DONE


@command("RSET", states=[TRANSACTION])
def rset(session: Session) -> Reply:
    """
    Remove all deletion marks (RFC 1939 section 5).
    """
    session.active.unmark()
    return _UNMARKED


@command("TOP", states=[TRANSACTION], arguments=grammar.messageAndLines, capability=["TOP"])
def top(session: Session, reference: Reference, lines: int) -> Reply | Awaitable[Reply]:
    """
    Send the header of a message and the first lines of its body (RFC 1939 section 7).
    """
    active = session.active
    return then(
        then(active.find(reference), active.open),
        lambda body: ok("Top of message follows", body=body, topLines=lines),
    )


@command("UIDL", states=[TRANSACTION], arguments=grammar.optionalMessage, capability=["UIDL"])
def uidl(session: Session, reference: Reference | None) -> Reply | Awaitable[Reply]:
    """
    Return the unique-id of one message or of each message (RFC 1939 section 7).
    """
    if reference is None:
        return ok("Unique-ids follow", body=session.active.uniqueIDs())
    return then(
        session.active.find(reference), lambda found: ok(f"{found.number} {found.uniqueID}")
    )


@command(
    "USER",
    states=[AUTHORIZATION],
    arguments=grammar.name,
    capability=["USER"],
    unavailable=_noCleartextLogin,
)
def user(session: Session, name: str) -> Reply:
    """
    Store the name of the user until PASS (RFC 1939 section 7).
    """
    session.claimedName = name
    return _PASSWORD_REQUIRED


@command(
    "PASS",
    states=[AUTHORIZATION],
    arguments=grammar.password,
    nextState=TRANSACTION,
    unavailable=_noCleartextLogin,
    longLine=True,
)
def pass_(session: Session, password: str) -> Awaitable[Reply]:
    """
    Log in with the name from USER and a password (RFC 1939 section 7).
    """
    name, session.claimedName = session.claimedName, None
    if name is None:
        raise BadArguments("Send USER first.")
    return _loggedIn(session, Password(name, password), "PASS")


def _noAPOP(session: Session) -> POP3ResponseError | None:
    return None if session.timestamp else BadArguments("Unknown command.")


@command(
    "APOP",
    states=[AUTHORIZATION],
    arguments=grammar.nameAndDigest,
    nextState=TRANSACTION,
    unavailable=_noAPOP,
    extension="APOP",
)
async def apop(session: Session, name: str, digest: str) -> Reply:
    """
    Log in with a digest of the timestamp in the greeting and the password (RFC 1939 section 7).
    """
    session.claimedName = None
    timestamp = session.timestamp
    proven = await session.authentication.proveDigest(
        name, digest, lambda password: apopDigest(timestamp, password)
    )
    return await _loggedIn(session, proven, "APOP")


async def _loggedIn(session: Session, credentials: Password | Proven, method: str) -> Reply:
    await session.logIn(credentials, method)
    return _LOGGED_IN


# --- RFC 2449 ----------------------------------------------------------------


def _ownCapabilities(session: Session) -> Iterator[str]:
    """
    Yield the capabilities that belong to no command.
    """
    off = session.policy.without
    if "UID-PARAM" not in off:
        yield "UID-PARAM"
    if "MULTI-LINE-IND" not in off:
        yield "MULTI-LINE-IND"
    if "X-TLS" not in off:
        yield f"X-TLS {session.info.isSecure}"
    if session.policy.loginDelay:
        yield f"LOGIN-DELAY {session.policy.loginDelay}"
    yield "RESP-CODES"
    yield "AUTH-RESP-CODE"
    yield "PIPELINING"
    provider = session.provider
    days = provider.expireDays if IExpiry.providedBy(provider) else 0
    yield f"EXPIRE {days}" if days else "EXPIRE NEVER"
    yield f"IMPLEMENTATION {session.provider.name}"


def capabilities(session: Session, table: Iterable[Command]) -> Iterator[str]:
    """
    Yield each line of the reply to CAPA once.
    """
    seen: set[str] = set()
    for each in table:
        for line in each.capabilities(session):
            if line not in seen:
                seen.add(line)
                yield line


@command("CAPA", states=[AUTHORIZATION, TRANSACTION], capability=_ownCapabilities)
def capa(session: Session) -> Reply:
    """
    List the capabilities that the session has in its present state (RFC 2449 section 5).
    """
    return ok("Capabilities follow", body=Lines(capabilities(session, session.commands)))


# --- RFC 2595 ----------------------------------------------------------------


@command(
    "STLS",
    states=[AUTHORIZATION],
    capability=["STLS"],
    announced=frozenset([AUTHORIZATION]),
    unavailable=_noTLS,
)
def stls(session: Session) -> Reply:
    """
    Begin TLS, and forget the name of an earlier USER (RFC 2595 section 4).
    """
    session.claimedName = None
    return ok("Begin TLS negotiation.", then=After.START_TLS)


# --- RFC 5034 ----------------------------------------------------------------


def _sasl(session: Session) -> list[str]:
    return ["SASL " + " ".join(offered(session))]


@command(
    "AUTH",
    states=[AUTHORIZATION],
    arguments=grammar.saslStart,
    nextState=TRANSACTION,
    capability=_sasl,
    unavailable=_noMechanism,
    longLine=True,
)
async def auth(session: Session, name: str | None, initial: bytes | None) -> Reply:
    """
    Log in with a SASL mechanism.  Without an argument, list the mechanisms (RFC 5034 section 4).
    """
    session.claimedName = None
    if name is None:
        return ok("Mechanisms follow", body=Lines(offered(session)), keepsState=True)
    chosen = session.mechanisms.get(name)
    if chosen is None or not chosen.isUsable(session):
        raise POP3ResponseError("No such mechanism.")

    async def finish(credentials: Password | Proven) -> Reply:
        return await _loggedIn(session, credentials, f"AUTH {chosen.name}")

    return await SASLExchange(COMMANDS["AUTH"], session, chosen, finish).begin(initial)


# --- RFC 6856 ----------------------------------------------------------------


@command("UTF8", states=[AUTHORIZATION], capability=["UTF8 USER"], extension="UTF8")
def utf8(session: Session) -> Reply:
    """
    Begin UTF-8 mode, in which messages are sent unchanged (RFC 6856 section 2.1).
    """
    session.isUTF8 = True
    return ok("UTF-8 mode is active.")


@command(
    "LANG",
    states=[AUTHORIZATION, TRANSACTION],
    arguments=grammar.optionalLanguage,
    capability=["LANG"],
    extension="LANG",
)
def lang(session: Session, languageRange: str | None) -> Reply:
    """
    Change the language of the texts of replies.  Without an argument, list the languages (RFC 6856
    section 3.2).
    """
    if languageRange is None:
        listed = "".join(f"{tag} {name}\r\n" for tag, name in LANGUAGES.items())
        return ok("Languages follow", body=Pieces([listed.encode("utf-8")]))
    tag = matching(languageRange)
    if tag is None:
        raise POP3ResponseError("No such language.")
    # Change the language now, because the reply to LANG has to be in the new language.
    session.useLanguage(languages()[tag])
    return ok(f"{tag} Language changed.")


# --- extensions ---------------------------------------------------------------


@command(
    "DELI",
    states=[TRANSACTION],
    arguments=grammar.message,
    capability=["DELI"],
    unavailable=_readOnly,
    extension="DELI",
)
async def deli(session: Session, reference: Reference) -> Reply:
    """
    Delete one message now and not at QUIT.
    """
    found = await settled(session.active.find(reference))
    await session.active.deleteNow(found)
    uniqueID = found.uniqueID
    return ok(f"Deleted message. UID:{uniqueID}")


@command("CORE", states=[TRANSACTION], capability=["CORE"], extension="CORE")
async def core(session: Session) -> Reply:
    """
    Delete the marked messages and list the mailbox again.  The session keeps the lock.
    """
    isNew = await session.active.refresh()
    return ok("Refreshed.", code="ACTIVITY/NEW" if isNew else "ACTIVITY/NONE")


# REFR is an older name of CORE.  The service accepts REFR, but CAPA does not list it.
command("REFR", states=[TRANSACTION], extension="CORE")(core)


@command(
    "SLEE",
    states=[TRANSACTION],
    nextState=SLEEPING,
    capability=["SLEE-WAKE", "SLEEPING"],
    extension="SLEE-WAKE",
)
def slee(session: Session) -> Reply | Awaitable[Reply]:
    """
    Delete the marked messages and release the lock, but stay connected.
    """
    return then(session.sleep(), lambda count: ok(f"Asleep, {count} deleted."))


@command("WAKE", states=[SLEEPING], nextState=TRANSACTION, extension="SLEE-WAKE")
async def wake(session: Session) -> Reply:
    """
    Lock the mailbox again, and list and number its messages again.
    """
    return _NEW if await session.wake() else _NONE


@command(
    "QAUT", states=[TRANSACTION], nextState=AUTHORIZATION, capability=["QAUT"], extension="QAUT"
)
def qaut(session: Session) -> Reply | Awaitable[Reply]:
    """
    Delete the marked messages and log out, so that another user can log in.
    """
    return then(session.logOut(), lambda _: ok("Logged out."))


@command(
    "XLOG",
    states=[AUTHORIZATION],
    arguments=grammar.nameAndPassword,
    nextState=TRANSACTION,
    capability=["XLOG"],
    unavailable=_noCleartextLogin,
    extension="XLOG",
    longLine=True,
)
def xlog(session: Session, name: str, password: str) -> Awaitable[Reply]:
    """
    Log in with a user name and a password in one line.
    """
    session.claimedName = None
    return _loggedIn(session, Password(name, password), "XLOG")
