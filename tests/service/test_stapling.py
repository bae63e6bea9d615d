"""
The status of certificates (OCSP): which responses are sent, and when a responder is asked.
"""

from __future__ import annotations

import datetime
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from pop3svc.accounts.httprequests import HTTPUnavailable
from pop3svc.service import stapling
from pop3svc.service.ocsp import checkResponse, issuerOf, requestFor, responderOf
from pop3svc.service.stapling import Stapler, StaplingService
from tests.support.running import PATIENCE, Running, freePort
from tests.support.site import site

__all__ = ["site"]

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def makeKey(kind: str) -> Any:
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return (
        ed25519.Ed25519PrivateKey.generate()
        if kind == "ed"
        else ec.generate_private_key(ec.SECP256R1())
    )


class Authority:
    """
    Issues certificates and responses.
    """

    def __init__(self, kind: str = "ec") -> None:
        self.key = makeKey(kind)
        self.hash = None if kind == "ed" else hashes.SHA256()
        self.certificate = self.issue("authority", key=self.key, isAuthority=True)[0]

    def issue(
        self,
        name: str,
        url: str | None = None,
        key: Any = None,
        isAuthority: bool = False,
        usage: Any = None,
        days: int = 30,
    ) -> tuple[x509.Certificate, Any]:
        key = makeKey("ec") if key is None else key
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(own if isAuthority else self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 40 * DAY)
            .not_valid_after(NOW + days * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(isAuthority, None), critical=True)
        )
        if url is not None:
            builder = builder.add_extension(
                x509.AuthorityInformationAccess(
                    [
                        x509.AccessDescription(
                            AuthorityInformationAccessOID.CA_ISSUERS,
                            x509.UniformResourceIdentifier("http://x.invalid/ca"),
                        ),
                        x509.AccessDescription(
                            AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url)
                        ),
                    ]
                ),
                critical=False,
            )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, self.hash), key

    def put(self, path: Path, name: str, url: str | None = None) -> x509.Certificate:
        """
        Write a new certificate, the certificate of this authority, and the new certificate's key
        into one file.
        """
        certificate, key = self.issue(name, url)
        pem = certificate.public_bytes(Encoding.PEM) + self.certificate.public_bytes(Encoding.PEM)
        path.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate

    def answer(
        self,
        certificate: x509.Certificate,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta | None = DAY,
        status: Any = ocsp.OCSPCertStatus.GOOD,
        signer: tuple[x509.Certificate, Any] | None = None,
        issuer: x509.Certificate | None = None,
    ) -> bytes:
        revoked = status == ocsp.OCSPCertStatus.REVOKED
        by, key = (self.certificate, self.key) if signer is None else signer
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate,
                self.certificate if issuer is None else issuer,
                hashes.SHA1(),
                status,
                NOW + begins,
                None if ends is None else NOW + ends,
                NOW - DAY if revoked else None,
                None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, by)
        )
        if signer is not None:
            builder = builder.certificates([by])
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", ["ec", "rsa", "ed"])
def test_good(kind: str) -> None:
    """
    A response is good if it is signed by the issuer, or by a key that the issuer has certified for
    responses.
    """
    authority = Authority(kind)
    leaf, _ = authority.issue("a.example")
    data = authority.answer(leaf)
    status = checkResponse(data, leaf, authority.certificate, NOW.timestamp())
    assert status.data == data
    assert status.ends == (NOW + DAY).timestamp() and status.begins == (NOW - DAY).timestamp()
    for each in ("ec", "rsa", "ed"):
        signer = authority.issue(
            "responder", key=makeKey(each), usage=ExtendedKeyUsageOID.OCSP_SIGNING
        )
        data = authority.answer(leaf, signer=signer)
        assert checkResponse(data, leaf, authority.certificate, NOW.timestamp()).data == data


