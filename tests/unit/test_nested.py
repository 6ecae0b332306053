"""From stored paths back to a state: whoever writes a manifest writes its paths."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import PlanError, TierstoreError
from tierstore_torch.state.flatten import PerRank
from tierstore_torch.state.nested import nested

pytestmark = pytest.mark.torch

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = st.sampled_from(["item", "key", "rank", "dcp", "array", "tuples", "own", "$tuple", "$dict"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=10,
)


@given(entries=st.lists(st.tuples(st.text(max_size=5), JSON.map(json.dumps))), exact=st.booleans())
def test_any_path_is_a_state_or_an_error_of_ours(
    entries: list[tuple[str, str]], *, exact: bool
) -> None:
    with suppress(TierstoreError):
        nested([(name, path, 1) for name, path in entries], exact=exact)


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([("", "[]", 1)], 1),
        ([], {}),
        ([("a.b", "", 1)], {"a.b": 1}),
        ([("a", '["a", {"item": 1}]', 1)], {"a": {1: 1}}),
        ([("x", '[{"item": 0}, {"tuples": [0]}]', 1)], (1,)),
        ([("x", '["a", {"item": 0}, {"tuples": [1]}]', 1)], {"a": (1,)}),
        ([("x", '["a", {"item": 0}, {"tuples": [7], "own": 9}]', 1)], {"a": [1]}),
        ([("rank00002/x", '[{"rank": 2}, "x"]', 1)], {"x": 1}),  # as earlier versions stored it
    ],
    ids=str,
)
def test_what_paths_say_is_so(entries: list[tuple[str, str, Any]], wanted: Any) -> None:
    found = nested(entries, exact=True)
    assert (type(found), found) == (type(wanted), wanted)


@pytest.mark.parametrize(("own", "wanted"), [(0, None), (1, "a"), (2, "b")])
def test_a_ranks_own_begins_where_it_did(own: int, wanted: str | None) -> None:
    found = nested([("x", f'[{{"rank": 1}}, "a", "b", {{"own": {own}}}]', 1)], exact=True)
    if wanted is None:
        assert found == PerRank({"a": {"b": 1}})
    else:
        assert found == {"a": PerRank({"b": 1}) if wanted == "a" else {"b": PerRank(1)}}


@pytest.mark.parametrize(
    "paths", [['["a"]', '["a", "b"]'], ['["a", "b"]', '["a"]'], ["[]", '["a"]']]
)
def test_a_leaf_that_is_a_container_is_refused(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(PlanError):
            nested([(path, path, 1) for path in order], exact=True)
