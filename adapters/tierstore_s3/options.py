"""What a user can say about an S3 tier."""

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
class S3Options:
    """The options of an S3 tier; what is None comes from the environment as boto3 finds it.

    Attributes:
        endpoint_url: of a server that is not AWS; else `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`.
        region: of the bucket; else `AWS_REGION`, `AWS_DEFAULT_REGION` or the profile's.
        profile: in the AWS configuration files; else `AWS_PROFILE`.
        anonymous: send unsigned requests, for public buckets.
        addressing: the bucket in the path, in the host name ("virtual"), or as boto3 decides.
        ca_bundle: a file of trusted certificates; else `AWS_CA_BUNDLE`.
        verify: False accepts any certificate.
        checksum: "none" for a server that does not know CRC32C; uploads are then read back.
        storage_class: such as "STANDARD_IA"; None is the bucket's.
        sse: server-side encryption, "AES256" or "aws:kms"; None is the bucket's.
        kms_key: the key's id or ARN, for `sse="aws:kms"`.
        part_size: bytes of one part of an upload; whole 4 MiB blocks, at least 8 MiB.
        read_size: bytes of one ranged read; whole 4 MiB blocks.
        concurrency: requests in flight at most; of a few KiB four times as many.
        connect_timeout: seconds to open a connection.
        stall_timeout: seconds without any byte moving.
        total_timeout: seconds for one request.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = None
    verify: bool = True
    checksum: Literal["crc32c", "none"] = "crc32c"
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key: str | None = None
    part_size: int = 32 * MIB
    read_size: int = 32 * MIB
    concurrency: int = 8
    connect_timeout: float = 5.0
    stall_timeout: float = 30.0
    total_timeout: float = 600.0

    def __post_init__(self) -> None:
        smallest = {"part_size": 2 * BLOCK_SIZE, "read_size": BLOCK_SIZE}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value < least or value % BLOCK_SIZE:
                raise ConfigError(
                    f"{name} = {value} is not a whole number of 4 MiB blocks from {least} bytes up"
                )
        for name in ("concurrency", "connect_timeout", "stall_timeout", "total_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is not above zero")

    @property
    def deadlines(self) -> Deadlines:
        """Of every request."""
        return Deadlines(self.connect_timeout, self.stall_timeout, self.total_timeout)
