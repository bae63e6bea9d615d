"""
Settings, which are declared once, and read from a file and from the command line.
"""

from __future__ import annotations

import json
import os
import textwrap
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pop3svc.policy import Policy
from pop3svc.service.configcommand import main, toTOML
from pop3svc.service.options import Options
from pop3svc.service.settings import (
    LIMITS,
    LISTENER,
    SERVICE,
    STORE,
    Faults,
    SettingError,
    Settings,
)
from pop3svc.service.tlsrules import TLSRules
from pop3svc.service.workers import Lines

FULL = """
data = "/var/lib/pop3svc"
workers = 3
certificate = "/etc/cert.pem"
private-key = { file = "/etc/key.pem" }
client-ca = "/etc/clients.pem"
client-name = "cn"
cleartext-login = "never"
without = ["deli", "XLOG"]
ban-exempt = ["192.0.2.0/24"]
proxy-from = ["2001:db8::/32"]
web-proxy-from = ["127.0.0.1", "10.0.0.0/8"]
lmtp = ["unix:/run/lmtp", "tcp:24:interface=127.0.0.1"]
lmtp-mode = "660"
recipient-delimiter = "+-"
local-domain = ["Example.ORG"]
certificate-directory = "/etc/letsencrypt/live"
tls-default-name = "Mail.example.org"
ocsp-response = "/var/lib/ocsp"
ocsp-fetch = true
tls-minimum-version = "1.3"
tls-ciphers = "ECDHE+AESGCM"
tls-ciphersuites = "TLS_AES_128_GCM_SHA256"

[limits]
idleTimeout = 700

[[listener]]
endpoint = "tcp:110"
cleartext-login = "always"
proxy-from = []

[[listener]]
endpoint = "tcp:995"
tls = true
certificate = "/etc/other.pem"
client-ca = "/etc/others.pem"
old-tls-from = ["192.0.2.0/28"]

[[tls.certificate]]
certificate = "/etc/a.pem"
private-key = "/etc/a.key"
names = ["A.Example.org", "*.a.example.org"]

[[tls.certificate]]
certificate = "/etc/b.pem"
ocsp-response = "/var/lib/ocsp.b"

[[store]]
domain = "Example.ORG"
kind = "maildir"
path = "/srv/a:b"
readonly = true
auth = ["passwd:/etc/users"]

[[store]]
kind = "memory"
messages = 3
auth = [{ file = "FILE" }]
"""


def load(tmp_path: Path, text: str, *arguments: str) -> Settings:
    (tmp_path / "pop3svc.toml").write_text(text)
    options = Options()
    options.parseOptions(["--config", str(tmp_path / "pop3svc.toml"), *arguments])
    return options.settings()


@pytest.fixture
def full(tmp_path: Path) -> str:
    (tmp_path / "secret").write_text("memory:alice:wonder\n")
    return FULL.replace("FILE", str(tmp_path / "secret"))


def test_everything(tmp_path: Path, full: str) -> None:
    settings = load(tmp_path, full)
    assert (settings.data, settings.workers) == ("/var/lib/pop3svc", 3)
    assert (settings.certificate, settings.privateKey) == ("/etc/cert.pem", "/etc/key.pem")
    assert settings.policy == Policy(
        cleartextLogin="never", without=frozenset(["DELI", "XLOG"]), idleTimeout=700
    )
    assert [str(each) for each in settings.banExempt] == ["192.0.2.0/24"]
    plain, secure = settings.listeners
    assert (plain.endpoint, plain.tls, plain.cleartextLogin) == ("tcp:110", False, "always")
    assert (settings.clientCa, settings.clientName) == ("/etc/clients.pem", "cn")
    assert (plain.proxyFrom, plain.certificate, plain.clientCa) == ((), None, None)
    assert secure.clientCa == "/etc/others.pem"
    assert (secure.tls, secure.certificate, secure.proxyFrom) == (True, "/etc/other.pem", None)
    assert settings.lmtp == ("unix:/run/lmtp", "tcp:24:interface=127.0.0.1")
    assert (settings.lmtpMode, settings.recipientDelimiter) == ("660", "+-")
    assert settings.localDomain == ("example.org",)
    assert settings.certificateDirectory == "/etc/letsencrypt/live"
    assert settings.tlsRules() == TLSRules("1.3", "ECDHE+AESGCM", "TLS_AES_128_GCM_SHA256")
    assert settings.tlsRules(plain) == settings.tlsRules()
    assert settings.tlsRules(secure).isOld and settings.tlsDefaultName == "mail.example.org"
    one, other = settings.certificates
    assert (one.certificate, one.privateKey) == ("/etc/a.pem", "/etc/a.key")
    assert one.names == ("a.example.org", "*.a.example.org") and other.names == ()
    assert (settings.ocspResponse, settings.ocspFetch) == ("/var/lib/ocsp", True)
    assert (one.ocspResponse, other.ocspResponse) == (None, "/var/lib/ocsp.b")
    maildir, memory = settings.stores
    assert (maildir.domain, maildir.kind) == ("example.org", "maildir")
    assert maildir.argument == "path=/srv/a\\:b:readonly=yes"
    assert (memory.argument, memory.auth) == ("messages=3", ("memory:alice:wonder",))


