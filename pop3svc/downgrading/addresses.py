"""
Convert lists of addresses to ASCII (RFC 6858 section 2.1).
"""

from __future__ import annotations

import re

from pop3svc.downgrading.lexical import Kind, Token, asciiComment, encodedText, phrase, splitAt

__all__ = ["asciiAddresses"]

# The address with which RFC 6858 section 2.1 replaces an address that cannot be written in ASCII.
_INVALID = "<invalid@internationalized-address.invalid>"
# The most characters of a domain (RFC 1035 section 2.3.4).
_LONGEST_DOMAIN = 255
_DOMAIN = re.compile(r"[A-Za-z0-9.-]+")


def asciiAddresses(text: str) -> str:
    """
    @param text: the unfolded body of a field with addresses, such as To.
    @return: the list in ASCII.  If an address cannot be written in ASCII, its text becomes part of
        the display name.
    """
    written: list[str] = []
    for tokens, separator in splitAt(",;:", text):
        address = _asciiAddress(tokens)
        if separator and address.endswith("?="):
            # RFC 2047 section 5 (rule 3) wants a space between an encoded-word and the text after
            # it.
            address += " "
        written += [address, separator]
    return "".join(written)


def _asciiAddress(tokens: list[Token]) -> str:
    """
    @param tokens: a mailbox, or the name of a group.
    """
    raw = "".join(each.raw for each in tokens)
    if raw.isascii():
        return raw
    angles = [index for index, each in enumerate(tokens) if each.kind is Kind.ANGLE]
    if angles:
        at = angles[-1]
        return _named(tokens[:at], tokens[at].raw[1:-1], tokens[at + 1 :])
    if any("@" in each.raw for each in tokens if each.kind is not Kind.COMMENT):
        return _bare(tokens)
    return phrase(tokens)


def _named(name: list[Token], address: str, after: list[Token]) -> str:
    """
    @param name: the display name.
    @param address: the text between < and >.
    @param after: the text after the address.
    """
    ascii_ = _asciiDomain(address)
    if ascii_ is None:
        name = [*name, Token(Kind.SPACE, " "), Token(Kind.TEXT, f"<{address.strip()}>")]
    written = phrase(name)
    if written and not written.endswith((" ", "\t")):
        written += " "
    written += _INVALID if ascii_ is None else f"<{ascii_}>"
    following = phrase(after)
    return written + (following if following[:1] in ("", " ", "\t") else " " + following)


def _bare(tokens: list[Token]) -> str:
    """
    @param tokens: the tokens of an address without < and >.  The address may have comments.
    """
    ascii_ = [
        Token(each.kind, asciiComment(each.raw)) if each.kind is Kind.COMMENT else each
        for each in tokens
    ]
    if all(each.raw.isascii() for each in ascii_):
        return "".join(each.raw for each in ascii_)
    outside = [each for each in ascii_ if each.kind is not Kind.COMMENT]
    comments = [each.raw for each in ascii_ if each.kind is Kind.COMMENT]
    text = "".join(each.raw for each in outside)
    address = text.strip(" \t")
    before = text[: len(text) - len(text.lstrip(" \t"))]
    found = _asciiDomain(address)
    written = f"{encodedText(address)} {_INVALID}" if found is None else found
    return " ".join([before + written, *comments])


def _asciiDomain(address: str) -> str | None:
    """
    @return: the address with its domain in ASCII (RFC 5890 section 2.3.2.1); L{None} if the domain
        cannot be written in ASCII.
    """
    if address.isascii():
        return address
    local, at, domain = address.rpartition("@")
    if not at or not local.isascii() or len(domain) > _LONGEST_DOMAIN:
        return None
    try:
        # Python's codec has the tables of one version of Unicode, so its result never changes.
        encoded = domain.encode("idna").decode("ascii")
        isSame = encoded.encode("ascii").decode("idna") == domain.lower()
    except UnicodeError:
        return None
    # The codec implements RFC 3490, which replaces a few letters.  Refuse a domain with such
    # letters, because the result would be another domain.
    return f"{local}@{encoded}" if isSame and _DOMAIN.fullmatch(encoded) else None
