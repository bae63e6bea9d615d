"""
The contract of mailboxes, as tests that an author can inherit.
"""

from __future__ import annotations

from pop3svc.testing.contract.deletion import DeletionContract
from pop3svc.testing.contract.listing import ListingContract
from pop3svc.testing.contract.locking import LockContract
from pop3svc.testing.contract.messages import MessageContract
from pop3svc.testing.contract.results import ResultContract
from pop3svc.testing.contract.sizes import SizeContract
from pop3svc.testing.contract.sleeping import SleepContract
from pop3svc.testing.contract.surrogates import SurrogateContract

__all__ = ["MailboxContract"]


class MailboxContract(
    ListingContract,
    MessageContract,
    SizeContract,
    ResultContract,
    DeletionContract,
    LockContract,
    SleepContract,
    SurrogateContract,
):
    """
    The contract of L{IPOP3Mailbox} and its optional interfaces, as tests.

    Inherit from this class and C{unittest.TestCase}, and implement C{makeMailbox} and C{again},
    which make the mailboxes.  The other hooks, C{deliver}, C{remove}, C{failDeletion} and C{goOn},
    are optional.  If C{deliver}, C{remove} or C{failDeletion} is missing, the tests that need this
    hook are skipped.

    The tests run without a reactor.  If a store uses threads, give it a L{pop3svc.testing.Inline}
    instead of the threads.  If the mailbox returns results later, implement C{goOn}, which has to
    make these results available.  The methods of the mailbox, and the hooks except C{goOn}, may be
    coroutines.  They may await Deferreds, and tasks and futures of asyncio.
    """
