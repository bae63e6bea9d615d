"""
Real clients log in to a real service with tokens that the service checks with keys or by
introspection.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.clients import (
    environment,
    mpop,
    mutt,
    muttReceived,
    program,
    run,
    runInTerminal,
    writePrivately,
)
from tests.support.authorization import KINDS, MESSAGE, USER, OAuthSite

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module", params=KINDS)
def site(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[OAuthSite]:
    site = OAuthSite(tmp_path_factory.mktemp("oauth") / "site", request.param)
    site.start()
    with site.running:
        site.running.up()
        yield site
    site.server.stop()


# --- mail programs --------------------------------------------------------------------


def curl(site: OAuthSite, token: str, *options: str) -> list[str]:
    return [
        *(program("curl"), "-sS", "--cacert", str(site.authorities), *options),
        *("--oauth2-bearer", token, "-u", USER, f"pop3s://127.0.0.1:{site.port}/1"),
    ]


@pytest.mark.parametrize("options", [(), ("--sasl-ir",)])
def test_curl(site: OAuthSite, home: Path, options: tuple[str, ...]) -> None:
    assert run(curl(site, site.token(), *options), home) == MESSAGE
    assert "AUTH OAUTHBEARER" in site.running.waitFor(f" {USER} ")


def test_curlRefused(site: OAuthSite, home: Path) -> None:
    token = site.token(exp=int(time.time()) - 600)
    done = subprocess.run(
        curl(site, token), env=environment(home), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 67, done.stderr


@pytest.mark.parametrize("auth", ["oauthbearer", "xoauth2"])
@pytest.mark.parametrize("isGood", [True, False])
def test_mpop(site: OAuthSite, home: Path, auth: str, isGood: bool) -> None:
    token = site.token() if isGood else site.token(aud="other")
    writePrivately(home / "token", token)
    settings = (f"auth {auth}", f"user {USER}", f"passwordeval cat {home}/token")
    command = mpop(home, site.port, site.authorities, *settings)
    if not isGood:
        done = subprocess.run(
            command, env=environment(home), capture_output=True, timeout=60, check=False
        )
        assert done.returncode != 0
        assert b"[AUTH] Wrong name or password." in done.stderr
        return
    run(command, home)
    assert b"Subject: hello" in (home / "mbox").read_bytes()
    assert f"AUTH {auth.upper()}" in site.running.waitFor(f" {USER} ")


@pytest.mark.parametrize(
    ("name", "method"), [("mutt", "oauthbearer"), ("mutt", "xoauth2"), ("neomutt", "oauthbearer")]
)
def test_mutt(site: OAuthSite, home: Path, name: str, method: str) -> None:
    """
    mutt and neomutt log in with a short token, because neomutt cannot send a long one.
    """
    writePrivately(home / "token", site.shortToken())
    settings = (
        f'set pop_user="{USER}"',
        f'set pop_oauth_refresh_command="cat {home}/token"',
        f'set pop_authenticators="{method}"',
    )
    runInTerminal(mutt(name, home, site.port, site.authorities, *settings), home)
    assert b"Subject: hello" in muttReceived(home)
    assert f"AUTH {method.upper()}" in site.running.waitFor(f" {USER} ")


def test_offered(site: OAuthSite) -> None:
    client = site.connect()
    assert client.say(b"CAPA").startswith(b"+OK")
    assert b"SASL PLAIN LOGIN OAUTHBEARER XOAUTH2\r\n" in client.lines()
