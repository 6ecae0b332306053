"""Whether a node sees the stores that the machine sees on which the work was started.

One object of each source is looked at on each node, and each destination is listed: this finds a
folder that is not mounted, and missing credentials too. In a folder that is a destination each node
looks for a file that nobody else can have made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from tierstore.backend import Backend
from tierstore.backends.local.backend import LocalOptions
from tierstore.backends.local.folders import Folders
from tierstore.backends.local.scratch import Scratch
from tierstore.errors import ConfigError, NotFoundError, TierstoreError
from tierstore.registry import parse_url
from tierstore.transfer.engine.records import Version
from tierstore.transfer.engine.stores import Stores

_MOUNT = "mount it there under the same path, or do without that node"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node has to see.

    Attributes:
        objects: a key and its version at each store that has any and is no destination.
        probes: for each destination the path of a file in its folder; empty if it is none.
    """

    objects: Mapping[str, tuple[str, Version]]
    probes: Mapping[str, str]

    def trouble(self, stores: Stores) -> str:
        """Return what a node does not see with its own stores; empty if nothing is missing."""
        for name, probe in self.probes.items():
            if probe and not os.path.exists(probe):  # noqa: PTH110
                return f"{stores[name].url} is another folder there: {_MOUNT}"
        try:
            for name, probe in self.probes.items():
                if not probe:
                    next(iter(stores[name].list("")), None)
            for name, (key, version) in self.objects.items():
                if trouble := _object_trouble(stores[name], key, version):
                    return trouble
        except TierstoreError as error:
            return str(error)
        return ""


def _object_trouble(store: Backend, key: str, version: Version) -> str:
    try:
        found = Version.of(store.stat(key))
    except NotFoundError:
        return f"{store.url} has no {key!r} there: {_MOUNT}"
    if store.capabilities.seen_by == "host" and not found.same(version):
        return f"{store.url} is another folder there: {_MOUNT}"
    return ""


class DestinationProbe:
    """The file at a destination, held while the work lasts.

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


def sight_of(stores: Stores, probes: Mapping[str, DestinationProbe], sample: str) -> Sight:
    """Return what a node has to see.

    Args:
        stores: all of them.
        probes: of the destinations.
        sample: the key of an object of the others; empty if whatever they list will do.

    Raises:
        ConfigError: a store exists in this process only.
        TierstoreError: one cannot be listed.
    """
    objects = {}
    for name, store in stores.by_name.items():
        if store.capabilities.seen_by == "process":
            raise ConfigError(f"{store.url} is in this process only", hint="leave out --on")
        if name in probes:
            continue
        if sample:
            objects[name] = sample, Version.of(store.stat(sample))
        elif found := next((each for each in store.list("") if each.key[-1] != "/"), None):
            objects[name] = found.key, Version.of(found)
    return Sight(objects, {name: probe.path for name, probe in probes.items()})
