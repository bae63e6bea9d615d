"""
The limits and switches that an operator may set, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

__all__ = [
    "CLEARTEXT_LOGIN",
    "EXTENSIONS",
    "NAME_CASES",
    "OPTIONAL_MECHANISMS",
    "SWITCHES",
    "UTF8_HEADERS",
    "Policy",
]

CLEARTEXT_LOGIN = ("never", "loopback", "always")
UTF8_HEADERS = ("convert", "refuse")
NAME_CASES = ("preserved", "mapped")

# The names of the extensions.  The operator switches an extension off by its name.
EXTENSIONS = (
    "UID-PARAM",
    "DELI",
    "CORE",
    "SLEE-WAKE",
    "QAUT",
    "XLOG",
    "MULTI-LINE-IND",
    "X-TLS",
    "UTF8",
    "LANG",
)

# The SASL mechanisms that the operator has to switch on, and APOP.
OPTIONAL_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "CRAM-MD5", "APOP")
# The names of extensions and mechanisms that the operator can switch off.
SWITCHES = (
    *EXTENSIONS,
    *("PLAIN", "LOGIN", "EXTERNAL", "OAUTHBEARER", "XOAUTH2"),
    *OPTIONAL_MECHANISMS,
)


def _number(default: int, reason: str, *, least: int = 1, isLive: bool = True) -> Any:
    """
    @param isLive: whether a running service can use a new value for later sessions.
    """
    return field(default=default, metadata={"reason": reason, "least": least, "isLive": isLive})


@dataclass(frozen=True)
class Policy:
    """
    The limits of the service.  Times are in seconds, except for C{logDelay}.  Sizes are in octets.

    @raise ValueError: a value is not allowed.  The text is a sentence that names the setting.
    """

    cleartextLogin: str = field(
        default="loopback",
        metadata={
            "reason": "Accept logins without TLS: never, from loopback, or always.  The default is "
            "loopback, because a password in clear text then crosses no network."
        },
    )
    nameCase: str = field(
        default="preserved",
        metadata={
            "reason": "Prepare user names by UsernameCasePreserved or UsernameCaseMapped (RFC "
            "8265).  The default is preserved, because existing accounts and mailboxes "
            "may have capital letters in their names."
        },
    )
    without: frozenset[str] = field(
        default=frozenset(),
        metadata={
            "reason": "Extensions and login methods that the service neither announces nor accepts."
        },
    )
    enable: frozenset[str] = field(
        default=frozenset(),
        metadata={
            "reason": "Login methods that are off by default: SCRAM, CRAM-MD5 and APOP.  If the "
            "service announces SCRAM, a client that supports SCRAM uses it, and cannot log in if "
            "the accounts have a hash of the password, but no verifier for SCRAM."
        },
    )
    utf8Headers: str = field(
        default="convert",
        metadata={
            "reason": "Convert messages with UTF-8 in header fields for clients that have not "
            "sent UTF8, or refuse to send such messages.  The default is convert, because most "
            "clients never send UTF8, and with refuse their users would not see the messages."
        },
    )
    loginTimeout: int = _number(
        180,
        "Time from the connection to the login, including the TLS handshake. After this "
        "time the service closes a connection without a login.  A person types a "
        "password in less time.",
    )
    idleTimeout: int = _number(
        600,
        "Time to wait for a command after the login.  RFC 1939 section 3 requires at "
        "least ten minutes.",
        least=600,
    )
    sleepTimeout: int = _number(
        3600,
        "Time that a session may sleep without a command (NOOP is enough). The limit can be long, "
        "because clients that poll send commands more often, and a sleeping session needs little "
        "memory.",
        least=600,
    )
    takeoverIdle: int = _number(
        60,
        "A session that has been idle for this time gives its mailbox to another session "
        "of the same user. Phones often leave sessions open.",
    )
    takeoverMarked: int = _number(
        600,
        "A session that has marked messages for deletion gives its mailbox away after this time. "
        "It is longer than takeoverIdle, because the marks are lost when the session ends.",
    )
    stallTimeout: int = _number(
        600,
        "The service aborts the connection of a client that has read no data for this time.  The "
        "default is the same as that of the idle timeout. With TCP_USER_TIMEOUT the kernel also "
        "applies this time to lost clients, because it cannot distinguish a lost client from a "
        "client whose buffer is full.",
    )
    answerTimeout: int = _number(
        120,
        "Time that one call of a provider may take. The limit is longer than a slow disk needs, "
        "and shorter than clients wait.",
    )
    closeTimeout: int = _number(
        5,
        "Time that a client has to close its end after the service has closed its own end.  An "
        "immediate reset would lose data on the way to the client.",
    )
    shutdownTimeout: int = _number(
        5,
        "Time that a session has to finish its command when the service stops.",
        least=0,
    )
    drainTimeout: int = _number(
        300,
        "Time that sessions have to end by themselves after pop3svc drain, or after a "
        "reload has replaced their worker. Programs that poll every few minutes connect "
        "again within this time.",
        isLive=False,
    )
    maxLineLength: int = _number(
        255,
        "Length of a command line with its CRLF (RFC 2449 section 4).",
        least=255,
    )
    maxAuthLineLength: int = _number(
        12288,
        "Length of a line of AUTH, PASS or XLOG with its CRLF.  It is large because bearer tokens "
        "are long.",
        least=255,
    )
    maxBadCommands: int = _number(
        20,
        "Number of invalid commands in a row after which the service closes the connection.  POP3 "
        "clients never reach this limit; port scanners do.",
    )
    banStrikes: int = _number(
        3,
        "Number of different failed guesses after which an address is banned.  A program that "
        "repeats one wrong password counts once.",
        isLive=False,
    )
    banTime: int = _number(
        10_000,
        "Time that an address stays banned after its last attempt: nearly three hours.  During "
        "the first day after the first failure, this time begins again at each refused attempt.",
        isLive=False,
    )
    userStrikes: int = _number(
        10,
        "Number of different failed guesses for one user from one network (IPv4 /24, IPv6 /64) "
        "after which the service refuses the user in this network.",
        isLive=False,
    )
    unknownNetworkStrikes: int = _number(
        30,
        "Number of different failed guesses for one user, counted over all networks from which the "
        "user has not logged in.  After this number of guesses the service refuses the user in "
        "these networks, and in no other network.",
        isLive=False,
    )
    strikesTime: int = _number(
        3600,
        "Time after the last failed or refused login of a user until the service forgets the "
        "failures.  Refused logins extend this time to at most a day after the first failure.",
        isLive=False,
    )
    loginWait: int = _number(
        30,
        "Time that a login may wait until its password is compared.  After this time the client "
        "gets [SYS/TEMP].  Eighty simultaneous logins take ten seconds on two cores, and clients "
        "give up after a minute.",
        isLive=False,
    )
    maxConnections: int = _number(
        10_000,
        "Number of connections.  An idle connection over TLS needs about 30 KiB.",
    )
    maxUnauthenticated: int = _number(
        2_000,
        "Number of unauthenticated connections.  Clients log in within seconds, and scanners never "
        "log in.  At the limit the service finds the address (IPv6: the /64) with the most "
        "unauthenticated connections, and closes the oldest of these connections.",
    )
    maxPerAddress: int = _number(
        100,
        "Number of connections from one address (IPv6: from one /64). Loopback is "
        "exempt. The default is enough for an office that shares an address.",
    )
    keepaliveIdle: int = _number(
        300,
        "Time without input after which the kernel probes whether a client is still there (TCP "
        "keepalive), because routers forget a connection after some minutes.  With 0 the kernel "
        "sends no probes.",
        least=0,
        isLive=False,
    )
    keepaliveInterval: int = _number(30, "Time from one keepalive probe to the next.", isLive=False)
    keepaliveProbes: int = _number(
        4,
        "Number of unanswered keepalive probes after which the kernel closes the "
        "connection. If the kernel has TCP_USER_TIMEOUT, stallTimeout applies instead.",
        isLive=False,
    )
    maxAwakePerUser: int = _number(
        100,
        "Number of sessions of one user that are not asleep.  Each of these sessions may hold a "
        "listing in memory.",
    )
    loginDelay: int = _number(
        0,
        "Least time from one login of a user to the next (RFC 2449 section 6.5). With 0 a user "
        "may log in at any time.",
        least=0,
    )
    maxRestartDelay: int = _number(
        60,
        "Longest delay before the service restarts a worker that has died (--workers).  The "
        "delays are 1, 2, 4, ... seconds.  If a worker has lived longer than this limit, the "
        "delay is 1 second again.",
        isLive=False,
    )
    workerStartTimeout: int = _number(
        60,
        "Time from the start of a worker until it serves. After this time the service restarts "
        "the worker.",
        isLive=False,
    )
    workerHangTimeout: int = _number(
        30,
        "Time that a worker may send nothing to its parent.  After this time the service kills "
        "and restarts the worker, because the worker serves none of its clients.  A worker sends "
        "a heartbeat each second.  A slow disk may delay a heartbeat for some seconds.",
        least=5,
        isLive=False,
    )
    maxFailedLogins: int = _number(
        5,
        "Number of failed logins on one connection, after which the service closes the "
        "connection.  A person gives up sooner, but a program does not.",
    )
    maxMessageSize: int = _number(
        268_435_456,
        "Largest size of a message that arrives by LMTP or pop3svc deliver, or is fetched or "
        "imported, octets.  Mail servers accept 10 to 150 MB.  The limit is higher, so that the "
        "mail server refuses a large message before it reaches this service.",
        least=65536,
        isLive=False,
    )
    maxRecipients: int = _number(
        100,
        "Number of recipients of one message over LMTP (RFC 5321 section 4.5.3.1.8).  Postfix "
        "sends 50 at most.",
        isLive=False,
    )
    maxLMTPConnections: int = _number(
        100,
        "Number of LMTP connections of each process.  Postfix opens 20.",
        isLive=False,
    )
    lmtpTimeout: int = _number(
        300,
        "Time that an LMTP client may send nothing (RFC 5321 section 4.5.3.2.7).",
        isLive=False,
    )
    verboseEvents: int = _number(
        0,
        "With 1 the service emits an event for each connection, login and command.  By default "
        "the log has only events for failures and for sessions that end, because the other events "
        "take more time than most commands.",
        least=0,
    )
    logDelay: int = _number(
        50,
        "Milliseconds that a line of the log may wait, so that the lines of many sessions need "
        "one write.  People do not notice this delay, and gathered lines need only twenty writes a "
        "second.  The service writes errors at once.  If the process is killed by SIGKILL, the "
        "waiting lines are lost.  With 0 the service writes each line at once.",
        least=0,
        isLive=False,
    )
    collectorThreshold: int = _number(
        1_000,
        "Number of new objects after which Python's garbage collector looks for cycles.  The "
        "default of Python 3.11 is 700.  With a larger number the collector takes less time, and "
        "the process takes more memory: with 20,000, two thousand lost connections took 11 MiB "
        "more.  With 0 the service leaves the collector as Python sets it.",
        least=0,
        isLive=False,
    )
    ownTransport: int = _number(
        1,
        "With 1 the service serves TCP and UNIX sockets by its own transports. With 0 it uses the "
        "transports of Twisted, which need more time and memory for each connection.",
        least=0,
        isLive=False,
    )
    maxInputHeld: int = _number(
        262144,
        "Octets of input that may wait while a command runs. A few reads of the socket "
        "are enough, because the service stops reading after the first read.",
        least=65536,
    )

    def has(self, name: str) -> bool:
        """
        @param name: an extension or a login method.
        @return: whether the extension or the login method is on.
        """
        if name in self.without:
            return False
        return name in self.enable or name not in OPTIONAL_MECHANISMS

    def __post_init__(self) -> None:
        if self.cleartextLogin not in CLEARTEXT_LOGIN:
            raise ValueError(f"cleartextLogin is one of {', '.join(CLEARTEXT_LOGIN)}")
        if self.utf8Headers not in UTF8_HEADERS:
            raise ValueError(f"utf8Headers is one of {', '.join(UTF8_HEADERS)}")
        if self.nameCase not in NAME_CASES:
            raise ValueError(f"nameCase is one of {', '.join(NAME_CASES)}")
        unknown = sorted(set(self.without) - set(SWITCHES))
        if unknown:
            raise ValueError(f"without {unknown[0]}: there are {', '.join(SWITCHES)}")
        unknown = sorted(set(self.enable) - set(OPTIONAL_MECHANISMS))
        if unknown:
            raise ValueError(f"enable {unknown[0]}: there are {', '.join(OPTIONAL_MECHANISMS)}")
        for item in fields(self):
            least = item.metadata.get("least")
            if least is None:
                continue
            value = getattr(self, item.name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{item.name} is a whole number, {least} or more")
