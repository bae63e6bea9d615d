"""
Find out which kind of mail each path of an import contains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pop3svc.migration import uniqueIDsOf
from pop3svc.transfer.failures import NotPossible, reasonOf
from pop3svc.transfer.folders import EmlSource, MHSource, isMessageOfMH
from pop3svc.transfer.maildirs import MaildirSource, foldersOf, isMaildir
from pop3svc.transfer.mboxes import MboxSource
from pop3svc.transfer.source import Source

__all__ = ["KINDS", "Choice", "makeSources"]

KINDS = ("maildir", "mbox", "mh", "eml")


@dataclass(frozen=True)
class Choice:
    """
    The options of the operator for the paths of an import.

    @ivar kind: the kind of all paths, one of L{KINDS}; L{None} to find out the kind of each path.
    @ivar variant: the variant of an mbox.
    @ivar uidl: the value of C{--uidl}, which tells where to find the unique-ids of another server;
        L{None} to keep none of them.
    @ivar folders: whether to import also the folders of a Maildir++ other than INBOX.
    """

    kind: str | None = None
    variant: str = "mboxo"
    uidl: str | None = None
    folders: bool = False


def makeSources(paths: Sequence[str], choice: Choice) -> tuple[list[Source], int]:
    """
    Make the sources for the paths of an import.  This function blocks.

    @return: the sources, and the number of folders that were left out.
    @raise NotPossible: a path cannot be imported.
    """
    sources: list[Source] = []
    leftOut = 0
    for path in paths:
        try:
            kind = choice.kind or _kindOf(path)
            if kind == "maildir" and not isMaildir(path):
                raise NotPossible(f"{path} is not a Maildir: new or cur is missing")
            if kind in ("mh", "eml") and not os.path.isdir(path):
                raise NotPossible(f"{path} is not a directory")
            if kind == "mbox":
                sources.append(_mbox(path, choice))
                continue
            kept = _keptIn(path, choice.uidl)
            if kind != "maildir":
                sources.append(MHSource(path, kept) if kind == "mh" else EmlSource(path, kept))
                continue
            sources.append(MaildirSource(path, kept))
            others = foldersOf(path)
        except OSError as error:
            raise NotPossible(f"{error.filename or path} cannot be read: {reasonOf(error)}")
        if choice.folders:
            # Keep no unique-ids of other folders, because POP3 clients have seen only the
            # unique-ids of INBOX.
            sources += [MaildirSource(each, {}) for each in others]
        else:
            leftOut += len(others)
    return sources, leftOut


def _mbox(path: str, choice: Choice) -> MboxSource:
    if choice.uidl not in (None, "x-uidl"):
        raise NotPossible(f"{path}: an mbox keeps unique-ids only with --uidl x-uidl")
    return MboxSource(path, choice.variant, choice.uidl == "x-uidl")


def _kindOf(path: str) -> str:
    """
    @raise NotPossible: the path does not have mail of exactly one known kind.
    @raise OSError: the path cannot be read.
    """
    if not os.path.isdir(path):
        # This call raises an error if the path does not exist.
        os.stat(path)
        return "mbox"
    if isMaildir(path):
        return "maildir"
    names = os.listdir(path)
    isMH = ".mh_sequences" in names or any(map(isMessageOfMH, names))
    isEml = any(each.lower().endswith(".eml") for each in names)
    if isMH is isEml:
        raise NotPossible(
            f"{path} is not clearly a Maildir, an MH folder or a folder of .eml files; "
            "--kind says which"
        )
    return "mh" if isMH else "eml"


def _keptIn(path: str, uidl: str | None) -> Mapping[str, tuple[str, int]]:
    if uidl is None:
        return {}
    try:
        return uniqueIDsOf(path, "xuidl" if uidl == "x-uidl" else uidl)
    except ValueError as error:
        raise NotPossible(f"--uidl: {error}")
