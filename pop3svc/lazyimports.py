"""
Import the public names of a package when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["onDemand"]


def onDemand(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Make a C{__getattr__} that imports names lazily.  pop3svc contains a plugin for pytest.
    Wherever pop3svc is installed, every run of pytest imports the plugin and the packages that
    contain it.  These packages must not import Twisted.

    @param package: the name of the package.
    @param places: the module of each name.
    @return: the package's C{__getattr__} (PEP 562).
    """

    def found(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(places[name]), name)

    return found
