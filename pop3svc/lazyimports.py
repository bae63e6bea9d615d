"""
Names that a package hands on, imported when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["onDemand"]


def onDemand(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Every pytest of an environment imports our plugin, and with it the packages
    around it: that must not cost them Twisted.

    @param package: the name of the package.
    @param places: by name, the module that it comes from.
    @return: the package's C{__getattr__} (PEP 562).
    """

    def found(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(places[name]), name)

    return found
