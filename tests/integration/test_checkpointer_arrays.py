"""Large numpy arrays are stored as tensors and come back as what they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dcp_local import load, save
from tests.integration import checkpointer_cases as cases
from tests.ranks import Ranks
from tierstore.checkpoint.paths import marked, parse_path, plain_path
from tierstore.errors import FormatError, PlanError
from tierstore.ladder.find import choose
from tierstore_torch import Checkpointer, per_rank
from tierstore_torch.state import arrays
from tierstore_torch.state.arrays import array_type

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

COUNT = 5000


def large() -> dict[str, Any]:
    numbers = np.arange(COUNT * 8).reshape(-1, 8)
    read_only = numbers.astype(np.int16)
    read_only.flags.writeable = False
    kinds = ("?", "i1", "u2", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4", "M8[ns]", "m8[s]")
    return {
        **{kind: (numbers % 2).astype(kind) for kind in kinds},
        "text": np.array([["name"] * 8] * COUNT),
        "bytes": np.array([b"name\0x"] * COUNT),
        "fortran": np.asfortranarray(numbers.astype(float)),
        "strided": numbers[::2, ::-1],
        "read-only": read_only,
        "nan": np.full((COUNT, 2), np.nan),
    }


def small() -> dict[str, Any]:
    return {"small": np.arange(7.0), "empty": np.zeros((0, 5)), "scalar": np.float32(3)}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        equal = left.dtype == right.dtype and left.shape == right.shape
        return equal and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(tmp_path.as_uri(), run="run") as made:
        yield made


def manifest_size(checkpointer: Checkpointer) -> int:
    return choose(checkpointer._tiers, "run").commit.manifest_size


def test_arrays_come_back_exactly(checkpointer: Checkpointer) -> None:
    state = {**large(), **small()}
    checkpointer.save(1, state).wait()
    assert manifest_size(checkpointer) < 40_000
    for fill in (None, 0, np.zeros(3), np.zeros(COUNT, "f4")):
        here: dict[str, Any] = dict.fromkeys(state, fill)
        checkpointer.restore(here)
        assert same(here, state)
        assert all(value.flags.writeable for value in here.values() if value.shape)


def test_arrays_inside_of_others(checkpointer: Checkpointer) -> None:
    big = np.arange(COUNT)
    state = {
        "list": [big, big[:3]],
        "tuple": (1, {"x": [big * 2]}),
        "own": per_rank({"buffer": big * 3}),
        "mixed": [torch.ones(3), big * 4],
    }
    checkpointer.save(1, state).wait()
    assert manifest_size(checkpointer) < 20_000
    zeros = np.zeros(COUNT)
    here = {
        "list": [zeros, None],
        "tuple": (0, {"x": [zeros]}),
        "own": per_rank({"buffer": None}),
        "mixed": [torch.zeros(3), None],
    }
    checkpointer.restore(here)
    assert same(here["list"], state["list"])
    assert same(here["tuple"], state["tuple"])
    assert same(here["own"].value, state["own"].value)
    assert same(here["mixed"][1], big * 4)


def test_an_array_that_changes(checkpointer: Checkpointer) -> None:
    steps = [
        np.arange(COUNT),
        np.arange(COUNT) * 2,
        np.arange(COUNT).astype(">i8"),
        np.arange(COUNT).astype("M8[s]"),
        np.arange(COUNT + 1),
        np.arange(3),
        None,
        np.arange(COUNT) * 3.0,
    ]
    for step, array in enumerate(steps):
        checkpointer.save(step, {"a": array, "w": torch.ones(2)}).wait()
        here = {"a": 5, "w": torch.zeros(2)}
        checkpointer.restore(here)
        assert same(here["a"], array), step


def test_later_changes_do_not_leak_into_a_save(checkpointer: Checkpointer) -> None:
    array = np.zeros(COUNT)
    for step in (1, 2):
        array[:] = step
        save_ = checkpointer.save(step, {"a": array})
        array[:] = -1
        save_.wait()
        here = {"a": None}
        checkpointer.restore(here)
        assert np.unique(here["a"]).tolist() == [step]


def test_an_array_and_a_tensor(checkpointer: Checkpointer) -> None:
    checkpointer.save(1, {"array": np.arange(COUNT), "tensor": torch.arange(COUNT)}).wait()
    here = {"array": torch.zeros(COUNT), "tensor": torch.zeros(COUNT)}
    checkpointer.restore(here)
    assert here["array"].tolist() == here["tensor"].tolist() == list(range(COUNT))
    with pytest.raises(PlanError, match=r"a tensor of shape .* was saved, a ndarray is here"):
        checkpointer.restore({"array": None, "tensor": np.zeros(COUNT)})


def test_what_was_stored_as_a_value_stays_readable(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = large()
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "LARGE", 10**9)
        checkpointer.save(1, state).wait()
    assert manifest_size(checkpointer) > 1_000_000
    here: dict[str, Any] = {name: np.zeros(COUNT) for name in state}
    checkpointer.restore(here)
    assert same(here, state)


def test_dcp_stores_and_loads_arrays_so(tmp_path: Path) -> None:
    state = {"n": {**large(), **small()}, "w": torch.ones(3)}
    save(tmp_path.as_uri(), "run/1", state)
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        assert manifest_size(checkpointer) < 40_000
        here: dict[str, Any] = {"n": dict.fromkeys(state["n"]), "w": torch.zeros(3)}
        checkpointer.restore(here)
        assert same(here["n"], state["n"])
        checkpointer.save(2, state).wait()
    for step in (1, 2):
        here = {"n": dict.fromkeys(state["n"]), "w": torch.zeros(3)}
        load(tmp_path.as_uri(), f"run/{step}", here)
        for name in (">f8", ">i4"):  # DCP unpickles values, and NumPy then takes the native order
            here["n"][name] = here["n"][name].astype(name)
        assert same(here["n"], state["n"])


@pytest.mark.parametrize("path", ['["a", {"item": 3}]', '["a"]', '{"dcp": ["a", 0]}', ""])
@pytest.mark.parametrize("dtype", ["<f8", ">M8[25us]", "|S6"])
def test_a_path_tells_an_array(path: str, dtype: str) -> None:
    assert (array_type(path), plain_path(path)) == (None, path)
    there = marked(path, dtype)
    assert (array_type(there), plain_path(there)) == (np.dtype(dtype), path)
    assert parse_path(there) == parse_path(path)


@pytest.mark.parametrize("key", ['{"array": "<f8"}', '", {"array": "<f8"}]', '"array": "<f8"}'])
def test_a_key_that_looks_like_it_is_none(checkpointer: Checkpointer, key: str) -> None:
    checkpointer.save(1, {key: torch.ones(3), "k": {key: np.arange(COUNT)}}).wait()
    here: dict[str, Any] = {key: torch.zeros(3), "k": {key: None}}
    checkpointer.restore(here)
    assert here[key].tolist() == [1] * 3
    assert same(here["k"][key], np.arange(COUNT))


def test_what_is_no_array_of_its_type_is_refused(tmp_path: Path) -> None:
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        checkpointer.save(1, {"a": np.arange(COUNT)}).wait()
        (saved,) = choose(checkpointer._tiers, "run").manifest.tensors([0])
    for dtype in ("f8", "M8[s]", ">i8"):
        with pytest.raises(FormatError, match="is no array of"):
            arrays.new_array(saved, np.dtype(dtype))


def test_ranks_share_arrays_and_must_agree(ranks: Ranks, tmp_path: Path) -> None:
    for equal, differs, own in ranks.run(2, cases.arrays_of_ranks, tmp_path.as_uri()):
        assert equal == "True"
        assert "a: ranks 0 and 1 hold different tensors" in differs
        assert own == "True"
