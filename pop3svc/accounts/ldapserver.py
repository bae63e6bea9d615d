"""
Ask an LDAP server (RFC 4511).  A connection is kept and used for several logins.  The functions of
this module block.  The requests of each login have a time limit.
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

# The time limit for all requests of a login together, in seconds.  It includes the time to connect.
TIMEOUT = 5
# After IDLE seconds without a request, a connection is not used any more, because a firewall may
# have forgotten it.  After LONGEST_LIFE seconds a connection is replaced, so that the name of the
# server is looked up again.
IDLE, LONGEST_LIFE = 30.0, 600.0
SCOPES = {"sub": ldap.SCOPE_SUBTREE, "one": ldap.SCOPE_ONELEVEL}
# The scheme, a host name or an address, and perhaps a port.
_URL = re.compile(r"(ldaps?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Settings of TCP keepalive (seconds, and the number of probes).  They end a connection one minute
# after the server has disappeared.  This also ends a TLS handshake, for which libldap has no time
# limit.
_PROBES = {
    ldap.OPT_X_KEEPALIVE_IDLE: 30,
    ldap.OPT_X_KEEPALIVE_INTERVAL: 10,
    ldap.OPT_X_KEEPALIVE_PROBES: 3,
}
# If a bind fails with one of these errors, the cause is the user and not the server.  The password
# is wrong, or the entry of the user does not exist, is locked or has no password.
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
    A search for one entry has found several entries.
    """


class Entry(NamedTuple):
    """
    An entry of an LDAP directory.

    @ivar values: the values of the requested attributes.  The keys are the names of the attributes
        in lower case.
    """

    dn: str
    values: Mapping[str, Sequence[bytes]]


def _checkURL(url: str, startsTLS: bool, isInsecure: bool, authorities: str | None) -> bool:
    """
    @return: whether connections to this URL use TLS.
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
    @return: the path of the file with the certificates that the system trusts.
    @raise ValueError: there is no such file.  The text is a sentence for the operator.
    """
    # Use the file that ldap.conf names.  If libldap uses OpenSSL, ldap.conf may name no file.  In
    # this case use OpenSSL's own file.
    path = ldap.get_option(ldap.OPT_X_TLS_CACERTFILE) or ssl.get_default_verify_paths().cafile
    if not path:
        raise ValueError("the system has no file of certificates for libldap; add ca=FILE")
    return str(path)


class LDAPServer:
    """
    An LDAP server.  Several threads may use the same object.

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
        @param authorities: the path of a PEM file with the certificates of the authorities; L{None}
            for the authorities of the system.
        @param isInsecure: whether passwords may be sent to another machine without TLS.
        @param timeout: the time limit for all requests of a login together, in seconds.
        @param mostKept: the most idle connections to keep.
        @param now: returns the seconds of a monotonic clock.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._usesTLS = _checkURL(url, startsTLS, isInsecure, authorities)
        if authorities is not None:
            # Check the file now, because libldap would read it at the first login.
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
        # A connection is not used again if it began before this time.
        self._oldest = now()

    def run(self, work: Callable[[LDAPConnection], T]) -> T:
        """
        Run C{work} with a connection.

        @param work: gets the connection.  Its first request must be a bind, because another user
            may be authenticated on the connection.
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
            # Do not use the connection again, because the server may still send answers to the
            # requests.
            connection.close()
            raise
        self._keep(connection)
        return answer

    def _new(self) -> LDAPConnection:
        try:
            return LDAPConnection(self._link(), self._timeout, self._now)
        except (ldap.LDAPError, ValueError):
            # libldap does not tell the reason.  Most likely the file cannot be read any more.
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
            # Ignore the directory of further certificates that ldap.conf may name.
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
        # Handle an IndexError, because other threads may change the queue at the same time.
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
        Do not use any of the present connections for further logins.
        """
        self._oldest = self._now()


class LDAPConnection:
    """
    A connection to an LDAP server.  No two threads use it at the same time.

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
        Start the time limit for the requests of a login.
        """
        self._used = self._now()
        self._end = self._used + self._timeout

    def open(self, startsTLS: bool) -> None:
        """
        Connect and begin TLS if C{startsTLS} is true.  Otherwise do nothing, because the first
        request connects.

        @raise CheckUnavailable: TLS cannot be begun.
        """
        if startsTLS:
            self._do(self._link.start_tls_s)
        self.isReady = True

    def isUsable(self, oldest: float) -> bool:
        """
        @param oldest: the time before which the connection must not have begun.
        @return: whether a kept connection can be used again.
        """
        now = self._now()
        if now - self._used > IDLE or self._opened < max(oldest, now - LONGEST_LIFE):
            return False
        # Input on an idle connection means that the server ends it, because the server sends
        # nothing else without a request (RFC 4511 section 4.4.1).
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

        @param dn: the name.  For an anonymous bind, C{dn} and C{password} are both empty.
        @return: L{None} if the password is right; otherwise the reason why the server refuses the
            bind.
        @raise CheckUnavailable: the server gives no usable answer.
        """
        if bool(dn) != bool(password):
            # The server would accept a name without a password as an anonymous bind (RFC 4513
            # section 5.1.2).
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
        @return: the entry; L{None} if there is no such entry.
        @raise TooManyEntries: there is more than one such entry.
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
        # Skip references to other servers, which have no DN.
        entries = [each for each in found if each[0] is not None]
        if len(entries) > 1:
            raise TooManyEntries()
        for dn, values in entries:
            return Entry(dn, {name.lower(): each for name, each in values.items()})
        return None

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        """
        Read an entry.

        @return: the entry; L{None} if the user of the connection may not read it.
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

        @param expected: the errors that the caller handles.  They are raised unchanged.
        @raise CheckUnavailable: the operation has failed with another error.
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
    @return: the name of the result code.  The text that the server has sent is left out, because it
        may name the user.
    """
    return _detail(error, "desc") or type(error).__name__


def _connectionError(error: ldap.LDAPError) -> str:
    # libldap reports a certificate that is not valid as "unknown error code".
    info = _detail(error, "info")
    if "TLS" in info or "unknown error code" in info or "certificate" in info:
        return "TLS failed, for example because its certificate is not valid for its name"
    return f"it cannot be reached ({info})" if info else "it cannot be reached"