def test_bad() -> None:
    """
    The service refuses a response that a client would refuse.
    """
    authority, other = Authority(), Authority()
    leaf, key = authority.issue("a.example")
    another, _ = authority.issue("b.example")
    refused = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    good = authority.answer(leaf)
    forSigning = ExtendedKeyUsageOID.OCSP_SIGNING
    for data, says in (
        (b"", "cannot be read"),
        (good[:-9], "cannot be read"),
        (refused.public_bytes(Encoding.DER), "refuses the request: try later"),
        (authority.answer(another), "for another certificate"),
        (authority.answer(leaf, issuer=other.certificate), "for another certificate"),
        (authority.answer(leaf, status=ocsp.OCSPCertStatus.REVOKED), "certificate is revoked"),
        (authority.answer(leaf, status=ocsp.OCSPCertStatus.UNKNOWN), "certificate is unknown"),
        (authority.answer(leaf, ends=None), "does not say when the next one comes"),
        (authority.answer(leaf, begins=DAY, ends=2 * DAY), "from the future"),
        (authority.answer(leaf, begins=-2 * DAY, ends=-DAY), "out of date"),
        (authority.answer(leaf, signer=(leaf, key)), "not signed by the issuer"),
        (
            authority.answer(leaf, signer=other.issue("x", usage=forSigning)),
            "not signed by the issuer",
        ),
        (
            authority.answer(leaf, signer=authority.issue("x", usage=forSigning, days=-1)),
            "not signed by the issuer",
        ),
        (good[:-1] + bytes([good[-1] ^ 1]), "not signed by the issuer"),
    ):
        with pytest.raises(ValueError, match=says):
            checkResponse(data, leaf, authority.certificate, NOW.timestamp())


AUTHORITY = Authority()
LEAF = AUTHORITY.issue("a.example")[0]
RESPONSE = AUTHORITY.answer(
    LEAF, signer=AUTHORITY.issue("x", usage=ExtendedKeyUsageOID.OCSP_SIGNING)
)


@given(place=st.integers(0, len(RESPONSE) - 1), octets=st.binary(max_size=4))
@settings(max_examples=500)
def test_anyOctets(place: int, octets: bytes) -> None:
    """
    A damaged response is refused with an error text, unless the damage does not matter.
    """
    data = RESPONSE[:place] + octets + RESPONSE[place + len(octets) :]
    try:
        checkResponse(data, LEAF, AUTHORITY.certificate, NOW.timestamp())
    except ValueError as error:
        assert "OCSP" in str(error)


def test_request() -> None:
    authority = Authority()
    leaf, _ = authority.issue("a.example", "http://ocsp.invalid/x")
    assert responderOf(leaf) == "http://ocsp.invalid/x"
    assert responderOf(authority.certificate) is None
    assert issuerOf([leaf, leaf, authority.certificate]) == authority.certificate
    with pytest.raises(ValueError, match="issuer of the certificate is not in its file"):
        issuerOf([leaf, Authority().certificate])
    found = ocsp.load_der_ocsp_request(requestFor(leaf, authority.certificate))
    assert found.serial_number == leaf.serial_number


class Context:
    """
    A TLS context that keeps its callback.
    """

    respond: Callable[..., bytes]

    def set_ocsp_server_callback(self, call: Callable[..., bytes]) -> None:
        self.respond = call


class Exchange:
    """
    A responder in memory.
    """

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers: list[Deferred[Any]] = []

    def __call__(self, url: str, timeout: float, largest: int, reactor: Any = None) -> Exchange:
        assert (url, timeout, largest) == ("http://ocsp.invalid/", 10, 65536)
        return self

    async def ask(self, method: str, body: bytes, mediaType: str, accept: str) -> Any:
        assert (method, mediaType) == ("POST", "application/ocsp-request")
        self.asked.append(body)
        self.answers.append(Deferred())
        try:
            return await self.answers[-1]
        except CancelledError:
            # HTTPExchange also raises this error when it is cancelled.
            raise HTTPUnavailable("it cannot be reached")


