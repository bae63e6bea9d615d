"""
What pop3svc asks of a mailbox provider, and what it shows one.

Rules that hold for every method here:

  - It may return its value, a Deferred firing with it, or a coroutine.
  - To refuse, raise L{pop3svc.errors.POP3ResponseError}C{(text, code=None,
    critical=False)}.  L{NotImplementedError} is answered "not available".  Any
    other exception is a bug: it is logged, the client sees C{[SYS/TEMP]} and is
    disconnected.
  - Calls on one mailbox object never overlap (a cancelled call counts as over).
  - A pending Deferred is cancelled when the client is lost, except
    C{messageDelete}'s.
  - Names and unique-ids are L{str}; messages are L{bytes}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface import Attribute, Interface

__all__ = [
    "IAccountStatus",
    "IBulkMessageSizes",
    "IChunkedContent",
    "IExclusiveMailbox",
    "IFileContent",
    "ILoginAttempt",
    "ILoginThrottle",
    "IMailboxLogout",
    "IMailboxStore",
    "IMessageContent",
    "INewMailNotifier",
    "IPOP3ConnectionInfo",
    "IPOP3Mailbox",
    "IPOP3MailboxProvider",
    "IPOP3ProviderPlugin",
    "IReadOnlyMailbox",
    "IReloading",
    "ISleepingMailbox",
]

# Most methods may be late: "Any" stands for the value named in @return, a
# Deferred firing with it, or a coroutine.


# --- required ---------------------------------------------------------------


class IPOP3MailboxProvider(Interface):
    """
    Decides who may log in, and opens their mailbox.  One per service.
    """

    name: str = Attribute(
        "str: printable ASCII without < > [ ], at most 100 octets; shown in the "
        "greeting and as IMPLEMENTATION."
    )

    def authenticate(info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        Check a login.

        @param info: L{IPOP3ConnectionInfo}; C{userNameAtLogin} is still None.
        @param username: str as the client sent it (UTF-8; other octets as
            surrogate escapes).
        @param password: str, likewise.  May contain blanks.
        @return: an L{IPOP3Mailbox} made for this session (or what can be
            adapted to one), or None to refuse.
        @raise POP3ResponseError: to refuse for another reason than the
            credentials, e.g. code C{"LOGIN-DELAY"} or C{"SYS/TEMP"}.
        """


