"""
Links from the API pages to Twisted and to Python's builtins, without a download.

pydoctor resolves such links by inventories that it downloads.  This module resolves
them by importing the named object, so that the build needs no network and a misspelled
name is still a warning.
"""

from __future__ import annotations

import builtins
from importlib import import_module
from typing import Any

from pydoctor.extensions.zopeinterface import ZopeInterfaceClass
from pydoctor.model import DocumentableKind, System
from pydoctor.sphinx import SphinxInventory
from sphinx.util.logging import getLogger
from zope.interface.interface import InterfaceClass

__all__ = ["ImportingSystem"]

log = getLogger(__name__)

_TWISTED = "https://docs.twisted.org/en/stable/api"
_PYTHON = "https://docs.python.org/3/library"
_CONSTANTS = ("False", "None", "NotImplemented", "True")


def _imported(name: str) -> tuple[Any, str, str] | None:
    """
    Import the object that a dotted name stands for.

    @return: the object, its module or class, and the rest of its name; None if there is none.
    """
    module, _, rest = name, "", ""
    while module:
        try:
            found: Any = import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            continue
        owner = module
        parts = rest.split(".") if rest else []
        for number, part in enumerate(parts):
            if isinstance(found, InterfaceClass):
                found = found.get(part)
            else:
                found = getattr(found, part, None)
            if found is None:
                return None
            if isinstance(found, type | InterfaceClass):
                owner = ".".join([module, *parts[: number + 1]])
        return found, owner, name[len(owner) + 1 :]
    return None


class _Imports(SphinxInventory):
    """
    An inventory of everything in Twisted and in Python's builtins.
    """

    def getLink(self, name: str) -> str | None:
        """
        @return: the address of the page that describes an object, or None.
        """
        if name.startswith("twisted."):
            found = _imported(name)
            if found is None:
                return None
            _, owner, rest = found
            return f"{_TWISTED}/{owner}.html" + (f"#{rest}" if rest else "")
        known = getattr(builtins, name, self)
        if known is self:
            return super().getLink(name)
        if name in _CONSTANTS:
            return f"{_PYTHON}/constants.html#{name}"
        if isinstance(known, type) and issubclass(known, BaseException):
            return f"{_PYTHON}/exceptions.html#{name}"
        page = "stdtypes" if isinstance(known, type) else "functions"
        return f"{_PYTHON}/{page}.html#{name}"


class ImportingSystem(System):
    """
    A pydoctor system that knows Twisted's interfaces and warns as Sphinx does.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.intersphinx = _Imports(logger=self.msg)

    def msg(
        self, section: str, msg: str, thresh: int = 0, *arguments: Any, **keywords: Any
    ) -> None:
        """
        Hand warnings to Sphinx, because its pydoctor extension silences them and C{-W}
        would not see them.
        """
        if thresh < 0:
            log.warning("%s", msg, type="pydoctor", subtype=section)
        super().msg(section, msg, thresh, *arguments, **keywords)

    def postProcess(self) -> None:
        """
        Mark classes that inherit from an interface of Twisted as interfaces, because
        pydoctor does not read Twisted.
        """
        for each in self.objectsOfType(ZopeInterfaceClass):
            if not each.isinterface and any(map(_isInterface, each.bases)):
                each.isinterface = True
                each.kind = DocumentableKind.INTERFACE
                each.implementedby_directly = []
        super().postProcess()


def _isInterface(name: str) -> bool:
    found = _imported(name) if name.startswith("twisted.") else None
    return found is not None and isinstance(found[0], InterfaceClass)
