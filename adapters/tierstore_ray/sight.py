"""Whether a node sees the two ends that the machine sees on which the migration was started.

One object of the source is looked at on each node, and the destination is listed: this finds a
folder that is not mounted, and missing credentials too. In a folder that is the destination each
node looks for a file that nobody else can have made.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from tierstore.backend import Backend
from tierstore.backends.local.backend import LocalOptions
from tierstore.backends.local.folders import Folders
from tierstore.backends.local.scratch import Scratch
from tierstore.errors import ConfigError, NotFoundError, TierstoreError
from tierstore.registry import parse_url
from tierstore.transfer.engine.ends import Ends
from tierstore.transfer.engine.records import (
    Version,
)

_MOUNT = "mount it there under the same path, or do without that node"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node has to see.

    Attributes:
        key: of an object of the source; empty if there is none.
        version: of that object.
        probe: the path of a file in the destination's folder; empty if that is no folder.
    """

    key: str
    version: Version | None
    probe: str

    def trouble(self, ends: Ends) -> str:
        """Return what a node does not see with its own ends; empty if nothing is missing."""
        if self.probe and not os.path.exists(self.probe):  # noqa: PTH110
            return f"{ends.target.url} is another folder there: {_MOUNT}"
        try:
            if not self.probe:
                next(iter(ends.target.list("")), None)
            if self.version is None:
                return ""
            found = Version.of(ends.source.stat(self.key))
        except NotFoundError:
            return f"{ends.source.url} has no {self.key!r} there: {_MOUNT}"
        except TierstoreError as error:
            return str(error)
        if ends.source.capabilities.seen_by == "host" and not found.same(self.version):
            return f"{ends.source.url} is another folder there: {_MOUNT}"
        return ""


class Probe:
    """The file at the destination, held while the migration lasts.

    It lies among the unfinished files, locked: after a kill the next writer there removes it.

    Args:
        target: the destination.
        mode: of its files, as in `LocalOptions`: it may be the first of them, and make the folder.
    """

    def __init__(self, target: Backend, mode: str | None = None) -> None:
        self.path, self._fd = "", -1
        folder = parse_url(target.url).folder
        if folder is not None:
            bits = LocalOptions(mode=mode).bits
            self._scratch = Scratch(Folders(str(folder), sync=False, mode=bits))
            try:
                self._fd, self.path = self._scratch.open()
            except OSError as error:
                raise ConfigError(f"cannot write to {target.url}: {error.strerror}") from error

    def close(self) -> None:
        """Remove it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            with suppress(FileNotFoundError):
                os.unlink(self.path)  # noqa: PTH108
            self._scratch.tidy()
            self._fd = -1


def sight_of(ends: Ends, probe: Probe) -> Sight:
    """Return what a node has to see.

    Raises:
        ConfigError: an end exists in this process only.
        TierstoreError: the source cannot be listed.
    """
    for end in (ends.source, ends.target):
        if end.capabilities.seen_by == "process":
            raise ConfigError(f"{end.url} is in this process only", hint="leave out --on")
    if ends.only:
        info = ends.source.stat(ends.only[0])
    else:
        found = next((each for each in ends.source.list("") if each.key[-1] != "/"), None)
        if found is None:
            return Sight("", None, probe.path)
        info = found
    return Sight(info.key, Version.of(info), probe.path)
