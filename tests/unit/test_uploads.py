"""What uploads in parts have in common."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.backend import Capabilities
from tierstore.blocks import BLOCK_SIZE
from tierstore.errors import StorageError, UnsupportedError
from tierstore.testing.contract_base import together
from tierstore.uploads import PartSizes, ResumeToken


def test_tokens_are_of_one_upload() -> None:
    token = ResumeToken("k", 10, "id", 8)
    assert ResumeToken.parse(str(token), "k", 10, most=2) == token
    for text, key, size in (
        (str(token), "other", 10),
        (str(token), "k", 11),
        (str(token), "k", None),
        ("{}", "k", 10),
    ):
        with pytest.raises(StorageError, match="token"):
            ResumeToken.parse(text, key, size, most=2)


@pytest.mark.parametrize(
    "changed",
    [
        *({"part_size": value} for value in (0, -1, "8", 8.0, None, True, [], 1, 4)),
        *({"upload_id": value} for value in (None, 1, [], "", "\ud800")),
        *({"size": value} for value in (10.0, "10", None, -10, True)),
        {"more": 1},
        {"upload_id": "i" * 100_000},
    ],
)
def test_a_token_that_nobody_was_given(changed: dict[str, Any]) -> None:
    """Journals hold tokens, on disks that anyone may write to."""
    text = json.dumps({"key": "k", "size": 10, "upload_id": "id", "part_size": 8} | changed)
    with pytest.raises(StorageError, match="token") as caught:
        ResumeToken.parse(text, "k", 10, most=2)
    assert type(caught.value) is StorageError  # begun anew then
    assert len(str(caught.value)) < 1000


def test_a_known_size_has_one_division_into_parts() -> None:
    sizes = PartSizes(20, 8, 3)
    assert (sizes.size, sizes.count) == (20, 3)
    assert [sizes.length(index) for index in range(4)] == [8, 8, 4, -4]
    assert [sizes.take(*part) for part in ((16, 4), (0, 8), (8, 8), (8, 8))] == [2, 0, 1, 1]
    for part in ((0, 4), (16, 8), (24, 8), (-8, 8), (4, 8), (0, 0), (16, 0)):
        with pytest.raises(ValueError, match="20 bytes in parts of 8"):
            sizes.take(*part)


def test_an_unknown_size_ends_with_the_furthest_part() -> None:
    sizes = PartSizes(None, 8, 3)
    assert (sizes.size, sizes.count) == (0, 0)
    assert sizes.take(8, 8) == 1  # in any order
    assert (sizes.size, sizes.count) == (16, 2)
    for part in ((0, 4), (0, 9), (4, 4), (-8, 8), (8, 0)):
        with pytest.raises(ValueError, match="no part of 16 bytes"):
            sizes.take(*part)
    assert sizes.take(16, 3) == 2
    assert (sizes.size, sizes.count, sizes.length(2)) == (19, 3, 3)
    assert sizes.take(16, 5) == 2  # what was written last counts
    assert sizes.take(0, 8) == 0
    assert sizes.size == 21


def test_nothing_comes_behind_a_short_part() -> None:
    sizes = PartSizes(None, 8, 3)
    sizes.take(0, 3)
    with pytest.raises(ValueError, match="no part of 3 bytes"):
        sizes.take(8, 8)


def test_an_unknown_size_is_bounded_by_the_number_of_parts() -> None:
    sizes = PartSizes(None, 8, 3)
    with pytest.raises(UnsupportedError, match="larger than 3 parts of 8 bytes") as caught:
        sizes.take(24, 1)
    assert "part_size" in caught.value.hint


def test_parts_are_taken_from_many_threads() -> None:
    sizes = PartSizes(None, 8, 1000)
    assert together(100, lambda i: sizes.take(8 * i, 8 if i < 99 else 1)) == [*range(100)]
    assert sizes.size == 99 * 8 + 1


def test_parts_grow_with_the_file() -> None:
    can = Capabilities(part_size=2 * BLOCK_SIZE, max_parts=10)
    assert can.part_size_for(1) == 2 * BLOCK_SIZE
    assert can.part_size_for(None) == 2 * BLOCK_SIZE
    assert can.part_size_for(20 * BLOCK_SIZE) == 2 * BLOCK_SIZE
    assert can.part_size_for(20 * BLOCK_SIZE + 1) == 3 * BLOCK_SIZE
