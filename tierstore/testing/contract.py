"""One suite for every backend and every wrapper.

A backend's test is about twenty lines: a way to open it, and a second path to the same place that
does not use the code under test::

    class TestThing(BackendContract):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path): self.path = tmp_path
        def open(self): return open_thing(f"thing://{self.path}")
        def raw_get(self, key): return (self.path / key).read_bytes()
        def raw_put(self, key, data): ...
        def raw_list(self): ...
        def raw_uploads(self): ...
"""

from __future__ import annotations

import pytest

_PARTS = [
    f"tierstore.testing.contract_{part}" for part in ("base", "listing", "objects", "uploads")
]
pytest.register_assert_rewrite(*_PARTS)  # before they are imported: a failure then shows values

from tierstore.testing.contract_listing import ListingContract  # noqa: E402
from tierstore.testing.contract_objects import ObjectContract  # noqa: E402
from tierstore.testing.contract_uploads import UploadContract  # noqa: E402

__all__ = ["BackendContract"]


class BackendContract(ObjectContract, ListingContract, UploadContract):
    """Every promise of `tierstore.backend`."""
