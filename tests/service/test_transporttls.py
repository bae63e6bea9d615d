"""
TLS of the service's own transport, over pairs of sockets.
"""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import ssl
import subprocess
import threading
import weakref
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Factory
from zope.interface import directlyProvides, implementer

from pop3svc.policy import Policy
from pop3svc.service.admission import Admission
from pop3svc.service.datadirectory import _selfSigned
from pop3svc.service.loop import Loop
from pop3svc.service.proxy import ProxyFactory
from pop3svc.service.tls import RenewableCertificate
from pop3svc.service.tlstransport import PlainTransport
from tests.service.test_transport import Hearing, Producer, Reactor, large

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def creator(tmp_path_factory: pytest.TempPathFactory) -> RenewableCertificate:
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    certificate, key = _selfSigned()
    path.write_bytes(key + certificate)
    return RenewableCertificate(str(path), str(path))


@implementer(IHandshakeListener)
class Listening(Hearing):
    """
    Counts the completed handshakes.
    """

    handshakes = 0

    def handshakeCompleted(self) -> None:
        self.handshakes += 1


class Client:
    """
    A transport with TLS, and its client.

    @ivar step: the most octets that the client sends or reads in one turn.
    """

    def __init__(
        self,
        creator: RenewableCertificate,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        does: Any = None,
        isLater: bool = False,
        step: int = 100_000,
    ) -> None:
        self.reactor = Reactor()
        self.loop = Loop(self.reactor)
        self._creator = creator
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.socket.setblocking(False)
        self.step = step
        self.protocol = Listening()
        self.protocol.does = (lambda data: None) if does is None else does
        self.transport: Any = PlainTransport(self.loop, ours, UNIXAddress(None))
        if not isLater:
            self.transport.startTLS(creator)
        self.transport.begin(self.protocol)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.received = bytearray()
        self.isOver = self.hasAlert = False

    def turn(self) -> None:
        self.reactor.turn()

    def exchange(self) -> bool:
        """
        Pass on octets in both directions, in small steps, with a turn after each.

        @return: whether there were any octets.
        """
        isBusy = False
        while data := self.outgoing.read(self.step):
            with contextlib.suppress(OSError):
                self.socket.sendall(data)
            self.turn()
            isBusy = True
        self.turn()
        try:
            data = self.socket.recv(self.step)
        except OSError:
            return isBusy
        if data:
            self.incoming.write(data)
        else:
            self.isOver = True
        return bool(data)

    def until(self, ready: Any) -> None:
        for _ in range(100_000):
            if ready():
                return
            self.exchange()
            self._read()
        raise AssertionError("it does not happen")

    def _read(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                data = self.tls.read(100_000)
                if not data:
                    self.hasAlert = True
                    return
                self.received += data

    def shake(self) -> None:
        def isDone() -> bool:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return True
            return False

        for _ in range(20_000):
            if isDone():
                break
            self.exchange()
        self.until(lambda: self.protocol.handshakes == 1)

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        while self.exchange():
            pass

    def sayEnd(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        while self.exchange():
            pass

    def close(self) -> None:
        self.socket.close()
        self.loop.connectionLost(None)  # type: ignore[arg-type]


@pytest.fixture
def make(creator: RenewableCertificate) -> Any:
    made: list[Client] = []

    def one(**options: Any) -> Client:
        made.append(Client(creator, **options))
        return made[-1]

    yield one
    for each in made:
        if each.transport.connected:
            each.transport.abortConnection()
            each.turn()
        each.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("isLater", [False, True])
def test_everyOctetAlone(make: Any, version: ssl.TLSVersion, isLater: bool) -> None:
    """
    TLS works if the handshake, input, output and both alerts arrive octet by octet.
    """

    def does(data: bytes) -> None:
        if data == b"STLS":
            client.transport.write(b"+OK")
            client.transport.startTLS(client._creator)
        else:
            client.transport.write(data.upper() * 3000)

    client = make(version=version, isLater=isLater, step=1)
    client.protocol.does = does
    if isLater:
        client.socket.sendall(b"STLS")
        client.turn()
        assert client.socket.recv(10) == b"+OK"
    assert ISSLTransport.providedBy(client.transport)
    client.shake()
    client.say(b"abc")
    client.until(lambda: len(client.received) == 9000)
    assert client.received == b"ABC" * 3000
    client.sayEnd()
    client.until(lambda: client.isOver)
    # The alert of the transport has come.
    client.tls.unwrap()
    assert client.protocol.ends == [ConnectionDone]


@pytest.mark.parametrize("version", VERSIONS)
def test_greetingAndSlowReader(make: Any, version: ssl.TLSVersion) -> None:
    """
    Octets that are written during the handshake wait for its end.  A large reply takes many turns,
    and the close alert follows the reply.
    """
    client, data = make(version=version, step=1500), large()
    client.transport.write(b"greeting")
    client.shake()
    done = client.transport.writeSomeData(data)
    assert done < len(data)
    client.transport.write(data[done:])
    client.transport.loseConnection()
    client.until(lambda: client.hasAlert)
    assert client.received == b"greeting" + data
    assert client.protocol.ends == [] and not client.isOver
    client.sayEnd()
    client.until(lambda: client.isOver)
    assert client.protocol.ends == [ConnectionDone]


def test_producer(make: Any) -> None:
    client = make(step=3000)
    client.shake()
    producer = Producer(client.transport, 300)
    client.transport.registerProducer(producer, True)
    producer.produce()
    assert producer.left
    client.until(lambda: len(client.received) == 300_000)
    assert producer.calls[:2] == ["pause", "resume"]


def test_clientClosesDuringAReply(make: Any) -> None:
    """
    If the client closes during a reply, the producer is stopped, and the connection ends in order.
    """
    client = make()
    client.shake()
    client.transport.write(large())
    producer = Producer(client.transport, 1)
    client.transport.registerProducer(producer, True)
    client.sayEnd()
    client.until(lambda: client.isOver)
    assert producer.calls == ["stop"] and client.protocol.ends == [ConnectionDone]


def test_withoutTheAlertOfTheClient(make: Any) -> None:
    """
    A second C{loseConnection} does not wait for the client's close alert.
    """
    for isFull in (False, True):
        client = make()
        client.shake()
        if isFull:
            client.transport.write(large())
        client.transport.loseConnection()
        client.turn()
        assert client.protocol.ends == []
        client.tls.write(b"dropped")
        client.transport.loseConnection()
        client.until(lambda client=client: client.isOver)
        assert client.hasAlert and client.protocol.ends == [ConnectionDone]
        assert not client.protocol.received


def test_truncation(make: Any) -> None:
    """
    A connection that ends without a close alert counts as lost.
    """
    client = make()
    client.shake()
    client.socket.shutdown(socket.SHUT_WR)
    client.turn()
    assert client.protocol.ends == [ConnectionLost]


@pytest.mark.parametrize("isFirst", [True, False])
def test_garbage(make: Any, isFirst: bool) -> None:
    client = make()
    if not isFirst:
        client.shake()
    client.socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 40)
    for _ in range(3):
        client.turn()
    (end,) = client.protocol.ends
    assert issubclass(end, SSL.Error if isFirst else ConnectionLost)
    # A fatal alert says why.
    alert = client.socket.recv(100)
    assert alert[0] in (0x15, 0x17)
    # If the transport had left octets unread, the kernel would have sent a reset.
    assert client.socket.recv(100) == b""


def test_lostInTheHandshake(make: Any) -> None:
    for data in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
        client = make()
        client.socket.sendall(data)
        client.turn()
        client.socket.close()
        client.turn()
        assert len(client.protocol.ends) == 1 and not client.protocol.handshakes


def test_closedInTheHandshake(make: Any) -> None:
    """
    A connection that is closed during the handshake is aborted if no octets wait to be written.
    Otherwise it ends after the handshake.
    """
    client = make()
    client.transport.loseConnection()
    client.turn()
    assert client.protocol.ends == [ConnectionAborted]
    client = make()
    client.transport.write(b"sorry")
    client.transport.loseWriteConnection()
    client.shake()
    client.until(lambda: client.hasAlert)
    assert client.received == b"sorry"


def test_plainOctetsFirst(make: Any) -> None:
    """
    Octets that the socket has not accepted when TLS begins go out without TLS.
    """
    client, data = make(isLater=True), large()
    client.transport.write(data)
    client.transport.startTLS(client._creator)
    client.transport.write(b"hello")
    client.transport.resumeProducing()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.socket.sendall(client.outgoing.read())
    assert client.transport._events == 4
    plain = bytearray()
    while len(plain) < len(data):
        client.turn()
        plain += client.socket.recv(min(1000, len(data) - len(plain)))
    assert plain == data
    client.shake()
    client.until(lambda: client.received == b"hello")


@pytest.mark.parametrize("step", [1, 1000])
def test_headerOfAProxy(make: Any, step: int) -> None:
    """
    The first octets of TLS may come together with the PROXY header, and belong to TLS.
    """
    client = make(isLater=True, step=step)

    class Inner(Factory):
        def buildProtocol(self, addr: Any) -> Any:
            assert addr.host == "192.0.2.7"
            client.protocol = Listening()
            return client.protocol

    admission = Admission(client.reactor, Policy())
    proxy = ProxyFactory(
        Inner(), [ip_network("10.0.0.0/8")], client.reactor, admission, client._creator
    )
    header = proxy.buildProtocol(IPv4Address("TCP", "10.0.0.1", 9))
    client.transport.protocol = header
    header.makeConnection(client.transport)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    data = b"PROXY TCP4 192.0.2.7 192.0.2.1 5 995\r\n" + client.outgoing.read()
    for start in range(0, len(data), step):
        client.socket.sendall(data[start : start + step])
        client.turn()
    client.shake()
    client.say(b"hello")
    assert client.protocol.received == b"hello"


def test_headerThatIsNone(make: Any) -> None:
    """
    If a proxy begins with TLS instead of a header, its connection is refused.
    """
    client = make(isLater=True)
    admission = Admission(client.reactor, Policy())
    proxy = ProxyFactory(
        Factory(), [ip_network("10.0.0.0/8")], client.reactor, admission, client._creator
    )
    header = proxy.buildProtocol(IPv4Address("TCP", "10.0.0.1", 9))
    client.transport.protocol = header
    client.transport._peer = IPv4Address("TCP", "10.0.0.1", 9)
    header.makeConnection(client.transport)
    client.socket.sendall(b"\x16\x03\x01")
    client.turn()
    assert not client.transport.connected


def test_lostBeforeTLS(make: Any) -> None:
    client = make(isLater=True)
    client.transport.write(large())
    client.transport.startTLS(client._creator)
    client.socket.close()
    client.turn()
    assert client.protocol.ends == [ConnectionLost]


def test_pauseInsideARecord(make: Any) -> None:
    """
    If the protocol pauses inside a TLS record, no octets of the record are lost.
    """
    client = make(does=lambda data: client.transport.pauseProducing() if data else None)
    client.shake()
    data = large(60_000)
    client.tls.write(data)
    for _ in range(1000):
        client.exchange()
        client.transport.resumeProducing()
        client.transport.resumeProducing()
    assert client.protocol.received == data


def test_pendingOctets(make: Any) -> None:
    """
    Octets that OpenSSL has read are delivered, even if the kernel has nothing more.
    """
    client = make()
    client.shake()
    client.transport.pauseProducing()
    client.tls.write(b"abcdef")
    client.socket.sendall(client.outgoing.read())
    client.protocol.dataReceived(client.transport.getHandle().recv(2))
    client.turn()
    assert client.protocol.received == b"ab"
    client.transport.resumeProducing()
    client.turn()
    assert client.protocol.received == b"abcdef"


class Strange:
    """
    A TLS connection that raises the errors of a test, as if OpenSSL had to write before it could
    read, for example.
    """

    def __init__(self, tls: Any) -> None:
        self._tls = tls
        self.errors: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("recv", "send", "shutdown") and self.errors and self.errors[0][0] == name:
            raise self.errors.pop(0)[1]
        return getattr(self._tls, name)


def test_readsByWriting(make: Any) -> None:
    client = make()
    client.shake()
    client.transport._tls = strange = Strange(client.transport._tls)
    strange.errors = [("recv", SSL.WantWriteError())]
    client.say(b"abc")
    assert client.protocol.received == b"abc" and not strange.errors
    strange.errors = [("send", SSL.WantReadError())]
    client.transport.write(b"def")
    # The transport waits for input, and does not ask for room meanwhile.
    client.turn()
    assert client.transport._events == 1 and not client.received
    client.say(b"ghi")
    client.until(lambda: client.received == b"def")
    strange.errors = [("shutdown", SSL.WantWriteError())]
    client.transport.loseConnection()
    client.until(lambda: client.hasAlert)


def test_noRoomForTheHandshake(make: Any) -> None:
    """
    While the handshake waits for room, other octets of the client do not wake the transport.
    """
    client = make(isLater=True)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += client.transport.getHandle().send(b"x" * 64)
    client.transport.startTLS(client._creator)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.socket.sendall(client.outgoing.read())
    client.turn()
    assert client.transport._isShaking and client.transport._events == select.EPOLLOUT
    while filled:
        filled -= len(client.socket.recv(min(filled, 1000)))
        client.turn()
    client.shake()
    client.say(b"abc")
    assert client.protocol.received == b"abc"


def test_readsByWritingAgain(make: Any) -> None:
    client = make()
    client.shake()
    client.transport._tls = strange = Strange(client.transport._tls)
    strange.errors = [("recv", SSL.WantWriteError()), ("recv", SSL.WantWriteError())]
    client.say(b"abc")
    client.turn()
    assert client.protocol.received == b"abc" and not strange.errors


def test_errorWhenClosing(make: Any) -> None:
    client = make()
    client.shake()
    client.transport._tls = strange = Strange(client.transport._tls)
    strange.errors = [("shutdown", SSL.Error())]
    client.transport.loseConnection()
    client.turn()
    assert client.protocol.ends == [ConnectionDone]


def test_renegotiationIsRefused(make: Any) -> None:
    """
    If a TLS 1.2 client asks for another handshake, the connection goes on or ends, but there is no
    other handshake.
    """
    client = make(version=ssl.TLSVersion.TLSv1_2)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    peer = SSL.Connection(context, None)
    peer.set_connect_state()

    def pump() -> None:
        with contextlib.suppress(SSL.WantReadError):
            client.socket.sendall(peer.bio_read(100_000))
        client.turn()
        with contextlib.suppress(BlockingIOError):
            peer.bio_write(client.socket.recv(100_000))

    for _ in range(10):
        with contextlib.suppress(SSL.WantReadError):
            peer.do_handshake()
        pump()
    assert client.protocol.handshakes == 1
    peer.renegotiate()
    for _ in range(5):
        with contextlib.suppress(SSL.Error):
            peer.do_handshake()
        with contextlib.suppress(SSL.Error):
            pump()
    assert client.protocol.handshakes == 1
    assert client.transport.getHandle().total_renegotiations() == 0


@pytest.mark.parametrize("key", ["k", "K"])
def test_keyUpdate(creator: RenewableCertificate, key: str) -> None:
    """
    The connection goes on if a client changes its keys, and if the client also asks the service for
    a change of keys (RFC 8446 section 4.6.3).
    """
    reactor = Reactor()
    loop = Loop(reactor)
    protocol = Listening()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = f"127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            ["openssl", "s_client", "-connect", name, "-tls1_3"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        ours, _ = listener.accept()
    ours.setblocking(False)
    transport: Any = PlainTransport(loop, ours, UNIXAddress(None))
    transport.startTLS(creator)
    protocol.does = lambda data: transport.write(b"<" + data.upper() + b">") if data else None
    transport.begin(protocol)
    assert process.stdin is not None and process.stdout is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or []))
    reader.start()

    def until(ready: Any) -> None:
        waits = threading.Event()
        for _ in range(3000):
            if ready():
                return
            reactor.turn()
            waits.wait(0.01)
        raise AssertionError(lines)

    try:
        until(lambda: protocol.handshakes)
        for text in (b"before\n", key.encode() + b"\n", b"after\n"):
            process.stdin.write(text)
            process.stdin.flush()
            if text != key.encode() + b"\n":
                until(lambda text=text: protocol.received.endswith(text))
            else:
                until(lambda: any(b"KEYUPDATE" in each for each in lines))
        until(lambda: any(b"<AFTER" in each for each in lines))
        process.stdin.write(b"Q\n")
        process.stdin.flush()
        until(lambda: protocol.ends)
        reader.join(10)
        assert protocol.received == b"before\nafter\n"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        reader.join(10)
        process.stdout.close()
        if transport.connected:
            transport.connectionLost(None)
        loop.connectionLost(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("isInOrder", [True, False])
def test_freedAtOnce(creator: RenewableCertificate, isInOrder: bool) -> None:
    """
    When a connection is over, its objects are freed at once, without the garbage collector.
    """
    isOn = gc.isenabled()
    gc.disable()
    try:
        client = Client(creator)
        if isInOrder:
            client.shake()
            client.sayEnd()
        else:
            client.socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 40)
            client.turn()
        assert client.protocol.ends
        gone = [weakref.ref(each) for each in (client.transport, client.transport.getHandle())]
        client.close()
        client.protocol.transport = None
        del client
        assert [each() for each in gone] == [None, None]
    finally:
        if isOn:
            gc.enable()


