"""Everything that can write files to HDFS and read them back, ours and others', behind one face.

Each peer runs with the settings that its own documentation recommends; `settings` says which.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from benchmarks.measure import at_once


class LeftOutError(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer stores.

    Attributes:
        endpoint: the namenode's URL for WebHDFS.
        rpc: the host and port of Hadoop's own protocol.
        user: whose files.
        folder: on HDFS, the peer's own.
        scratch: a folder in memory, for peers that copy files.
    """

    endpoint: str
    rpc: str
    user: str
    folder: str
    scratch: str


class HdfsPeer(Protocol):
    """One client. Names are relative to the place's folder, which exists."""

    settings: str

    def __init__(self, place: Place) -> None: ...

    def prepare(self, files: Mapping[str, memoryview]) -> None:
        """Do what is not to be measured before `write`."""
        ...

    def write(self, files: Mapping[str, memoryview], workers: int) -> None:
        """Store files, so many at once."""
        ...

    def read(self, files: Mapping[str, memoryview], workers: int) -> None:
        """Fill the buffers with files, so many at once."""
        ...

    def collect(self, files: Mapping[str, memoryview]) -> None:
        """Do what is not to be measured after `read`."""
        ...

    def ranges(
        self, name: str, size: int, wanted: Sequence[tuple[int, memoryview]], workers: int
    ) -> None:
        """Fill buffers from offsets of one file."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class _Library:
    """What a client that is a Python library needs to do: one file at a time, in threads."""

    settings = ""

    def __init__(self, place: Place) -> None:
        self.place = place

    def prepare(self, files: Mapping[str, memoryview]) -> None:
        pass

    collect = prepare

    def write(self, files: Mapping[str, memoryview], workers: int) -> None:
        at_once(workers, self.write_one, files.items())

    def read(self, files: Mapping[str, memoryview], workers: int) -> None:
        at_once(workers, self.read_one, files.items())

    def write_one(self, name: str, data: memoryview) -> None:
        raise NotImplementedError

    def read_one(self, name: str, into: memoryview) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def path(self, name: str) -> str:
        return f"{self.place.folder}/{name}"


class Tierstore(_Library):
    """This project's backend, parts and ranges in flight as its transfers have them."""

    settings = "upload in parts of 128 MiB; reads of as much at most; 8 in flight"

    def __init__(self, place: Place) -> None:
        from tierstore.errors import ConfigError
        from tierstore.registry import open_backend

        super().__init__(place)
        url = f"hdfs://{urlsplit(place.endpoint).netloc}{place.folder}"
        try:
            self._backend = open_backend(url)
        except ConfigError as error:
            raise LeftOutError(str(error)) from None
        self._width = self._backend.capabilities.concurrency
        self._step = self._backend.capabilities.read_size
        self._pool = ThreadPoolExecutor(self._width)

    def write_one(self, name: str, data: memoryview) -> None:
        from tierstore.blocks import crc32c

        part_size = self._backend.capabilities.part_size_for(len(data))
        if len(data) <= part_size:
            self._backend.create(name, data)
            return
        upload = self._backend.upload(name, len(data))

        def send(offset: int) -> None:
            part = data[offset : offset + part_size]
            upload.write(offset, part, crc32c(part))

        list(self._pool.map(send, range(0, len(data), part_size)))
        upload.commit()

    def read(self, files: Mapping[str, memoryview], workers: int) -> None:
        from tierstore.transfer.requests import even_size

        wanted = sum(map(len, files.values()))
        self._step = even_size(wanted, self._backend.capabilities.read_size, self._width)
        super().read(files, workers)

    def read_one(self, name: str, into: memoryview) -> None:
        step = self._step

        def fetch(offset: int) -> None:
            self._backend.read_into(name, offset, into[offset : offset + step])

        if len(into) <= step:
            fetch(0)
        else:
            list(self._pool.map(fetch, range(0, len(into), step)))

    def ranges(
        self,
        name: str,
        size: int,  # noqa: ARG002 - only some peers want it
        wanted: Sequence[tuple[int, memoryview]],
        workers: int,
    ) -> None:
        at_once(workers, lambda offset, into: self._backend.read_into(name, offset, into), wanted)

    def close(self) -> None:
        self._pool.shutdown()
        self._backend.close()


class HdfsNative(_Library):
    """The Rust client, over Hadoop's own protocol."""

    settings = "hdfs-native, default configuration; read_range_stream"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        try:
            native: Any = importlib.import_module("hdfs_native")
        except ImportError as error:
            raise LeftOutError(str(error)) from None
        self._options = native.WriteOptions(overwrite=True)
        self._client = native.Client(f"hdfs://{place.rpc}")

    def write_one(self, name: str, data: memoryview) -> None:
        with self._client.create(self.path(name), self._options) as file:
            for offset in range(0, len(data), 16 << 20):
                file.write(data[offset : offset + (16 << 20)])

    def read_one(self, name: str, into: memoryview) -> None:
        at = 0
        for piece in self._client.read(self.path(name)).read_range_stream(0, len(into)):
            into[at : at + len(piece)] = piece
            at += len(piece)

    def ranges(
        self,
        name: str,
        size: int,  # noqa: ARG002 - only some peers want it
        wanted: Sequence[tuple[int, memoryview]],
        workers: int,
    ) -> None:
        file = self._client.read(self.path(name))

        def fetch(offset: int, into: memoryview) -> None:
            into[:] = file.read_range(offset, len(into))

        at_once(workers, fetch, wanted)


