"""
The contract between the service and a mailbox provider.

Every method of these interfaces obeys these rules, unless its docstring says otherwise:

  - A method may return its value, a Deferred, or a coroutine (any awaitable): L{Eventual}.
  - To refuse a request, raise L{pop3svc.errors.POP3ResponseError}C{(text, code=None,
    critical=False)}. If a method raises L{NotImplementedError}, the client learns that the command
    is not available. Any other exception is a bug: the service logs it, answers C{[SYS/TEMP]}, and
    closes the connection.
  - The service never calls two methods of one mailbox object at the same time.  A call that the
    service has cancelled counts as finished.
  - If the client disconnects, the service cancels a pending Deferred, except a Deferred of
    C{messageDelete}, C{onSleep}, C{unlock} or C{logout}.
  - Names and unique-ids are L{str}; messages are L{bytes}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeAlias, TypeVar

from zope.interface import Attribute, Interface

from pop3svc.errors import DeliveryError

__all__ = [
    "DeliveryCopy",
    "Eventual",
    "IAccountNames",
    "IAccountStatus",
    "IBearerAccounts",
    "IBulkMessageSizes",
    "IChunkedContent",
    "IDelivery",
    "IExclusiveMailbox",
    "IExpiry",
    "IFileContent",
    "IHousekeeping",
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
    "IPasswordComparing",
    "IProvenAccounts",
    "IReadOnlyMailbox",
    "IReloading",
    "IScramAccounts",
    "ISharedSecrets",
    "ISleepingMailbox",
    "ISurrogates",
    "IUserFacts",
    "IUsesUserFacts",
    "IVerifierAdding",
    "IWireContent",
    "MessageContent",
    "ScramKeys",
    "SharedSecret",
    "UserFacts",
]

T = TypeVar("T")

# A value, or a Deferred or coroutine that has this value as its result.
Eventual: TypeAlias = T | Awaitable[T]

# The types of values that messageContent may return. It may also return an object that can be
# adapted to IChunkedContent.
MessageContent: TypeAlias = (
    "IMessageContent | IChunkedContent | IFileContent | bytes | IO[bytes] | Iterable[bytes]"
)


# --- required ---------------------------------------------------------------


class IPOP3MailboxProvider(Interface):
    """
    Checks logins, and opens the mailbox of each user.  A service has one provider.
    """

    name: str = Attribute(
        "str: printable ASCII without < > [ ], at most 100 octets.  The greeting and the "
        "capability IMPLEMENTATION show this name."
    )

    def authenticate(
        info: IPOP3ConnectionInfo, username: str, password: str
    ) -> Eventual[IPOP3Mailbox | None]:
        """
        Check a login.

        @param info: L{IPOP3ConnectionInfo}.  Its C{userNameAtLogin} is None until the login
            succeeds.
        @param username: str without spaces.  The service has prepared the name by
            UsernameCasePreserved or UsernameCaseMapped (RFC 8265), so different spellings of a name
            mean the same user.
        @param password: str, which the service has prepared by OpaqueString.  It may contain
            spaces.
        @return: an L{IPOP3Mailbox} for this session alone, or an object that can be adapted to
            L{IPOP3Mailbox}; None if the name or the password is wrong.
        @raise POP3ResponseError: the provider refuses the login for another reason, for example
            with the code C{"LOGIN-DELAY"} or C{"SYS/TEMP"}.
        """


class IPOP3Mailbox(Interface):
    """
    The messages of one user, for one session.

    The service passes only unique-ids from the latest list, and unique-ids that C{messageExists}
    has confirmed.
    """

    def listMessageUniqueIDs(info: IPOP3ConnectionInfo) -> Eventual[Iterable[str]]:
        """
        List the messages.

        @return: iterable of the unique-ids, str, in the order of message numbers.  A unique-id has
            1 to 70 characters from "!" to "~", but must not be "_".  All unique-ids differ (RFC
            1939 section 7).  If a value breaks these rules, the login, CORE or WAKE fails.  While
            the mailbox has not changed, it may return the same L{pop3svc.listings.UniqueIDList}
            again.  The service checks such a list only once.
        """

    def messageExists(info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[bool]:
        """
        Look for a message that is not in the list.  The service calls this method only for
        arguments of the form C{UID:...}.

        @return: bool.  A mailbox may always return False.
        """

    def messageSize(info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[int]:
        """
        @return: int, the number of octets that RETR sends, with CRLF as line ends, and without
            dot-stuffing (RFC 1939 section 11).
        @raise NotImplementedError: the mailbox does not know the size.  The service then reads the
            message, and counts its octets.
        """

    def messageContent(info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[MessageContent]:
        """
        Open a message.  If the message cannot be read, raise the error in this method, because
        after C{+OK} the service can report an error only by closing the connection.

        @return: one of these: an L{IMessageContent}, an L{IChunkedContent}, an L{IFileContent},
            bytes, a binary file, or an iterable of lines (bytes).
        @raise POP3ResponseError: the message cannot be opened, for example because it no
            longer exists.
        """

    def messageDelete(info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> Eventual[None]:
        """
        Delete all of these messages or none of them, unless the disk is full.  The service never
        cancels this call.  A message that no longer exists counts as deleted.

        @param uniqueIDs: list of str, never empty.
        @raise POP3ResponseError: nothing was deleted; or only some of the messages were deleted,
            because the disk is full (RFC 1939 section 6).
        """


class IMessageContent(Interface):
    """
    A message that the service reads line by line.
    """

    def nextLine() -> Eventual[bytes | None]:
        """
        @return: the next line: bytes without the line end; None after the last line.
        @raise POP3ResponseError: the rest of the message cannot be read.  The service then closes
            the connection without sending the final dot.  After any other exception it does the
            same, and logs a traceback.
        """

    def close() -> None:
        """
        Release the message.  The service calls this method exactly once, even if TOP or a lost
        client ended the reading early.  The method must not raise an exception.
        """


class IPOP3ConnectionInfo(Interface):
    """
    The data about a client that a provider may use.  The service implements this interface, which
    gives no access to the connection, so that a provider cannot disturb the connection.
    """

    clientIP: str | None = Attribute("str, or None if the transport has no address.")
    connectionID: int = Attribute("int, unique within the process.")
    isSecure: bool = Attribute(
        "bool: the connection uses TLS, either implicit or begun by STLS.  STLS changes it to True."
    )
    userNameAtLogin: str | None = Attribute("str after the login; None before the login.")
    providerTag: Any = Attribute(
        "Settable, for the provider's own data.  The service does not read it."
    )
    loginAttempt: Any = Attribute(
        "L{ILoginAttempt} while a provider checks a login that a throttle has admitted; otherwise "
        "None."
    )


# --- optional: provided by a mailbox -----------------------------------------


class IBulkMessageSizes(Interface):
    """
    A mailbox that returns many sizes in one call, so that STAT and LIST need one call.
    """

    def messageSizes(
        info: IPOP3ConnectionInfo, uniqueIDs: list[str]
    ) -> Eventual[Iterable[int | None]]:
        """
        @param uniqueIDs: list of str; the method must not change it.
        @return: iterable with a value for each message, in the order of C{uniqueIDs}: the size that
            C{messageSize} returns, int; or None if the message no longer exists.
        @raise NotImplementedError: the mailbox cannot return many sizes at once.  The service then
            calls C{messageSize} for each message.
        """


class ISurrogates(Interface):
    """
    A mailbox whose messages the service converts for clients that cannot read UTF-8 in header
    fields (RFC 6856 section 2.1).  The converted message is called a surrogate.

    The service does not convert the messages of a mailbox without this interface, because it would
    have to read each message to know the size of its surrogate.
    """

    hasSurrogates: bool = Attribute(
        "bool: False if this mailbox does not know the sizes of its surrogates.  The "
        "service then converts no messages."
    )

    def surrogateSizes(
        info: IPOP3ConnectionInfo, uniqueIDs: list[str]
    ) -> Eventual[Iterable[int | None]]:
        """
        @param uniqueIDs: list of str; the method must not change it.
        @return: iterable with a value for each message, in the order of C{uniqueIDs}.  If a message
            needs a surrogate, its value is the result of
            L{pop3svc.downgrading.converter.surrogateSize}.  If a message needs none, its value is
            the size that C{messageSize} returns.  If a message no longer exists, its value is None.
        @raise NotImplementedError: the mailbox does not know the sizes.  The service then reads the
            messages, and counts their octets.
        """

    def needsUTF8(info: IPOP3ConnectionInfo, uniqueID: str) -> bool | None:
        """
        Say whether a message needs a surrogate, without reading the message.  The service calls
        this method before it sends or counts a message for a client that has not sent UTF8.  The
        method must not return a Deferred or a coroutine.

        @return: bool; None if the mailbox does not know.  If the result is None, the service finds
            out while it reads the message.
        """


class IExclusiveMailbox(Interface):
    """
    A mailbox that only one session at a time may use (RFC 1939 section 4).

    The service calls C{lock} at login and at WAKE.  It calls C{unlock} at SLEE, QAUT and QUIT, and
    when the session ends in another way.  A sleeping session holds no lock.
    """

    def lock(info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Eventual[None]:
        """
        Take the lock.  The service calls C{unlock} only if this call succeeds.  If the service
        cancels the call, the mailbox itself has to release the lock.

        @param requestRelease: callable without arguments.  The mailbox may call this function in
            the reactor thread when another session of the same user waits for the lock.  The
            function returns bool: True if the session that holds the lock ends and unlocks the
            mailbox.
        @raise POP3ResponseError: another session holds the lock (code C{"IN-USE"}).
        """

    def unlock(info: IPOP3ConnectionInfo) -> Eventual[None]:
        """
        Release the lock.  The service calls this method once for each C{lock} that succeeded.  If a
        deletion is running, the service first waits until the deletion has ended.  If this method
        raises an exception, the service logs the exception and goes on.
        """


class IMailboxLogout(Interface):
    """
    A mailbox whose C{logout} the service calls when the session has ended.  With twisted.cred, the
    realm returns such a function together with the avatar.
    """

    def logout() -> Eventual[None]:
        """
        Release all resources.  The service calls this method exactly once, after C{unlock}, when
        the session of this mailbox has ended.  A session ends at QUIT and QAUT, when its login
        fails after C{authenticate}, and when the connection ends.  A sleeping session has not
        ended.
        If this method raises an exception, the service logs the exception and goes on.
        """


class ISleepingMailbox(Interface):
    """
    A mailbox that releases more than its lock while its session is asleep (SLEE).
    """

    def onSleep(info: IPOP3ConnectionInfo) -> Eventual[None]:
        """
        Release the resources that a sleeping session does not need.  The service calls this method
        at SLEE, after a deletion and before C{unlock}.  After this call it passes no unique-id to
        the mailbox until the next listing.  If this method raises an exception, the service logs
        the exception and goes on.
        """


class IReadOnlyMailbox(Interface):
    """
    Marks a read-only mailbox.  The service refuses DELE and DELI with C{[READ-ONLY]}, and never
    calls C{messageDelete}.  With C{alsoProvides()} a provider can make the mailbox of a single
    session read-only.
    """


class INewMailNotifier(Interface):
    """
    A mailbox that notices when its list changes.
    """

    def watchMailbox(
        info: IPOP3ConnectionInfo, changed: Callable[[], None]
    ) -> Eventual[Callable[[], object] | None]:
        """
        Begin to watch the mailbox.

        @param changed: callable without arguments.  Call C{changed} in the reactor thread before
            C{listMessageUniqueIDs} returns a list that differs from the previous list.  The mailbox
            may call C{changed} more often.  If the mailbox has not called C{changed} since the
            previous list, the service does not compare the two lists, and answers WAKE with
            C{[ACTIVITY/NONE]}.
        @return: callable without arguments, with which the service ends the watch; None if this
            mailbox cannot notice changes.
        """


# --- optional: provided by the content that messageContent returns -----------


class IChunkedContent(Interface):
    """
    A message that is read in pieces of any size instead of lines.
    """

    def nextChunk() -> Eventual[bytes | None]:
        """
        @return: the next piece, bytes; None after the last piece.  A piece may end anywhere.  Line
            ends are CRLF or LF, and the service sends CRLF.
        @raise POP3ResponseError: see L{IMessageContent.nextLine}.
        """

    def close() -> None:
        """
        See L{IMessageContent.close}.
        """


class IWireContent(IChunkedContent):
    """
    A message that tells the form of its octets, so that the service makes only the changes that are
    necessary.
    """

    form: Any = Attribute(
        "L{pop3svc.lineendings.WireForm}: the form of the octets in the pieces.  The "
        "service does not check this form."
    )


class IFileContent(Interface):
    """
    A message that is a part of an open file, with exactly the octets that RETR sends.
    """

    fileno: int = Attribute("int: an open file descriptor, which the service does not close.")
    offset: int = Attribute("int, octets.")
    length: int = Attribute(
        "int, octets. The part ends with CRLF and contains no bare LF, and none of its "
        "lines begins with a dot."
    )

    def close() -> None:
        """
        See L{IMessageContent.close}.
        """


# --- optional: provided by a provider ----------------------------------------


class IMailboxStore(Interface):
    """
    Opens the mailbox of a user whom another object has authenticated.  The bundled stores provide
    this interface.  The service makes a provider from a store and sources of accounts (C{--auth}).
    """

    name: str = Attribute("str: see IPOP3MailboxProvider.name.")

    def openMailbox(info: IPOP3ConnectionInfo, username: str) -> Eventual[IPOP3Mailbox | None]:
        """
        @return: an L{IPOP3Mailbox} for this session alone; None if the store refuses the login.
        """


@dataclass(frozen=True, slots=True, repr=False)
class ScramKeys:
    """
    The keys of a user for SCRAM (RFC 5802 section 3).

    @ivar salt: octets.
    @ivar rounds: the iteration count.
    @ivar storedKey: C{StoredKey} of RFC 5802.
    @ivar serverKey: C{ServerKey} of RFC 5802.
    @ivar mailbox: the name of the user's mailbox; empty if the mailbox has the same name as the
        login.
    @ivar version: the result of L{IAccountStatus.credentialsVersion} for these keys.  If it is
        empty, the service calls this method after the login.
    """

    salt: bytes
    rounds: int
    storedKey: bytes
    serverKey: bytes
    mailbox: str = ""
    version: str = ""


class IScramAccounts(Interface):
    """
    A provider that has keys for SCRAM.  The provider is also an L{IMailboxStore}: C{openMailbox}
    opens the mailbox of a user who has proved the password.
    """

    def scramKeys(
        info: IPOP3ConnectionInfo, username: str, algorithm: str, salt: bytes
    ) -> Eventual[ScramKeys | None]:
        """
        @param algorithm: C{"sha256"} or C{"sha1"}.
        @param salt: the salt for keys that the provider computes from a password stored in clear
            text.  The service passes the same salt whenever it passes the same name and algorithm.
        @return: the keys; None if the user does not exist or has no keys.  After None the service
            goes on with invented keys, so that the client does not learn which names exist.
        @raise POP3ResponseError: C{SYS/TEMP}: the accounts are not available now.
        """

    def exampleScramKeys(username: str, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        @param seed: secret octets of the service, which are always the same for the same name and
            algorithm.
        @return: the keys of a user whom the seed selects; None if the accounts have no keys.  The
            service invents keys with the same rounds and the same length of salt.  Therefore a
            combination of rounds and length is as frequent among invented keys as among real keys,
            and does not reveal that a name exists.
        """


