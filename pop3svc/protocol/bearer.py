"""
Read and write the messages of OAUTHBEARER (RFC 7628) and XOAUTH2 on the side of the server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pop3svc.errors import BadArguments
from pop3svc.protocol.scram import SASL_NAME, unescaped

__all__ = ["LONGEST_TOKEN", "BearerMessage", "failureOf"]

# The most octets of a token.  A token with many claims has some 4 KiB.
LONGEST_TOKEN = 8192
# The most octets of a message.  It contains the token, a name, a host and a port.
_LONGEST = LONGEST_TOKEN + 1024
_LONGEST_NAME = 255

# A token with its scheme (RFC 6750 section 2.1).  The case of the scheme does not matter (RFC 9110
# section 11.1).
_AUTH = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<token>[A-Za-z0-9._~+/-]+=*)")
# The form of a message (RFC 7628 section 3.1).  "p=" is not allowed, because it is for mechanisms
# with channel binding.
_OAUTHBEARER = re.compile(
    rf"[ny],(?:a=(?P<name>{SASL_NAME}))?,\x01(?P<pairs>(?:[A-Za-z]+=[\x20-\x7e\t\r\n]*\x01)+)\x01"
)
_XOAUTH2 = re.compile(
    r"(?:user=(?P<name>[^\x00-\x1f\x7f]+)\x01)?auth=(?P<auth>[\x20-\x7e]+)\x01\x01"
)

# The challenges that refuse a token.  RFC 7628 section 3.2.2 defines the first form.  XOAUTH2 has
# another form.
_FAILURES = {
    "OAUTHBEARER": b'{"status":"invalid_token"}',
    "XOAUTH2": b'{"status":"401","schemes":"bearer"}',
}


def failureOf(mechanism: str) -> bytes:
    """
    @param mechanism: C{OAUTHBEARER} or C{XOAUTH2}.
    @return: the challenge by which the service refuses a token.  It is the same, whatever the
        reason is.
    """
    return _FAILURES[mechanism]


def _malformed() -> BadArguments:
    return BadArguments("Message of the mechanism is not valid.")


def _text(message: bytes) -> str:
    if len(message) > _LONGEST:
        raise BadArguments("Message of the mechanism is too long.")
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed()


@dataclass(frozen=True, slots=True, repr=False)
class BearerMessage:
    """
    The message of a client.  A client sends one message in an exchange.

    @ivar token: the bearer token, at most 8 KiB.
    @ivar name: the name of the user that the client has sent; L{None} if it has sent no name.
    """

    token: str
    name: str | None

    @classmethod
    def _make(cls, auth: str, name: str | None) -> BearerMessage:
        found = _AUTH.fullmatch(auth)
        if found is None or len(found["token"]) > LONGEST_TOKEN:
            raise _malformed()
        if name is not None and len(name.encode("utf-8")) > _LONGEST_NAME:
            raise _malformed()
        return cls(found["token"], name)

    @classmethod
    def parseOAuthBearer(cls, message: bytes) -> BearerMessage:
        """
        Parse a message of OAUTHBEARER (RFC 7628 section 3.1).  Ignore the host and the port.

        @raise BadArguments: the message is malformed.
        """
        found = _OAUTHBEARER.fullmatch(_text(message))
        if found is None:
            raise _malformed()
        values: dict[str, str] = {}
        for pair in found["pairs"].split("\x01")[:-1]:
            key, _, value = pair.partition("=")
            if key in values:
                raise _malformed()
            values[key] = value
        name = found["name"]
        return cls._make(values.get("auth", ""), None if name is None else unescaped(name))

    @classmethod
    def parseXOAuth2(cls, message: bytes) -> BearerMessage:
        """
        Parse a message of XOAUTH2.  No RFC defines this mechanism, but many clients support it.

        @raise BadArguments: the message is malformed.
        """
        found = _XOAUTH2.fullmatch(_text(message))
        if found is None:
            raise _malformed()
        return cls._make(found["auth"], found["name"])
