"""
Find the directory and the database for the data that the service keeps when its process ends.
"""

from __future__ import annotations

import os
import tempfile

from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory
from pop3svc.service.settings import SettingError
from pop3svc.state import State

__all__ = ["Storage"]


class Storage:
    """
    The data directory of a service, and the database in it.  The directory and the database are
    made when they are first needed.
    """

    def __init__(
        self, path: str | None, owner: tuple[int, int] | None, inherited: str | None
    ) -> None:
        """
        @param path: the data directory that the settings name; L{None} if they name none.
        @param owner: the user and the group that must own the files; L{None} for the user and the
            group of this process.
        @param inherited: in a worker, the path of the temporary database that all workers share.
        """
        self._path = path
        self._owner = owner
        self._inherited = inherited
        self._directory: DataDirectory | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def directory(self) -> DataDirectory:
        """
        @return: the data directory.  If the settings name none, it is the user's data directory,
            and from then on the service counts as one with a data directory.
        @raise SettingError: the user's data directory would belong to another user than the
            service.
        """
        if self._directory is None:
            if self._path is None and self._owner is not None:
                raise SettingError("--uid requires --data, a directory that belongs to that user")
            self._directory = DataDirectory(self._path or defaultDataDirectory(), self._owner)
        return self._directory

    @property
    def isPermanent(self) -> bool:
        """
        Whether the service has a data directory.  The settings may name the directory, or a part of
        the service may have asked for the default directory.
        """
        return self._directory is not None or self._path is not None

    def state(self) -> State | None:
        """
        @return: the database in the data directory.  In a worker of a service without a data
            directory, it is the temporary database that the workers share.  In any other process
            without a data directory, the result is L{None}.
        """
        if self.isPermanent:
            data = self.directory()
            data.make()
            return State(data.state, self._owner)
        return None if self._inherited is None else State(self._inherited)

    def stateOfWorkers(self) -> str | None:
        """
        @return: the path of a new temporary database that all workers share; L{None} if the service
            has a data directory.
        """
        if self.isPermanent:
            return None
        # The attribute keeps the directory until the end of this process.
        self._temporary = tempfile.TemporaryDirectory(prefix="pop3svc-", ignore_cleanup_errors=True)
        path = os.path.join(self._temporary.name, "state.db")
        State(path, self._owner)
        if self._owner is not None:
            os.chown(self._temporary.name, *self._owner)
        return path