@dataclass(frozen=True, slots=True, repr=False)
class SharedSecret:
    """
    The password of a user, for APOP and CRAM-MD5.

    @ivar password: the password in clear text.
    @ivar mailbox: the name of the user's mailbox; empty if the mailbox has the same name as the
        login.
    @ivar version: the result of L{IAccountStatus.credentialsVersion} for this password.  If it is
        empty, the service calls this method after the login.
    """

    password: str
    mailbox: str = ""
    version: str = ""


class ISharedSecrets(Interface):
    """
    A provider that stores passwords in clear text.  The provider is also an L{IMailboxStore}.
    """

    def sharedSecret(info: IPOP3ConnectionInfo, username: str) -> Eventual[SharedSecret | None]:
        """
        @return: the password; None if the user does not exist, or the password is not stored in
            clear text.
        @raise POP3ResponseError: C{SYS/TEMP}: the accounts are not available now.
        """


class IBearerAccounts(Interface):
    """
    A provider that accepts bearer tokens (RFC 6750).  The provider is also an L{IMailboxStore}:
    C{openMailbox} opens the mailbox of a user whose token it has accepted.
    """

    def userOfToken(
        info: IPOP3ConnectionInfo, token: str, username: str | None
    ) -> Eventual[str | None]:
        """
        @param token: at most 8 KiB of ASCII.  The provider must not put the token into a log, a
            path or a URL.
        @param username: the user as whom the client wants to log in; L{None} if the client names no
            user.
        @return: the user of the token; None if the token is not valid, or belongs to a user other
            than C{username}.  The result may be another spelling of C{username} (RFC 8265).
        @raise POP3ResponseError: C{SYS/TEMP}: the token cannot be checked now.
        """


