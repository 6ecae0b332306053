"""The contract on S3: moto without checksums, MinIO with them."""

from __future__ import annotations

import pytest

from tests.conftest import Bucket
from tierstore.testing.contract import BackendContract
from tierstore_s3 import S3Backend, S3Options, open_s3

MIB = 1024 * 1024


class _S3Contract(BackendContract):
    bucket: Bucket
    options = S3Options(part_size=8 * MIB)
    prefix = "a tier/é+%"

    def open(self) -> S3Backend:
        quoted = self.prefix.replace("%", "%25")
        return open_s3(f"s3://{self.bucket.name}/{quoted}", self.options)

    def raw_get(self, key: str) -> bytes:
        return self.bucket.read(f"{self.prefix}/{key}")

    def raw_put(self, key: str, data: bytes) -> None:
        self.bucket.write(f"{self.prefix}/{key}", data)

    def raw_list(self) -> list[str]:
        return [key.removeprefix(f"{self.prefix}/") for key in self.bucket.keys("")]

    def raw_uploads(self) -> list[str]:
        return self.bucket.uploads()


@pytest.mark.minio
class TestMinIO(_S3Contract):
    @pytest.fixture(autouse=True)
    def _place(self, minio_bucket: Bucket):
        self.bucket = minio_bucket


class TestMoto(_S3Contract):
    options = S3Options(part_size=8 * MIB, checksum="none")

    @pytest.fixture(autouse=True)
    def _place(self, moto_bucket: Bucket):
        self.bucket = moto_bucket
