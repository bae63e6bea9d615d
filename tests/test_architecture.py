"""
The architecture: allowed imports, and words that a module must not contain.
"""

from __future__ import annotations

import ast
import configparser
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pop3svc"

# A module imports from lower ranks only.
RANKS = {
    "lazyimports": 0,
    "bounded": 0,
    "once": 1,
    "errors": 0,
    "interfaces": 1,
    "policy": 0,
    "preparation": 0,
    "languages": 0,
    "lineendings": 0,
    "downgrading.lexical": 0,
    "downgrading.addresses": 1,
    "downgrading.parameters": 1,
    "downgrading.fields": 2,
    "downgrading.converter": 3,
    "networks": 0,
    "unixsockets": 0,
    "fileuser": 0,
    "listings": 0,
    "summaries": 0,
    "logs": 1,
    "logrecords": 2,
    "timing": 0,
    "drivers": 0,
    "health": 0,
    "database": 1,
    "awaiting": 1,
    "threadpool": 1,
    "files": 2,
    "trust": 3,
    "state": 2,
    "systemusers": 3,
    "threads": 2,
    "protocol.replies": 2,
    "protocol.remarks": 2,
    "protocol.grammar": 2,
    "protocol.maildrop": 3,
    "protocol.wire": 3,
    "protocol.content": 3,
    "protocol.providercalls": 3,
    "protocol.record": 2,
    "protocol.messages": 4,
    "protocol.transaction": 5,
    "protocol.authentication": 4,
    "protocol.session": 6,
    "protocol.dispatch": 7,
    "protocol.sasl": 7,
    "protocol.commands": 8,
    "protocol.outlets": 3,
    "protocol.sender": 8,
    "protocol.framing": 0,
    "protocol.scram": 3,
    "protocol.challenges": 2,
    "protocol.bearer": 4,
    "protocol.channelbinding": 0,
    "protocol.clientcertificate": 0,
    "protocol.closing": 2,
    "protocol.connection": 9,
    "credentials": 2,
    "protocol.taps": 9,
    "accounts.knownnetworks": 3,
    "accounts.strikes": 4,
    "accounts.throttle": 5,
    "accounts.checkers": 4,
    "accounts.domains": 3,
    "accounts.modular": 0,
    "accounts.digests": 2,
    "accounts.hashes": 3,
    "accounts.hashing": 2,
    "accounts.blockingchecks": 3,
    "accounts.comparison": 4,
    "accounts.scramkeys": 4,
    "accounts.linefiles": 3,
    "accounts.passwordlines": 4,
    "accounts.passwordediting": 5,
    "accounts.lazywriting": 2,
    "accounts.apppasswords": 2,
    "accounts.apppasswordlines": 5,
    "accounts.apppasswordfile": 6,
    "accounts.verifiers": 6,
    "accounts.passwordfile": 7,
    "accounts.restrictions": 1,
    "accounts.sqlapppasswords": 7,
    "accounts.sqlaccounts": 8,
    "accounts.httprequests": 4,
    "accounts.httpaccounts": 5,
    "accounts.ldapserver": 4,
    "accounts.ldapaccounts": 5,
    "accounts.pamaccounts": 5,
    "accounts.claims": 1,
    "accounts.tokens": 2,
    "accounts.issuerkeys": 5,
    "accounts.introspection": 6,
    "accounts.oauth": 7,
    "providers.paths": 3,
    "providers.memory": 3,
    "providers.twistedmail": 3,
    "providers.unpacking": 3,
    "providers.owners": 5,
    "providers.files.watching": 3,
    "providers.files.sizes": 3,
    "providers.files.sleeping": 0,
    "providers.files.presence": 3,
    "providers.files.deletion": 4,
    "providers.files.directory": 4,
    "providers.files.takeover": 5,
    "providers.files.lock": 6,
    "providers.files.snapshot": 5,
    "providers.files.folders": 6,
    "providers.files.scanning": 7,
    "providers.files.listing": 6,
    "providers.files.finder": 7,
    "providers.files.counting": 8,
    "providers.files.contents": 5,
    "providers.files.mailbox": 9,
    "providers.files.storing": 5,
    "providers.files.store": 10,
    "providers.maildir.names": 5,
    "providers.maildir.quota": 5,
    "providers.maildir.migrated": 7,
    "providers.maildir.columns": 8,
    "providers.maildir.scan": 9,
    "providers.maildir.delivery": 6,
    "providers.maildir.expiry": 10,
    "providers.maildir.store": 11,
    "providers.mbox.text": 0,
    "providers.mbox.scan": 3,
    "providers.mbox.locks": 3,
    "providers.mbox.gone": 4,
    "providers.mbox.rewriting": 5,
    "providers.mbox.recovery": 6,
    "providers.mbox.place": 7,
    "providers.mbox.directory": 8,
    "providers.mbox.content": 4,
    "providers.mbox.mailbox": 9,
    "providers.mbox.delivery": 10,
    "providers.mbox.store": 11,
    "client.failures": 0,
    "client.decoding": 0,
    "client.exchanges": 0,
    "client.logins": 1,
    "client.message": 2,
    "client.connection": 3,
    "client.protocol": 4,
    "client.address": 4,
    "client.connecting": 5,
    "providers.upstream.client": 5,
    "providers.upstream.pop3": 6,
    "providers.upstream.imap": 6,
    "providers.upstream.mailbox": 6,
    "providers.upstream.logins": 7,
    "providers.folder": 11,
    "providers.locking": 3,
    "providers.sql.statements": 3,
    "providers.sql.schema": 4,
    "providers.sql.readahead": 2,
    "providers.sql.content": 3,
    "providers.sql.delivery": 4,
    "providers.sql.deletion": 4,
    "providers.sql.housekeeping": 5,
    "providers.sql.leases": 4,
    "providers.sql.listing": 4,
    "providers.sql.mailbox": 5,
    "providers.sql.store": 6,
    "delivery.dataphase": 0,
    "delivery.envelope": 1,
    "delivery.recipients": 2,
    "delivery.serial": 2,
    "delivery.lmtp": 3,
    "migration.records": 1,
    "migration.formats": 0,
    "migration.dovecot": 2,
    "migration.courier": 2,
    "migration.cyrus": 2,
    "migration.headers": 1,
    "migration.schemes": 3,
    "migration.uniqueids": 4,
    "admin.sessions": 0,
    "admin.operations": 2,
    "admin.activity": 3,
    "admin.status": 3,
    "admin.client": 3,
    "admin.server": 3,
    "admin.workers": 3,
    "admin.traces": 10,
    "check.client": 0,
    "check.target": 1,
    "check.table": 2,
    "check.basics": 3,
    "check.capabilities": 3,
    "check.deletion": 3,
    "check.extensions": 3,
    "check.login": 3,
    "check.messages": 3,
    "check.replies": 3,
    "check.tls": 3,
    "check.report": 3,
    "check.command": 4,
    "transfer.failures": 0,
    "transfer.report": 0,
    "transfer.source": 0,
    "transfer.fingerprints": 1,
    "transfer.target": 1,
    "transfer.folders": 3,
    "transfer.mboxes": 4,
    "transfer.session": 4,
    "transfer.maildirs": 8,
    "transfer.sources": 9,
    "transfer.maildirtarget": 8,
    "transfer.mboxtarget": 11,
    "transfer.importing": 12,
    "transfer.exporting": 12,
    "fetching.record": 3,
    "fetching.targets": 12,
    "fetching.fetcher": 13,
    "fetching.watching": 14,
    "service.tls": 3,
    "service.servernames": 0,
    "service.ocsp": 0,
    "service.stapling": 5,
    "service.certificateset": 4,
    "service.tlsrules": 0,
    "service.loop": 1,
    "service.sockets": 0,
    "service.transport": 2,
    "service.tlstransport": 3,
    "service.arguments": 0,
    "service.endpoints": 5,
    "service.proxy": 2,
    "service.keepalive": 2,
    "service.unauthenticated": 2,
    "service.privileged": 3,
    "service.notifying": 0,
    "service.operating": 3,
    "service.accepting": 4,
    "service.datadirectory": 6,
    "service.apppasswordcommand": 8,
    "service.usercommand": 9,
    "service.plugins": 12,
    "service.admission": 3,
    "service.factory": 10,
    "service.succession": 0,
    "service.workers": 8,
    "service.versions": 0,
    "service.settings": 3,
    "service.configfile": 4,
    "service.ldapoptions": 6,
    "service.options": 5,
    "service.running": 11,
    "service.mailin": 6,
    "service.certificates": 7,
    "service.collector": 0,
    "service.storage": 7,
    "service.stores": 11,
    "service.visiting": 8,
    "service.precautions": 8,
    "service.assembly": 12,
    "service.tap": 13,
    "service.worker": 14,
    "service.output": 0,
    "service.parser": 2,
    "service.servecommand": 6,
    "service.foreground": 4,
    "service.fetchcommand": 15,
    "service.democommand": 7,
    "service.destinations": 13,
    "service.delivercommand": 14,
    "service.transfercommand": 14,
    "service.configcommand": 13,
    "service.sqlcommand": 13,
    "service.admincommand": 7,
    "service.commandtable": 0,
    "service.command": 15,
    "service.synopsis": 16,
    "service.completion": 17,
    "service.manual": 17,
    "service.manualcommand": 18,
    "metrics.declarations": 0,
    "metrics.exposition": 1,
    "metrics.meter": 8,
    "metrics.numbers": 9,
    "web.markup": 2,
    "web.charts": 3,
    "web.history": 0,
    "web.passwords": 2,
    "web.guard": 3,
    "web.pages": 4,
    "web.streams": 5,
    "web.views": 4,
    "web.operator": 6,
    "web.explanations": 0,
    "web.forms": 0,
    "web.recent": 0,
    "web.mails": 0,
    "web.conversations": 3,
    "web.popclient": 4,
    "web.playforms": 5,
    "web.playground": 6,
    "web.server": 1,
    "web.resources": 10,
    "service.webport": 11,
    "__main__": 16,
}
# The checks of other servers must not share code with this server, so their modules import only
# each other.
ALONE = "check"
# These packages use each other only through the interfaces.
APART = ("protocol", "accounts", "providers", "delivery")
# Words that show that a module uses another layer.
NEVER = {
    "protocol": ["os", "pathlib"],
    "protocol.grammar": ["twisted"],
    "protocol.framing": ["twisted", "transport"],
    "protocol.maildrop": ["twisted", "await "],
    "protocol.wire": ["twisted"],
    "protocol.replies": ["twisted"],
    "protocol.authentication": ["transport"],
    "protocol.session": ["transport"],
    "protocol.transaction": ["transport"],
    "protocol.providercalls": ["transport"],
    "protocol.dispatch": ["transport"],
    "protocol.commands": ["transport", "zope"],
    "protocol.sasl": ["transport"],
    "protocol.sender": ["transport"],
    "errors": ["twisted"],
    "policy": ["twisted"],
    "providers": ["transport", "Reply", "Session"],
    "accounts": ["transport", "Reply", "Session", "IPOP3Mailbox("],
}
# These modules have connections of their own, to other servers.
OUTGOING = ("providers.upstream.", "accounts.httprequests")


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py" and not name.startswith("testing."):
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """
    @return: the modules of this package that a file imports, without the prefix C{pop3svc.}.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name.removeprefix("pop3svc.") for name in found if name.startswith("pop3svc.")}
    return own & (set(RANKS) | {"testing"} | {name for name in own if name.startswith("testing.")})


@cache
def code(path: Path) -> str:
    """
    @return: the code of a file without docstrings and comments.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.unparse(tree)