class IProvenAccounts(Interface):
    """
    A provider that accepts a user who was authenticated without a password, for example by the
    certificate of a TLS client.  The provider is also an L{IMailboxStore}.  A source of accounts
    may also provide this interface.
    """

    def provenMailbox(info: IPOP3ConnectionInfo, username: str) -> Eventual[str | None]:
        """
        @param username: the name of the authenticated user.
        @return: the name of the user's mailbox; None if the account does not exist, or its user may
            not log in from this client's address.
        @raise POP3ResponseError: C{SYS/PERM}: the user may not log in.  C{SYS/TEMP}: the accounts
            are not available now.
        """


class IAccountStatus(Interface):
    """
    A provider that knows whether the user of a sleeping session may still use WAKE.
    """

    def credentialsVersion(info: IPOP3ConnectionInfo, username: str) -> Eventual[str]:
        """
        @return: str that changes when the credentials of the account change.
        """

    def isStillValid(info: IPOP3ConnectionInfo, username: str, version: str) -> Eventual[bool]:
        """
        @param version: the value that C{credentialsVersion} returned at login.
        @return: bool: True if the account still exists and its credentials have not changed.
        """


class IAccountNames(Interface):
    """
    A source of accounts that knows the names of its users.
    """

    def hasAccount(username: str) -> Eventual[bool]:
        """
        @return: bool: whether an account with this name exists.
        """


