"""
Credentials of twisted.cred for a login.  The credentials contain facts about the client, such as
its address.  A checker calls a method of the credentials before it compares the password.
"""

from __future__ import annotations

from typing import Any

from twisted.cred.credentials import ICredentials, IUsernamePassword, UsernamePassword
from zope.interface import Attribute, implementer

from pop3svc.policy import Policy

__all__ = ["IBearerToken", "IPasswordAttempt", "PasswordAttempt", "asAttempt"]


class IBearerToken(ICredentials):
    """
    A bearer token.  A checker for tokens provides L{pop3svc.interfaces.IBearerAccounts}.  The
    service calls C{userOfToken} of the checker, and not C{requestAvatarId}.
    """


class IPasswordAttempt(IUsernamePassword):
    """
    Name and password of a login.  A checker that lists this interface among its
    C{credentialInterfaces} must call C{comparing} before it compares the password, and C{refused}
    if the password is wrong.
    """

    isFromKnownNetwork: bool = Attribute(
        "bool: the user has logged in from the client's network before."
    )
    patience: float = Attribute("How many seconds the login may wait for its check to begin.")
    clientIP: str | None = Attribute("str: the client's address; None if it is unknown.")
    isSecure: bool = Attribute("bool: the client's connection uses TLS.")
    version: str = Attribute(
        "str, settable: the credentialsVersion (L{pop3svc.interfaces.IAccountStatus}) of the "
        "password that was accepted; empty if the service has to ask for it later.  A checker sets "
        "it if the password may change meanwhile, or a user has several passwords."
    )

    def comparing() -> None:
        """
        Report that the comparison of the password begins.  After this call the attempt counts as a
        guess, even if the client disconnects before the answer.
        """

    def refused() -> None:
        """
        Report that the user exists and has another password.  After this call the attempt counts as
        a guess, even if the next checker gives no answer.
        """


@implementer(IPasswordAttempt)
class PasswordAttempt(UsernamePassword):
    """
    See L{IPasswordAttempt}.
    """

    def __init__(
        self,
        username: bytes,
        password: bytes,
        attempt: Any = None,
        patience: float = Policy.loginWait,
        clientIP: str | None = None,
        isSecure: bool = False,
    ) -> None:
        """
        @param attempt: L{pop3svc.interfaces.ILoginAttempt} or L{None}.
        """
        super().__init__(username, password)
        self._attempt = attempt
        self.isFromKnownNetwork = attempt is not None and bool(attempt.isFromKnownNetwork)
        self.patience = patience
        self.clientIP = clientIP
        self.isSecure = isSecure
        self.version = ""

    def comparing(self) -> None:
        """
        See L{IPasswordAttempt.comparing}.
        """
        if self._attempt is not None:
            self._attempt.isGuess = True

    def refused(self) -> None:
        """
        See L{IPasswordAttempt.refused}.
        """
        if self._attempt is not None:
            self._attempt.wasRefused = True


def asAttempt(credentials: Any) -> Any:
    """
    @param credentials: L{IUsernamePassword}.
    @return: L{IPasswordAttempt}: the credentials, or an attempt with the same name and password.
    """
    # Try isinstance() first, because providedBy() is slow.
    if isinstance(credentials, PasswordAttempt) or IPasswordAttempt.providedBy(credentials):
        return credentials
    return PasswordAttempt(credentials.username, credentials.password)