class _Fsspec(_Library):
    """A file system of fsspec's kind."""

    _fs: Any

    def write_one(self, name: str, data: memoryview) -> None:
        self._fs.pipe_file(self.path(name), data)

    def read_one(self, name: str, into: memoryview) -> None:
        into[:] = self._fs.cat_file(self.path(name))

    def ranges(
        self, name: str, size: int, wanted: Sequence[tuple[int, memoryview]], workers: int
    ) -> None:
        def some(part: Sequence[tuple[int, memoryview]]) -> None:
            # A file that is open: cat_file with a range would ask for its size every time.
            with self._fs.open(self.path(name), cache_type="none", size=size) as file:
                for offset, into in part:
                    file.seek(offset)
                    into[:] = file.read(len(into))

        at_once(workers, some, [(wanted[first::workers],) for first in range(workers)])


class FsspecWebHdfs(_Fsspec):
    """fsspec's own WebHDFS client."""

    settings = "fsspec webhdfs, pipe_file, cat_file; ranges from open files without a cache"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from fsspec.implementations.webhdfs import WebHDFS

        parts = urlsplit(place.endpoint)
        self._fs = WebHDFS(host=parts.hostname, port=parts.port, user=place.user)


class PyArrow(_Library):
    """pyarrow over libhdfs, which runs a JVM in this process."""

    settings = "pyarrow HadoopFileSystem"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from pyarrow import fs

        host, _, port = place.rpc.partition(":")
        try:
            self._fs = fs.HadoopFileSystem(host, int(port), user=place.user)
        except OSError as error:
            raise LeftOutError(str(error).partition("\n")[0]) from None

    def write_one(self, name: str, data: memoryview) -> None:
        with self._fs.open_output_stream(self.path(name)) as file:
            file.write(data)

    def read_one(self, name: str, into: memoryview) -> None:
        with self._fs.open_input_file(self.path(name)) as file:
            file.readinto(into)

    def ranges(
        self,
        name: str,
        size: int,  # noqa: ARG002 - only some peers want it
        wanted: Sequence[tuple[int, memoryview]],
        workers: int,
    ) -> None:
        with self._fs.open_input_file(self.path(name)) as file:

            def fetch(offset: int, into: memoryview) -> None:
                into[:] = file.read_at(len(into), offset)

            at_once(workers, fetch, wanted)


class Rclone:
    """rclone's hdfs backend: a program that copies files, here from and to memory."""

    settings = "rclone copy from and to tmpfs, --transfers as many as are written at once"

    def __init__(self, place: Place) -> None:
        from tierstore.testing.servers import ServerUnavailableError
        from tierstore.testing.servers.programs import find_program

        try:
            program = find_program(["rclone"], "github.com/rclone/rclone@latest")
        except ServerUnavailableError as error:
            raise LeftOutError(str(error)) from None
        self._local = Path(place.scratch)
        self._remote = f':hdfs,namenode="{place.rpc}",username={place.user}:{place.folder}'
        self._command = [str(program), "--config", "", "copy", "--no-check-dest"]

    def _clear(self) -> None:
        shutil.rmtree(self._local, ignore_errors=True)
        self._local.mkdir(parents=True)

    def prepare(self, files: Mapping[str, memoryview]) -> None:
        self._clear()
        for name, data in files.items():
            (self._local / name).parent.mkdir(parents=True, exist_ok=True)
            (self._local / name).write_bytes(data)

    def write(self, files: Mapping[str, memoryview], workers: int) -> None:
        self._copy(str(self._local), self._remote, files, workers)

    def read(self, files: Mapping[str, memoryview], workers: int) -> None:
        self._clear()
        self._copy(self._remote, str(self._local), files, workers)

    def collect(self, files: Mapping[str, memoryview]) -> None:
        for name, into in files.items():
            into[:] = (self._local / name).read_bytes()
        self._clear()

    def _copy(self, source: str, target: str, names: Iterable[str], workers: int) -> None:
        command = [*self._command, "--files-from-raw", "-", "--transfers", str(workers)]
        subprocess.run(
            [*command, source, target], input="\n".join(names), text=True, check=True, timeout=900
        )

    def ranges(
        self, name: str, size: int, wanted: Sequence[tuple[int, memoryview]], workers: int
    ) -> None:
        raise NotImplementedError("a program, not a library: it reads no ranges for a caller")

    def close(self) -> None:
        shutil.rmtree(self._local, ignore_errors=True)


PEERS: dict[str, Callable[[Place], HdfsPeer]] = {
    "tierstore": Tierstore,
    "rclone": Rclone,
    "hdfs-native": HdfsNative,
    "fsspec webhdfs": FsspecWebHdfs,
    "pyarrow": PyArrow,
}
