"""
The web server of an issuer, and a service whose users log in with the issuer's tokens.
"""

from __future__ import annotations

import json
import signal
import ssl
import threading
from base64 import b64decode, b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from pop3svc.testing.certificates import Authority
from tests.support.maildirs import deliver
from tests.support.running import PATIENCE, Connection, Running, freePort
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

__all__ = ["KINDS", "MESSAGE", "SECRET", "USER", "AuthorizationServer", "OAuthSite"]

MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
USER = "ann@example.org"
KINDS = ("jwks", "introspect")
# The name and the secret of the service at the issuer.
CLIENT, SECRET = "pop3 service", "secret: of 100%"


class AuthorizationServer:
    """
    Publishes keys, and answers questions about tokens (RFC 7662).

    @ivar keys: the key set.
    @ivar claims: what the server says about each active token.
    @ivar secret: the secret that a client has to know.
    @ivar fault: C{"stall"}: the server sends a header and no body, until the client goes;
        C{"flood"}: it sends 20 MB; C{"redirect"}: it sends the client elsewhere.
    @ivar asked: the paths of all requests, with the queries.
    @ivar dropped: set when a client has closed its connection without having got a body.
    @ivar gate: requests wait for it, at most a minute.
    @ivar mostAtOnce: the most requests that have waited at the same time.
    """

    def __init__(self, port: int, keys: bytes) -> None:
        self.port = port
        self.keys = keys
        self.claims: dict[str, dict[str, Any]] = {}
        self.secret = SECRET
        self.fault = ""
        self.asked: list[str] = []
        self.dropped = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.mostAtOnce = self._atOnce = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def start(self, certificate: Path) -> AuthorizationServer:
        """
        Listen, with this certificate and key.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._serve(self, b"")

            def do_POST(self) -> None:
                owner._serve(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, address: Any) -> None:
                # This runs in the thread of the connection, so that its handshake does not hold up
                # the next connection.
                try:
                    super().finish_request(context.wrap_socket(request, server_side=True), address)
                except OSError:
                    # The client does not trust the certificate, or has closed the connection.
                    pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """
        Stop listening.
        """
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _serve(self, request: Any, body: bytes) -> None:
        with self._lock:
            self.asked.append(request.path)
            self._atOnce += 1
            self.mostAtOnce = max(self.mostAtOnce, self._atOnce)
        self.gate.wait(PATIENCE)
        with self._lock:
            self._atOnce -= 1
        status, answer = self._answerTo(request, body)
        request.send_response(302 if self.fault == "redirect" else status)
        if self.fault == "redirect":
            request.send_header("Location", "/elsewhere")
        if self.fault == "flood":
            answer = b" " * 20_000_000
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        if self.fault != "stall":
            request.wfile.write(answer)
            return
        try:
            request.connection.recv(1)
        except OSError:
            pass
        self.dropped.set()

    def _answerTo(self, request: Any, body: bytes) -> tuple[int, bytes]:
        if request.path == "/keys" and request.command == "GET":
            return 200, self.keys
        if request.path != "/introspect" or request.command != "POST":
            return 404, b"{}"
        kind, _, credentials = request.headers.get("Authorization", "").partition(" ")
        name, _, secret = b64decode(credentials).decode().partition(":")
        (known,) = parse_qs(f"name={name}&secret={secret}")["secret"]
        if kind != "Basic" or name != "pop3+service" or known != self.secret:
            return 401, b'{"error": "invalid_client"}'
        (token,) = parse_qs(body.decode(), strict_parsing=True)["token"]
        claims = self.claims.get(token)
        answer = {"active": False} if claims is None else {"active": True, **claims}
        return 200, json.dumps(answer).encode()


class OAuthSite:
    """
    A service that accepts the tokens of an issuer, and checks them in one of the L{KINDS}.

    @ivar certificate: the path of the certificate of the service and of the issuer's server.
    """

    def __init__(
        self, home: Path, kind: str = "jwks", options: str = "", source: str | None = None
    ) -> None:
        """
        @param options: further options of C{--auth oauth:}, each with a colon in front.
        @param source: all options, if the issuer is another one.
        """
        home.mkdir()
        self.kind = kind
        self.issuer = Issuer()
        self.port = freePort()
        self.server = AuthorizationServer(freePort(), self.issuer.published())
        self.authority = Authority()
        self.authorities = home / "ca.pem"
        self.authority.write(self.authorities)
        self.certificate = home / "served.pem"
        self.authority.issue(self.certificate, ["localhost", "127.0.0.1"])
        self.secret = home / "secret"
        self.secret.write_text(f"{SECRET}\n")
        self.mail = home / "mail"
        self.addUser(USER)
        url = f"https://127.0.0.1:{self.server.port}"
        ours = {
            "jwks": f"jwks={url}/keys",
            "introspect": f"introspect={url}/introspect:client={CLIENT}:secret={self.secret}"
            ":claim=email",
        }[kind]
        ours += f":issuer={ISSUER}:audience={AUDIENCE}:ca={self.authorities}{options}"
        self.running = Running(
            home / "service",
            *("--endpoint", f"ssl:{self.port}:interface=127.0.0.1"),
            *("--provider", f"maildir:{home}/mail/{{user}}"),
            *("--auth", f"oauth:{source or ours}"),
            *("--certificate", str(self.certificate), "--data", str(home / "data")),
        )

    def addUser(self, name: str) -> None:
        """
        Make a mailbox with L{MESSAGE}.
        """
        deliver(self.mail / name, "1.host", MESSAGE)

    def start(self) -> AuthorizationServer:
        """
        Start the issuer's server.
        """
        return self.server.start(self.certificate)

    def token(self, **changes: Any) -> str:
        """
        @param changes: see L{Issuer.claims}.
        @return: a new token.
        """
        if self.kind == "jwks":
            return self.issuer.token(**changes)
        token = f"opaque{len(self.server.claims)}+/=="
        self.server.claims[token] = self.issuer.claims(**changes)
        return token

    def shortToken(self) -> str:
        """
        @return: a token for clients that cannot send long ones.
        """
        if self.kind == "jwks":
            return self.issuer.token("ed", "EdDSA", iat=None, sub=None)
        return self.token()

    def connect(self) -> Connection:
        """
        @return: a client that has got the greeting.
        """
        client = Connection(self.port)
        client.startTLS(ssl.create_default_context(cafile=str(self.authorities)))
        assert client.line().startswith(b"+OK")
        return client

    def begin(self, token: str, user: str = USER) -> Connection:
        """
        @return: a client that has sent a token, and waits for the reply.
        """
        client = self.connect()
        message = b64encode(f"n,a={user},\x01auth=Bearer {token}\x01\x01".encode())
        client.socket.sendall(b"AUTH OAUTHBEARER " + message + b"\r\n")
        return client

    def tryToken(self, token: str) -> bytes:
        """
        @return: the final reply.
        """
        return self.finish(self.begin(token))

    def finish(self, client: Connection) -> bytes:
        """
        @return: the final reply to a client that L{begin} has returned.
        """
        reply = client.line()
        if reply.startswith(b"+ "):
            reply = client.say(b"AQ==")
        client.socket.close()
        return reply

    def reload(self) -> None:
        """
        Let the service read its files again.
        """
        self.running.process.send_signal(signal.SIGHUP)
        self.running.waitFor("reloaded after SIGHUP")

    def log(self) -> list[str]:
        """
        Stop the service.

        @return: its whole log, in which there is no secret and no traceback.
        """
        assert self.running.end(signal.SIGTERM) == 0
        for part in ("Traceback", SECRET, "opaque"):
            assert not any(part in line for line in self.running.lines)
        return self.running.lines
