"""
The two names that twistd's plugin loads: the options of C{twistd pop3svc}, and the function that
makes a service from them.
"""

from __future__ import annotations

from typing import Any

from pop3svc.service.assembly import Assembly
from pop3svc.service.options import Options, refuse
from pop3svc.service.settings import SettingError
from pop3svc.service.workers import Shared
from pop3svc.timing import useMonotonicClock

__all__ = ["Options", "makeService"]


def makeService(options: Options, shared: Shared | None = None, parent: Any = None) -> Any:
    """
    Make a service from options, and open its ports.

    @param shared: in a worker, the values that its parent process gave it.
    @param parent: in a worker, the object that sends events to the other workers through the parent
        process.
    @return: the L{pop3svc.service.running.POP3Service}, or in the parent of workers the
        L{pop3svc.service.workers.Supervisor} that starts them.
    @raise SystemExit: with one sentence, if the service cannot be made.
    """
    from twisted.internet import reactor

    useMonotonicClock(reactor)
    try:
        assembly = Assembly(reactor, options, shared, parent)
        hasChroot = options.parent is not None and options.parent.get("chroot") is not None
        if assembly.isSupervisor and hasChroot:
            raise SettingError(
                "--workers cannot be used with --chroot: the chroot has no Python interpreter"
            )
        return assembly.make()
    except SettingError as error:
        refuse(str(error))