@pytest.mark.smoke
def test_everyModuleHasItsRank() -> None:
    assert set(modules()) == set(RANKS)


@pytest.mark.smoke
def test_thePageHasTheSameRanks() -> None:
    """
    The table of C{docs/architecture.rst} has every module with its rank.
    """
    page = (PACKAGE.parent / "docs" / "architecture.rst").read_text()
    rows = re.findall(r"^``([\w/]+(?:, \w+)*)``(?: and others)? +(\d+) ", page, re.M)
    documented = {}
    for names, rank in rows:
        first, *others = names.replace("/", ".").split(", ")
        folder = first.rpartition(".")[0]
        for name in (first, *(f"{folder}.{each}" for each in others)):
            documented[name] = int(rank)
    # One row of the page stands for all modules with rules of the check.  The page does not list
    # __main__, which only calls service.command.
    together = {name for name in RANKS if name.startswith("check.") and RANKS[name] == 3}
    expected = {name: rank for name, rank in RANKS.items() if name not in together}
    del expected["__main__"]
    assert {each: rank for each, rank in documented.items() if each not in together} == expected


@pytest.mark.smoke
@pytest.mark.parametrize("name", RANKS)
def test_walls(name: str) -> None:
    path = modules()[name]
    for other in imported(path):
        assert not other.startswith("testing"), f"{name} imports {other}"
        assert RANKS[other] < RANKS[name], f"{name} imports {other}"
        folder, otherFolder = name.split(".")[0], other.split(".")[0]
        if folder == ALONE:
            assert otherFolder == ALONE, f"{name} imports {other}"
        if folder in APART and otherFolder in APART:
            assert folder == otherFolder, f"{name} imports {other}"
    for part in (name, name.split(".")[0]):
        for word in NEVER.get(part, []):
            if word.isidentifier() and word in ("os", "pathlib"):
                names = {
                    alias.name
                    for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    for alias in node.names
                }
                assert word not in names, f"{name} imports {word}"
            elif not (word == "transport" and name.startswith(OUTGOING)):
                assert word not in code(path), f"{name} says {word!r}"


