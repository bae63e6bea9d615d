"""
The fixture C{pop3_server}, for pytest in an environment with pop3svc.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pop3svc.testing.server import POP3Server

__all__ = ["pop3_server", "pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """
    Declare the marker.
    """
    config.addinivalue_line(
        "markers",
        "pop3_server(users, without, faults, policy): "
        "arguments that the fixture pop3_server passes to pop3svc.testing.POP3Server",
    )


@pytest.fixture
def pop3_server(request: pytest.FixtureRequest) -> Iterator[POP3Server]:
    """
    A running pop3svc.testing.POP3Server.  Each test gets a new server, with the arguments of the
    marker pop3_server.
    """
    # Import POP3Server here, so that tests without the fixture do not need time for the import.
    from pop3svc.testing.server import POP3Server

    marker = request.node.get_closest_marker("pop3_server")
    arguments, named = ((), {}) if marker is None else (marker.args, marker.kwargs)
    with POP3Server(*arguments, **named) as server:
        yield server
