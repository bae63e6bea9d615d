"""
Find the directory and the database for data that survive a process.
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
    The data directory of a service, and the database in it.  Each is made when it is first needed.
    """

    def __init__(
        self, path: str | None, owner: tuple[int, int] | None, inherited: str | None
    ) -> None:
        """
        @param path: the data directory that the settings name.
        @param owner: the user and the group that must own the files; L{None} for those of this
            process.
        @param inherited: in a worker, the path of the database that all workers share.
        """
        self._path = path
        self._owner = owner
        self._inherited = inherited
        self._directory: DataDirectory | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def directory(self) -> DataDirectory:
        """
        @return: the data directory; by default the user's data directory, which is then permanent.
        @raise SettingError: the default would belong to the wrong user.
        """
        if self._directory is None:
            if self._path is None and self._owner is not None:
                raise SettingError("--uid requires --data, a directory that belongs to that user")
            self._directory = DataDirectory(self._path or defaultDataDirectory(), self._owner)
        return self._directory

    @property
    def isPermanent(self) -> bool:
        """
        Whether the service has a data directory, because the settings name one, or a part has
        needed one.
        """
        return self._directory is not None or self._path is not None

    def state(self) -> State | None:
        """
        @return: the database in the data directory.  Without a data directory, workers share a
            database in a temporary directory; without workers the result is L{None}.
        """
        if self.isPermanent:
            data = self.directory()
            data.make()
            return State(data.state, self._owner)
        return None if self._inherited is None else State(self._inherited)

    def stateOfWorkers(self) -> str | None:
        """
        @return: the path of the database that all workers share, if the service has no data
            directory.
        """
        if self.isPermanent:
            return None
        # The directory is removed at the end of this process.
        self._temporary = tempfile.TemporaryDirectory(prefix="pop3svc-", ignore_cleanup_errors=True)
        path = os.path.join(self._temporary.name, "state.db")
        State(path, self._owner)
        if self._owner is not None:
            os.chown(self._temporary.name, *self._owner)
        return path
