"""The contract on S3: moto without checksums, MinIO with them, bare and wrapped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.conftest import Bucket
from tierstore.backend import Backend
from tierstore.config import TierConfig
from tierstore.testing.contract import BackendContract
from tierstore.testing.servers import S3Server
from tierstore.wrappers import open_tier
from tierstore_s3 import S3Options, objects, open_s3

SHORT = 100
PART = 8 * 1024 * 1024
_numbers = itertools.count()


@contextlib.contextmanager
def _bucket(server: S3Server) -> Iterator[Bucket]:
    bucket = Bucket(server, server.new_bucket(), server.client())
    yield bucket
    server.remove_bucket(bucket.name)
    bucket.client.close()


@pytest.fixture(scope="module")
def on_minio(minio_server: S3Server) -> Iterator[Bucket]:
    with _bucket(minio_server) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def on_moto(moto_server: S3Server) -> Iterator[Bucket]:
    with _bucket(moto_server) as bucket:
        yield bucket


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for pages of a listing that a few objects fill."""
    query_of = objects.query_of
    monkeypatch.setattr(objects, "query_of", lambda *of: f"{query_of(*of)}&max-keys={SHORT}")


class _S3Contract(BackendContract):
    """Each test has a prefix of its own in one bucket, which is much faster than a bucket."""

    bucket: Bucket
    prefix: str
    options = S3Options(part_size=PART)

    def place(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bucket, self.prefix = bucket, f"a tier/é+%{next(_numbers)}/"
        for name, value in bucket.server.environment().items():
            monkeypatch.setenv(name, value)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket.name}/{self.prefix}"

    def open(self) -> Backend:
        return open_s3(self.url, self.options)

    def raw_get(self, key: str) -> bytes:
        return self.bucket.read(f"{self.prefix}{key}")

    def raw_put(self, key: str, data: bytes) -> None:
        self.bucket.write(f"{self.prefix}{key}", data)

    def raw_list(self) -> list[str]:
        return [key.removeprefix(self.prefix) for key in self.bucket.keys(self.prefix)]

    def raw_uploads(self) -> list[str]:
        return [key for key in self.bucket.uploads() if key.startswith(self.prefix)]


@pytest.mark.minio
class TestMinIO(_S3Contract):
    @pytest.fixture(autouse=True)
    def _place(self, on_minio: Bucket, monkeypatch: pytest.MonkeyPatch):
        self.place(on_minio, monkeypatch)


@pytest.mark.minio
class TestMinIOWrapped(TestMinIO):
    many = SHORT + 3

    @pytest.fixture(autouse=True)
    def _short(self, short_pages: None) -> None:
        """The bare one has pages as long as they come."""

    def open(self) -> Backend:
        return open_tier(TierConfig("s3", self.url, options={"part_size": PART}))


class TestMoto(_S3Contract):
    options = S3Options(part_size=PART, checksum="none")
    many = SHORT + 3

    # moto closes the buffer of an object that is replaced while another thread reads it, and
    # answers that reader with 500. What holds on a real store, MinIO shows.
    test_readers_never_see_a_half = None

    @pytest.fixture(autouse=True)
    def _place(self, on_moto: Bucket, short_pages: None, monkeypatch: pytest.MonkeyPatch):
        self.place(on_moto, monkeypatch)
