"""Runs, steps, tiers and faults of `dcp.save` and `dcp.load`, in one process."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager

from tests.dcp_local import committed, load, save
from tests.integration.checkpointer_cases import in_child
from tierstore.config import load_config
from tierstore.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptBlockError,
    IncompleteError,
    InvalidKeyError,
    OutOfSpaceError,
    PlanError,
    UnreachableError,
)
from tierstore.wrappers import open_tier
from tierstore.wrappers.faults import Fault, Faulty
from tierstore_torch import (
    Checkpointer,
    TierStorageReader,
    TierStorageWriter,
)
from tierstore_torch.dcp import ladder as dcp_ladder
from tierstore_torch.dcp import session as dcp_session

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

# runs, steps, lines


def test_the_newest_step_is_loaded_without_a_step_and_a_step_by_its_number(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    for step in (1, 2, 10):
        save(url, f"run/{step}", {"w": torch.full((2,), float(step))})
    for name, value in (("run", 10), ("run/latest", 10), ("run/step-2", 2), ("run/1", 1)):
        fresh = {"w": torch.zeros(2)}
        load(url, name, fresh, resume=False)
        assert fresh["w"].tolist() == [value] * 2
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 3"):
        load(url, "run/3", {"w": torch.zeros(2)})
    with pytest.raises(CheckpointNotFoundError):
        load(url, "other", {"w": torch.zeros(2)})
    assert committed(url, "run") == [10, 2, 1]


def test_after_loading_an_older_step_the_new_line_is_the_latest(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    for step in (50, 200):
        save(url, f"run/{step}", {"w": torch.full((2,), float(step))})
    load(url, "run/50", {"w": torch.zeros(2)})
    save(url, "run/60", {"w": torch.full((2,), 60.0)})
    assert committed(url, "run") == [60, 50]
    fresh = {"w": torch.zeros(2)}
    load(url, "run", fresh)
    assert fresh["w"].tolist() == [60, 60]
    load(url, "run/200", fresh, resume=False)  # the abandoned line is there for who names it
    assert fresh["w"].tolist() == [200, 200]


@pytest.mark.parametrize("again", [False, True])
def test_saves_go_on_from_what_was_loaded_from_one_of_their_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    both = tuple((tmp_path / name).as_uri() for name in ("near", "far"))
    elsewhere = (tmp_path / "elsewhere").as_uri()
    for url in (both, elsewhere):
        for step in (1, 2, 3):
            save(url, f"run/{step}", {"w": torch.full((2,), float(step))})
    if not again:  # another process
        monkeypatch.setattr(dcp_session, "_sessions", {})
        monkeypatch.setattr(dcp_session, "_loaded", {})
    load(both[1], "run/2", {"w": torch.zeros(2)})
    life = TierStorageWriter(*both).__getstate__()["_lives"]["run"]  # what a save process is told
    assert life.parent is not None
    assert life.parent.step == 2
    save(both, "run/4", {"w": torch.full((2,), 4.0)})
    assert committed(both[0], "run") == [4, 2, 1]
    save(elsewhere, "run/4", {"w": torch.full((2,), 4.0)})
    assert committed(elsewhere, "run") == ([4, 3, 2, 1] if again else [4])


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_is_another_life(tmp_path: Path) -> None:
    """It counted its saves as its parent did, so the two wrote the same files."""
    url = tmp_path.as_uri()
    save(url, "run/1", {"w": torch.ones(2)})
    load(url, "run/1", {"w": torch.zeros(2)})
    save(url, "run/2", {"w": torch.ones(2)})

    def child() -> str:
        save(url, "run/3", {"w": torch.full((2,), 3.0)})
        return dcp_session.session_of("run", load_config(url)).life.nonce

    trainer = dcp_session.session_of("run", load_config(url)).life
    assert in_child(child) != trainer.nonce
    assert committed(url, "run") == [3, 1]  # it goes on from what was loaded
    save(url, "run/3", {"w": torch.ones(2)})
    assert dcp_session.session_of("run", load_config(url)).life == trainer


def test_two_saves_of_one_step_are_two_tries_and_the_second_is_loaded(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    for value in (1.0, 2.0):
        save(url, "run/5", {"w": torch.full((2,), value)})
    fresh = {"w": torch.zeros(2)}
    load(url, "run/5", fresh)
    assert fresh["w"].tolist() == [2, 2]
    assert len(list(tmp_path.glob("runs/run/commits/*"))) == 2


def test_dcp_may_name_the_checkpoint_itself(tmp_path: Path) -> None:
    writer = TierStorageWriter(tmp_path.as_uri())
    with pytest.raises(CheckpointException, match="there is no checkpoint_id"):
        dcp.save({"w": torch.ones(2)}, storage_writer=writer)
    for step in (1, 2):
        dcp.save(
            {"w": torch.full((2,), float(step))}, storage_writer=writer, checkpoint_id=f"run/{step}"
        )
    reader = TierStorageReader(tmp_path.as_uri())
    for step in (1, 2):
        fresh = {"w": torch.zeros(2)}
        dcp.load(fresh, storage_reader=reader, checkpoint_id=f"run/step-{step}")
        assert fresh["w"].tolist() == [step] * 2
    with pytest.raises(InvalidKeyError):
        dcp.save({"w": torch.ones(2)}, storage_writer=writer, checkpoint_id="run")
    with pytest.raises(InvalidKeyError):
        TierStorageWriter(tmp_path.as_uri(), checkpoint_id="/abs/run/1")
    with pytest.raises(ConfigError):
        TierStorageWriter("nothing://x", checkpoint_id="run/1")
    named = TierStorageWriter(tmp_path.as_uri(), run="other")
    dcp.save({"w": torch.ones(1)}, storage_writer=named, checkpoint_id=tmp_path / "step-9")
    assert committed(tmp_path.as_uri(), "other") == [9]
    assert TierStorageWriter.validate_checkpoint_id("run/1")
    assert not TierStorageWriter.validate_checkpoint_id("run")
    assert TierStorageReader.validate_checkpoint_id("run")
    assert not TierStorageReader.validate_checkpoint_id("a/b/c")


def test_what_checkpointer_wrote_dcp_reads_and_the_other_way_round(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
                "lrs": [1, 2.5], "empty": {}}  # fmt: skip

    def zeros() -> dict[str, Any]:
        fresh: dict[str, Any] = {"step": 0, "lrs": None, "empty": {}}
        fresh["model"] = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
        optim = optimizer.state_dict()
        fresh["optimizer"] = {
            "state": {
                i: {k: torch.zeros_like(v) for k, v in s.items()} for i, s in optim["state"].items()
            },
            "param_groups": [dict.fromkeys(group) for group in optim["param_groups"]],
        }
        return fresh

    with Checkpointer(url, run="a") as ckpt:
        ckpt.save(7, state()).wait()
    fresh = zeros()
    del fresh["empty"]
    load(url, "a/7", fresh)
    _same(fresh, state())
    save(url, "b/7", state())
    fresh = zeros()
    with Checkpointer(url, run="b") as ckpt:
        assert ckpt.restore(fresh) == 7
    _same(fresh, state())


def _same(left: Any, right: Any) -> None:
    if isinstance(right, dict):
        for key in right:
            if right[key] != {}:
                _same(left[key], right[key])
    elif isinstance(right, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(right, list) and right and isinstance(right[0], dict):
        for one, two in zip(left, right, strict=True):
            _same(one, two)
    else:
        assert left == right


# tiers and faults


def faulty(monkeypatch: pytest.MonkeyPatch, name: str, *faults: Fault) -> list[Faulty]:
    made: list[Faulty] = []

    def opened(tier: Any) -> Any:
        backend = open_tier(tier)
        if tier.name != name:
            return backend
        made.append(Faulty(backend, *faults))
        return made[-1]

    monkeypatch.setattr(dcp_ladder, "open_tier", opened)
    return made


def test_every_tier_has_the_checkpoint_and_a_damaged_block_comes_from_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = ((tmp_path / "one").as_uri(), (tmp_path / "two").as_uri())
    state = {"w": torch.randn(1000), "v": 1}
    save(urls, "run/1", state)
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
             for root in (tmp_path / "one", tmp_path / "two")]  # fmt: skip
    assert files[0] == files[1]
    [segment] = (tmp_path / "one").rglob("*.safetensors")
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)
    fresh = {"w": torch.zeros(1000), "v": 0}
    reader = load(urls, "run/1", fresh)
    assert torch.equal(fresh["w"], state["w"])
    assert [damage.tier for damage in reader.report.damaged] == ["local"]
    with pytest.raises(CorruptBlockError, match="block 0 is damaged on every tier"):
        load(urls[0], "run/1", {"w": torch.zeros(1000), "v": 0})


@pytest.mark.parametrize("tier", ["local", "local2"])
@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("write", "safetensors"),
        ("create", "fragments"),
        ("create", "commits"),
        ("create", "launches"),
        ("create", "manifest"),
    ],
)
def test_a_tier_that_refuses_is_an_error_and_never_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str, operation: str, key: str
) -> None:
    urls = ((tmp_path / "one").as_uri(), (tmp_path / "two").as_uri())
    broken = tmp_path / ("one" if tier == "local" else "two")
    faulty(monkeypatch, tier, Fault(operation, key=key, times=99, error=OutOfSpaceError("full")))
    with pytest.raises(OutOfSpaceError, match="full"):
        save(urls, "run/1", {"w": torch.ones(3)})
    assert list(broken.glob("runs/run/commits/*")) == []
    monkeypatch.undo()
    save(urls, "run/1", {"w": torch.ones(3)})  # the next try succeeds
    fresh = {"w": torch.zeros(3)}
    load(broken.as_uri(), "run/1", fresh)
    assert fresh["w"].tolist() == [1, 1, 1]


def test_dcp_s_results_are_held_against_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TierStorageWriter.write_data

    def forgetful(self: Any, plan: Any, planner: SavePlanner) -> Any:
        future = write(self, plan, planner)
        done: Any = torch.futures.Future()
        done.set_result(future.value()[:-1])
        return done

    monkeypatch.setattr(TierStorageWriter, "write_data", forgetful)
    with pytest.raises(IncompleteError, match="1 of 3 planned items were not written"):
        save(tmp_path.as_uri(), "run/1", {"a": torch.ones(1), "b": torch.ones(1), "c": 1})
    assert list(tmp_path.glob("runs/run/commits/*")) == []


def test_an_item_that_a_planner_drops_is_noticed(tmp_path: Path) -> None:
    class Dropping(DefaultSavePlanner):
        def finish_plan(self, new_plan: Any) -> Any:
            plan = super().finish_plan(new_plan)
            del plan.items[0]
            return plan

    with pytest.raises(IncompleteError, match="planned items were not written"):
        save(
            tmp_path.as_uri(), "run/1", {"a": torch.ones(1), "b": torch.ones(1)}, planner=Dropping()
        )
    assert committed(tmp_path.as_uri(), "run") == []  # nor does a reader commit it


def test_an_unreachable_tier_is_named_by_its_error_when_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path.as_uri(), "run/1", {"w": torch.ones(3)})
    faulty(monkeypatch, "local", Fault("list", times=99, error=UnreachableError("no route")))
    with pytest.raises(UnreachableError, match="no route"):
        load(tmp_path.as_uri(), "run/1", {"w": torch.zeros(3)})


def test_with_plan_caching_every_step_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    _forget_plans()
    try:
        for step in (1, 2, 3):
            planner = DefaultSavePlanner(enable_plan_caching=True)
            save(
                url, f"run/{step}", {"w": torch.full((4,), float(step)), "v": step}, planner=planner
            )
        assert committed(url, "run") == [3, 2, 1]
        for step in (1, 2, 3):
            fresh = {"w": torch.zeros(4), "v": 0}
            load(url, f"run/{step}", fresh, resume=False)
            assert (fresh["w"].tolist(), fresh["v"]) == ([step] * 4, step)
        for plan in SavePlanner._cached_final_save_plan.values():
            assert plan.storage_data is None
        planner = DefaultSavePlanner(enable_plan_caching=True)
        with pytest.raises(PlanError, match="plan caching does not notice a new dtype"):
            save(url, "run/4", {"w": torch.ones(4).double(), "v": 4}, planner=planner)
    finally:
        _forget_plans()


def _forget_plans() -> None:
    for cache in ("save_plan", "final_save_plan", "all_plans", "global_plan", "metadata"):
        getattr(SavePlanner, f"_cached_{cache}").clear()


# the shape of the interface


def test_the_writer_stages_itself_so_that_default_stager_never_takes_over() -> None:
    writer = TierStorageWriter("memory://interface", checkpoint_id="run/1")
    assert isinstance(writer, AsyncStager)
    assert writer.should_synchronize_after_execute is False
    for name in ("stage", "synchronize_staging", "close"):
        assert name in vars(TierStorageWriter)


def test_dcp_finds_parameters_by_their_literal_names() -> None:
    import inspect

    assert "kwargs" in inspect.signature(TierStorageWriter.set_up_storage_writer).parameters
    # With it DCP would fall back to one file per rank when metadata cannot be read.
    assert "kwargs" not in inspect.signature(TierStorageReader.read_metadata).parameters


def test_a_writer_pickles_as_its_configuration_and_life(tmp_path: Path) -> None:
    import pickle

    url = tmp_path.as_uri()
    writer = TierStorageWriter(url, checkpoint_id="run/1")
    dcp.save({"w": torch.ones(1)}, storage_writer=writer)
    data = pickle.dumps(writer)
    assert len(data) < 2000
    again = pickle.loads(data)
    nonce = dcp_session.session_of("run", load_config(url)).life.nonce
    assert again._lives["run"].nonce == nonce
    dcp.save({"w": torch.ones(1)}, storage_writer=again, checkpoint_id="run/2")
    assert len(list(tmp_path.glob("runs/run/launches/*"))) == 1


def test_saves_and_loads_leave_no_threads_and_no_files_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def once(step: int) -> None:
        save(tmp_path.as_uri(), f"run/{step}", {"w": torch.ones(1000)})
        load(tmp_path.as_uri(), "run", {"w": torch.zeros(1000)})

    once(1)
    before = descriptors(), threading.active_count()
    for step in range(2, 8):
        once(step)
    assert (descriptors(), threading.active_count()) == before


def test_metadata_that_dcp_returns_says_what_was_saved(tmp_path: Path) -> None:
    metadata = save(tmp_path.as_uri(), "run/1", OrderedDict(w=torch.ones(3), v=1))
    assert set(metadata.state_dict_metadata) == {"w", "v"}
    assert metadata.storage_meta is not None
    assert metadata.storage_meta.checkpoint_id == "run/1"
    assert metadata.storage_data == "000000000001-000001-01"
    assert MetadataIndex("w", (0,)) == MetadataIndex("w", torch.Size([0]))
    record = json.loads(next(tmp_path.glob("runs/run/commits/*")).read_bytes())
    assert (record["tensors"], record["ranks"]) == (1, [0])
