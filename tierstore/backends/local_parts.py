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
from collections.abc import Iterator

SUFFIX = ".parts"
_KEPT = 7 * 86_400.0  # seconds that an upload waits for somebody to go on with it


class PartsList:
    """The list of one unfinished file's parts.

    Args:
        scratch: path of the unfinished file.
    """

    def __init__(self, scratch: str) -> None:
        self._path = scratch + SUFFIX

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
        with open(self._path, encoding="utf-8") as file:
            head = file.readline()
        try:
            return bool(json.loads(head) == [key, size])
        except ValueError:
            return False

    def read(self) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, length, CRC32C) of every part, in the order of writing."""
        with open(self._path, encoding="utf-8") as file:
            next(file, None)
            for line in file:
                words = line.split()
                if line.endswith("\n") and len(words) == 3 and all(map(str.isdigit, words)):
                    yield int(words[0]), int(words[1]), int(words[2])

    def remove(self) -> None:
        """Remove the list. Idempotent."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return

    def _append(self, line: str) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


def is_kept(scratch: str, now: float) -> bool:
    """Whether an unfinished file has parts and may still be resumed."""
    try:
        fresh = os.stat(scratch + SUFFIX).st_mtime > now - _KEPT
        return fresh and any(PartsList(scratch).read())
    except FileNotFoundError:
        return False