# The page cache and sendfile() are known to these modules only.
ZERO_COPY = ("files", "protocol.outlets")


@pytest.mark.parametrize("word", ["RWF_NOWAIT", "sendfile", ".sendTo(", ".left"])
def test_whoKnowsThePageCache(word: str) -> None:
    """
    Other modules pass a C{FileRegion} on without looking into it.
    """
    found = {name for name, path in modules().items() if word in code(path)}
    assert found and found <= set(ZERO_COPY)


def test_docstrings() -> None:
    """
    Each module has a docstring, and so has each of its public classes and functions.
    """
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{name}.{node.name}"


FIELD = re.compile(r"^\s*@(ivar|cvar|param) (\w+):", re.M)


def attributes(node: ast.ClassDef) -> set[str]:
    """
    @return: the names that a class defines in its body, in C{__slots__}, or by assignment to
        an attribute of C{self}.
    """
    names = set()
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(each.name)
        elif isinstance(each, ast.Assign):
            for target in each.targets:
                names |= {leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
                if isinstance(target, ast.Name) and target.id == "__slots__":
                    names |= set(ast.literal_eval(each.value))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            names.add(each.target.id)
    for each in ast.walk(node):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and isinstance(each.value, ast.Name)
            and each.value.id == "self"
        ):
            names.add(each.attr)
    return names


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """
    @return: the names of the parameters of a function.
    """
    given = node.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {each.arg for each in found if each is not None}