@dataclass(frozen=True, slots=True)
class UserFacts:
    """
    The data about a user that a store of files needs.

    @ivar home: the absolute path of the home directory; empty if it is not known.
    @ivar uid: the number of the user; None if it is not known.
    @ivar gid: the number of the user's group; None if it is not known.
    """

    home: str = ""
    uid: int | None = None
    gid: int | None = None


class IUserFacts(Interface):
    """
    A source of accounts that knows the home directory, the uid and the gid of its users.
    """

    def factsOf(username: str) -> Eventual[UserFacts | None]:
        """
        @param username: the name of the user's mailbox.
        @return: the data; None if the user does not exist, or the source knows no data about the
            user.
        @raise POP3ResponseError: C{SYS/TEMP}: the accounts are not available now.
        """


class IUsesUserFacts(Interface):
    """
    A store that needs data about its users (L{UserFacts}), because the mailboxes are in home
    directories, or because their files belong to the users.
    """

    isOwnedByUsers: bool = Attribute(
        "bool: whether the store opens the files of each user with the rights of this user."
    )

    def useFacts(source: Any) -> None:
        """
        After this call, the store asks this source for the data about users.  If the source does
        not know a value, the store asks the system.

        @param source: an L{IUserFacts}.
        """


# --- for the operation of the service ----------------------------------------


