"""
Find the texts of all replies in the source of the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "pop3svc"

# The functions and classes that take a text as their first argument.
_TAKERS = ("BadArguments", "POP3ResponseError", "err", "ok")
# These packages make replies for tests, or read the replies of other servers.
_OTHERS = ("check", "testing")
# Arguments that are no literals: their texts are found elsewhere, or are never translated.
_MADE_ELSEWHERE = (
    "error.text",
    "reply.text",
    # The greeting, which comes before LANG.
    "self.session.greeting",
    "connection.session.greeting",
    # The operator's own text, or BARRED.
    "restrictions.nologin",
    "row.restrictions.nologin",
)


def textsOf(source: str, name: str = "source") -> set[str]:
    """
    Find the texts in a module.  An expression in an f-string becomes a placeholder.

    @param name: the module, for errors.
    @raise AssertionError: the text of a reply cannot be read from the source.
    """
    tree = ast.parse(source)
    found: set[str] = set()
    for call in ast.walk(tree):
        isTaker = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if isTaker and call.func.id in _TAKERS:  # type: ignore[attr-defined]
            given = [
                *call.args[:1],  # type: ignore[attr-defined]
                *(each.value for each in call.keywords if each.arg == "text"),  # type: ignore[attr-defined]
            ]
            assert given, f"{name}: no text in {ast.unparse(call)}"
            found.update(_read(given[0], tree, name))
    return {each for each in found if _hasWords(each)}


def _read(node: ast.expr, tree: ast.Module, name: str) -> Iterator[str]:
    if ast.unparse(node) in _MADE_ELSEWHERE:
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(_part(each) for each in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _read(node.body, tree, name)
        yield from _read(node.orelse, tree, name)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and function.name == node.func.id:
                for each in ast.walk(function):
                    if isinstance(each, ast.Return) and each.value is not None:
                        yield from _read(each.value, tree, name)
                return
        raise AssertionError(f"{name}: no function {node.func.id}")
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        for each in tree.body:
            if (
                isinstance(each, ast.Assign)
                and ast.unparse(each.targets[0]) == node.value.id
                and isinstance(each.value, ast.Dict)
            ):
                for value in each.value.values:
                    yield from _read(value, tree, name)
                return
        raise AssertionError(f"{name}: no dictionary {node.value.id}")
    else:
        raise AssertionError(f"{name}: write the text of a reply as a literal: {ast.unparse(node)}")


def _part(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    return "{" + ast.unparse(part.value) + "}"


def _hasWords(template: str) -> bool:
    """
    @return: whether the text has something to translate besides its placeholders.
    """
    rest = template
    while "{" in rest:
        rest = rest[: rest.index("{")] + rest[rest.index("}") + 1 :]
    return any(character.isalpha() for character in rest)


@cache
def allTexts() -> set[str]:
    """
    @return: the texts of all replies of the service, with placeholders.
    """
    from pop3svc.accounts.restrictions import BARRED

    found = {BARRED}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in _OTHERS:
            found |= textsOf(path.read_text(), str(name))
    return found