class IPOP3Mailbox(Interface):
    """
    One user's messages, for one session.

    Only unique-ids from the latest list, or confirmed by C{messageExists}, are
    ever passed back in.
    """

    def listMessageUniqueIDs(info: IPOP3ConnectionInfo) -> Any:
        """
        @return: iterable of str, in message-number order, each 1 to 70
            characters of "!" to "~", not "_" alone, no two alike (RFC 1939
            section 7).  Anything else is a provider bug and ends the login.
            A L{pop3svc.listings.UniqueIDList} is checked once, when it is made: a
            mailbox may return the same one as long as nothing has changed.
        """

    def messageExists(info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        Does a message exist that was not in the list?  Asked only for
        C{UID:...} arguments.  May always answer False.

        @return: bool
        """

    def messageSize(info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        @return: int, octets as they will be sent, line ends as CRLF, without
            dot-stuffing.
        @raise NotImplementedError: the service reads the message and counts.
        """

    def messageContent(info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        Open a message.  Refuse here, not while being read: after C{+OK} the
        only way to report trouble is to cut the connection.

        @return: an L{IMessageContent}, an L{IChunkedContent} or an
            L{IFileContent}, or what can be adapted to one: bytes, a binary
            file, an iterable of lines.
        @raise POP3ResponseError: e.g. the message has gone.
        """

    def messageDelete(info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> Any:
        """
        Delete all of these messages, or none.  Never called with an empty
        list, and never cancelled.  A message that is gone already counts as
        deleted.

        @param uniqueIDs: list of str
        @raise POP3ResponseError: nothing was deleted.
        """


class IMessageContent(Interface):
    """
    A message being read, line by line.
    """

    def nextLine() -> Any:
        """
        @return: bytes without its line end, or None after the last line.
        """

    def close() -> None:
        """
        Called exactly once, whether the message was read to its end, cut
        short by TOP, or abandoned.  Must not fail.
        """


class IPOP3ConnectionInfo(Interface):
    """
    What a provider may know of the client.  Implemented by the service.
    There is deliberately no way from here to the connection itself.
    """

    clientIP: str | None = Attribute("str, or None where the transport has no address.")
    connectionID: int = Attribute("int, unique within the process.")
    isSecure: bool = Attribute("bool: TLS, implicit or by STLS.  May turn True once.")
    userNameAtLogin: str | None = Attribute("str after login, None before.")
    providerTag: Any = Attribute("Settable; yours.  The service never looks.")
    loginAttempt: Any = Attribute(
        "L{ILoginAttempt} while a login is checked that a throttle has let through, else None."
    )


# --- optional: provided by a mailbox -----------------------------------------


class IBulkMessageSizes(Interface):
    """
    A mailbox that knows many sizes at once; makes STAT and LIST one call.
    """

    def messageSizes(info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> Any:
        """
        @param uniqueIDs: not to be changed.
        @return: iterable of int, as C{messageSize}, in the order asked; None
            for a message that has gone.
        """


class IExclusiveMailbox(Interface):
    """
    A mailbox only one session may hold.

    Locked for TRANSACTION, free while asleep: lock at login and at WAKE;
    unlock at SLEE, QAUT, QUIT and when the client is lost.
    """

    def lock(info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Any:
        """
        If the call is cancelled before it has answered, the store gives back
        what it got by itself: C{unlock} follows only a lock that succeeded.

        @param requestRelease: callable without arguments, called by the store in
            the reactor thread when another session of the same user waits for
            the lock; returns bool: this session will end itself and unlock.
        @raise POP3ResponseError: code C{"IN-USE"}: somebody else holds it.
        """

    def unlock(info: IPOP3ConnectionInfo) -> Any:
        """
        Called once for each lock that succeeded, after any deletion has
        finished.  Must not fail; if it does it is only logged.
        """


class IMailboxLogout(Interface):
    """
    A mailbox that wants to know when its session is over (twisted.cred's
    C{logout}).
    """

    def logout() -> Any:
        """
        Called exactly once, after C{unlock}, when the session that this
        mailbox was made for is over: QUIT, QAUT, a login that failed after
        C{authenticate}, or a lost client.  A sleeping session is not over.
        Must not fail; if it does it is only logged.
        """


class ISleepingMailbox(Interface):
    """
    A mailbox that lets go of more than its lock while its session sleeps: a
    sleeping session holds no listing.
    """

    def onSleep(info: IPOP3ConnectionInfo) -> Any:
        """
        Called at SLEE after any deletion, before C{unlock}.  Until the next
        listing no unique-id is passed in.  Must not fail; if it does it
        is only logged.
        """


class IReadOnlyMailbox(Interface):
    """
    Marker.  DELE and DELI are refused with C{[READ-ONLY]} and
    C{messageDelete} is never called.  Use C{alsoProvides()} to make one
    session read-only.
    """


class INewMailNotifier(Interface):
    """
    A mailbox that can tell when its list would come out differently.
    """

    def watchMailbox(info: IPOP3ConnectionInfo, changed: Callable[[], None]) -> Any:
        """
        @param changed: callable without arguments, to be called in the
            reactor thread as often as you like.  What has changed it has
            to be called before C{listMessageUniqueIDs} answers with that
            change: where it was not called since the listing before, WAKE is
            answered with [ACTIVITY/NONE] and the two are not compared.
        @return: callable without arguments that ends the watch, or None: this
            mailbox cannot be watched.
        """


# --- optional: provided by what messageContent returns -----------------------


class IChunkedContent(Interface):
    """
    A message being read in pieces of any size, in place of lines.
    """

    def nextChunk() -> Any:
        """
        @return: bytes, cut anywhere, line ends CRLF or LF (made CRLF by the
            service); None after the last.
        """

    def close() -> None:
        """
        As L{IMessageContent.close}.
        """


class IFileContent(Interface):
    """
    A message that is a region of an open file, exactly as it is sent.
    """

    fileno: int = Attribute("int: an open descriptor; the service never closes it.")
    offset: int = Attribute("int, octets.")
    length: int = Attribute(
        "int, octets.  The region ends with CRLF, has no bare LF and no line "
        "that begins with a dot."
    )

    def close() -> None:
        """
        As L{IMessageContent.close}.
        """


# --- optional: provided by a provider ----------------------------------------


class IMailboxStore(Interface):
    """
    Opens the mailbox of a user who has already proved who they are.  What the
    bundled storages are: an account database and a store make a provider.
    """

    name: str = Attribute("str, as IPOP3MailboxProvider.name.")

    def openMailbox(info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        @return: an L{IPOP3Mailbox} made for this session, or None to refuse.
        """


class IAccountStatus(Interface):
    """
    A provider that can tell whether a sleeping user may still come back.
    """

    def credentialsVersion(info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        @return: str that changes when the account's credentials change.
        """

    def isStillValid(info: IPOP3ConnectionInfo, username: str, mark: str) -> Any:
        """
        @return: bool: the account exists and the mark is still its mark.
        """


# --- for the running of the service ------------------------------------------


class ILoginAttempt(Interface):
    """
    A login that a throttle has let through and a provider checks.
    """

    isFromKnownNetwork: bool = Attribute(
        "bool: the user has logged in from the client's network before.  Such a login need "
        "not wait behind those of strangers."
    )
    isGuess: bool = Attribute(
        "bool, settable: if the client is lost now, its password may have been compared, and "
        "the attempt counts as a failed one.  True unless a provider knows better."
    )
    wasRefused: bool = Attribute(
        "bool, settable: the password was compared and was wrong.  The attempt counts as a "
        "failed one, whatever error it ends with."
    )


class ILoginThrottle(Interface):
    """
    Who may try to log in.  Each answer may be late (a Deferred, a coroutine), except that
    of C{loginAbandoned}.
    """

    def mayLogin(info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        Let an attempt through, which counts from then on.  Exactly one of the other methods
        follows if the answer is True.

        @param password: to tell guesses apart by a keyed digest; it is not to be kept.
        @return: bool.  False is answered exactly like a wrong password.
        @raise POP3ResponseError: C{SYS/TEMP}: it had to wait for too long.
        """

    def loginFailed(info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        Wrong credentials.  ([IN-USE] and faults are not.)

        @return: bool.  True: the log has named the same guess from the same address lately,
            and need not name it again.
        """

    def loginSucceeded(info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        The credentials were good.
        """

    def loginAbandoned(info: IPOP3ConnectionInfo, username: str, isLost: bool) -> None:
        """
        The attempt has ended neither way.

        @param isLost: the client is gone, and was given no answer; else there was a fault.
        """


class IReloading(Interface):
    """
    A provider, a store or a checker that was configured by something that may change.
    """

    def reload() -> Any:
        """
        The operator asks (by SIGHUP) to read that again.  May be late.

        @raise ValueError: it cannot be used, and what was before still holds; a
            sentence for the operator.
        """


class IPOP3ProviderPlugin(Interface):
    """
    Makes a provider from a command-line string.  Also provide C{IPlugin}, and
    stand in C{twisted.plugins}.
    """

    prefix: str = Attribute('str: "maildir" answers --provider maildir:...')
    help: str = Attribute("str: one paragraph, shown by --help-providers.")
    argumentFormat: str = Attribute('str: one line, e.g. "path of the directory of maildirs".')

    def makeProvider(argument: str) -> Any:
        """
        @param argument: str after the first colon, "" if there is none.
        @return: an L{IPOP3MailboxProvider}, or an L{IMailboxStore} (which
            then needs C{--auth}).  If it also provides
            L{twisted.application.service.IService} it is started and stopped
            with the service.
        @raise ValueError: with a sentence for the operator.
        """
