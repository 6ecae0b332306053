"""What makes an unfinished file of a local tier outlive its process: a list of its parts beside it.

::

    ["<key>", <bytes of the object>]
    <offset> <length> <CRC32C>

A line is added when its part is written. Nothing is synced: whoever resumes reads every part again
and takes only those that have their CRC32C, so a crash of the host costs parts and nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from tierstore.regular import open_regular

SUFFIX = ".parts"
_LONGEST = 64 * 1024  # bytes of a line
_PART = re.compile(rb"([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,10})\n")
_KEPT = 7 * 86_400.0  # seconds that an upload waits for somebody to go on with it


class PartsList:
    """The list of one unfinished file's parts.

    Args:
        scratch: path of the unfinished file.
        mode: of the list, less the umask.
    """

    def __init__(self, scratch: str, mode: int = 0o666) -> None:
        self._path, self._mode = scratch + SUFFIX, mode

    def begin(self, key: str, size: int) -> None:
        """Make the list of an upload of `size` bytes; from now on it outlives its process."""
        self._append(json.dumps([key, size]))

    def add(self, offset: int, length: int, crc32c: int) -> None:
        """Note that a part is written."""
        self._append(f"{offset} {length} {crc32c}")

    def is_of(self, key: str, size: int) -> bool:
        """Whether the list is of an upload of this key and size.

        Raises:
            FileNotFoundError: there is none.
        """
        with open(open_regular(self._path), "rb") as file:
            head = file.readline(_LONGEST)
        try:
            return bool(json.loads(head) == [key, size])
        except (ValueError, RecursionError):
            return False

    def read(self) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, length, CRC32C) of every part, in the order of writing."""
        with open(open_regular(self._path), "rb") as file:
            file.readline(_LONGEST)
            while line := file.readline(_LONGEST):
                if part := _PART.fullmatch(line):
                    yield int(part[1]), int(part[2]), int(part[3])

    def remove(self) -> None:
        """Remove the list. Idempotent."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return

    def _append(self, line: str) -> None:
        fd = open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, self._mode)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


def is_kept(scratch: str, now: float) -> bool:
    """Whether an unfinished file has parts and may still be resumed."""
    try:
        fresh = os.stat(scratch + SUFFIX).st_mtime > now - _KEPT
        return fresh and any(PartsList(scratch).read())
    except OSError:  # there is none, or what there is is no list
        return False
