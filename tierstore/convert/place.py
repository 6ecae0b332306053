"""Where foreign files are: a path or a URL of any store that tierstore knows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tierstore.backend import Backend
from tierstore.checkpoint.objects import read_record
from tierstore.config import TierConfig, load_config
from tierstore.errors import ConfigError, NotFoundError
from tierstore.keys import check_key
from tierstore.registry import is_url, parse_url, split_url
from tierstore.regular import NotRegularError
from tierstore.wrappers import open_tier

_WHOLE = 1024**3  # bytes: the `.metadata` of the largest jobs has some hundred MB


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or one file in it.

    Attributes:
        backend: the folder.
        name: the file's name; empty where the folder is meant.
        local: the folder's path if it is on this machine.
    """

    backend: Backend
    name: str
    local: Path | None

    @property
    def url(self) -> str:
        """What is meant, for people."""
        return f"{self.backend.url}/{self.name}" if self.name else self.backend.url

    def names(self) -> Sequence[str]:
        """Return the names of the files in the folder, sorted; those of folders end in "/"."""
        if self.local is None:
            return [info.key for info in self.backend.list("", delimiter=True)]
        try:
            with os.scandir(self.local) as entries:  # follows links, which model caches consist of
                return sorted(e.name + ("/" if e.is_dir() else "") for e in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, name: str) -> int:
        """Return a file's bytes.

        Raises:
            NotFoundError: it is not there.
        """
        return self.backend.stat(name).size

    def read(self, name: str, *, limit: int = _WHOLE) -> bytes:
        """Return a whole file of at most `limit` bytes.

        Raises:
            NotFoundError: it is not there.
            FormatError: it is larger.
        """
        return read_record(self.backend, check_key(name), limit=limit)

    def path(self) -> Path:
        """Return the path of the file on this machine.

        Raises:
            ConfigError: it is in a remote store.
        """
        if self.local is None:
            raise ConfigError(
                f"{self.url}: such a file is mapped into memory, so it must be on this machine",
                hint="copy it to a local disk first",
            )
        return self.local / self.name


@contextmanager
def open_source(text: str) -> Iterator[Place]:
    """Open what is to be read: a file or a folder.

    Raises:
        NotFoundError: there is nothing.
        ConfigError: the URL is wrong.
    """
    with _open(text) as folder:
        names = folder.names()
        if names:
            yield folder
            return
    with _open(text, of_file=True) as place:
        try:
            place.size(place.name)
        except NotFoundError as error:
            hint = "name a file, or a folder that is not empty"
            if isinstance(error.__cause__, NotRegularError):
                raise NotFoundError(f"{text} {error.message}", hint=hint) from error
            raise NotFoundError(f"there is no {text}", hint=hint) from error
        yield place


@contextmanager
def open_target(text: str, *, of_file: bool) -> Iterator[Place]:
    """Open where to write: a folder, which need not exist, or a file in one.

    Raises:
        ConfigError: the URL is wrong, or a file is in the folder's place or the reverse.
    """
    with _open(text, of_file=of_file) as place:
        at = None if place.local is None else place.local / place.name
        if at is not None and at.exists():
            if at.is_dir() == of_file:
                raise ConfigError(f"{text} is a {'folder' if of_file else 'file'}")
            if of_file and not at.is_file():
                raise ConfigError(f"{text} is no file that could be replaced")
        yield place


@contextmanager
def _open(text: str, *, of_file: bool = False) -> Iterator[Place]:
    tier, name = _tier(text), ""
    if of_file:
        folder, name = split_url(tier.url)
        tier = replace(tier, url=folder)
        if not name or folder.endswith("/"):
            raise ConfigError(f"{text} does not name a file")
    backend = open_tier(tier)
    try:
        yield Place(backend, name, parse_url(tier.url).folder)
    finally:
        backend.close()


def _tier(text: str) -> TierConfig:
    if not text:
        raise ConfigError("a path or a URL is wanted, not an empty text")
    if not is_url(text):
        text = Path(os.path.abspath(text)).as_uri()  # noqa: PTH100 - a link keeps its own name
    return load_config(text).tiers[0]
