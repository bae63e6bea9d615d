"""
Turn user names into paths, and file names into unique-ids.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from pop3svc.files import closeQuietly, openDirectory
from pop3svc.fileuser import fileUID
from pop3svc.listings import isDerived

__all__ = ["PathTemplate", "Root", "isSafeName", "openBelow", "openOrMake", "uniqueIDFor"]

_PLACEHOLDER = re.compile(r"\{([a-z]*)\}")
_HOME = re.compile(r"\{home\}((?:/.*)?)\Z", re.DOTALL)
_LEGAL = re.compile(r"(?!_\Z)[!-~]{1,70}")
_LONGEST = 200
# Characters that a name must not begin with, and characters that it must not contain.
_UNSAFE = re.compile(r"\A[.~-]|[/\\:\s]")
# The most symbolic links that are followed when one path is opened.
_LINKS = 10


def isSafeName(name: str) -> bool:
    """
    @return: whether a name may be the name of a directory in a path.  The name must be printable,
        and must not be empty or too long.  It must not begin with C{.}, C{-} or C{~}.  It must not
        contain a space, C{/}, C{:} or a backslash.
    """
    if not name.isprintable() or _UNSAFE.search(name):
        return False
    return 0 < len(name.encode("utf-8")) <= _LONGEST


def uniqueIDFor(name: str, more: str = "") -> str:
    """
    Make a unique-id from a name, such as the name of a message's file.  If the name is a legal
    unique-id (RFC 1939 section 7) other than C{_}, and does not look like a hash from this
    function, the result is the name itself.  Otherwise it is a hash of the name.  Different names
    give different unique-ids, and the same name always gives the same unique-id.

    @param more: a text that distinguishes the message from other messages that have or had the same
        name.  If it is not empty, the result is a hash of the name and this text.
    """
    if not more and not isDerived(name) and _LEGAL.fullmatch(name):
        return name
    return "H-" + sha256(os.fsencode(f"{name}\0{more}")).hexdigest()


class PathTemplate:
    """
    The rule that makes the path of a user's mail.  It is a path with some of the placeholders
    C{{user}}, C{{local}} and C{{domain}}.  If the path has no placeholder, C{/{user}} is added.
    Instead of these placeholders, the path may begin with C{{home}}, which stands for the home
    directory of the user.

    @ivar base: the directory above the first placeholder; empty if the path begins with
        C{{home}}.
    @ivar needsHome: whether the path begins with C{{home}}.
    """

    def __init__(self, template: str, mayHaveHome: bool = False) -> None:
        """
        @param mayHaveHome: whether the caller knows the home directories of users.
        @raise ValueError: C{template} cannot be used.  The text is a sentence for the operator.
        """
        if not template:
            raise ValueError("a path is needed")
        found = _HOME.match(template) if mayHaveHome else None
        self.needsHome = found is not None
        if found is not None:
            self._afterHome(template, found[1])
            return
        names = set(_PLACEHOLDER.findall(template))
        unknown = sorted(names - {"user", "local", "domain"})
        if mayHaveHome and unknown == ["home"]:
            raise ValueError(f"{template}: {{home}} must be the beginning of the path")
        if unknown or "{" in _PLACEHOLDER.sub("", template):
            raise ValueError(
                f"{template}: allowed placeholders are {{user}}, {{local}} and {{domain}}"
            )
        if not names:
            template = os.path.join(template, "{user}")
        template = os.path.expanduser(template)
        if ".." in template.split("/"):
            raise ValueError(f'{template}: ".." is not allowed')
        fixed, _, rest = os.path.abspath(template).partition("{")
        self.base, _, begun = fixed.rpartition("/")
        self.base = self.base or "/"
        self._parts = (begun + "{" + rest).split("/")
        if not os.path.isdir(self.base):
            raise ValueError(f"{self.base} is not a directory")
        self._needsDomain = bool(names & {"local", "domain"})
        self._tellsUsers = bool({"user"} <= names or {"local", "domain"} <= names or not names)

    def _afterHome(self, template: str, rest: str) -> None:
        if "{" in rest:
            raise ValueError(f"{template}: no other placeholder is allowed beside {{home}}")
        self._parts = [each for each in rest.split("/") if each not in ("", ".")]
        if ".." in self._parts:
            raise ValueError(f'{template}: ".." is not allowed')
        self.base = ""
        self._needsDomain = self._tellsUsers = False

    @property
    def hasParts(self) -> bool:
        """
        Whether the path has further parts after C{{home}}.
        """
        return bool(self._parts)

    def hasAny(self) -> bool:
        """
        @return: whether the directory C{base} contains at least one directory.  Blocks.
        """
        if self.needsHome:
            # Assume that there is one, because the home directories of the users are not known
            # here.
            return True
        try:
            with os.scandir(self.base) as entries:
                return any(entry.is_dir() for entry in entries)
        except OSError:
            return False

    def requireUsers(self) -> None:
        """
        Check that the name of a user can be found from the path of the user's mailbox.
        L{mailboxes} needs such a path.

        @raise ValueError: the path is not enough to find the name.  The text is a sentence for the
            operator.
        """
        if self.needsHome:
            raise ValueError(
                "expire cannot be combined with {home}, because there is no list of all home "
                "directories"
            )
        areSingle = all(len(_PLACEHOLDER.findall(part)) < 2 for part in self._parts)
        if not (self._tellsUsers and areSingle):
            raise ValueError(
                f"expire requires {{user}}, or {{local}} and {{domain}}, in the path, each as a "
                f"separate directory; {self.base}/{'/'.join(self._parts)} does not show the users"
            )

    def mailboxes(self, failed: Callable[[Root, OSError], object]) -> Iterator[tuple[str, Root]]:
        """
        Read the directories below C{base}, and yield pairs of a user and the directory of the
        user's mail.  Skip directories that cannot belong to a user.  Blocks.

        @param failed: called with a directory below C{base} that cannot be listed, and with the
            error.
        @raise OSError: the directory C{base} cannot be listed.
        """
        return self._mailboxesBelow(Root(self.base), {}, failed)

    def _mailboxesBelow(
        self, above: Root, values: Mapping[str, str], failed: Callable[[Root, OSError], object]
    ) -> Iterator[tuple[str, Root]]:
        """
        @param values: the values of the placeholders in the path of C{above}.
        """
        if len(above.parts) == len(self._parts):
            user = values.get("user")
            username = f"{values['local']}@{values['domain']}" if user is None else user
            # Skip the directory if a session of this user would use another directory.
            if self.placeFor(username) == above:
                yield username, above
            return
        part = self._parts[len(above.parts)]
        placeholder = _PLACEHOLDER.search(part)
        if placeholder is None:
            yield from self._mailboxesBelow(above.below(part), values, failed)
            return
        start, end, key = part[: placeholder.start()], part[placeholder.end() :], placeholder[1]
        try:
            for name in above.names():
                value = name[len(start) : len(name) - len(end)]
                isMatch = name == f"{start}{value}{end}" and isSafeName(value)
                if isMatch and values.get(key, value) == value:
                    more = {**values, key: value}
                    yield from self._mailboxesBelow(above.below(name), more, failed)
        except OSError as error:
            if not above.parts:
                raise
            failed(above, error)

    def placeFor(self, username: str, home: str = "") -> Root | None:
        """
        @param home: the home directory of the user.  Links in its path are followed, because the
            operator sets this path, and the user does not.
        @return: the path of a user's mail; L{None} if the name is not allowed, or if a home
            directory is needed and C{home} is empty.
        """
        if not isSafeName(username):
            return None
        if self.needsHome:
            return Root(home, tuple(self._parts)) if home else None
        values = {"user": username}
        if self._needsDomain:
            local, at, domain = username.rpartition("@")
            if not at or not isSafeName(local) or not isSafeName(domain):
                return None
            values |= {"local": local, "domain": domain}
        return Root(
            self.base,
            tuple(_PLACEHOLDER.sub(lambda found: values[found[1]], part) for part in self._parts),
        )


@dataclass(frozen=True, slots=True)
class Root:
    """
    A directory.  The operator sets the first part of its path.  The other parts are names of
    directories that users may have created.

    @ivar base: the path that the operator has configured, or the home directory of a user.  All
        links in this path are followed.
    @ivar parts: the names of the directories below C{base}, from the outermost to the innermost.
    """

    base: str
    parts: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """
        The path of the directory.
        """
        return "/".join([self.base.rstrip("/"), *self.parts]) or "/"

    def below(self, name: str) -> Root:
        """
        @return: the directory with this name inside this directory.
        """
        return Root(self.base, (*self.parts, name))

    def names(self) -> Iterator[str]:
        """
        Read the directory, and yield the names of the directories and links in it.  Blocks.

        @raise OSError: the directory cannot be listed.
        """
        directory = self.open()
        if directory is None:
            return
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                        yield entry.name
        finally:
            closeQuietly(directory)

    def open(self) -> int | None:
        """
        Open the directory.  Below C{base}, a link is followed only if nobody could have created the
        link except root and the user whose file rights this thread has.  A link may point to a path
        with further links.  The further links are followed under the same condition.

        @return: a descriptor; L{None} if C{base} exists, and the directory does not.
        @raise OSError: the directory cannot be opened.
        """
        if len(self.parts) == 1:
            # Try to open the whole path with one call, because usually it exists and has no links.
            try:
                return openDirectory(f"{self.base}/{self.parts[0]}")
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
                    raise
        base = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _walk(base, self.parts)
        except FileNotFoundError:
            return None

    def make(self) -> int:
        """
        Open the directory.  If it does not exist, create it and all missing directories between it
        and C{base} with mode 0700.  If this thread has the file rights of root, a new directory
        gets the owner and the group of the directory that contains it.  Blocks.

        @return: a descriptor.
        @raise OSError: the directory cannot be opened or created.
        """
        directory = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in self.parts:
            try:
                below = openOrMake(part, directory)
            finally:
                closeQuietly(directory)
            directory = below
        return directory


def openOrMake(name: str, directory: int) -> int:
    """
    Open a directory inside another directory under the conditions of L{openBelow}.  If it does not
    exist, create it as L{Root.make} does.  Blocks.

    @return: a descriptor.
    @raise OSError: the directory cannot be opened or created.
    """
    try:
        return openBelow(name, directory)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        # Either another delivery has just made the directory, or the name is a link to a directory
        # that does not exist.
        return openBelow(name, directory)
    below = openDirectory(name, directory)
    try:
        if fileUID() == 0:
            around = os.fstat(directory)
            os.fchown(below, around.st_uid, around.st_gid)
        os.fsync(directory)
    except OSError:
        closeQuietly(below)
        raise
    return below


def openBelow(name: str, directory: int) -> int:
    """
    Open a directory inside a directory in which users may create directories.  A link is followed
    under the conditions of L{Root.open}.

    @return: a descriptor.
    @raise OSError: the directory does not exist or cannot be opened.  If a link is not followed,
        the text of the error contains the name of the link and the reason.
    """
    try:
        return openDirectory(name, directory)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    return _walk(openDirectory(".", directory), [name])


def _walk(directory: int, parts: Sequence[str]) -> int:
    """
    Open the directories of a path one after the other, from the outermost to the innermost.

    @param directory: a descriptor of the directory that contains the first part.  This function
        closes the descriptor.
    """
    names = list(reversed(parts))
    links = 0
    while names:
        name = names.pop()
        try:
            try:
                below = openDirectory(name, directory)
            except OSError as error:
                links += 1
                if error.errno not in (errno.ELOOP, errno.ENOTDIR) or links > _LINKS:
                    raise
                if not stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
                    raise
                _refuseUntrustedLink(name, directory)
                target = os.readlink(name, dir_fd=directory)
                names += [each for each in reversed(target.split("/")) if each]
                below = openDirectory("/" if target.startswith("/") else ".", directory)
        finally:
            closeQuietly(directory)
        directory = below
    return directory


def _refuseUntrustedLink(name: str, directory: int) -> None:
    """
    @raise OSError: the link could have been created by a user other than root and the user whose
        file rights this thread has.
    """
    link = os.lstat(name, dir_fd=directory)
    around = os.fstat(directory)
    trusted = (0, fileUID())
    if link.st_uid not in trusted:
        why = f"it belongs to user {link.st_uid}"
    elif around.st_uid not in trusted:
        why = f"its directory belongs to user {around.st_uid}"
    elif around.st_mode & 0o022:
        why = "others may write to its directory"
    else:
        return
    raise OSError(errno.ELOOP, f"the link {name} is not followed, because {why}")
