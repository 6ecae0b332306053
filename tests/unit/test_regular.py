"""A named pipe, a socket or a device where a file should be is named at once, and never read.

Without the check most of these hang.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import tierstore
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.local.scratch import NAME
from tierstore.config import load_config
from tierstore.errors import (
    ConfigError,
    FormatError,
    NotFoundError,
    StorageError,
    TierstoreError,
    UnsupportedError,
)
from tierstore.http.transport import Transport
from tierstore.image.pool import open_image
from tierstore.model.points import load_points
from tierstore.regular import NotRegularError, open_regular
from tierstore.transfer.engine.journal import Journal
from tierstore_hdfs.client import HdfsClient
from tierstore_hdfs.options import HdfsOptions

KINDS = {"pipe": "a named pipe", "socket": "a socket", "device": "a device"}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What is no file."""
    place = tmp_path / request.param
    if request.param == "pipe":
        os.mkfifo(place)
        yield place
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(place))
            yield place
    else:
        place.symlink_to("/dev/zero")
        yield place


def kind(path: Path) -> str:
    return KINDS[path.name]


def test_it_is_named(path: Path) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
        with pytest.raises(NotRegularError, match=f"is {kind(path)}, not a file"):
            open_regular(path, flags)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        open_regular(path.parent)


def test_an_object(path: Path) -> None:
    backend = LocalBackend(str(path.parent))
    buffer = memoryview(bytearray(9))
    looks: list[Callable[[], object]] = [
        lambda: backend.stat(path.name),
        lambda: backend.read_into(path.name, 0, buffer),
        lambda: backend.fetch(path.name, buffer),
    ]
    for look in looks:
        with pytest.raises(NotFoundError, match=f"{path.name}: is {kind(path)}, not a file"):
            look()
    assert list(backend.list("")) == []


@pytest.mark.parametrize("path", ["pipe", "socket"], indirect=True)  # a device is really there
def test_an_object_that_is_written(path: Path) -> None:
    backend = LocalBackend(str(path.parent))
    for if_absent in (False, True):
        with pytest.raises(UnsupportedError, match=f"what has this name is {kind(path)}"):
            backend.create(path.name, b"x", if_absent=if_absent)
    assert not path.is_file()


def test_what_others_have_left_among_unfinished_files(path: Path) -> None:
    backend = LocalBackend(str(path.parent))
    scratch = path.parent / NAME
    scratch.mkdir()
    for name in ("other-0123", "other-4567.parts"):
        (scratch / name).symlink_to(path)
        os.mkfifo(scratch / f"pipe-{name}")
    upload = backend.upload("key", 1)  # sweeps
    assert upload.token
    upload.abort()
    for name in ("other-0123", "pipe-other-0123"):
        with pytest.raises(StorageError):
            backend.upload("key", 1, resume=name)


def test_other_files_that_are_read(path: Path) -> None:
    opens: list[tuple[type[TierstoreError], Callable[[], object]]] = [
        (ConfigError, lambda: load_config(path)),
        (FormatError, lambda: load_points(path)),
        (StorageError, lambda: Journal(path, "from", "to")),
        (ConfigError, lambda: Transport(pool_size=1, ca_bundle=str(path))),
        (ConfigError, HdfsClient("hdfs", "x", HdfsOptions(token_file=str(path)))._login),
    ]
    for error, look in opens:
        with pytest.raises(error, match=kind(path)):
            look()
    with pytest.raises(StorageError, match=r"staging image .*Not a directory"):
        open_image(str(path), 4096)
    done = tierstore("sync", "file:///x", "file:///y", "--filter-from", str(path))
    assert (done.code, kind(path) in done.said) == (2, True)


@pytest.mark.torch
def test_imports(path: Path) -> None:
    for name in ("in.pt", "in.safetensors"):
        (path.parent / name).symlink_to(path)
        words = ("import", str(path.parent / name), "r", "1", "-c", f"file://{path.parent}/tier")
        done = tierstore(*words)
        assert done.code == 1
        assert f"is {kind(path)}, not a file" in done.said