def wrongFields(tree: ast.Module) -> list[str]:
    """
    @return: the fields of docstrings that name no attribute of the class, and no parameter of
        the function or of the constructor of the class.
    """
    found = []
    classes = {each.name: each for each in ast.walk(tree) if isinstance(each, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            known = {"ivar": attributes(node), "cvar": attributes(node), "param": set[str]()}
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id in classes:
                    known["ivar"] |= attributes(classes[base.id])
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    known["param"] = parameters(each)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            known = {"ivar": set(), "cvar": set(), "param": parameters(node)}
        else:
            continue
        for kind, name in FIELD.findall(ast.get_docstring(node, clean=False) or ""):
            if name not in known[kind]:
                found.append(f"{node.name}: @{kind} {name}")
    return found


def test_wrongFields() -> None:
    """
    L{wrongFields} finds fields that name no attribute or parameter.
    """
    source = '''
class One:
    """
    @ivar slot: right.
    @ivar field: right.
    @ivar assigned: right.
    @ivar other: wrong.
    @param number: right.
    """
    __slots__ = ("slot",)
    field: int

    def __init__(self, number):
        self.assigned, self.more = number

def work(first, *rest, last, **others):
    """
    @param first: right.
    @param rest: right.
    @param last: right.
    @param others: right.
    @param more: wrong.
    @ivar first: wrong.
    """
'''
    assert wrongFields(ast.parse(source)) == [
        "One: @ivar other",
        "work: @param more",
        "work: @ivar first",
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_fieldsOfDocstrings(path: Path) -> None:
    """
    Each C{@ivar}, C{@cvar} and C{@param} of a docstring names an attribute or a parameter that
    exists.
    """
    assert wrongFields(ast.parse(path.read_text())) == []


def test_everyPackageIsInstalled() -> None:
    """
    setup.cfg names each package below C{pop3svc}, and no others.
    """
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    named = set(setup["options"]["packages"].split()) - {"twisted.plugins"}
    found = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("__init__.py")
    }
    assert named == found
