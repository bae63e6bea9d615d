"""
The recipients of mail, and their stores.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.errors import DeliveryError, NoSuchUser, OverQuota, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import IAccountNames, IDelivery
from pop3svc.providers.memory import MemoryStore
from tests.support.coroutines import start


@implementer(IAccountNames)
class Names:
    def __init__(self, *names: str) -> None:
        self._names = names

    async def hasAccount(self, username: str) -> bool:
        if username == "broken":
            raise POP3ResponseError("Not now.")
        return username in self._names


@implementer(IDelivery)
class Store:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.copies: list[Any] = []

    def hasMailbox(self, username: str) -> bool:
        return username == "boxed"

    def deliver(self, copies: Any, content: Any) -> Any:
        self.copies += copies
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def found(recipients: Recipients, name: str) -> Any:
    _, [result] = start(recipients.find(name))
    return result.value if isinstance(result, Failure) else result


def test_find() -> None:
    one, two = Store([]), Store([])
    recipients = Recipients(
        {
            None: Destination(one, [Names("alice", "alice+both")]),
            "x.test": Destination(two, [Names("bob@x.test"), object()]),
            "r.test": Destination(object(), []),
        },
        localDomains=["home.test"],
    )
    assert found(recipients, "alice") == ("alice", one)
    assert found(recipients, "alice+any@HOME.test") == ("alice", one)
    assert found(recipients, "alice+both") == ("alice+both", one)
    assert found(recipients, "bob+a@X.test") == ("bob@x.test", two)
    # The second source of x.test does not know the names of its users, so the store is asked.  The
    # store has no mailbox of this name.
    assert isinstance(found(recipients, "boxed@x.test"), NoSuchUser)
    assert isinstance(found(recipients, "boxed"), NoSuchUser)
    assert isinstance(found(recipients, "any@r.test"), StoreUnavailable)
    assert isinstance(found(recipients, "broken"), StoreUnavailable)
    assert isinstance(found(Recipients({"x.test": Destination(two, [])}), "y"), NoSuchUser)
    assert found(Recipients({None: Destination(one, [])}), "boxed") == ("boxed", one)


def test_spellings() -> None:
    """
    Each spelling of a name finds the same user, and a name that RFC 8265 does not allow finds no
    user.
    """
    store = Store([])
    preserved, mapped = (
        Recipients(
            {None: Destination(store, [Names("\xe4nne", "Bob", "eve")])}, "+", ["x.test"], isMapped
        )
        for isMapped in (False, True)
    )
    for each in ("\xe4nne", "a\u0308nne", "A\u0308nne+any", "\xc4NNE@x.test"):
        assert found(preserved, each) == found(mapped, each) == ("\xe4nne", store)
    # With case mapping, no name of a user has capital letters.
    assert found(preserved, "Bob") == ("Bob", store)
    assert isinstance(found(mapped, "Bob"), NoSuchUser)
    assert found(preserved, "EVE") == found(mapped, "EVE") == ("eve", store)
    for bad in ("e ve", "\u2168", "e\xadve", "\U0001f600@x.test", "\u05d0a"):
        assert isinstance(found(preserved, bad), NoSuchUser)
        assert isinstance(found(mapped, bad), NoSuchUser)


def delivered(recipients: Recipients, *names: str) -> list[DeliveryError | None]:
    copies = [(found(recipients, each), b"") for each in names]
    _, [results] = start(recipients.deliver(copies, io.BytesIO(b"x")))
    return list(results)


def test_deliver() -> None:
    """
    Each store is called once, and the results are in the order of the copies.
    """
    full = OverQuota("full")
    one, two = Store([None, full]), Store([None])
    recipients = Recipients(
        {
            None: Destination(one, [Names("a", "b")]),
            "x.test": Destination(two, [Names("c@x.test")]),
        }
    )
    assert delivered(recipients, "a", "c@x.test", "b") == [None, None, full]
    assert [each.username for each in one.copies] == ["a", "b"]


@pytest.mark.parametrize("answer", [POP3ResponseError("no"), []])
def test_broken(answer: Any) -> None:
    """
    A store that fails does not keep the other stores from accepting the message.
    """
    recipients = Recipients(
        {
            None: Destination(Store(answer), [Names("a")]),
            "x.test": Destination(MemoryStore(), [Names("c@x.test")]),
        }
    )
    first, second = delivered(recipients, "a", "c@x.test")
    assert isinstance(first, StoreUnavailable) and second is None


def test_cancelled() -> None:
    waits: Deferred[Any] = Deferred()
    never = Store([None])
    recipients = Recipients(
        {
            None: Destination(Store(waits), [Names("a")]),
            "x.test": Destination(never, [Names("c@x.test")]),
        }
    )
    copies = [(found(recipients, each), b"") for each in ("a", "c@x.test")]
    work, results = start(recipients.deliver(copies, io.BytesIO(b"x")))
    assert results == []
    work.cancel()
    assert [type(each) for each in results[0]] == [StoreUnavailable] * 2
    assert never.copies == []
