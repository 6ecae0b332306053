"""Staged images as a tier that can only be read: what trainers of this host hold for their tiers.

Keys are those of every tier. The segments of a shard are there, and in place of its fragment its
description, `staged/<rank>`; both from the moment at which the copy has ended, until the trainer
needs the memory again. After its death they stay until the next job of this user stages here.

An image is locked while it is looked at, and for as long as `hold` lasts, so bytes never change
under a reader. A trainer that finds its image held stages the next save in another one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from tierstore.backend import Capabilities, ObjectInfo, Upload, check_whole
from tierstore.backends.local.direct_io import read_at
from tierstore.backends.local.errors import translated
from tierstore.backends.local.listing import told
from tierstore.blocks import Buffer
from tierstore.errors import (
    AccessError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
    UnsupportedError,
)
from tierstore.image.folder import DEFAULT_DIRECTORY, ImageFolder, ShardName, image_paths
from tierstore.keys import RUNS, AttemptId, AttemptKeys, RunKeys, check_run

_CAPABILITIES = Capabilities(concurrency=min(8, 2 * len(os.sched_getaffinity(0))), seen_by="host")
_KEY = re.compile(
    rf"{RUNS}([^/]+)/data/([^/]+)/(?:staged/([0-9]{{5}})|(([0-9]{{5}})-[0-9]{{3}}\.safetensors))"
)


@dataclass(frozen=True, slots=True)
class ImageState:
    """What a staging image holds.

    Attributes:
        path: its folder.
        shard: whose shard is whole in it; None while it is free or the copy goes on, and for good
            if the trainer died in the middle of the copy.
        owned: whether a process that may still change it is alive.
    """

    path: Path
    shard: ShardName | None
    owned: bool


class ImagesBackend:
    """The staged images of this user in one folder.

    Args:
        directory: where trainers stage; /dev/shm by default.
    """

    def __init__(self, directory: str | os.PathLike[str] = DEFAULT_DIRECTORY) -> None:
        self.directory = os.path.abspath(directory)
        self._directory = Path(self.directory)
        self.url = f"images://{quote(self.directory, errors='surrogateescape')}"
        self._places: dict[ShardName, Path] = {}  # where a shard was seen

    @property
    def capabilities(self) -> Capabilities:
        """See `tierstore.backend.Capabilities`."""
        return _CAPABILITIES

    def images(self) -> list[ImageState]:
        """Return all images, also those without a whole shard; none that nothing was put into."""
        found = []
        for path in sorted(image_paths(self._directory)):
            with suppress(StorageError, OSError), closing(ImageFolder.peek(path)) as folder:
                shard = folder.shard()
                if shard or folder.names():  # one without a file is being made or removed
                    found.append(ImageState(path, shard, not folder.abandoned()))
        return found

    @contextmanager
    def hold(self, shard: ShardName) -> Iterator[None]:
        """Keep a shard from being removed or staged over.

        Raises:
            NotFoundError: it is not here any more.
        """
        with closing(self._locked(shard, _keys_of(shard).staged(shard.rank))):
            yield

    def local_path(self, key: str) -> str | None:
        """Return where the file of `key` is; it is to be read while `hold` lasts."""
        with suppress(NotFoundError):
            shard, name = _parse(key)
            if shard is not None:
                with closing(self._locked(shard, key)) as folder:
                    return str(folder.path / name)
        return None

    def stat(self, key: str) -> ObjectInfo:
        """See `tierstore.backend.Backend.stat`."""
        with self._file(key) as fd:
            return told(key, os.fstat(fd))

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """See `tierstore.backend.Backend.list`."""
        last = ""
        for key, info in sorted(self._objects().items(), key=lambda item: item[0].encode()):
            if not key.startswith(prefix):
                continue
            end = key.find("/", len(prefix)) + 1 if delimiter else 0
            shown = key[:end] or key
            if shown != last and (after is None or shown.encode() > after.encode()):
                yield ObjectInfo(shown, 0, 0.0) if end else info
            last = shown

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """See `tierstore.backend.Backend.read_into`."""
        length = sum(buffer.nbytes for buffer in buffers)
        with self._file(key) as fd:
            size = os.fstat(fd).st_size
            if offset + length > size or read_at(fd, buffers, offset) < length:
                raise TruncatedFileError(
                    f"{self.url}/{key}: has {size} bytes, "
                    f"bytes {offset} to {offset + length} are wanted"
                )

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """See `tierstore.backend.Backend.fetch`."""
        with self._file(key) as fd:
            info = told(key, os.fstat(fd))
            if info.size == buffer.nbytes:
                info = replace(info, size=read_at(fd, [buffer], 0))
        return check_whole(self.url, info, buffer)

    def create(
        self,
        key: str,
        buffer: Buffer,  # noqa: ARG002
        *,
        if_absent: bool = False,  # noqa: ARG002
        durable: bool = True,  # noqa: ARG002
    ) -> NoReturn:
        """Refuse: only a trainer stages."""
        raise self._refusal(key)

    def flush(self) -> None:
        """Nothing is ever written."""

    def upload(self, key: str, size: int | None = None, *, resume: str | None = None) -> Upload:  # noqa: ARG002
        """Refuse: only a trainer stages."""
        raise self._refusal(key)

    def delete(self, keys: Iterable[str]) -> None:
        """Refuse: an image goes with its trainer, or when the next one begins."""
        for key in keys:
            raise self._refusal(key)

    def close(self) -> None:
        """Nothing stays open."""

    def _objects(self) -> dict[str, ObjectInfo]:
        """Every key; of a shard that is staged twice, one image's."""
        found: dict[str, ObjectInfo] = {}
        for path in sorted(image_paths(self._directory)):
            with suppress(StorageError, OSError), closing(ImageFolder.peek(path)) as folder:
                if (shard := folder.shard()) is None:
                    continue
                for name in folder.names():
                    key = _key_of(shard, name)
                    if key and key not in found:
                        found[key] = told(key, folder.stat(name))
        return found

    @contextmanager
    def _file(self, key: str) -> Iterator[int]:
        """Open one file of a shard that is whole, with its image locked."""
        shard, name = _parse(key)
        if shard is None:
            raise self._missing(key)
        with self._translated(key), closing(self._locked(shard, key)) as folder:
            fd = folder.open_file(name)
            try:
                yield fd
            finally:
                os.close(fd)

    def _locked(self, shard: ShardName, key: str) -> ImageFolder:
        """Open the image that holds a shard, and lock it."""
        known = self._places.pop(shard, None)
        for path in [*([known] if known else []), *sorted(image_paths(self._directory))]:
            with suppress(NotFoundError, AccessError):
                folder = ImageFolder.open(path)
                if folder.holds(shard):
                    self._places[shard] = path
                    return folder
                folder.close()
        raise self._missing(key)

    def _missing(self, key: str) -> NotFoundError:
        return NotFoundError("no image holds it", url=self.url, key=key)

    def _refusal(self, key: str) -> UnsupportedError:
        return UnsupportedError("staged images can only be read", url=self.url, key=key)

    def _translated(self, key: str) -> AbstractContextManager[None]:
        return translated(self.url, key, str(self._directory))


def _keys_of(shard: ShardName) -> AttemptKeys:
    return RunKeys(shard.run).attempt(*shard.id)


def _key_of(shard: ShardName, name: str) -> str | None:
    """Return the key of a file of an image; None for what is not of the shard."""
    keys = _keys_of(shard)
    key = keys.staged(shard.rank) if name == str(shard) else keys.segment(name)
    return key if _parse(key)[0] == shard else None


def _parse(key: str) -> tuple[ShardName | None, str]:
    """Return the shard that a key is of and its file's name in the image."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None, ""
    run, attempt, described, name, rank = match.groups()
    try:
        shard = ShardName(check_run(run), AttemptId.parse(attempt), int(described or rank))
    except InvalidKeyError:
        return None, ""
    return shard, name or str(shard)
