"""The stores of the storage-time comparison: one to four servers of each kind, all on this disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import scratch
from tierstore.config import Policy, TierConfig
from tierstore.testing.servers import hdfs, minio

_CLOSING = "dfs.client.block.write.locateFollowingBlock"
CLOSES_FAST = {f"{_CLOSING}.initial.delay.ms": "5", f"{_CLOSING}.retries": "10"}
"""What docs/operators.md recommends against files that take 430 ms."""
_HDFS = {"dfs.replication": "1", **CLOSES_FAST}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a store is.

    Attributes:
        family: "local", "minio" or "hdfs".
        nodes: N, how many servers keep its bytes.
        settings: what the report says of it.
    """

    family: str
    nodes: int
    settings: str


STORES = {
    "local": Kind("local", 1, "a folder; O_DIRECT where the file system has it, fsync"),
    "minio-1": Kind("minio", 1, "one MinIO with one folder"),
    "minio-4": Kind("minio", 4, "four MinIO with a folder each, every object erasure-coded"),
    "hdfs-1": Kind("hdfs", 1, "a namenode and one datanode, one copy of each block"),
    "hdfs-2": Kind("hdfs", 2, "a namenode and two datanodes, one copy of each block"),
    "hdfs-3": Kind("hdfs", 3, "a namenode and three datanodes, one copy of each block"),
}


@contextlib.contextmanager
def opened(name: str, place: Path) -> Iterator[TierConfig]:
    """Start a store, empty, with its data in a folder of `place`; yield it as a tier.

    Raises:
        ServerUnavailableError: its servers cannot be had, or did not start.
    """
    kind = STORES[name]
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(scratch(place)))
        if kind.family == "minio":
            s3 = stack.enter_context(minio(root, nodes=kind.nodes))
            os.environ.update(s3.environment())
            url = f"s3://{s3.new_bucket()}/bench"
        elif kind.family == "hdfs":
            server = stack.enter_context(hdfs(root, datanodes=kind.nodes, settings=_HDFS))
            os.environ.update(server.environment())
            url = server.url("/bench")
        else:
            url = f"file://{root}"
        yield TierConfig(name, url)


def limited(tier: TierConfig, rate: int) -> TierConfig:
    """Return the tier with a limit of so many bytes per second, each way."""
    policy = Policy(read_bandwidth=rate, write_bandwidth=rate)
    return TierConfig(tier.name, tier.url, policy=policy)
