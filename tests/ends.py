"""The ends of migrations in tests, each with a second path to what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Bucket, HdfsRoot

MIB = 1024**2
PART = 8 * MIB  # of each store here
NAMES = ("local", "s3", "hdfs")
PAIRS = [(one, other) for one in NAMES for other in NAMES if (one, other) != ("local", "local")]


@dataclass
class End:
    """One end of a migration, with a second path to what is in it."""

    url: str
    options: str
    keys: Callable[[], list[str]]
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    leftovers: Callable[[], list[str]]

    def __str__(self) -> str:
        return self.url + self.options

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def with_options(self, *options: str) -> str:
        given = [self.options.lstrip("?"), *options]
        return f"{self.url}?{'&'.join(option for option in given if option)}"

    def contents(self) -> dict[str, bytes]:
        return {key: self.read(key) for key in self.keys()}


def local_end(root: Path) -> End:
    hidden = root / ".tierstore-tmp"

    def keys() -> list[str]:
        files = (path for path in root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(root)) for path in files if hidden not in path.parents)

    def write(key: str, data: bytes) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)

    def leftovers() -> list[str]:
        return [path.name for path in hidden.iterdir()] if hidden.exists() else []

    def read(key: str) -> bytes:
        return (root / key).read_bytes()

    def delete(key: str) -> None:
        (root / key).unlink()

    return End(f"file://{root}", "", keys, read, write, delete, leftovers)


def s3_end(bucket: Bucket, prefix: str) -> End:
    return End(
        f"s3://{bucket.name}/{prefix}",
        f"?part_size={PART}",
        lambda: sorted(key.removeprefix(f"{prefix}/") for key in bucket.keys(f"{prefix}/")),
        lambda key: bucket.read(f"{prefix}/{key}"),
        lambda key, data: bucket.write(f"{prefix}/{key}", data),
        lambda key: bucket.client.delete_object(Bucket=bucket.name, Key=f"{prefix}/{key}"),
        bucket.uploads,
    )


def hdfs_end(root: HdfsRoot, prefix: str) -> End:
    def keys(hidden: bool = False) -> list[str]:
        found = [key.removeprefix(f"{prefix}/") for key in root.keys(f"{prefix}/", folders=hidden)]
        return sorted(key for key in found if (".tierstore-" in key) == hidden)

    return End(
        f"{root.url}/{prefix}",
        f"?part_size={PART}&read_size={PART}",
        keys,
        lambda key: root.read(f"{prefix}/{key}"),
        lambda key, data: root.write(f"{prefix}/{key}", data),
        lambda key: root.server.client().remove(f"{root.path}/{prefix}/{key}"),
        lambda: keys(hidden=True),
    )


def pairs(*, kinds: list[tuple[str, str]] = PAIRS) -> pytest.MarkDecorator:
    """Parametrize `one` and `other`, the kinds of source and destination."""
    marks = {"s3": pytest.mark.minio, "hdfs": pytest.mark.hdfs}
    return pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param(*pair, id="-to-".join(pair), marks=[marks[k] for k in pair if k in marks])
            for pair in kinds
        ],
    )
