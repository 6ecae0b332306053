"""The ends of the migrations that are compared, and a second path to what lies there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.hdfs_worker import MIB, Files
from tierstore.blocks import crc32c
from tierstore.testing.servers import HdfsServer, S3Server

_PIECE = 16 * MIB
_FOLDER = 500  # small files in one folder
_READERS = 16

Kind = Literal["local", "S3", "HDFS"]


def shapes(scale: float) -> dict[str, Files]:
    """Return what is migrated: 4 GiB in one file or in 64, and 50,000 small files, at scale 1."""
    whole = max(int(4096 * scale), 64) * MIB
    return {
        "one file": Files(1, whole, 1),
        "64 files": Files(64, whole // 64, 1),
        "small files": Files(max(int(50_000 * scale), 100), 4096, 1),
    }


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file holds.

    Attributes:
        size: bytes.
        crc: CRC32C.
        md5: as S3 gives it as the ETag of an object that was put whole; "" of a large one.
    """

    size: int
    crc: int
    md5: str


@dataclass(frozen=True, slots=True)
class End:
    """A folder that is migrated from or to.

    Attributes:
        kind: where.
        path: without a slash at its end; on S3 with the bucket as its first part.
    """

    kind: Kind
    path: str


@dataclass(frozen=True, slots=True)
class Site:
    """The servers, and a folder on the disk.

    Attributes:
        s3: the S3 server.
        bucket: for everything.
        hdfs: the HDFS; None where no migration needs it.
        folder: on the disk.
    """

    s3: S3Server
    bucket: str
    hdfs: HdfsServer | None
    folder: Path

    def end(self, kind: Kind, name: str) -> End:
        """Return the folder of that name."""
        roots = {"local": str(self.folder), "S3": self.bucket, "HDFS": "/bench"}
        return End(kind, f"{roots[kind]}/{name}")

    def environment(self) -> dict[str, str]:
        """Return what a client must know of the servers."""
        found = self.s3.environment()
        return found | (self.hdfs.environment() if self.hdfs else {})

    def clear(self, end: End) -> None:
        """Remove all that is in a folder."""
        if end.kind == "local":
            shutil.rmtree(end.path, ignore_errors=True)
        elif end.kind == "HDFS" and self.hdfs:
            self.hdfs.client().remove(end.path)
        else:
            client = self.s3.client()
            keys = [{"Key": found["Key"]} for found in self._objects(client, end)]
            batches = [keys[at : at + 1000] for at in range(0, len(keys), 1000)]

            def remove(batch: list[dict[str, str]]) -> None:
                client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})

            _each(remove, batches, 4)
            client.close()

    def check(self, end: End, wanted: dict[str, Digest]) -> None:
        """Read what a folder holds, by another path than those who wrote it.

        Raises:
            RuntimeError: it is not what was to be migrated.
        """
        readers = {"local": self._local, "S3": self._s3, "HDFS": self._on_hdfs}
        found = readers[end.kind](end)
        missing = wanted.keys() - found.keys()
        if missing or len(found) != len(wanted):
            raise RuntimeError(f"{len(found)} files arrived, {len(missing)} are missing")
        for name, digest in wanted.items():
            there = found[name]
            if there != Digest(digest.size, digest.crc, "") and there.md5 != (digest.md5 or "?"):
                raise RuntimeError(f"{name}: other bytes arrived than were sent")

    def _local(self, end: End) -> dict[str, Digest]:
        root = Path(end.path)
        paths = [p for p in root.rglob("*") if p.is_file() and ".tierstore-tmp" not in p.parts]
        return {str(path.relative_to(root)): _digest(_pieces(path)) for path in paths}

    def _s3(self, end: End) -> dict[str, Digest]:
        client, start = self.s3.client(), len(end.path.partition("/")[2]) + 1
        listed = {found["Key"][start:]: found for found in self._objects(client, end)}

        def digest(found: dict[str, Any]) -> Digest:
            tag = found["ETag"].strip('"')
            if "-" not in tag and found["Size"] <= _PIECE:
                return Digest(found["Size"], 0, tag)
            body = client.get_object(Bucket=self.bucket, Key=found["Key"])["Body"]
            return _digest(body.iter_chunks(_PIECE))

        digests = dict(zip(listed, _each(digest, listed.values(), 2), strict=True))
        client.close()
        return digests

    def _objects(self, client: Any, end: End) -> Iterator[dict[str, Any]]:
        prefix = end.path.partition("/")[2] + "/"
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for page in pages:
            yield from page.get("Contents", ())

    def _on_hdfs(self, end: End) -> dict[str, Digest]:
        client = self.hdfs.client() if self.hdfs else None
        if client is None:
            return {}

        def digest(path: str) -> Digest:
            size = int((client.status(path) or {})["length"])
            offsets = range(0, size, _PIECE)
            ranges = (client.call("GET", path, "OPEN", offset=at, length=_PIECE) for at in offsets)
            return _digest(ranges)

        paths = list(client.walk(end.path))
        names = [path[len(end.path) + 1 :] for path in paths]
        return dict(zip(names, _each(digest, paths, _READERS), strict=True))


def make(folder: Path, files: Files) -> dict[str, Digest]:
    """Write random files and return what they hold."""
    random = np.random.default_rng(7)
    made: dict[str, Digest] = {}
    for number in range(files.count):
        name = f"{number:05d}" if files.size > MIB else f"{number // _FOLDER:03d}/{number:05d}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        crc, md5 = 0, ""
        with path.open("wb") as file:
            for at in range(0, files.size, _PIECE):
                data = random.bytes(min(_PIECE, files.size - at))
                file.write(data)
                crc = crc32c(data, crc)
                md5 = hashlib.md5(data).hexdigest() if len(data) == files.size else ""
        made[name] = Digest(files.size, crc, md5)
    os.sync()
    return made


def _digest(pieces: Iterable[bytes]) -> Digest:
    size = crc = 0
    for piece in pieces:
        size, crc = size + len(piece), crc32c(piece, crc)
    return Digest(size, crc, "")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece


def _each(call: Callable[[Any], Any], arguments: Iterable[Any], workers: int) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, arguments))
