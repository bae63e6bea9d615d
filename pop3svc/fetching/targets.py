"""
Store fetched messages: in a Maildir, in an mbox, by a command, or by LMTP.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import smtplib
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol

from pop3svc.awaiting import CallTimeout, callWithTimeout
from pop3svc.errors import DeliveryError, POP3ResponseError
from pop3svc.interfaces import DeliveryCopy
from pop3svc.providers.maildir.store import MaildirStore
from pop3svc.providers.mbox.store import MboxStore
from pop3svc.providers.owners import Owned, Owners
from pop3svc.providers.paths import PathTemplate, Root
from pop3svc.threadpool import Executor
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable, reasonOf

__all__ = [
    "COMMAND_TIMEOUT",
    "Arrived",
    "CommandTarget",
    "LMTPTarget",
    "StoreTarget",
    "Target",
    "Unsure",
]

# Seconds that a command may take for one message.
COMMAND_TIMEOUT = 300
# Seconds to wait for each reply of an LMTP server.  RFC 5321 section 4.5.3.2.6 requires 10 minutes
# for the reply at the end of a message.
LMTP_TIMEOUT = 600
# Seconds after which a connection to an LMTP server is not used again, because the server may close
# a connection that is idle.
LMTP_IDLE = 10
# The number of octets that are copied in one step.
_BLOCK = 65536
_LINE_END = re.compile(rb"\r?\n|\r")


@dataclass(frozen=True)
class Arrived:
    """
    A message that was fetched.

    @ivar name: the name of the message.  A message has the same name at each attempt, and no other
        message has this name.
    @ivar content: the octets of the message, with CRLF as line ends.
    @ivar mayBeStored: whether an earlier attempt may have stored the message.
    """

    name: str
    content: BinaryIO
    mayBeStored: bool = False


class Unsure(TryAgain):
    """
    The target cannot say whether a message was stored.  The text is a sentence for the operator.
    """


class Target(Protocol):
    """
    A place where messages are stored.

    @ivar recognises: whether the target recognises each message by its name, so that it never
        stores the same message twice.
    @ivar canLook: whether the target can find out if an earlier attempt has stored a message.
    """

    recognises: bool
    canLook: bool

    async def store(self, message: Arrived) -> None:
        """
        Store a message durably.

        @raise Unreadable: this message cannot be stored, but other messages may be.
        @raise Unsure: the target cannot say whether the message was stored.
        @raise TryAgain: no message can be stored now.
        @raise NotPossible: no message can be stored.
        """

    async def close(self) -> None:
        """
        End the connections of the target.
        """


class _OnePlace(Owners):
    """
    Finds the mail of one user at a path that the operator has given.
    """

    def __init__(self, path: str) -> None:
        path = os.path.abspath(os.path.expanduser(path))
        directory, name = os.path.split(path)
        if not name:
            raise NotPossible(f"{path} is not the path of a mailbox")
        if not os.path.isdir(directory):
            raise NotPossible(f"{directory} is not a directory")
        super().__init__(PathTemplate(directory))
        self._place = Root(directory, (name,))

    def placeFor(self, username: str) -> Root:
        """
        See L{Owners.placeFor}.
        """
        return self._place

    async def find(self, username: str, isUser: bool = False) -> Owned:
        """
        See L{Owners.find}.
        """
        return Owned(self._place, None)


class StoreTarget:
    """
    Stores messages in a Maildir or an mbox.
    """

    def __init__(
        self, kind: str, path: str, clock: Any, timeout: float, runner: Executor | None = None
    ) -> None:
        """
        @param kind: C{maildir} or C{mbox}.
        @param path: the path of the Maildir or of the mbox.
        @param timeout: the seconds that one call of the store may take.
        @param runner: runs the work of the store; L{None} to use the threads that stores share.
        @raise NotPossible: the path cannot be used.
        """
        owners = _OnePlace(path)
        directory = os.path.dirname(owners.placeFor("").path)
        self._clock = clock
        self._timeout = timeout
        self._isMbox = kind == "mbox"
        self._store: Any
        try:
            if self._isMbox:
                self._store = MboxStore(
                    *(directory, False, runner),
                    clock=clock,
                    variant="mboxrd",
                    usesXUIDL=True,
                    owners=owners,
                )
            else:
                self._store = MaildirStore(directory, False, runner, clock=clock, owners=owners)
        except ValueError as error:
            raise NotPossible(str(error))
        # A Maildir looks for the name of each message before it stores the message.  An mbox looks
        # for the name only after an interruption, because it has to search the whole file.
        self.recognises = not self._isMbox
        self.canLook = True

    async def store(self, message: Arrived) -> None:
        """
        See L{Target.store}.
        """
        copy = DeliveryCopy("", uniqueID=message.name)
        if self._isMbox and not message.mayBeStored:
            copy = DeliveryCopy("", header=f"X-UIDL: {message.name}\r\n".encode("ascii"))
        try:
            [error] = await callWithTimeout(
                *(self._store.deliver, [copy], message.content),
                clock=self._clock,
                timeout=self._timeout,
            )
        except CallTimeout:
            raise Unsure("the mailbox did not accept a message in time")
        except POP3ResponseError as refusal:
            raise TryAgain(f"the mailbox is not available now: {refusal.text}")
        if isinstance(error, DeliveryError):
            text = error.text.rstrip(".")
            if error.isTemporary:
                raise TryAgain(f"a message cannot be stored now: {text}")
            raise Unreadable(text)

    async def close(self) -> None:
        """
        See L{Target.close}.
        """


class CommandTarget:
    """
    Passes each message to a command.  The line ends are LF, because mail servers also pass messages
    to commands in this way.  Exit status 0 means that the message is stored.  Exit status 75
    (C{EX_TEMPFAIL}) means that a later attempt may succeed.  Any other status means that the
    command refuses the message.
    """

    recognises = canLook = False

    def __init__(self, command: str, executor: Executor, timeout: float = COMMAND_TIMEOUT) -> None:
        """
        @param command: the program and its arguments, quoted as for a shell.  The command runs
            without a shell.
        @raise NotPossible: the command cannot be used.
        """
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise NotPossible(f"the command cannot be split into words: {error}")
        if not self._command:
            raise NotPossible("the command is empty")
        self._executor = executor
        self._timeout = timeout

    async def store(self, message: Arrived) -> None:
        """
        See L{Target.store}.
        """
        await self._executor.run(self._run, message.content)

    def _run(self, content: BinaryIO) -> None:
        name = self._command[0]
        with TemporaryFile() as file:
            try:
                copyWithLF(content, file)
                file.seek(0)
            except OSError as error:
                raise TryAgain(f"a temporary file cannot be written: {reasonOf(error)}")
            try:
                process = subprocess.Popen(
                    self._command, stdin=file, stdout=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                raise NotPossible(f"{name}: {error.strerror}")
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise Unsure(f"{name} did not end within {self._timeout:g} s")
        if status < 0:
            raise Unsure(f"{name} was ended by signal {-status}")
        if status == os.EX_TEMPFAIL:
            raise TryAgain(f"{name} ended with exit status {status}")
        if status:
            raise Unreadable(f"{name} ended with exit status {status}")

    async def close(self) -> None:
        """
        See L{Target.close}.
        """


def copyWithLF(content: BinaryIO, file: Any) -> None:
    """
    Copy a message, with LF as line ends.  This function blocks.
    """
    content.seek(0)
    held = b""
    while block := content.read(_BLOCK):
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        if held:
            block = block[:-1]
        file.write(block.replace(b"\r\n", b"\n"))
    file.write(held)
    file.flush()


class LMTPTarget:
    """
    Delivers each message by LMTP (RFC 2033) to one recipient.
    """

    recognises = canLook = False

    def __init__(
        self, place: str, recipient: str, executor: Executor, timeout: float = LMTP_TIMEOUT
    ) -> None:
        """
        @param place: the path of a UNIX socket, or C{HOST:PORT}.
        @raise NotPossible: the place or the recipient cannot be used.
        """
        self._port = 0
        self._host = place
        if not place.startswith("/"):
            host, _, port = place.rpartition(":")
            if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                raise NotPossible("lmtp: needs the path of a UNIX socket, or HOST:PORT")
            self._host, self._port = host.strip("[]"), int(port)
        if not recipient or set(recipient) & set("\r\n\0<> "):
            raise NotPossible("lmtp: needs a recipient")
        self._place = place
        self._recipient = recipient
        self._executor = executor
        self._timeout = timeout
        self._client: smtplib.LMTP | None = None
        self._usedAt = 0.0
        # Whether the server may already have received the whole message.
        self._isSent = False

    async def store(self, message: Arrived) -> None:
        """
        See L{Target.store}.
        """
        await self._executor.run(self._deliver, message.content)

    def _deliver(self, content: BinaryIO) -> None:
        self._isSent = False
        try:
            client = self._connected()
            code, said = self._transaction(client, content)
        except (OSError, smtplib.SMTPException) as error:
            self._drop()
            detail = getattr(error, "strerror", None) or type(error).__name__
            kind = Unsure if self._isSent else TryAgain
            raise kind(f"the LMTP server {self._place} does not work: {detail}")
        self._usedAt = time.monotonic()
        if 200 <= code < 300:
            return
        if code // 100 != 5:
            self._drop()
            raise TryAgain(f"the LMTP server {self._place} cannot accept a message now ({code})")
        with suppress(OSError, smtplib.SMTPException):
            client.rset()
        raise Unreadable(f"the LMTP server refuses it: {code} {said.decode('latin-1')[:200]}")

    def _connected(self) -> smtplib.LMTP:
        if time.monotonic() - self._usedAt > LMTP_IDLE:
            self._drop()
        if self._client is None:
            self._client = smtplib.LMTP(self._host, self._port, "localhost", timeout=self._timeout)
            # In smtplib.LMTP, this method sends LHLO.
            self._client.ehlo()
        return self._client

    def _transaction(self, client: smtplib.LMTP, content: BinaryIO) -> tuple[int, bytes]:
        """
        @return: the reply to the last command.
        """
        code, said = client.mail("")
        if code == 250:
            code, said = client.rcpt(self._recipient)
        if code not in (250, 251):
            return code, said
        code, said = client.docmd("DATA")
        if code != 354:
            return code, said
        for block in stuffed(content):
            client.send(block)
        self._isSent = True
        client.send(b".\r\n")
        return client.getreply()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def close(self) -> None:
        """
        See L{Target.close}.
        """
        client, self._client = self._client, None
        if client is not None:
            await self._executor.run(_quit, client)


def _quit(client: smtplib.LMTP) -> None:
    with suppress(OSError, smtplib.SMTPException):
        client.quit()


def stuffed(content: BinaryIO) -> Iterator[bytes]:
    """
    Yield a message as SMTP sends it: with dot-stuffing (RFC 5321 section 4.5.2), and with CRLF at
    its end.  A single CR or LF also becomes CRLF.  Otherwise a server might take the single
    character for a line end, and the rest of the message for commands.  This function blocks.
    """
    content.seek(0)
    held, isStart = b"", True
    while block := content.read(_BLOCK):
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        block = _LINE_END.sub(b"\r\n", block[:-1] if held else block)
        if not block:
            continue
        text = block.replace(b"\r\n.", b"\r\n..")
        yield b"." + text if isStart and text.startswith(b".") else text
        isStart = block.endswith(b"\r\n")
    if held or not isStart:
        yield b"\r\n"
