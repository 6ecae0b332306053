"""`Checkpointer.load`, `steps` and `delete`: what was saved comes back without a template."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tierstore
from tests.damage import flip_last_byte
from tests.dcp_local import save
from tests.integration import load_cases as cases
from tests.ranks import Ranks
from tests.states import differences, random, training
from tierstore.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptBlockError,
    PlanError,
    UnsafePickleError,
)
from tierstore_torch import Checkpointer, PerRank, per_rank

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return tmp_path.as_uri()


@pytest.fixture
def ckpt(url: str) -> Iterator[Checkpointer]:
    with Checkpointer(url, run="r") as made:
        yield made


def trip(ckpt: Checkpointer, state: Any) -> Any:
    ckpt.save(1, state).wait()
    return ckpt.load()


# What comes back


def test_a_training_state_comes_back_as_it_was(ckpt: Checkpointer) -> None:
    state = training()
    loaded = trip(ckpt, state)
    assert list(differences(state, loaded)) == []
    tensors = loaded["model"].values()
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors)
    assert loaded["model"]["base"].data_ptr() != loaded["model"]["tied"].data_ptr()


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.ones(1), "1": torch.zeros(1), (1, "a"): 3, None: 4, 2.5: [1], b"k": ()},
        {"t": (torch.ones(1), 2, (torch.ones(2), [torch.ones(3), {}]))},
        {"deep": [({"x": (torch.ones(1),)},)], "a.b": torch.ones(1), "a": {"b": 2}},
        {"empty": {}, "list": [], "tuple": (), "inner": {"x": {}}, "none": None},
        {"own": per_rank(3), "part": {"own": per_rank((torch.ones(1), {"a": 1}))}},
        [torch.ones(1), {"a": 1}],
        torch.arange(6).reshape(2, 3),
        [1, 2, 3],
        {},
    ],
    ids=["keys", "tuples", "deep", "empty", "own", "list", "tensor", "values", "nothing"],
)
def test_structure_comes_back_exactly(ckpt: Checkpointer, state: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, PerRank):
            return {"own": plain(value.value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value

    loaded = trip(ckpt, state)
    assert list(differences(plain(state), plain(loaded))) == []


def test_integer_keys_come_in_their_order(ckpt: Checkpointer) -> None:
    state = {number: torch.ones(1) for number in range(12)}
    assert list(trip(ckpt, {"state": state})["state"]) == list(range(12))


@pytest.mark.filterwarnings("ignore:(ComplexHalf|BComplex32) support is experimental")
@pytest.mark.parametrize("dtype", ["int4", "uint3", "bits8", "bits16", "complex32", "uint64"])
def test_every_dtype_comes_back(ckpt: Checkpointer, dtype: str) -> None:
    state = {"x": random("uint8", 3, 16).view(getattr(torch, dtype))}
    assert list(differences(state, trip(ckpt, state))) == []


@pytest.mark.parametrize("dtype", ["f8", ">i4", "M8[s]", "U3", "bool"])
def test_arrays_come_back_as_arrays(ckpt: Checkpointer, dtype: str) -> None:
    large, small = np.arange(20_000).astype(dtype), np.arange(3).astype(dtype)
    loaded = trip(ckpt, {"large": large, "in": (large, small)})
    for found, wanted in (
        (loaded["large"], large),
        *zip(loaded["in"], (large, small), strict=True),
    ):
        assert (type(found), found.dtype) == (np.ndarray, wanted.dtype)
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.writeable
    assert type(loaded["in"]) is tuple


def test_objects_come_back_as_their_state(ckpt: Checkpointer) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 1}])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler.step()
    loaded = trip(ckpt, {"m": model, "o": optimizer, "s": scheduler})
    wanted = {"m": dict(model.state_dict()), "o": optimizer.state_dict()}
    assert list(differences(wanted, {"m": loaded["m"], "o": loaded["o"]})) == []
    fresh = nn.Linear(3, 2)
    other = torch.optim.AdamW([{"params": [fresh.weight]}, {"params": [fresh.bias]}])
    fresh.load_state_dict(loaded["m"])
    other.load_state_dict(loaded["o"])
    assert list(differences(optimizer.state_dict(), other.state_dict())) == []
    torch.optim.lr_scheduler.StepLR(other, 2).load_state_dict(loaded["s"])


def test_what_dcp_saved_comes_back_with_its_keys_as_text(ckpt: Checkpointer, url: str) -> None:
    state = {"m": {"w": torch.ones(2)}, "o": {"state": {0: {"x": torch.ones(1)}}, "n": [1, 2]}}
    save(url, "r/7", {**state, "list": [{"a": torch.ones(3)}, {"b": 4}]})
    wanted = {**state, "list": [{"a": torch.ones(3)}, {"b": 4}]}
    wanted["o"] = {"state": {"0": {"x": torch.ones(1)}}, "n": [1, 2]}
    assert list(differences(wanted, ckpt.load())) == []


def test_subclasses_come_back_as_their_base(ckpt: Checkpointer) -> None:
    loaded = trip(ckpt, {"o": OrderedDict(b=torch.ones(1)), "s": torch.Size([2])})
    assert (type(loaded["o"]), type(loaded["s"])) == (dict, torch.Size)


def test_map_location_is_a_device(ckpt: Checkpointer) -> None:
    ckpt.save(1, {"w": torch.ones(2)}).wait()
    for device in ("cpu", torch.device("cpu"), None):
        assert ckpt.load(map_location=device)["w"].device.type == "cpu"
    for wrong in ("meta", "nonsense", "cuda:99", 3.5):
        with pytest.raises(PlanError, match="map_location is"):
            ckpt.load(map_location=wrong)  # type: ignore[arg-type]


def test_pickles_need_leave(url: str) -> None:
    state = {"x": {"odd": range(3)}}
    with Checkpointer(url, run="r") as ckpt:
        ckpt.save(1, state).wait()
        with pytest.raises(UnsafePickleError, match=r"x\.odd is stored as a pickle"):
            ckpt.load()
    with Checkpointer(url, run="r", allow_pickle=True) as ckpt:
        assert ckpt.load() == state


def test_it_loads_in_inference_mode_for_training(ckpt: Checkpointer) -> None:
    ckpt.save(1, {"w": torch.ones(2)}).wait()
    with torch.inference_mode():
        loaded = ckpt.load()
    assert not loaded["w"].is_inference()


# Which checkpoint


def test_a_step_or_the_newest(ckpt: Checkpointer) -> None:
    with pytest.raises(CheckpointNotFoundError, match="run 'r' has no checkpoint"):
        ckpt.load()
    for step in (1, 2, 3):
        ckpt.save(step, {"step": step}).wait()
    assert ckpt.load(2, resume=False) == {"step": 2}
    ckpt.save(4, {"step": 4}).wait()
    assert ckpt.load() == {"step": 4}
    with pytest.raises(CheckpointNotFoundError):
        ckpt.load(7)


@pytest.mark.parametrize("resume", [True, False])
def test_a_save_goes_on_from_what_was_loaded(ckpt: Checkpointer, *, resume: bool) -> None:
    for step in (1, 2):
        ckpt.save(step, {"step": step}).wait()
    ckpt.load(1, resume=resume)
    ckpt.save(3, {"step": 3}).wait()
    rows = [(row.step, row.launch, row.line) for row in ckpt.steps(everything=True)]
    if resume:
        assert rows == [(3, 2, "latest"), (1, 1, "timeline"), (2, 1, "abandoned")]
    else:
        assert rows == [(3, 1, "latest"), (2, 1, "timeline"), (1, 1, "timeline")]


def test_what_is_damaged_is_passed_over_if_allowed(ckpt: Checkpointer, tmp_path: Path) -> None:
    for step in (1, 2):
        ckpt.save(step, {"w": torch.full((2000,), step), "step": step}).wait()
    flip_last_byte(tmp_path, 2, run="r")
    with pytest.raises(CorruptBlockError):
        ckpt.load()
    assert ckpt.load(allow_older=True)["step"] == 1


# A tuple in the place of a list


@pytest.mark.parametrize(("saved", "here"), [(tuple, list), (list, tuple), (tuple, tuple)])
def test_a_state_may_have_a_list_for_a_tuple(ckpt: Checkpointer, saved: Any, here: Any) -> None:
    ckpt.save(1, {"x": saved([torch.ones(2), 5])}).wait()
    state = {"x": here([torch.zeros(2), 0])}
    assert ckpt.restore(state) == 1
    assert (type(state["x"]), state["x"][1]) == (here, 5)
    assert torch.equal(state["x"][0], torch.ones(2))


# Listing and deleting


def test_steps_are_rows_as_the_door_has_them(ckpt: Checkpointer, url: str) -> None:
    assert ckpt.steps() == []
    ckpt.save(1, {"w": torch.ones(2)}).wait()
    with tierstore.open(url) as store:
        assert ckpt.steps() == store["r"].steps()


def test_what_is_being_saved_is_not_deleted(tmp_path: Path) -> None:
    slow = f"{(tmp_path / 'slow').as_uri()}?write_bandwidth=1000000"
    with Checkpointer((tmp_path / "fast").as_uri(), slow, run="r") as ckpt:
        save = ckpt.save(1, {"w": torch.ones(1_000_000)})
        save.wait("local")
        with pytest.raises(CheckpointError, match="step 1 of run 'r' is still being saved"):
            ckpt.delete(1, grace=0)
        save.wait()
        ckpt.delete(1, grace=0)
        assert ckpt.steps() == []


def test_a_grace_is_shorter_than_the_deadline(ckpt: Checkpointer) -> None:
    for grace in (-1, 600, float("nan")):
        with pytest.raises(ConfigError, match="grace"):
            ckpt.delete(1, grace=grace)
    with pytest.raises(CheckpointNotFoundError):
        ckpt.delete(1)
    ckpt.close()
    for use in (ckpt.load, ckpt.steps, lambda: ckpt.delete(1)):
        with pytest.raises(CheckpointError, match="closed"):
            use()


# Several ranks


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_optimizer_of_a_distributed_job_comes_back(ranks: Ranks, url: str, kind: str) -> None:
    assert ranks.run(2, cases.save_trained, url, kind) == [[], []]
    assert ranks.run(1, cases.load_and_train_on, url) == [[]]
    assert ranks.run(3, cases.load_and_train_on, url) == [[], [], []]


def test_a_rank_gets_its_own_at_any_world_size(ranks: Ranks, url: str) -> None:
    ranks.run(2, cases.save_own, url)
    assert ranks.run(2, cases.load_own, url) == [({"r": 0}, []), ({"r": 1}, [])]
    (own, texts), *_ = ranks.run(1, cases.load_own, url)
    assert own == {"r": 0}
    assert "of ranks that are not here: rank00001/own.r" in texts[0]
    *_, (own, texts) = ranks.run(3, cases.load_own, url)
    assert own is None
    assert "rank 2 gets nothing of its own" in texts[0]


def test_ranks_may_differ_in_lists_and_tuples(ranks: Ranks, url: str) -> None:
    for sharded, value, replica in ranks.run(2, cases.save_lists_and_tuples, url):
        assert torch.equal(sharded, torch.arange(6.0))
        assert (value, replica.tolist()) == (3, [1.0, 1.0])


def test_ranks_fail_and_fall_back_together(ranks: Ranks, tmp_path: Path, url: str) -> None:
    with Checkpointer(url, run="r") as ckpt:
        for step in (1, 2):
            ckpt.save(step, {"w": torch.full((2000,), step), "step": step}).wait()
    flip_last_byte(tmp_path, 2, run="r")
    for failed, older in ranks.run(2, cases.load_damaged, url):
        assert failed.startswith("CorruptBlockError")
        assert older == "1"


def test_all_ranks_see_and_delete_the_same(ranks: Ranks, url: str) -> None:
    for seen in ranks.run(2, cases.list_and_delete, url):
        assert seen == [[3, 2, 1], [3, 1], "CheckpointNotFoundError", 1]


def test_each_node_deletes_from_its_own_disk(ranks: Ranks, tmp_path: Path) -> None:
    for steps, left in ranks.run(2, cases.delete_on_each_nodes_disk, str(tmp_path)):
        assert steps == ["2"]
        assert left == [f"{2:012d}"]