def test_theCommandLineWins(tmp_path: Path, full: str) -> None:
    settings = load(
        tmp_path,
        full,
        *("--workers", "1", "--set", "idleTimeout=800", "--endpoint", "tcp:1110"),
        *("--without", "CORE", "--auth", "passwd:/x", "--cleartext-login", "always"),
    )
    assert (settings.workers, settings.policy.idleTimeout) == (1, 800)
    assert settings.policy.without == {"CORE"}
    assert [each.endpoint for each in settings.listeners] == ["tcp:1110"]
    assert [(each.kind, each.auth) for each in settings.stores] == [(None, ("passwd:/x",))]
    # The file has the other settings.
    assert settings.data == "/var/lib/pop3svc"


def test_addedVerifiers(tmp_path: Path) -> None:
    assert load(tmp_path, "").addVerifiers == set()
    assert load(tmp_path, 'add-verifiers = ["scram-sha-1"]').addVerifiers == {"SCRAM-SHA-1"}
    both = ["--add-verifiers", "SCRAM-SHA-1", "--add-verifiers", "scram-sha-256"]
    assert load(tmp_path, "", *both).addVerifiers == {"SCRAM-SHA-1", "SCRAM-SHA-256"}
    with pytest.raises(SystemExit, match="add-verifiers PLAIN: must be one or more of SCRAM-SHA"):
        load(tmp_path, "", "--add-verifiers", "PLAIN")


def test_rememberedChecks(tmp_path: Path) -> None:
    """
    C{remember-checks} is at most five minutes.
    """
    assert load(tmp_path, "").rememberChecks == 0
    assert load(tmp_path, "remember-checks = 300").rememberChecks == 300
    assert load(tmp_path, "remember-checks = 300", "--remember-checks", "9").rememberChecks == 9
    with pytest.raises(SystemExit, match="remember-checks 301: must be a whole number"):
        load(tmp_path, "", "--remember-checks", "301")


def test_repeated(tmp_path: Path) -> None:
    settings = load(tmp_path, "", "--without", "CORE", "--without", "deli")
    assert settings.policy.without == {"CORE", "DELI"}
    assert settings.policy.nameCase == "preserved"
    assert load(tmp_path, "name-case = 'mapped'").policy.nameCase == "mapped"
    settings = load(tmp_path, "", "--lmtp", "unix:/a", "--lmtp", "unix:/b")
    assert settings.lmtp == ("unix:/a", "unix:/b")
    settings = load(tmp_path, "", "--proxy-from", "10.0.0.0/8", "--proxy-from", "::1,::2")
    assert len(settings.proxyFrom) == 3


