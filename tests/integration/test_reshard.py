"""Round trips, bit for bit, from any world size and layout to any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import reshard_cases
from tests.layouts import LAYOUTS
from tests.ranks import Ranks

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("save_size", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_restores_at_every_world_size(
    ranks: Ranks, tmp_path: Path, layout: str, save_size: int
) -> None:
    urls = [tmp_path.as_uri()]
    attempts = ranks.run(save_size, reshard_cases.save, urls, layout, 7)
    assert len(set(attempts)) == 1
    for load_size in (1, 2, 3, 4):
        for step, wrong in ranks.run(
            load_size, reshard_cases.load, urls, layout, layout, save_size
        ):
            assert step == 7
            assert wrong == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_restores_into_every_other_layout(
    ranks: Ranks, tmp_path: Path, layout: str
) -> None:
    urls = [tmp_path.as_uri()]
    ranks.run(4, reshard_cases.save, urls, layout, 3)
    for other in LAYOUTS:
        results = ranks.run(2, reshard_cases.load, urls, layout, other, 4)
        assert results == [(3, [])] * 2
