"""Staging for `dcp.async_save`, without a process group."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import staging as dcp_staging
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from tests.patience import PATIENCE
from tierstore.errors import DeadlineError, PlanError, TierstoreError, UnsupportedError
from tierstore_torch import TierStorageReader, TierStorageWriter, cause
from tierstore_torch.dcp.stage import IMAGES, Staging, close_staging
from tierstore_torch.dcp.standin import return_borrowed

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]


@pytest.fixture
def staging() -> Iterator[Staging]:
    made = Staging()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_staging()


def staged(staging: Staging, state: dict[str, Any]) -> dict[str, Any]:
    return staging.stage(state, timeout=0.2, holder="a test")


def shown(stand_in: Any, *offset: int) -> torch.Tensor:
    tensor: torch.Tensor = stand_in.shard(MetadataIndex("x", offset or None))
    return tensor


def test_a_staged_state_has_the_same_shape_and_what_the_tensors_were(staging: Staging) -> None:
    w, odd = torch.arange(6.0).reshape(2, 3), torch.arange(4.0)
    inner: dict[str, Any] = {"b": [torch.ones(2), {"c": torch.zeros(0, 3)}], "list": [1, [2]]}
    state = {"w": w.t(), 3: (odd, 1), "deep": inner, "n": None}
    made = staged(staging, state)
    w.fill_(-1)
    odd.fill_(-1)
    inner["list"][1].append(3)
    assert shown(made["w"]).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert shown(made["deep"]["b"][0]).tolist() == [1, 1]
    assert shown(made["deep"]["b"][1]["c"]).shape == (0, 3)
    assert made["deep"]["list"] == [1, [2]]
    assert made[3][0].tolist() == [0, 1, 2, 3]  # type: ignore[index]
    assert made["n"] is None
    [item] = made["w"].write_items("w")
    assert (item.type, item.tensor_data.size) == (WriteItemType.TENSOR, torch.Size((3, 2)))


def test_a_state_of_the_same_structure_is_staged_into_the_same_views(staging: Staging) -> None:
    first = staged(staging, {"w": torch.zeros(1000)})
    stand_in = first["w"]
    address = shown(stand_in).data_ptr()
    del first
    second = staged(staging, {"w": torch.ones(1000)})
    assert second["w"] is stand_in
    assert shown(stand_in).data_ptr() == address
    del second
    third = staged(staging, {"w": torch.ones(1000, dtype=torch.int32)})
    assert shown(third["w"]).dtype == torch.int32


def test_an_image_is_free_when_the_staged_state_is_let_go_of(staging: Staging) -> None:
    held = [staged(staging, {"w": torch.full((10,), float(i))}) for i in range(IMAGES)]
    assert [shown(state["w"])[0].item() for state in held] == [0, 1]
    late = staged(staging, {"w": torch.ones(10)})
    with pytest.raises(DeadlineError, match=r"no staging image became free within 0\.2 s"):
        late["tierstore"].write_items("tierstore")
    held.pop(0)
    again = staged(staging, {"w": torch.full((10,), 5.0)})
    assert shown(again["w"])[0].item() == 5
    assert shown(held[0]["w"])[0].item() == 1


def test_what_cannot_be_staged_is_raised_when_it_is_planned(staging: Staging) -> None:
    for bad in (torch.eye(2).to_sparse(), torch.ones(2, device="meta")):
        made = staged(staging, {"deep": {"bad": bad}})
        refusal = pickle.loads(pickle.dumps(made["tierstore"]))
        with pytest.raises(PlanError, match=r"deep\.bad"):
            refusal.write_items("tierstore")
    assert shown(staged(staging, {"w": torch.ones(1)})["w"]).tolist() == [1]


def test_another_process_sees_the_image_by_its_path(staging: Staging) -> None:
    made = staged(staging, {"w": torch.arange(1000), "again": torch.ones(3), "v": [1]})
    data = pickle.dumps(made)
    assert len(data) < 2000
    borrowed = pickle.loads(data)
    assert shown(borrowed["w"]).tolist() == list(range(1000))
    assert borrowed["w"]._memory is borrowed["again"]._memory
    return_borrowed()
    del borrowed, made
    gc.collect()
    assert shown(staged(staging, {"w": torch.zeros(1000)})["w"])[5] == 0


def test_memory_that_is_not_shared_cannot_go_to_another_process(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tierstore.image.pool.create_shared", refused)
    made = staged(staging, {"w": torch.ones(3)})
    assert shown(made["w"]).tolist() == [1, 1, 1]
    with pytest.raises(UnsupportedError, match="anonymous staging image"):
        pickle.dumps(made)


def test_views_outlive_the_pool(staging: Staging) -> None:
    made = staged(staging, {"w": torch.arange(10_000)})
    view = shown(made["w"])
    staging.close()
    del made
    gc.collect()
    assert int(view.sum()) == 49_995_000  # the mapping is still there


def test_shards_of_a_checkpointable_tensor_are_staged_each(staging: Staging) -> None:
    tensor: Any = torch.arange(12.0).reshape(6, 2)
    tensor.global_shape = (10, 2)
    tensor.global_offsets = ((0, 0), (6, 0))
    tensor.local_offsets = ((0, 0), (3, 0))
    tensor.local_sizes = ((2, 2), (3, 2))
    made = staged(staging, {"w": tensor})["w"]
    items = made.write_items("w")
    assert [tuple(item.index.offset) for item in items] == [(0, 0), (6, 0)]
    assert {item.type for item in items} == {WriteItemType.SHARD}
    assert {tuple(item.tensor_data.size) for item in items} == {(10, 2)}
    assert shown(made, 6, 0).tolist() == [[6, 7], [8, 9], [10, 11]]


def test_async_save_stages_with_the_writer_and_never_with_another_stager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("DefaultStager took over")

    monkeypatch.setattr(dcp_staging.DefaultStager, "__init__", never)
    state = {"w": torch.arange(5.0), "v": {"x": [1]}}
    writer = TierStorageWriter(tmp_path.as_uri(), checkpoint_id="run/1")
    future: Any = dcp.async_save(state, storage_writer=writer)
    state["w"].zero_()
    state["v"]["x"].append(2)
    assert future.result().storage_data == "000000000001-000001-01"
    fresh = {"w": torch.zeros(5), "v": {"x": None}}
    dcp.load(fresh, storage_reader=TierStorageReader(tmp_path.as_uri(), checkpoint_id="run"))
    assert (fresh["w"].tolist(), fresh["v"]) == ([0, 1, 2, 3, 4], {"x": [1]})
    writer.close()
    writer.close()


def test_tensors_that_someone_else_staged_are_written_too(tmp_path: Path) -> None:
    options = dcp_staging.StagingOptions(False, False, False, False)
    stager = dcp_staging.DefaultStager(options)
    state = {"w": torch.arange(5.0)}
    writer = TierStorageWriter(tmp_path.as_uri(), checkpoint_id="run/1")
    future: Any = dcp.async_save(state, storage_writer=writer, async_stager=stager)
    future.result()
    stager.close()
    fresh = {"w": torch.zeros(5)}
    dcp.load(fresh, storage_reader=TierStorageReader(tmp_path.as_uri(), checkpoint_id="run"))
    assert torch.equal(fresh["w"], torch.arange(5.0))


def test_a_failed_background_save_says_why_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    (tmp_path / "runs").write_text("a file where a folder must be")
    writer = TierStorageWriter(f"{tmp_path.as_uri()}?retry_seconds=0", checkpoint_id="run/1")
    future: Any = dcp.async_save({"w": torch.ones(3)}, storage_writer=writer)
    error = future.exception()
    assert isinstance(cause(error), TierstoreError)
    assert "runs" in str(cause(error))
    for thread in threading.enumerate():
        if thread.name.startswith("AsyncCheckpointExecutor"):
            thread.join(PATIENCE)
    assert threading.active_count() <= before