class ILoginAttempt(Interface):
    """
    A login that a throttle has admitted, and that a provider is checking.
    """

    isFromKnownNetwork: bool = Attribute(
        "bool: the user has logged in from the client's network before.  The service checks such "
        "a login before logins from unknown networks."
    )
    isGuess: bool = Attribute(
        "bool, settable: if the client disconnects now, the attempt counts as failed, because "
        "its password may have been compared.  The value is True until the provider changes it."
    )
    wasRefused: bool = Attribute(
        "bool, settable: the provider has compared the password, and the password was "
        "wrong. The attempt counts as failed even if it ends with another error."
    )


class ILoginThrottle(Interface):
    """
    Decides which login attempts a provider may check.  Each method except C{loginAbandoned} may
    return an awaitable.
    """

    def mayLogin(info: IPOP3ConnectionInfo, username: str, password: str | None) -> Eventual[bool]:
        """
        Decide whether a provider may check an attempt.  If the result is True, the attempt counts,
        and the service calls exactly one of the other methods when the attempt is over.

        @param password: the password; None if the mechanism, such as SCRAM, does not reveal the
            password.  To distinguish guesses, the throttle makes a keyed digest of the password.
            It must not keep the password.
        @return: bool.  If the result is False, the service gives the same reply as for a wrong
            password.
        @raise POP3ResponseError: C{SYS/TEMP}: the attempt had to wait for too long.
        """

    def loginFailed(info: IPOP3ConnectionInfo, username: str) -> Eventual[bool]:
        """
        Count a failed attempt: the credentials were wrong.  After C{[IN-USE]} or an error the
        service calls another method.

        @return: bool.  True if the log already has a recent line about the same guess from the same
            address.
        """

    def loginSucceeded(info: IPOP3ConnectionInfo, username: str) -> Eventual[None]:
        """
        Count a successful attempt: the credentials were right.
        """

    def loginAbandoned(info: IPOP3ConnectionInfo, username: str, isLost: bool) -> None:
        """
        End an attempt that has neither failed nor succeeded.

        @param isLost: bool.  True if the client disconnected before it got an answer; False if an
            error ended the attempt.
        """


