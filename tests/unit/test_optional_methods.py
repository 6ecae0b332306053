"""What only some backends have is asked for in one way, through wrappers too."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tierstore.backend import abort_uploads, diagnose, local_path
from tierstore.config import TierConfig
from tierstore.errors import InvalidKeyError
from tierstore.registry import open_backend
from tierstore.scan import Ways, key_check, place_check, scan
from tierstore.wrappers import open_tier


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_what_a_backend_has_beyond_the_protocol_is_found_through_wrappers(
    tmp_path: Path, scheme: str
) -> None:
    url = f"{scheme}://{tmp_path}/beyond"
    bare = open_backend(url, {})
    with closing(open_tier(TierConfig("t", url))) as tier:
        assert local_path(tier, "x") == local_path(bare, "x")
        assert [check.name for check in diagnose(tier)] == [c.name for c in diagnose(bare)]
        abort_uploads(tier, "x")  # nothing stays there
        with pytest.raises(InvalidKeyError):
            key_check(tier)("../x")
        with pytest.raises(InvalidKeyError):
            place_check(tier)("../x")
        tier.create("a", b"1")
        assert [found.key for found in scan(tier, Ways())] == ["a"]
    assert (local_path(bare, "x") is None) == (scheme == "memory")
    assert bool([*diagnose(bare)]) == (scheme == "file")
