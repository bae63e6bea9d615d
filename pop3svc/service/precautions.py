"""
Check who may read and change the files that the settings name.  The service may lose access to some
files when it gives up its privileges.  Let a privileged process open these files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.files import setPrivileged
from pop3svc.interfaces import IPasswordComparing, IVerifierAdding
from pop3svc.service.certificates import Certificates
from pop3svc.service.certificateset import CHAIN, KEY
from pop3svc.service.privileged import (
    Opener,
    changeableBy,
    entriesFor,
    openTo,
    startOpener,
    unreadable,
)
from pop3svc.service.settings import SettingError, Settings

__all__ = ["Precautions"]

_DSN_WITH_PASSWORD = re.compile(r"sql:\w+://(?:[^/@]*:[^/@]*@|[^?]*\?(?:.*&)?password=)")


class Precautions:
    """
    Checks the settings and the files of a service before the service starts.

    @ivar warnings: sentences for the log.
    """

    def __init__(
        self,
        settings: Settings,
        configFile: str | None,
        certificates: Certificates,
        checkers: Sequence[Any],
        owner: tuple[int, int] | None,
    ) -> None:
        """
        @param configFile: the path of the configuration file.
        @param checkers: the sources of accounts.
        @param owner: the user and the group that the service will run as.
        """
        self._settings = settings
        self._configFile = configFile
        self._certificates = certificates
        self._checkers = checkers
        self._owner = owner
        self.warnings: list[str] = []

    def openReplaced(self) -> Opener | None:
        """
        Start a process that opens the files that the service may not read after it has given up its
        privileges.  If that process cannot open a file safely, warn that the service will not read
        the file again.

        @return: the process; L{None} if it is not needed.
        @raise SettingError: the service could not read a file of accounts again.
        """
        owner = self._owner
        if owner is None or os.geteuid() != 0:
            return None
        uid, gid = owner[0], None if owner[1] == -1 else owner[1]
        renewed = self._certificates.files()
        renewed += self._configurationFiles()
        databases = self._accountDatabases()
        kept = []
        directories = self._certificates.directories()
        renewed += [*directories, *self._certificates.statusFiles()]
        for path in unreadable([*databases, *renewed, *self._passwordFiles()], uid, gid):
            if path in databases:
                raise SettingError(
                    f"--auth sql:sqlite:{path}: user {uid} of --uid cannot read it; let that user "
                    "read it"
                )
            others = changeableBy(path)
            if others is None:
                kept.append(path)
            elif path in renewed:
                self.warnings.append(
                    f"{path} cannot be read by user {uid}, and others than root may "
                    f"change {others}, so the service will not read a renewed file; let "
                    "that user read the file, or restart the service after each renewal"
                )
            else:
                raise SettingError(
                    f"--auth passwd:{path}: user {uid} of --uid cannot read it, so that "
                    "removed accounts could still log in; let that user read it"
                )
        for each in directories:
            ofDirectory = [path for path in kept if path == each or path.startswith(f"{each}/")]
            if ofDirectory:
                # Add the whole directory, because certificates that are added later also need the
                # process.
                kept = [path for path in kept if path not in ofDirectory]
                kept += entriesFor(each, (CHAIN, KEY))
        if not kept:
            return None
        # Add the file of application passwords, because it has the owner of the password file.  The
        # file may not exist yet.
        kept += [
            each.appPasswordPath
            for each in self._checkers
            if isinstance(each, PasswordFile) and each.path in kept
        ]
        made = startOpener(kept)
        setPrivileged(made.open)
        return made

    def warn(self) -> None:
        """
        Warn of settings and files that are not safe, and of settings that have no effect.
        """
        owner = self._owner
        if os.geteuid() == 0 and (owner is None or owner[0] == 0):
            self.warnings.append("the service runs as root; twistd's --uid names another user")
        given = [
            text
            for each in self._settings.stores
            if each.authWhere == "--auth"
            for text in each.auth
        ]
        if any(text.startswith("memory:") for text in given):
            self.warnings.append(
                "--auth memory: shows its passwords to everybody who may list processes"
            )
        if any(_DSN_WITH_PASSWORD.match(text) for text in given):
            self.warnings.append(
                "--auth sql: shows the password of its database to everybody who may list "
                "processes; write it into the configuration file"
            )
        self._warnOfUselessSettings()
        self.warnings += [
            f"{each.where} {each.endpoint}: accepts TLS 1.0 and 1.1, which are not safe, from "
            f"{', '.join(map(str, each.oldTlsFrom))} only"
            for each in self._settings.listeners
            if each.oldTlsFrom is not None
        ]
        for name in sorted(self._settings.policy.enable & {"APOP", "CRAM-MD5"}):
            self.warnings.append(
                f"{name} needs passwords that are stored without a hash, and an "
                "eavesdropper can use a login to try passwords"
            )
        clients = [each.clients for each in self._certificates.all()]
        clientCAs = [each.path for each in clients if each is not None]
        for name, path in [
            *(("the private key", each.privateKey) for each in self._certificates.all()),
            *(("the client CA", each) for each in clientCAs),
            *(("the password file", each) for each in self._passwordFiles()),
            *(("the file of application passwords", each) for each in self._appPasswordFiles()),
            *(("the database of accounts", each) for each in self._accountDatabases()),
            *(("the secret", each) for each in self._settings.secretFiles),
            *(("the configuration file", each) for each in self._configurationFiles()[:1]),
        ]:
            who = openTo(path)
            # Do not warn if other users may read the configuration file or a client CA.  Secrets
            # can be in separate files, and the certificates of authorities are public.
            mayRead = [self._configFile, *clientCAs]
            isFine = who is None or (who.startswith("read") and path in mayRead)
            if who is not None and not isFine:
                isReplaceable = who.startswith("replaced")
                remedy = "chmod o-w on its directory" if isReplaceable else "chmod 600 on it"
                self.warnings.append(f"{name} {path} can be {who}; run {remedy}")

    def _warnOfUselessSettings(self) -> None:
        """
        Warn of settings that have no effect, because no source of accounts uses them.
        """
        for option, value, interface, reason in (
            (
                "--remember-checks",
                self._settings.rememberChecks,
                IPasswordComparing,
                "no source of accounts compares passwords with stored ones",
            ),
            (
                "--add-verifiers",
                self._settings.addVerifiers,
                IVerifierAdding,
                "no source of accounts is a password file",
            ),
        ):
            if value and not any(interface.providedBy(each) for each in self._checkers):
                self.warnings.append(f"{option} has no effect, because {reason}")

    def _configurationFiles(self) -> list[str]:
        path = self._configFile
        return [] if path is None else [path, *self._settings.secretFiles]

    def _passwordFiles(self) -> list[str]:
        return [each.path for each in self._checkers if isinstance(each, PasswordFile)]

    def _appPasswordFiles(self) -> list[str]:
        found = [each.appPasswordPath for each in self._checkers if isinstance(each, PasswordFile)]
        return [path for path in found if os.path.exists(path)]

    def _accountDatabases(self) -> list[str]:
        # Find the checkers of databases by their attribute.  SQLAccounts is not imported here,
        # because few services need it.
        found = [getattr(each, "databasePath", None) for each in self._checkers]
        return [path for path in found if path is not None]