def test_showAndReadAgain(tmp_path: Path, full: str) -> None:
    """
    C{config show} writes a configuration file with the same settings, without the secrets.
    """
    settings = load(tmp_path, full)
    shown = toTOML(settings)
    assert "wonder" not in shown and "(left out)" in shown
    again = load(tmp_path, shown.replace('"memory:(left out)"', '"memory:alice:wonder"'))
    assert again == settings or again.changesTo(settings) == (again.policy, ["listener", "store"])
    assert tomllib.loads(shown)["limits"].keys() == {each.name for each in LIMITS}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = \n", "not valid TOML: Invalid value (at line 1, column 5)"),
        ("cleartxt-login = 'never'", "cleartxt-login: unknown setting; did you mean cleartext-log"),
        ("[limits]\nidelTimeout = 1", "limits.idelTimeout: unknown setting; did you mean idleTim"),
        ("[limits]\nidleTimeout = 1", "limits.idleTimeout: must be a whole number, 600 or more"),
        ("[limits]\nidleTimeout = true", "limits.idleTimeout: must be a whole number"),
        ("limits = 1", "limits: must be a table, [limits]"),
        ("workers = 0", "workers: must be a whole number, from 1 to 999"),
        ("cleartext-login = 'x'", "cleartext-login: must be one of never, loopback, always"),
        ("name-case = 'lower'", "name-case: must be one of preserved, mapped"),
        ("without = ['x']", "without: must be one or more of UID-PARAM"),
        ("without = 'DELI'", "without: must be an array"),
        ("ban-exempt = ['10.0.0.0/33']", "ban-exempt: must be networks"),
        ("ban-exempt = [1]", "ban-exempt: must be an array of networks"),
        ("data = 1", "data: must be a string"),
        ("private-key = 'x'", "private-key requires certificate"),
        ("ocsp-response = 'x'", "ocsp-response requires certificate"),
        ("lmtp = 'tcp:24'", "lmtp: must be an array"),
        ("log-format = 'xml'", "log-format: must be one of text, json, journal"),
        ("lmtp-mode = 660", "lmtp-mode: must be an octal mode"),
        ("lmtp-mode = '888'", "lmtp-mode: must be an octal mode"),
        ("recipient-delimiter = 'ab'", "recipient-delimiter: must be up to three characters"),
        ("recipient-delimiter = 1", "recipient-delimiter: must be up to three characters"),
        ("local-domain = ['a b']", "local-domain: must be domains"),
        ("private-key = {}", "private-key: must be a string, { file"),
        ("certificate = { credential = 'x' }", "CREDENTIALS_DIRECTORY is not set"),
        ("listener = 1", "listener: must be an array of tables, [[listener]]"),
        ("[[listener]]\ntls = true", "listener[1]: needs an endpoint"),
        ("[[listener]]\nendpoint = 'tcp:1'\ntls = 1", "listener[1].tls: must be true or false"),
        ("[[listener]]\nendpoint = 'tcp:1'\nprivate-key = 'x'", "requires certificate"),
        ("[[store]]\npath = '/'", "store[1]: needs a kind"),
        ("[[store]]\nkind = 'x'\nargument = 'x'\npath = '/'", "store[1].path: cannot be combined"),
        ("[[store]]\nkind = 'x'\npath = 1.5", "store[1].path: must be a string"),
        ("[[store]]\nkind = 'x'\nauth = [{ file = '/nowhere' }]", "/nowhere: No such file"),
        ("x = " + "[" * 5000, "not valid TOML: "),
        ("[[store]]\nkind = 'x'\nauth = [{ file = '/dev/null' }]", "/dev/null: Not a regular file"),
        ("[[store]]\nkind = 'x'\n[[store]]\nkind = 'x'", "a second store for all other users"),
    ],
)
def test_faults(tmp_path: Path, text: str, says: str) -> None:
    """
    The text of a fault names the configuration file.
    """
    with pytest.raises(SettingError) as raised:
        load(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path}/pop3svc.toml: ")
    assert says in str(raised.value)


def test_allFaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pop3svc.toml").write_text(
        "workers = 0\n[[listener]]\nendpoint = 'x:1'\n[[store]]\nkind = 'maildir'\npath = '/x/y'\n"
    )
    with pytest.raises(SystemExit) as raised:
        main(["check", str(tmp_path / "pop3svc.toml")])
    assert raised.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
    text = (tmp_path / "pop3svc.toml").read_text().replace("workers = 0", "certificate = '/x.pem'")
    (tmp_path / "pop3svc.toml").write_text(text)
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "pop3svc.toml")])
    faults = capsys.readouterr().err.splitlines()
    assert len(faults) == 3 and all(str(tmp_path) in each for each in faults)
    for each, says in zip(faults, ("listener[1].endpoint: ", "certificate: /x.pem", "store[1]: ")):
        assert says in each


def test_whatWouldRun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pop3svc.toml").write_text(
        "workers = 2\n[limits]\nidleTimeout = 700\n[[listener]]\nendpoint = 'ssl:995'\n"
        "[[store]]\ndomain = 'example.org'\nkind = 'memory'\nauth = ['memory:a:secret']\n"
    )
    main(["check", str(tmp_path / "pop3svc.toml")])
    said = capsys.readouterr().out
    assert "listen on ssl:995 with implicit TLS; logins without TLS: loopback\n" in said
    assert "users of example.org: memory; accounts: memory:(left out)\n" in said
    assert "limits: idleTimeout=700\n" in said
    assert "secret" not in said


