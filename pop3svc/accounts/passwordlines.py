"""
Read and make the lines of a password file.

A line has the form C{name:hash:uid:gid:gecos:home:shell:extra}, as in Dovecot's passwd-file.
Everything after the hash is optional.  The verifiers for SCRAM that belong to a hash are extra
fields.  The field of a verifier also contains a digest of the hash.  If another program changes the
hash, the digest does not match any more.  The service then ignores the verifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pop3svc.preparation import prepareName

__all__ = ["checkUserName", "extrasOf", "nameIn", "verifierIn", "verifiersIn", "withVerifiers"]

# The number of fields between the hash and the extra fields.  They are uid, gid, gecos, home and
# shell.
_BETWEEN = 5
# For each algorithm of SCRAM: the name of the extra field, and the scheme of the verifiers.
_FIELDS = {
    "sha256": ("pop3svc_scram_sha_256", "{SCRAM-SHA-256}"),
    "sha1": ("pop3svc_scram_sha_1", "{SCRAM-SHA-1}"),
}
_ALGORITHMS = {field: algorithm for algorithm, (field, _) in _FIELDS.items()}


def checkUserName(name: str, isCaseMapped: bool = False) -> str:
    """
    Prepare a user name, and check that a password file can contain the name.

    @param isCaseMapped: see L{prepareName}.
    @return: the prepared name.
    @raise ValueError: the name is not allowed.  The text is a sentence for the operator.
    """
    if not name or not name.isprintable() or any(c in ":#" or c.isspace() for c in name):
        raise ValueError("a user name is printable, without spaces, ':' and '#'")
    return prepareName(name, isCaseMapped)


def nameIn(line: str) -> str:
    """
    @return: the name of the user of a line.  The name is prepared if the profile allows the name.
    """
    name = line.partition(":")[0]
    try:
        return prepareName(name)
    except ValueError:
        return name


def extrasOf(fields: str) -> str | None:
    """
    @param fields: the part of a line after the hash and its colon.
    @return: the extra fields, separated by spaces; L{None} if the line has no place for extra
        fields.
    """
    # Limit the number of parts, because an extra field may contain colons.
    found = fields.split(":", _BETWEEN)[_BETWEEN:]
    if not found:
        return ""
    # In an old format of Dovecot, the shell is followed by an empty field and the location of the
    # mail.
    return None if found[0].startswith(":") else found[0]


def _bindingOf(stored: str) -> str:
    """
    @return: a digest of a hash, in hexadecimal digits.
    """
    octets = stored.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(octets, digest_size=16).hexdigest()


def verifierIn(stored: str, key: str, value: str) -> tuple[str, str] | None:
    """
    Read an extra field.

    @param stored: the hash of the line.
    @return: the algorithm (C{"sha1"} or C{"sha256"}), and the verifier as a stored password in a
        form of L{pop3svc.accounts.hashes}.  L{None} if the field is not a verifier, or belongs to
        another hash.
    """
    algorithm = _ALGORITHMS.get(key)
    binding, _, rest = value.partition(",")
    if algorithm is None or binding != _bindingOf(stored):
        return None
    return algorithm, _FIELDS[algorithm][1] + rest


def verifiersIn(stored: str, fields: str) -> dict[str, str]:
    """
    Read the verifiers of a line.

    @param stored: the hash of the line.
    @param fields: the part of a line after the hash and its colon.
    @return: the verifiers by algorithm, in the form of stored passwords.
    """
    found = (
        verifierIn(stored, key, value)
        for key, _, value in (each.partition("=") for each in (extrasOf(fields) or "").split())
    )
    return dict(each for each in found if each is not None)


def withVerifiers(stored: str, rest: str, verifiers: Mapping[str, str]) -> str:
    """
    Replace the verifiers of a line.

    @param stored: the hash to which the verifiers belong.
    @param rest: the part of a line after the hash.  It is empty, or a colon and further fields.
    @param verifiers: the new verifiers by algorithm, in the form of stored passwords; empty to
        remove all verifiers.
    @return: the new part of the line after the hash.
    @raise ValueError: the line has no place for verifiers.  The text is a short reason.
    """
    fields = rest[1:].split(":", _BETWEEN)
    extras = extrasOf(rest[1:])
    if extras is None and verifiers:
        raise ValueError("the line is in an old format of Dovecot, with no place for a verifier")
    kept = [each for each in (extras or "").split() if each.partition("=")[0] not in _ALGORITHMS]
    if not verifiers and len(kept) == len((extras or "").split()):
        return rest
    added = [
        f"{field}={_bindingOf(stored)},{verifiers[algorithm].removeprefix(scheme)}"
        for algorithm, (field, scheme) in _FIELDS.items()
        if algorithm in verifiers
    ]
    between = fields[:_BETWEEN]
    between += [""] * (_BETWEEN - len(between))
    return ":" + ":".join([*between, " ".join(kept + added)])