class Running60:
    """
    A stapler with a clock that begins now.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.exchange = Exchange()
        monkeypatch.setattr(stapling, "HTTPExchange", self.exchange)
        self.stapler = Stapler(True, lambda: NOW.timestamp() + self.clock.seconds())
        self.service = StaplingService(self.stapler, self.clock)
        self.authority = Authority()

    def context(self, name: str = "a.example", url: str | None = "http://ocsp.invalid/") -> Context:
        context: Any = Context()
        self.leaf = self.authority.issue(name, url)[0]
        self.stapler.prepare("/a.pem", None, context, [self.leaf, self.authority.certificate])
        return context

    def answer(self, data: bytes | Exception, index: int = -1) -> None:
        from pop3svc.accounts.httprequests import Answer

        if isinstance(data, Exception):
            self.exchange.answers[index].errback(data)
        else:
            self.exchange.answers[index].callback(Answer(200, "", data))

    def after(self, seconds: float) -> int:
        """
        @return: how many requests were sent so far.
        """
        for _ in range(int(seconds // 60)):
            self.clock.advance(60)
        self.clock.advance(seconds % 60)
        return len(self.exchange.asked)


@pytest.fixture
def fetching(monkeypatch: pytest.MonkeyPatch) -> Running60:
    return Running60(monkeypatch)


def test_fetches(fetching: Running60, said: list[str]) -> None:
    """
    The service asks the responder at once, and again when half of the response's time is over.  A
    handshake causes no request.
    """
    context = fetching.context()
    fetching.service.startService()
    assert fetching.after(0) == 1 and context.respond(None) == b""
    first = fetching.authority.answer(fetching.leaf)
    fetching.answer(first)
    assert context.respond(None) == first
    assert said == ["[pop3svc#info] stapling the OCSP response of /a.pem"]
    assert fetching.after(0) == 1
    # The response began a day ago, and ends in a day, so that half of the time is over.
    assert fetching.after(120) == 2
    second = fetching.authority.answer(fetching.leaf, begins=0 * DAY, ends=2 * DAY)
    fetching.answer(second)
    assert context.respond(None) == second
    assert fetching.after(86400 - 180) == 2
    assert fetching.after(120) == 3
    # Without a new answer the service sends the present response until its time ends.
    assert fetching.after(86400 - 180) == 3 and context.respond(None) == second
    assert fetching.after(120) == 3 and context.respond(None) == b""
    said.clear()
    # A request is under way.
    fetching.service.stopService()
    assert not fetching.clock.getDelayedCalls() and not said


def test_failures(fetching: Running60, said: list[str]) -> None:
    """
    Each failure is in the log once.  The waits become longer, up to an hour.
    """
    context = fetching.context()
    fetching.service.startService()
    fetching.after(0)
    times = []
    for _ in range(9):
        fetching.answer(HTTPUnavailable("no complete answer within 10 s"))
        count = len(fetching.exchange.asked)
        waited = 0
        while fetching.after(60) == count:
            waited += 60
        times.append(waited + 60)
    assert times == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert len(said) == 1 and "no new OCSP response for /a.pem: the OCSP responder http:" in said[0]
    fetching.answer(fetching.authority.answer(fetching.leaf, status=ocsp.OCSPCertStatus.REVOKED))
    assert "says that the certificate is revoked" in said[1] and context.respond(None) == b""
    fetching.after(3600)
    fetching.answer(RuntimeError("a mistake"))
    assert any("cannot get an OCSP response" in each for each in said)
    fetching.after(3600)
    good = fetching.authority.answer(fetching.leaf)
    fetching.answer(good)
    assert "stapling the OCSP response" in said[-1] and context.respond(None) == good


def test_newCertificate(fetching: Running60, said: list[str]) -> None:
    """
    The status of a renewed certificate is requested at once, and that of the former one no longer.
    """
    fetching.service.startService()
    fetching.after(0)
    former = fetching.context()
    assert fetching.after(0) == 1
    fetching.answer(fetching.authority.answer(fetching.leaf))
    del former
    context = fetching.context("b.example")
    assert fetching.after(0) == 2
    fetching.answer(fetching.authority.answer(fetching.leaf))
    assert context.respond(None)
    assert fetching.after(300) == 3
    no = fetching.context("c.example", None)
    fetching.answer(fetching.authority.answer(fetching.leaf))
    fetching.after(300)
    assert no.respond(None) == b""
    assert any("the certificate names no OCSP responder" in each for each in said)
    assert len(fetching.stapler._staples) == 2


def test_newCertificateMeanwhile(fetching: Running60) -> None:
    """
    If a certificate is renewed during a request, the request for the new one follows directly.
    """
    fetching.service.startService()
    one = fetching.context("a.example")
    assert fetching.after(0) == 1
    leaf = fetching.leaf
    other = fetching.context("b.example")
    assert fetching.after(0) == 1
    fetching.answer(fetching.authority.answer(leaf))
    assert one.respond(None) and fetching.after(0) == 2
    fetching.answer(fetching.authority.answer(fetching.leaf))
    assert other.respond(None)


def test_stopsWhileAsking(fetching: Running60, said: list[str]) -> None:
    """
    A service that stops ends its requests, sends no others, and finds no fault in that.
    """
    contexts = [fetching.context(f"{each}.example") for each in range(9)]
    fetching.service.startService()
    assert contexts and fetching.after(0) == 4
    fetching.service.stopService()
    assert all(each.called for each in fetching.exchange.answers)
    assert fetching.after(120) == 4 and not said
    assert not fetching.clock.getDelayedCalls()


def test_issuerIsAdded(fetching: Running60, said: list[str]) -> None:
    """
    When the operator has added the issuer to the file of the certificate, the responder is asked.
    """
    leaf = fetching.authority.issue("a.example", "http://ocsp.invalid/")[0]
    former: Any = Context()
    fetching.stapler.prepare("/a.pem", None, former, [leaf])
    fetching.service.startService()
    assert fetching.after(0) == 0 and "the issuer of the certificate is not in" in said[0]
    context: Any = Context()
    fetching.stapler.prepare("/a.pem", None, context, [leaf, fetching.authority.certificate])
    assert fetching.after(0) == 1
    fetching.answer(fetching.authority.answer(leaf))
    assert context.respond(None)


def test_file(tmp_path: Path, said: list[str]) -> None:
    """
    A file with a response is read at the start, and again when the operator has replaced it.  If
    the new file cannot be used, the former response stays.
    """
    authority, days = Authority(), 0.0
    leaf = authority.issue("a.example")[0]
    stapler = Stapler(False, lambda: NOW.timestamp() + days * 86400)
    path = tmp_path / "status"
    path.write_bytes(authority.answer(leaf))
    context: Any = Context()
    stapler.prepare("/a.pem", str(path), context, [leaf, authority.certificate])
    assert context.respond(None) == path.read_bytes()

    def look() -> None:
        over: list[object] = []
        from pop3svc.threadpool import InlineExecutor

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stapling, "disk", InlineExecutor)
            Deferred.fromCoroutine(stapler.look(Clock())).addCallback(over.append)
        assert over == [None]

    first = path.read_bytes()
    for data, says in (
        (b"nonsense", "status: the OCSP response cannot be read"),
        (None, "No such"),
    ):
        path.unlink() if data is None else path.write_bytes(data)
        look()
        look()
        assert context.respond(None) == first and says in said[-1]
    assert len(said) == 3
    second = authority.answer(leaf, begins=0 * DAY, ends=3 * DAY)
    path.write_bytes(second)
    look()
    assert context.respond(None) == second
    days = 3
    assert context.respond(None) == b""
    look()
    assert "is out of date" in said[-2] + said[-1]
    other: Any = Context()
    stapler.prepare("/b.pem", None, other, [leaf, authority.certificate])
    assert not hasattr(other, "respond")


# --- with OpenSSL's responder and client -----------------------------------------------


@contextmanager
def responder(
    path: Path, authority: Authority, port: int, *leaves: x509.Certificate
) -> Iterator[None]:
    """
    Run OpenSSL's responder, which knows some certificates.
    """
    (path / "index").write_text(
        "".join(
            f"V\t{each.not_valid_after_utc:%y%m%d%H%M%SZ}\t\t{each.serial_number:040X}\tunknown"
            f"\t/CN=a.example\n"
            for each in leaves
        )
    )
    (path / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    (path / "ca.key").write_bytes(
        authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    process = subprocess.Popen(
        [
            *("openssl", "ocsp", "-index", str(path / "index"), "-port", str(port), "-nmin", "9"),
            *("-rsigner", str(path / "ca.pem"), "-rkey", str(path / "ca.key")),
            *("-CA", str(path / "ca.pem")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def status(port: int, path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", "-ign_eof"),
            *("-CAfile", str(path / "ca.pem"), "-status", *arguments),
        ],
        input="QUIT\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "+OK" in done.stdout
    found = re.search(r"OCSP Response Status: (\w+)|OCSP response: (no response sent)", done.stdout)
    assert found is not None
    good = "Cert Status: good" in done.stdout
    return f"{found[1]} {'good' if good else 'bad'}" if found[1] else found[2]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl(site: Path, tmp_path: Path) -> None:
    """
    The service sends the response for the certificate that a client asks for, also after STLS.  The
    response comes from a responder or from a file.  A responder that never answers delays nothing.
    """
    authority = Authority()
    asked, plain, secure = freePort(), freePort(), freePort()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        leaf = authority.put(tmp_path / "a.pem", "a.example", f"http://127.0.0.1:{asked}/")
        authority.put(tmp_path / "silent.pem", "silent.example", url)
        ofFile = authority.put(tmp_path / "file.pem", "file.example", url)
        (tmp_path / "status").write_bytes(authority.answer(ofFile))
        tables = "".join(
            f'[[tls.certificate]]\ncertificate = "{tmp_path / name}.pem"\n{more}\n'
            for name, more in (
                ("a", ""),
                ("silent", ""),
                ("file", f'ocsp-response = "{tmp_path / "status"}"'),
            )
        )
        (tmp_path / "pop3svc.toml").write_text(f"ocsp-fetch = true\n{tables}")
        with (
            responder(tmp_path, authority, asked, leaf),
            Running(
                tmp_path / "home",
                *("--provider", f"maildir:{site / 'mail'}", "--auth", f"passwd:{site / 'users'}"),
                *("--config", str(tmp_path / "pop3svc.toml")),
                *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
                *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
            ) as running,
        ):
            running.waitFor(f"stapling the OCSP response of {tmp_path / 'file.pem'}")
            running.waitFor(f"stapling the OCSP response of {tmp_path / 'a.pem'}")
            began = time.monotonic()
            assert status(secure, tmp_path, "-servername", "silent.example") == "no response sent"
            assert time.monotonic() - began < 8
            for name in ("a.example", "file.example"):
                for port, how in ((secure, ()), (plain, ("-starttls", "pop3"))):
                    for version in ("-tls1_2", "-tls1_3"):
                        said = status(port, tmp_path, "-servername", name, version, *how)
                        assert said == "successful good"


def test_withoutTreq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If treq is not installed, one sentence says so.
    """
    import sys

    from pop3svc.service.certificates import Certificates
    from pop3svc.service.options import Options
    from pop3svc.service.settings import SettingError

    monkeypatch.setitem(sys.modules, "treq", None)
    options = Options()
    options.parseOptions(["--ocsp-fetch", "yes"])
    with pytest.raises(SettingError, match="^--ocsp-fetch needs treq: pip install 'pop3svc.http.'"):
        Certificates(options.settings(), None, None)  # type: ignore[arg-type]
