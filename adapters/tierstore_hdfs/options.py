"""What a user can say about an HDFS tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tierstore.blocks import BLOCK_SIZE
from tierstore.errors import ConfigError
from tierstore.http import Deadlines

MIB = 1024 * 1024
SMALL = 4
"""Small requests that are in flight for each large one."""


@dataclass(frozen=True, slots=True)
class HdfsOptions:
    """The options of an HDFS tier; what is None is the cluster's.

    Clusters with Kerberos are reached with a delegation token or with a ticket.

    Attributes:
        user: whose files; else `HADOOP_USER_NAME`, else the user of the process. With `auth` the
            principal whose ticket is used, else the default one.
        token_file: a text file that holds a delegation token; read anew when it changes.
        auth: "spnego" shows namenodes the Kerberos ticket of the process.
        replication: copies of each block.
        block_size: bytes of an HDFS block.
        storage_policy: such as "COLD" or "ALL_SSD".
        ca_bundle: a file of trusted certificates, for swebhdfs.
        verify: False accepts any certificate.
        part_size: bytes of one part of an upload; whole 4 MiB blocks.
        read_size: bytes of one ranged read; whole 4 MiB blocks.
        concurrency: requests in flight at most; of a few KiB four times as many.
        connect_timeout: seconds to open a connection.
        stall_timeout: seconds without any byte moving.
        total_timeout: seconds for one request; one stream of a whole file has them for each part.
    """

    user: str | None = None
    token_file: str | None = None
    auth: Literal["spnego"] | None = None
    replication: int | None = None
    block_size: int | None = None
    storage_policy: str | None = None
    ca_bundle: str | None = None
    verify: bool = True
    part_size: int = 128 * MIB  # an HDFS block, as clusters have it by default
    read_size: int = 128 * MIB
    concurrency: int = 8
    connect_timeout: float = 5.0
    stall_timeout: float = 30.0
    total_timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.auth and self.token_file:
            raise ConfigError(
                "both auth and token_file are given",
                hint="a token needs no ticket: leave out one of them",
            )
        for name in ("part_size", "read_size"):
            value = getattr(self, name)
            if value < BLOCK_SIZE or value % BLOCK_SIZE:
                raise ConfigError(f"{name} = {value} is not a whole number of 4 MiB blocks")
        for name in (
            "replication", "block_size", "concurrency",
            "connect_timeout", "stall_timeout", "total_timeout",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} = {value} is not above zero")

    @property
    def deadlines(self) -> Deadlines:
        """Of every request."""
        return Deadlines(self.connect_timeout, self.stall_timeout, self.total_timeout)
