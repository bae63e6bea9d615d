"""
Ask an LDAP server (RFC 4511).  Connections are used again.  All functions block, and the requests
of each login have a time limit.
"""

from __future__ import annotations

import re
import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import ldap

from pop3svc.accounts.blockingchecks import CONCURRENT, CheckUnavailable
from pop3svc.trust import trustRootOf

__all__ = ["SCOPES", "TIMEOUT", "Entry", "LDAPConnection", "LDAPServer", "TooManyEntries"]

T = TypeVar("T")

# Seconds for all requests of a login, including the connection.
TIMEOUT = 5
# The first number: seconds after which an idle connection is not used any more, because a firewall
# may have forgotten it.  The second: seconds after which a connection is replaced, so that the name
# of the server is looked up again.
IDLE, LONGEST_LIFE = 30.0, 600.0
SCOPES = {"sub": ldap.SCOPE_SUBTREE, "one": ldap.SCOPE_ONELEVEL}
# A host name or an address, and a port.
_URL = re.compile(r"(ldaps?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# TCP probes, in seconds.  Because of these a connection whose peer is gone ends after one minute,
# even during a TLS handshake, for which libldap has no time limit.
_PROBES = {
    ldap.OPT_X_KEEPALIVE_IDLE: 30,
    ldap.OPT_X_KEEPALIVE_INTERVAL: 10,
    ldap.OPT_X_KEEPALIVE_PROBES: 3,
}
# Results of a bind that concern only this user: the password is wrong, or the user's entry is
# locked or has no password.
_REFUSALS = (
    ldap.CONSTRAINT_VIOLATION,
    ldap.INAPPROPRIATE_AUTH,
    ldap.INVALID_CREDENTIALS,
    ldap.INVALID_DN_SYNTAX,
    ldap.NO_SUCH_OBJECT,
    ldap.UNWILLING_TO_PERFORM,
)


class TooManyEntries(Exception):
    """
    A search has found more than one entry.
    """


class Entry(NamedTuple):
    """
    An entry of the directory.

    @ivar values: the values of the attributes that were asked for, by names in lower case.
    """

    dn: str
    values: Mapping[str, Sequence[bytes]]


def _checkURL(url: str, startsTLS: bool, isInsecure: bool, authorities: str | None) -> bool:
    """
    @return: whether connections use TLS.
    @raise ValueError: the URL or an option cannot be used.  The text is a sentence for the
        operator.
    """
    found = _URL.fullmatch(url)
    if found is None or (found[3] is not None and not 0 < int(found[3]) < 65536):
        raise ValueError("a URL such as ldaps://HOST or ldap://HOST:PORT is needed")
    if startsTLS and found[1] == "ldaps":
        raise ValueError("starttls is for ldap://, because ldaps:// begins with TLS")
    usesTLS = startsTLS or found[1] == "ldaps"
    if authorities is not None and not usesTLS:
        raise ValueError("ca is for ldaps:// and starttls=yes only")
    if not usesTLS and not isInsecure and found[2].lower() not in _LOOPBACK:
        raise ValueError(
            "passwords would be sent without TLS; use ldaps:// or starttls=yes, or add "
            "insecure=yes to allow this"
        )
    return usesTLS


def _systemAuthorities() -> str:
    """
    @return: the file of certificates that the system trusts.
    @raise ValueError: there is no such file.  The text is a sentence for the operator.
    """
    # The file that ldap.conf names.  If libldap uses OpenSSL, ldap.conf may name none; OpenSSL's
    # own file is then right.
    path = ldap.get_option(ldap.OPT_X_TLS_CACERTFILE) or ssl.get_default_verify_paths().cafile
    if not path:
        raise ValueError("the system has no file of certificates for libldap; add ca=FILE")
    return str(path)


class LDAPServer:
    """
    An LDAP server.  Several threads may use one object.

    @ivar url: the URL, for the log.
    """

    def __init__(
        self,
        url: str,
        startsTLS: bool = False,
        authorities: str | None = None,
        isInsecure: bool = False,
        timeout: float = TIMEOUT,
        mostKept: int = CONCURRENT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param url: C{ldap://HOST[:PORT]} or C{ldaps://HOST[:PORT]}.
        @param startsTLS: whether a connection begins with StartTLS (RFC 4511 section 4.14).
        @param authorities: a PEM file of certificates to trust; L{None} for those of the
            system.
        @param isInsecure: whether passwords may go to another machine without TLS.
        @param timeout: seconds for an exchange.
        @param mostKept: the most idle connections to keep.
        @param now: the monotonic clock, in seconds.
        @raise ValueError: the server cannot be asked.  The text is a sentence for the operator.
        """
        self._usesTLS = _checkURL(url, startsTLS, isInsecure, authorities)
        if authorities is not None:
            # libldap would notice a fault only at the first login.
            trustRootOf(authorities)
        elif self._usesTLS:
            authorities = _systemAuthorities()
        self.url = url
        self._startsTLS = startsTLS
        self._authorities = authorities
        self._timeout = timeout
        self._mostKept = mostKept
        self._now = now
        # The connection that was used last is at the end of the list.
        self._idle: deque[LDAPConnection] = deque()
        # Connections that began before this time are not used again.
        self._oldest = now()

    def run(self, work: Callable[[LDAPConnection], T]) -> T:
        """
        Run C{work} with a connection.

        @param work: must begin with a bind, because another user may be authenticated on the
            connection.
        @return: the result of C{work}.
        @raise CheckUnavailable: the server gives no usable answer.
        """
        connection = self._kept() or self._new()
        connection.begin()
        try:
            if not connection.isReady:
                connection.open(self._startsTLS)
            answer = work(connection)
        except BaseException:
            # The server may still send answers on this connection.
            connection.close()
            raise
        self._keep(connection)
        return answer

    def _new(self) -> LDAPConnection:
        try:
            return LDAPConnection(self._link(), self._timeout, self._now)
        except (ldap.LDAPError, ValueError):
            # libldap gives no reason.  Most likely the file cannot be read any more.
            raise CheckUnavailable(f"TLS cannot be set up with {self._authorities}") from None

    def _link(self) -> Any:
        link: Any = ldap.initialize(self.url)
        link.set_option(ldap.OPT_PROTOCOL_VERSION, ldap.VERSION3)
        # Do not follow referrals, because another server must not get the password.
        link.set_option(ldap.OPT_REFERRALS, ldap.OPT_OFF)
        for option, seconds in _PROBES.items():
            link.set_option(option, seconds)
        if self._usesTLS:
            link.set_option(ldap.OPT_X_TLS_CACERTFILE, self._authorities)
            # This replaces further certificates that ldap.conf may name.
            link.set_option(ldap.OPT_X_TLS_CACERTDIR, "")
            link.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
            link.set_option(ldap.OPT_X_TLS_PROTOCOL_MIN, ldap.OPT_X_TLS_PROTOCOL_TLS1_2)
            # Set this option last, because it makes the other options take effect.
            link.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
        return link

    def _kept(self) -> LDAPConnection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.isUsable(self._oldest):
                return connection
            connection.close()

    def _keep(self, connection: LDAPConnection) -> None:
        self._idle.append(connection)
        # Other threads may change the queue at the same time.
        while True:
            try:
                longestIdle = self._idle.popleft()
            except IndexError:
                return
            if len(self._idle) < self._mostKept and longestIdle.isUsable(self._oldest):
                self._idle.appendleft(longestIdle)
                return
            longestIdle.close()

    def renew(self) -> None:
        """
        From now on use none of the present connections again.
        """
        self._oldest = self._now()


class LDAPConnection:
    """
    A connection.  One thread at a time uses it.

    @ivar isReady: whether C{open} has returned.
    """

    def __init__(self, link: Any, timeout: float, now: Callable[[], float]) -> None:
        self._link = link
        self._timeout = timeout
        self._now = now
        self._opened = self._used = self._end = now()
        self.isReady = False

    def begin(self) -> None:
        """
        Begin the requests of a login, and their time limit.
        """
        self._used = self._now()
        self._end = self._used + self._timeout

    def open(self, startsTLS: bool) -> None:
        """
        Begin TLS if C{startsTLS}.  Otherwise the first operation connects.

        @raise CheckUnavailable: TLS cannot be begun.
        """
        if startsTLS:
            self._do(self._link.start_tls_s)
        self.isReady = True

    def isUsable(self, oldest: float) -> bool:
        """
        @param oldest: the connection must not have begun before this time.
        @return: whether a kept connection can be used again.
        """
        now = self._now()
        if now - self._used > IDLE or self._opened < max(oldest, now - LONGEST_LIFE):
            return False
        # On an idle connection the server sends nothing, except a notice that it ends (RFC 4511
        # section 4.4.1).
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """
        Close the connection.
        """
        try:
            self._link.unbind_ext_s()
        except ldap.LDAPError:
            pass

    def bind(self, dn: str, password: str) -> str | None:
        """
        Authenticate by a simple bind.

        @param dn: the name; empty, together with C{password}, for an anonymous bind.
        @return: L{None} if the password is right; otherwise why the server refuses it.
        @raise CheckUnavailable: the server gives no usable answer.
        """
        if bool(dn) != bool(password):
            # The server would consider this an anonymous bind (RFC 4513 section 5.1.2).
            raise CheckUnavailable("a bind needs both a name and a password")
        try:
            self._do(self._link.simple_bind_s, dn, password, expected=_REFUSALS)
        except _REFUSALS as error:
            return _description(error)
        return None

    def find(
        self, base: str, scope: int, condition: str, attributes: Sequence[str]
    ) -> Entry | None:
        """
        Search for one entry.

        @param condition: a filter (RFC 4515).
        @return: L{None} if there is none.
        @raise TooManyEntries: there is more than one.
        @raise CheckUnavailable: the server gives no usable answer.
        """
        try:
            found = self._do(
                self._link.search_ext_s,
                base,
                scope,
                condition,
                list(attributes),
                expected=(ldap.SIZELIMIT_EXCEEDED, ldap.NO_SUCH_OBJECT),
                sizelimit=2,
            )
        except ldap.SIZELIMIT_EXCEEDED:
            raise TooManyEntries() from None
        except ldap.NO_SUCH_OBJECT:
            if scope == ldap.SCOPE_BASE:
                return None
            raise CheckUnavailable("the base of the search does not exist") from None
        # A reference to another server has no DN.
        entries = [each for each in found if each[0] is not None]
        if len(entries) > 1:
            raise TooManyEntries()
        for dn, values in entries:
            return Entry(dn, {name.lower(): each for name, each in values.items()})
        return None

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        """
        Read an entry.

        @return: L{None} if the user of the connection may not read the entry.
        @raise CheckUnavailable: the server gives no usable answer.
        """
        return self.find(dn, ldap.SCOPE_BASE, "(objectClass=*)", attributes)

    def _do(
        self,
        operation: Callable[..., Any],
        *arguments: Any,
        expected: tuple[type[ldap.LDAPError], ...] = (),
        **named: Any,
    ) -> Any:
        """
        Run an operation within the remaining time.

        @param expected: errors that the caller handles.
        @raise CheckUnavailable: another error.
        """
        rest = self._end - self._now()
        if rest <= 0:
            raise self._late()
        self._link.set_option(ldap.OPT_TIMEOUT, rest)
        self._link.set_option(ldap.OPT_NETWORK_TIMEOUT, rest)
        try:
            return operation(*arguments, **named)
        except expected:
            raise
        except ldap.TIMEOUT:
            raise self._late() from None
        except (ldap.SERVER_DOWN, ldap.CONNECT_ERROR) as error:
            raise CheckUnavailable(_connectionError(error)) from None
        except ldap.LDAPError as error:
            raise CheckUnavailable(f"it answers: {_description(error)}") from None
        except UnicodeDecodeError:
            raise CheckUnavailable("it answers with a name that is not UTF-8") from None

    def _late(self) -> CheckUnavailable:
        return CheckUnavailable(f"no answer within {self._timeout:g} s")


def _detail(error: ldap.LDAPError, name: str) -> str:
    details = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return str(details.get(name, ""))


def _description(error: ldap.LDAPError) -> str:
    """
    @return: the name of the result code.  The server's own text is left out, because it may name
        the user.
    """
    return _detail(error, "desc") or type(error).__name__


def _connectionError(error: ldap.LDAPError) -> str:
    # libldap has no code for this: a certificate that is not valid is an "unknown error code".
    info = _detail(error, "info")
    if "TLS" in info or "unknown error code" in info or "certificate" in info:
        return "TLS failed, for example because its certificate is not valid for its name"
    return f"it cannot be reached ({info})" if info else "it cannot be reached"
