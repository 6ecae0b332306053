"""A run on a real MinIO: every rule of a run, with its conditional creates and its clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.collect_rules import CollectRules
from tests.conftest import Bucket
from tests.mirror_rules import MirrorRules
from tests.store_rules import StoreRules
from tierstore.backend import Backend
from tierstore_s3 import open_s3


@pytest.mark.minio
class TestMinio(StoreRules, CollectRules, MirrorRules):
    @pytest.fixture
    def backend(self, minio_bucket: Bucket) -> Iterator[Backend]:
        backend = open_s3(f"{minio_bucket.url}/tier")
        yield backend
        backend.close()
        minio_bucket.assert_no_uploads()