def test_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A setting may name a file in systemd's credentials directory: it gets the path of the file, or,
    for a secret, the text.
    """
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "auth").write_text("memory:a:b")
    settings = load(
        tmp_path,
        "certificate = { credential = 'tls' }\n"
        "[[store]]\nkind = 'memory'\nauth = [{ credential = 'auth' }]\n",
    )
    assert settings.certificate == str(tmp_path / "tls")
    assert settings.stores[0].auth == ("memory:a:b",)
    with pytest.raises(SettingError, match="must not be empty or contain"):
        load(tmp_path, "certificate = { credential = '../x' }")


def test_secrets(tmp_path: Path) -> None:
    """
    A secret that is too large is refused, and not cut.  The service does not wait for a FIFO.
    """
    text = f"[[store]]\nkind = 'memory'\nauth = [{{ file = '{tmp_path}/secret' }}]\n"
    (tmp_path / "secret").write_text("memory:a:" + "b" * 65_527)
    settings = load(tmp_path, text)
    assert len(settings.stores[0].auth[0]) == 65_536
    assert settings.secretFiles == (str(tmp_path / "secret"),)
    (tmp_path / "secret").write_text("memory:a:" + "b" * 65_528)
    with pytest.raises(SettingError, match="secret is larger than 65536 octets"):
        load(tmp_path, text)
    (tmp_path / "secret").unlink()
    os.mkfifo(tmp_path / "secret")
    with pytest.raises(SettingError, match="Not a regular file|Illegal seek|No such device"):
        load(tmp_path, text)


def test_largeFile(tmp_path: Path) -> None:
    """
    The size of a configuration file is limited, because it must fit into one line for a worker.
    """
    text = "# " + "x" * (131_072 - 3) + "\n"
    load(tmp_path, text)
    assert len(json.dumps("\x7f" * 131_072)) < Lines.MAX_LENGTH
    with pytest.raises(SettingError, match="is larger than 131072 octets"):
        load(tmp_path, text + "#")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[store]]\nkind = 'maildir'\npath = '/tmp'", "store[1] needs "),
        ("[[store]]\nkind = 'os.path.join'\nargument = 'x'", "store[1] is neither a provider"),
        ("lmtp = ['nonsense']", "lmtp nonsense: Unknown endpoint type"),
        ("lmtp = ['tcp:25']", "lmtp tcp:25: LMTP must not use port 25"),
        (
            "lmtp = ['tcp:24']\n[[store]]\nkind = 'maildir'\npath = '/tmp'\nreadonly = true\n"
            "auth = ['memory:a:b']",
            "lmtp: no store takes mail",
        ),
        (
            "proxy-from = ['::1']\n[[listener]]\nendpoint = 'ssl:1:privateKey=/x'",
            "listener[1].endpoint: an endpoint with its own TLS",
        ),
    ],
)
def test_checkedAsAtTheStart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    """
    C{config check} refuses a configuration with which the service would not start.
    """
    (tmp_path / "pop3svc.toml").write_text(text)
    with pytest.raises(SystemExit) as raised:
        main(["check", str(tmp_path / "pop3svc.toml")])
    assert raised.value.code == 1
    assert says in capsys.readouterr().err


def test_changes() -> None:
    """
    A running service uses changed limits of sessions.  Other changed settings are named.
    """
    options = Options()
    options.parseOptions([])
    old = options.settings()
    other = Options()
    other.parseOptions(
        [
            *("--set", "idleTimeout=700", "--set", "banTime=5", "--without", "DELI"),
            *("--workers", "2", "--ban-exempt", "::1", "--endpoint", "tcp:1"),
            *("--name-case", "mapped"),
        ]
    )
    policy, rest = old.changesTo(other.settings())
    assert (policy.idleTimeout, policy.without) == (700, frozenset(["DELI"]))
    assert (policy.banTime, policy.nameCase) == (Policy.banTime, "preserved")
    assert rest == ["banTime", "name-case", "workers", "ban-exempt", "listener"]
    # With workers, new workers take the new settings, except those that the parent also uses.
    policy, rest = old.changesTo(other.settings(), hasWorkers=True)
    assert (policy.idleTimeout, policy.nameCase) == (700, "mapped")
    assert rest == ["workers", "listener", "ban-exempt", "banTime"]
    kept = other.settings().withThoseOfParent(old)
    assert (kept.policy.banTime, kept.banExempt) == (Policy.banTime, old.banExempt)
    assert kept.policy.idleTimeout == 700


@pytest.mark.parametrize("text", ["\U0001f4e7 ä \u2028", 'a"b\\c', "\x7f\x1b\n"])
def test_showStrings(tmp_path: Path, text: str) -> None:
    """
    A string of any characters is shown so that it can be read again.
    """
    settings = replace(load(tmp_path, ""), data=text)
    assert tomllib.loads(toTOML(settings))["data"] == text


def test_theExampleOfTheDocumentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    page = (Path(__file__).parent.parent.parent / "docs" / "settings.rst").read_text()
    block = page[page.index("code-block:: toml") :].split("\n\n", 1)[1].split("\n\nA string")[0]
    settings = load(tmp_path, textwrap.dedent(block))
    assert len(settings.listeners) == 3 and len(settings.stores) == 2
    assert settings.privateKey == str(tmp_path / "key")


def test_declarations() -> None:
    """
    The help of each setting is one sentence, and each declared setting has an attribute.
    """
    for each in (*SERVICE, *LISTENER, *STORE):
        assert each.help.endswith(".") and each.help.count(". ") == 0, each.name
    attributes = vars(Settings())
    for each in SERVICE:
        assert each.attribute in attributes or hasattr(Policy(), each.attribute)
    faults = Faults()
    faults.check()