@dataclass(frozen=True)
class DeliveryCopy:
    """
    The copy of a new message for one user.

    @ivar username: the name with which the user logs in.
    @ivar header: complete lines with CRLF, such as C{Delivered-To}, which the store puts before the
        message.
    @ivar uniqueID: the unique-id that the message had on another server.  If the mailbox has or had
        a message with this unique-id, the store does not store the message, so that an import can
        be repeated.  If C{uniqueID} is None, the store makes a unique-id.
    @ivar arrival: when the message arrived, seconds since the epoch; None if it arrives now.
    @ivar order: the position among messages with the same time of arrival.
    """

    username: str
    header: bytes = b""
    uniqueID: str | None = None
    arrival: float | None = None
    order: int = 0


class IDelivery(Interface):
    """
    A store that accepts new messages from C{pop3svc deliver}, from LMTP, and from programs that
    move mail.
    """

    def hasMailbox(username: str) -> Eventual[bool]:
        """
        @return: bool: whether the user has ever had mail in this store, or has a mailbox that was
            created for mail.
        """

    def deliver(
        copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> Eventual[Sequence[DeliveryError | None]]:
        """
        Store one message for some users.

        @param content: a file in binary mode that can be read from any position, such as
            C{tempfile.SpooledTemporaryFile}.  Its lines end with LF or CRLF, and the last line may
            have no line end.  The method may read the file in another thread.  The caller closes
            the file.
        @return: for each copy either None or an error.  None means that the copy is durable:
            written to the disk, or committed.  An error means that the copy was not stored.
        """


class IExpiry(Interface):
    """
    A provider or a store that deletes old messages.
    """

    expireDays: int = Attribute(
        "int: the age in days at which the server may delete messages; 0 if it never deletes "
        "them.  The capability EXPIRE shows this age (RFC 2449 section 6.7)."
    )


class IHousekeeping(Interface):
    """
    A provider or a store that does regular work while the service runs, such as deleting old
    messages.  Commands that import, export or deliver do not start this work.
    """

    def startHousekeeping() -> None:
        """
        Begin the work.  The service calls this method when it starts.  With workers, each worker
        calls it.
        """

    def stopHousekeeping() -> None:
        """
        End the work.  The service calls this method when the service ends.  If the store is also an
        L{twisted.application.service.IService}, the service stops the store afterwards.
        """


class IPasswordComparing(Interface):
    """
    A source of accounts that itself compares passwords with stored passwords.
    """

    def rememberChecks(seconds: int) -> None:
        """
        After this call, remember each successful comparison until the accounts change.

        @param seconds: how long to remember a comparison; 0 to remember none.
        """


class IVerifierAdding(Interface):
    """
    A source of accounts that can add verifiers for SCRAM to its accounts.
    """

    def addVerifiers(mechanisms: Iterable[str]) -> None:
        """
        After this call, add verifiers of these mechanisms (C{"SCRAM-SHA-256"}, C{"SCRAM-SHA-1"})
        when users log in with their passwords.
        """


class IReloading(Interface):
    """
    A provider, a store or a checker whose configuration may change while it runs.
    """

    def reload() -> Eventual[None]:
        """
        Read the configuration again.  The service calls this method after SIGHUP and after
        C{pop3svc reload}.

        @raise ValueError: the object cannot use the new configuration, and keeps the previous one.
            The text is a sentence for the operator.
        """


class IPOP3ProviderPlugin(Interface):
    """
    Makes a provider from a string of the command line.  A plugin also provides
    L{twisted.plugin.IPlugin} and is an attribute of a module in C{twisted.plugins}.
    """

    prefix: str = Attribute(
        'str: the name of the kind, such as "maildir" for --provider maildir:...'
    )
    help: str = Attribute("str: one paragraph for --help-providers.")
    argumentFormat: str = Attribute('str: one line, e.g. "path of the directory of maildirs".')

    def makeProvider(argument: str) -> Any:
        """
        @param argument: str, the text after the first colon; "" if there is no colon.
        @return: an L{IPOP3MailboxProvider}, or an L{IMailboxStore}, which needs C{--auth}.
            An object that also provides L{twisted.application.service.IService} starts and
            stops with the service.
        @raise ValueError: the argument is wrong; the text is a sentence for the operator.
        """