@pytest.mark.parametrize("isShaking", [False, True])
def test_pauseWhileClosing(make: Any, isShaking: bool) -> None:
    """
    A connection that is being closed goes on reading, whatever its protocol pauses.
    """
    client = make()
    if isShaking:
        client.transport.write(b"sorry")
    else:
        client.shake()
    client.transport.loseConnection()
    client.transport.pauseProducing()
    client.transport.resumeProducing()
    if isShaking:
        client.shake()
    client.until(lambda: client.hasAlert)
    client.sayEnd()
    client.until(lambda: client.isOver)
    assert client.protocol.ends == [ConnectionDone]


def test_noErrorIsLeft(make: Any) -> None:
    """
    The error of one connection does not stay in OpenSSL's queue, where OpenSSL 3 would report it
    for another connection.
    """
    client = make()
    client.shake()
    client.socket.close()
    client.transport.write(b"abc")
    assert Binding().lib.ERR_peek_error() == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_halfClose(make: Any, version: ssl.TLSVersion) -> None:
    """
    In TLS 1.3, a client that has closed its half still gets the replies.
    """
    client = make(version=version)
    halves: list[str] = []
    client.protocol.readConnectionLost = lambda: halves.append("read")
    directlyProvides(client.protocol, IHalfCloseableProtocol, IHandshakeListener)
    client.shake()
    client.sayEnd()
    if version is ssl.TLSVersion.TLSv1_2:
        assert client.protocol.ends == [ConnectionDone] and not halves
        return
    assert halves == ["read"] and not client.protocol.ends
    client.transport.write(b"reply")
    client.transport.loseConnection()
    while not client.isOver:
        client.exchange()
    assert client.protocol.ends == [ConnectionDone]
