"""Walking a folder and telling of all that is in it; see `tierstore.scan`."""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Iterator
from typing import NamedTuple

from tierstore.backends.local.listing import HIDDEN, names_in, told
from tierstore.keys import LONGEST
from tierstore.scan import Found, Kind, LeftOut, Ways
from tierstore.text import is_unicode

_KINDS = {
    st.S_IFIFO: "a FIFO",
    st.S_IFSOCK: "a socket",
    st.S_IFBLK: "a device",
    st.S_IFCHR: "a device",
    st.S_IFDIR: "a folder",
}
_NO_TEXT = "its name is not UTF-8"
_TOO_LONG = f"its path is longer than {LONGEST:,} bytes"
_CIRCLE = "it leads back to itself, or to a folder above it"
_INTO_OTHER = "it leads into the other end"


class _Folder(NamedTuple):
    """A folder that is being walked.

    Attributes:
        key: ends in "/", or is empty.
        names: what is left of its names.
        id: device and inode.
        linked: a link led to it, or to a folder above it.
    """

    key: str
    names: Iterator[bytes]
    id: tuple[int, int]
    linked: bool


class LocalScan:
    """One walk.

    Args:
        root: the path of the folder.
        ways: how to walk.
        after: the key behind which to begin, or empty.
    """

    def __init__(self, root: str, ways: Ways, after: str) -> None:
        self._root, self._ways, self._after = root, ways, _raw(after)
        self._walked: list[_Folder] = []
        self._other: tuple[int, int] | None = None

    def found(self) -> Iterator[Found]:
        """Yield all that is there.

        Raises:
            OSError: the root cannot be listed.
        """
        self._walked = [self._opened("", linked=False)]
        while self._walked:
            raw = next(self._walked[-1].names, None)
            if raw is None:
                self._walked.pop()
                continue
            key = self._walked[-1].key + raw.decode(errors="surrogateescape")
            if f"/{key}".endswith(f"/{HIDDEN}"):
                continue
            found = self._folder(key) if key.endswith("/") else self._file(key)
            if found:
                yield found

    def _file(self, key: str) -> Found | None:
        if self._after and _raw(key) <= self._after:
            return None
        path = os.path.join(self._root, key)
        try:
            status = os.lstat(path)
            linked = st.S_ISLNK(status.st_mode)
            if linked and not self._ways.follow:
                return LeftOut(key, "it is a link", Kind.LINK)
            if linked:
                status = os.stat(path)
        except FileNotFoundError:
            return LeftOut(key, "it is a link to nothing") if os.path.lexists(path) else None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return LeftOut(key, _CIRCLE)
            return LeftOut(key, f"it cannot be read: {error.strerror}", Kind.UNREADABLE)
        if not st.S_ISREG(status.st_mode):
            what = _KINDS.get(st.S_IFMT(status.st_mode), "no file")
            return LeftOut(key, f"it is {'a link to ' if linked else ''}{what}")
        return told(key, status) if is_unicode(key) else LeftOut(key, _NO_TEXT)

    def _folder(self, key: str) -> LeftOut | None:
        """Begin to walk a folder, or tell why that is not done."""
        linked = key.endswith("//")
        key = key.removesuffix("/") if linked else key
        if self._is_passed(key):
            return None
        if linked and not self._ways.follow:
            return LeftOut(key, "it is a link", Kind.LINK)
        if not self._ways.wants(key):
            return LeftOut(key, "", Kind.UNWANTED)
        if len(os.fsencode(key)) > LONGEST:
            return LeftOut(key, _TOO_LONG)
        try:
            folder = self._opened(key, linked=linked or self._walked[-1].linked)
        except OSError as error:
            return LeftOut(key, f"it cannot be listed: {error.strerror}", Kind.UNREADABLE)
        if any(folder.id == above.id for above in self._walked):
            return LeftOut(key, _CIRCLE)
        if self._is_other(folder, linked=linked):
            return LeftOut(key, _INTO_OTHER, Kind.INTO_OTHER if folder.linked else Kind.OTHER)
        self._walked.append(folder)
        return None

    def _is_passed(self, key: str) -> bool:
        """Whether a folder is before `after`, with all that is in it."""
        raw = _raw(key)
        return raw <= self._after and (raw == self._after or not self._after.startswith(raw))

    def _opened(self, key: str, *, linked: bool) -> _Folder:
        path = os.path.join(self._root, key)
        names = names_in(path, links=True)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return _Folder(key, iter(()), (0, 0), linked)
        return _Folder(key, names, (status.st_dev, status.st_ino), linked)

    def _is_other(self, folder: _Folder, *, linked: bool) -> bool:
        other = self._ways.other
        if not other:
            return False
        if self._other is None:  # it may be made while this is walked
            try:
                status = os.stat(other)
            except OSError:
                return False
            self._other = status.st_dev, status.st_ino
        if folder.id == self._other:
            return True
        path = os.path.realpath(os.path.join(self._root, folder.key))
        return linked and f"{path}/".startswith(f"{os.path.realpath(other)}/")


def _raw(key: str) -> bytes:
    return key.encode(errors="surrogateescape")
