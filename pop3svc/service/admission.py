"""
Limit the connections of each address, the sessions of each user, and the time between logins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pop3svc.errors import POP3ResponseError
from pop3svc.networks import isLoopback, networkOf
from pop3svc.policy import Policy
from pop3svc.service.unauthenticated import UnauthenticatedConnections

__all__ = ["Admission"]


class Admission:
    """
    Counts the connections and the sessions of a service, and refuses connections and sessions above
    the limits.

    @ivar policy: the limits.
    @ivar unauthenticated: the connections on which nobody is logged in.
    @ivar accepted: a function that is called when a port has accepted a connection.
    @ivar mayServe: a function that is called at each login and each WAKE, and returns whether the
        process has resources for another session.
    @ivar loginDelayed: a function that is called with a user's name and True when a login delays
        the next login of this user.  If the login has failed, the function is called again with
        False, because a failed login delays no other login.
    """

    def __init__(self, clock: IReactorTime, policy: Policy) -> None:
        self.policy = policy
        self.unauthenticated = UnauthenticatedConnections()
        self.accepted: Callable[[], object] = lambda: None
        self.mayServe: Callable[[], bool] = lambda: True
        self.loginDelayed: Callable[[str, bool], object] = lambda name, isDelayed: None
        self._clock = clock
        # When the service stops, it admits no new connections.  When it drains, it admits no
        # logins, and lets no sleeping session wake up.
        self._stopping = self._isDraining = False
        self._connections = 0
        # The connections whose PROXY header has not come yet.
        self._expected: set[Any] = set()
        # The number of connections of each network.
        self._addresses: dict[str, int] = {}
        # The number of all sessions that are not asleep, and their number for each user.
        self._awakeInAll = 0
        self._awake: dict[str, int] = {}
        # The time of each user's last login, in the order of these times.
        self._logins: OrderedDict[str, float] = OrderedDict()

    def stop(self) -> None:
        """
        Admit no more connections.
        """
        self._stopping = True

    def drain(self) -> None:
        """
        Admit no more logins, and let no sleeping session wake up.
        """
        self._isDraining = True

    # --- connections ----------------------------------------------------------

    @property
    def loggedIn(self) -> int:
        """
        The number of connections on which somebody is logged in.  Sleepers count too.
        """
        return self._connections + len(self._expected) - len(self.unauthenticated)

    @property
    def inUse(self) -> tuple[int, int]:
        """
        The number of connections, and the number of sessions that are not asleep.
        """
        return self._connections + len(self._expected), self._awakeInAll

    def mayConnect(self, address: str | None) -> bool:
        """
        @return: whether an address may open another connection.
        """
        if self._stopping:
            return False
        count = self._addresses.get(networkOf(address), 0)
        if count >= self.policy.maxPerAddress and not isLoopback(address):
            return False
        return self._hasRoom()

    def _hasRoom(self) -> bool:
        """
        At a limit, make room for a new connection by closing another one on which nobody has logged
        in.  The closed connection is the oldest one of the network that has the most such
        connections.  A client that opens many connections therefore loses only its own connections.

        @return: whether there is room for a new connection.
        """
        policy = self.policy
        total = self._connections + len(self._expected)
        if len(self.unauthenticated) < policy.maxUnauthenticated and total < policy.maxConnections:
            return True
        longest = self.unauthenticated.longestWaiting()
        if longest is None:
            return False
        # Remove the old connection now, because it ends one turn of the reactor later.
        self.unauthenticated.discard(longest)
        longest.abort("made room for others")
        return True

    def connected(self, address: str | None) -> None:
        """
        Count a new connection.
        """
        self._connections += 1
        network = networkOf(address)
        self._addresses[network] = self._addresses.get(network, 0) + 1

    def disconnected(self, connection: Any) -> None:
        """
        Stop counting a connection, because it has ended.

        @param connection: has an C{address}.
        """
        self._connections -= 1
        self.unauthenticated.discard(connection)
        network = networkOf(connection.address)
        left = self._addresses[network] - 1
        if left:
            self._addresses[network] = left
        else:
            del self._addresses[network]

    def expect(self, waiting: Any) -> bool:
        """
        Count a connection whose PROXY header has not come yet.

        @param waiting: has an C{address}, and a method C{abort} that takes a reason.
        @return: whether the service admits the connection.  If not, the connection is not counted.
        """
        if self._stopping or not self._hasRoom():
            return False
        self._expected.add(waiting)
        self.unauthenticated.add(waiting)
        return True

    def expectNoMore(self, waiting: Any) -> None:
        """
        Stop counting a connection of L{expect}, because its PROXY header has arrived, or because
        the connection has ended.
        """
        self._expected.discard(waiting)
        self.unauthenticated.discard(waiting)

    # --- sessions ---------------------------------------------------------------

    def acquireSlot(self, name: str, isLogin: bool) -> Callable[[bool], None]:
        """
        Count a session when its user logs in, or when the session wakes up.

        @return: a function that must be called once, when the session is no longer awake.  The
            argument of the function is a bool, which says whether the login has succeeded.
        @raise POP3ResponseError: the user or the service has too many sessions, the user logs in
            again too soon, or the service drains.
        """
        if self._isDraining:
            # If a session tries to wake up, end its connection after the error, so that the client
            # logs in again.
            raise POP3ResponseError(
                "The service is about to stop.", "SYS/TEMP", critical=not isLogin
            )
        awake = self._awake.get(name, 0)
        if awake >= self.policy.maxAwakePerUser:
            raise POP3ResponseError("Too many sessions for this user.", "SYS/TEMP")
        if not self.mayServe():
            raise POP3ResponseError("Too many sessions, try again later.", "SYS/TEMP")
        if isLogin and self.policy.loginDelay:
            self._delayLogins(name)
        self._awake[name] = awake + 1
        self._awakeInAll += 1

        def releaseSlot(isIn: bool) -> None:
            self._awakeInAll -= 1
            left = self._awake[name] - 1
            if left:
                self._awake[name] = left
            else:
                del self._awake[name]
            if not isIn and self._logins.pop(name, None) is not None:
                # The login has failed, so it delays no other login.
                self.loginDelayed(name, False)

        return releaseSlot

    def _delayLogins(self, name: str) -> None:
        seconds = self.policy.loginDelay
        self._forgetLogins()
        if name in self._logins:
            raise POP3ResponseError(
                f"Log in again not before {seconds} seconds have passed.", "LOGIN-DELAY"
            )
        self._logins[name] = self._clock.seconds()
        self.loginDelayed(name, True)

    def _forgetLogins(self) -> None:
        now, delay = self._clock.seconds(), self.policy.loginDelay
        while self._logins and now - next(iter(self._logins.values())) >= delay:
            self._logins.popitem(last=False)

    def heardLogin(self, name: str, isDelayed: bool) -> None:
        """
        Record a login, or the failure of a login, that another worker has reported by
        C{loginDelayed}.
        """
        self._forgetLogins()
        self._logins.pop(name, None)
        if isDelayed:
            self._logins[name] = self._clock.seconds()
