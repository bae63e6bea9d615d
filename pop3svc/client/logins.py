"""
The kinds of credentials of a login, and the SASL mechanisms that use them.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from typing import Any

from pop3svc.client.failures import ServerUnavailable

__all__ = [
    "MECHANISMS",
    "CertificateLogin",
    "Login",
    "Mechanism",
    "PasswordLogin",
    "TokenLogin",
    "choose",
    "decoded",
]

# The most rounds of PBKDF2 that a server may ask for, which take about a second.
_MOST_ROUNDS = 2_000_000
_ROUNDS = re.compile("i=([1-9][0-9]{0,11})")
_BAD = frozenset("\0\r\n")


def _check(*texts: str) -> None:
    """
    @raise ValueError: a text is empty, or has a character that would end a command early.
    """
    for each in texts:
        if not each:
            raise ValueError("the user name, the password and the token must not be empty")
        if _BAD & set(each):
            raise ValueError(
                "the user name, the password and the token must not contain CR, LF or NUL"
            )


@dataclass(frozen=True)
class PasswordLogin:
    """
    A login with a password, by SCRAM, PLAIN, or USER and PASS.

    @ivar username: the user's name on the server.
    """

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.username, self.password)


@dataclass(frozen=True)
class TokenLogin:
    """
    A login with a bearer token, by OAUTHBEARER or XOAUTH2.

    @ivar username: the user's name on the server.
    """

    username: str
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.username, self.token)
        if not re.fullmatch("[!-~]+", self.token):
            raise ValueError("the token must be printable ASCII without spaces")


@dataclass(frozen=True)
class CertificateLogin:
    """
    A login with the TLS certificate of this client, by EXTERNAL.

    @ivar username: the name of the user; empty for the user whom the certificate names.
    """

    username: str = ""

    def __post_init__(self) -> None:
        if self.username:
            _check(self.username)


Login = PasswordLogin | TokenLogin | CertificateLogin
# The client's part of an exchange.  The generator yields the messages of the client.  The caller
# sends the challenges of the server into the generator, and None when the server has accepted the
# login.
Exchange = Generator[bytes, bytes | None, None]


@dataclass(frozen=True)
class Mechanism:
    """
    A SASL mechanism.

    @ivar needs: the class of the logins that the mechanism can use.
    @ivar begin: makes an exchange from the login and the octets of C{tls-server-end-point}, which
        are L{None} without TLS.
    @ivar isSlow: whether the computation of a message takes long.
    @ivar needsBinding: whether the mechanism binds the login to the TLS connection.
    """

    needs: type[Any]
    begin: Callable[[Any, bytes | None], Exchange]
    isSlow: bool = False
    needsBinding: bool = False


def decoded(challenge: bytes) -> bytes:
    """
    @raise ValueError: the challenge is not in base64.
    """
    return b64decode(challenge, validate=True)


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _plain(login: PasswordLogin, _: bytes | None) -> Exchange:
    """
    PLAIN (RFC 4616).
    """
    yield b"\0" + _octets(login.username) + b"\0" + _octets(login.password)


def _external(login: CertificateLogin, _: bytes | None) -> Exchange:
    """
    EXTERNAL (RFC 4422 appendix A).
    """
    yield _octets(login.username)


def _escape(name: str) -> str:
    return name.replace("=", "=3D").replace(",", "=2C")


def _bearer(login: TokenLogin, _: bytes | None) -> Exchange:
    """
    OAUTHBEARER (RFC 7628).  A challenge reports an error, and the client's answer to it ends the
    exchange.
    """
    name = _escape(login.username)
    challenge = yield _octets(f"n,a={name},\x01auth=Bearer {login.token}\x01\x01")
    if challenge is not None:
        yield b"\x01"


def _xoauth2(login: TokenLogin, _: bytes | None) -> Exchange:
    """
    XOAUTH2.  A challenge reports an error, and the client's answer to it ends the exchange.
    """
    challenge = yield _octets(f"user={login.username}\x01auth=Bearer {login.token}\x01\x01")
    if challenge is not None:
        yield b""


def _scram(name: str) -> Callable[[Any, bytes | None], Exchange]:
    def exchange(login: PasswordLogin, endPoint: bytes | None) -> Exchange:
        """
        SCRAM (RFC 5802, RFC 7677).
        """
        from scramp import ScramClient, ScramException

        isBound = name.endswith("-PLUS")
        # Use tls-server-end-point, because the library does not know tls-exporter.
        binding = ("tls-server-end-point", endPoint) if isBound and endPoint is not None else None
        client: Any
        try:
            client = ScramClient([name], login.username, login.password, channel_binding=binding)
        except (ScramException, ValueError):
            raise ServerUnavailable(f"cannot get this user name or password by {name}")
        try:
            first = yield client.get_client_first().encode("utf-8")
            client.set_server_first(_challenge(first))
            last = yield client.get_client_final().encode("utf-8")
            client.set_server_final(_challenge(last))
        except (ScramException, ValueError, KeyError, IndexError):
            raise ServerUnavailable(f"answers {name} wrongly")
        yield b""

    return exchange


def _challenge(challenge: bytes | None) -> str:
    """
    @return: the text of a challenge of SCRAM, which has been checked.
    @raise ServerUnavailable: there is no challenge, or it asks for too much work.
    @raise ValueError: the challenge is malformed.
    """
    if challenge is None:
        raise ServerUnavailable("accepts a login without proof that it knows the password")
    text = challenge.decode("utf-8")
    # Refuse challenges in an unusual form, because the library might read another attribute than
    # this function does, or might read the number differently.
    numbers = [each for each in text.split(",") if each.startswith("i")]
    if len(numbers) > 1:
        raise ValueError("two numbers of rounds")
    for each in numbers:
        rounds = _ROUNDS.fullmatch(each)
        if rounds is None:
            raise ValueError("no number of rounds")
        if int(rounds[1]) > _MOST_ROUNDS:
            raise ServerUnavailable(f"asks for more than {_MOST_ROUNDS} rounds of a hash")
    return text


# The mechanisms, from the best to the worst.
MECHANISMS = {
    "EXTERNAL": Mechanism(CertificateLogin, _external),
    "OAUTHBEARER": Mechanism(TokenLogin, _bearer),
    "XOAUTH2": Mechanism(TokenLogin, _xoauth2),
    "SCRAM-SHA-256-PLUS": Mechanism(
        PasswordLogin, _scram("SCRAM-SHA-256-PLUS"), True, needsBinding=True
    ),
    "SCRAM-SHA-256": Mechanism(PasswordLogin, _scram("SCRAM-SHA-256"), True),
    "SCRAM-SHA-1": Mechanism(PasswordLogin, _scram("SCRAM-SHA-1"), True),
    "PLAIN": Mechanism(PasswordLogin, _plain),
}


def choose(
    login: Login, offered: Collection[str], hasBinding: bool, only: str | None = None
) -> str | None:
    """
    Choose a mechanism for a login.

    @param offered: the names of the mechanisms that the server offers, in capitals.
    @param hasBinding: whether the TLS connection has octets for C{tls-server-end-point}.
    @param only: the only mechanism that may be used, or C{USER} for USER and PASS; L{None} for the
        best one.
    @return: the name of the chosen mechanism; L{None} for USER and PASS.
    @raise ServerUnavailable: the server offers no mechanism for this login.
    """
    if only == "USER" and isinstance(login, PasswordLogin):
        return None
    for name, each in MECHANISMS.items():
        mayBe = name in offered and isinstance(login, each.needs) and only in (None, name)
        if mayBe and (hasBinding or not each.needsBinding):
            return name
    if only is None and isinstance(login, PasswordLogin):
        return None
    wanted = only or " or ".join(
        name for name, each in MECHANISMS.items() if isinstance(login, each.needs)
    )
    raise ServerUnavailable(f"does not offer a login by {wanted}")
