"""What `dcp.save` stores and `dcp.load` brings back, in one process."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from tests.dcp_local import committed, load, save
from tierstore.errors import (
    PlanError,
    UnsafePickleError,
)
from tierstore_torch import (
    TierStorageReader,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

DTYPES = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2",
]  # fmt: skip
"""All that DCP's own planner takes: it cannot tell the size of bits8, int4 and their kin."""
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.dtype.itemsize])


def random_of(dtype: str, *shape: int) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if tensor.numel():
        raw = tensor.view(-1).view(torch.uint8)
        top = 2 if dtype == "bool" else 256
        numbers = np.random.default_rng(len(dtype)).integers(0, top, raw.numel())
        raw.copy_(torch.from_numpy(numbers.astype(np.uint8)))
    return tensor


# what is stored


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    state = {
        "matrix": random_of(dtype, 5, 6),
        "scalar": random_of(dtype),
        "empty": random_of(dtype, 0, 3),
        "transposed": random_of(dtype, 4, 7).t(),
        "strided": random_of(dtype, 9, 8)[::2, 1:5],
    }
    before = {name: bits(tensor).clone() for name, tensor in state.items()}
    save(tmp_path.as_uri(), "run/1", state)
    fresh = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    load(tmp_path.as_uri(), "run/1", fresh)
    for name, tensor in fresh.items():
        assert torch.equal(bits(tensor), before[name]), name


def test_conjugate_and_negative_views_are_stored_as_what_they_show(tmp_path: Path) -> None:
    base = torch.randn(6, dtype=torch.complex64)
    state = {
        "conj": base.conj(),
        "neg": base.conj().imag,
        "grad": torch.ones(3, requires_grad=True),
    }
    save(tmp_path.as_uri(), "run/1", state)
    fresh = {"conj": torch.zeros(6, dtype=torch.complex64), "neg": torch.zeros(6),
             "grad": torch.zeros(3, requires_grad=True)}  # fmt: skip
    load(tmp_path.as_uri(), "run/1", fresh)
    assert torch.equal(fresh["conj"], base.conj().resolve_conj())
    assert torch.equal(fresh["neg"], base.conj().imag.resolve_neg())
    assert fresh["grad"].requires_grad
    assert fresh["grad"].tolist() == [1, 1, 1]


def test_segments_are_safetensors_files_and_large_tensors_may_exceed_one(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.randn(50, 40) for i in range(9)} | {"big": torch.randn(9000)}
    save(tmp_path.as_uri(), "run/1", state, segment_bytes=20_000)
    files = sorted(tmp_path.glob("runs/run/data/*/*.safetensors"))
    assert len(files) > 4
    seen = {}
    for file in files:
        with safe_open(file, "pt") as segment:
            seen.update({name: segment.get_tensor(name) for name in segment.keys()})  # noqa: SIM118
    assert seen.keys() == state.keys()
    assert all(torch.equal(seen[name], state[name]) for name in state)


PLAIN = {
    "none": None, "flag": True, "int": -(2**70), "nan": math.nan, "inf": -math.inf, "text": "x",
    "bytes": b"\0\xff", "tuple": (1, (2.5, "x")), "set": {1, 2}, "int keys": [{1: "a", None: 2}],
    "array": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.float64(0.1),
    "dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([2, 3]),
    "list": [1, "two", [3.0]], "complex": 1 - 2j,
}  # fmt: skip


def test_plain_values_keep_their_type_and_are_stored_without_pickle(tmp_path: Path) -> None:
    save(tmp_path.as_uri(), "run/1", {"values": PLAIN, "w": torch.ones(2)})
    fresh: dict[str, Any] = {"values": dict.fromkeys(PLAIN), "w": torch.zeros(2)}
    fresh["values"]["int keys"] = [{1: 0, None: 0}]
    load(tmp_path.as_uri(), "run/1", fresh)  # pickles are not allowed
    values = fresh["values"]
    assert math.isnan(values.pop("nan"))
    assert np.array_equal(values.pop("array"), PLAIN["array"])
    assert values.pop("int keys")[0]["1"] == "a"  # the loss is DCP's: its keys are strings
    expected = {k: v for k, v in PLAIN.items() if k not in ("nan", "array", "int keys")}
    assert values == expected
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in expected.items()}


class Odd:
    """Unpickling it is noticed."""

    loaded = 0

    def __setstate__(self, state: Any) -> None:
        Odd.loaded += 1


def test_a_pickle_is_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    odd = Odd()
    odd.attribute = 1  # type: ignore[attr-defined]
    save(url, "run/1", {"w": torch.ones(3), "deep": {"odd": odd}, "fine": 1})
    Odd.loaded = 0
    fresh: dict[str, Any] = {"w": torch.zeros(3), "deep": {"odd": None}, "fine": 0}
    with pytest.raises(UnsafePickleError, match=r"^deep\.odd is stored as a pickle"):
        load(url, "run/1", fresh)
    assert Odd.loaded == 0
    assert fresh["w"].tolist() == [0, 0, 0]
    load(url, "run/1", {"w": fresh["w"], "fine": 0})  # what is not asked for does no harm
    load(url, "run/1", fresh, allow_pickle=True)
    assert isinstance(fresh["deep"]["odd"], Odd)
    assert Odd.loaded > 0


def test_tensors_in_tuples_are_pickled_by_dcp_and_treated_as_pickles(tmp_path: Path) -> None:
    save(tmp_path.as_uri(), "run/1", {"pair": (torch.ones(2), 1)})
    with pytest.raises(UnsafePickleError, match="pair"):
        load(tmp_path.as_uri(), "run/1", {"pair": None})


def test_a_planner_that_transforms_is_obeyed_on_both_sides(tmp_path: Path) -> None:
    class Doubling(DefaultSavePlanner):
        def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002
            if write_item.type == WriteItemType.BYTE_IO:
                return io.BytesIO(b"as the planner likes")
            return object * 2

    class Halving(DefaultLoadPlanner):
        committed: ClassVar[list[str]] = []

        def transform_tensor(self, read_item: Any, tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(tensor)

        def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
            self.lookup_tensor(read_item.dest_index).copy_(tensor / 2)
            self.committed.append(read_item.dest_index.fqn)

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()

    url = tmp_path.as_uri()
    save(url, "run/1", {"w": torch.arange(6.0), "v": 3}, planner=Doubling())
    fresh = {"w": torch.zeros(6), "v": None}
    load(url, "run/1", fresh, planner=Halving(), allow_pickle=True)
    assert fresh["w"].tolist() == list(range(6))
    assert fresh["v"] == b"as the planner likes"
    assert Halving.committed == ["w"]


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse")
def test_a_tensor_without_plain_bytes_is_an_error_by_name(tmp_path: Path, kind: str) -> None:
    said = r"^odd: a (Tensor of layout|.* dtype 'qint8'|meta tensor)"
    with pytest.raises(PlanError, match=said):
        save(tmp_path.as_uri(), "run/1", {"odd": ODD[kind](), "w": torch.ones(2)})
    assert committed(tmp_path.as_uri(), "run") == []


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_target_without_plain_memory_is_an_error_by_name(tmp_path: Path) -> None:
    save(tmp_path.as_uri(), "run/1", {"odd": torch.ones(3, 3)})
    with pytest.raises(PlanError, match=r"^odd: a Tensor of layout torch.sparse_coo has"):
        load(tmp_path.as_uri(), "run/1", {"odd": ODD["sparse"]()})


# what is loaded


def test_numbers_are_converted_into_the_destination_s_dtype(tmp_path: Path) -> None:
    save(tmp_path.as_uri(), "run/1", {"w": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)})
    fresh = {"w": torch.zeros(3, 2).t()}
    load(tmp_path.as_uri(), "run/1", fresh)
    assert fresh["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_part_of_a_checkpoint_loads_and_a_missing_key_is_an_error_by_name(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    save(url, "run/1", {"a": torch.ones(3), "b": {"c": torch.ones(2), "d": 4}})
    fresh: dict[str, Any] = {"b": {"d": 0}}
    load(url, "run/1", fresh)
    assert fresh == {"b": {"d": 4}}
    with pytest.raises(RuntimeError, match=r"Missing key in checkpoint state_dict: x\."):
        load(url, "run/1", {"x": torch.ones(1)})
    fresh = {"a": torch.zeros(3), "x": torch.full((1,), 7.0)}
    load(url, "run/1", fresh, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert (fresh["a"].tolist(), fresh["x"].tolist()) == ([1, 1, 1], [7])
    with pytest.raises(ValueError, match="Size mismatch"):
        load(url, "run/1", {"a": torch.ones(4)})


def test_a_state_dict_is_rebuilt_from_the_metadata_alone(tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(3)}, "optim": {"state": {0: {"m": torch.randn(2)}}},
             "list": [torch.ones(1), {"x": 5}], "a.b": "dot"}  # fmt: skip
    save(tmp_path.as_uri(), "run/1", state)
    with pytest.warns(UserWarning, match="uninitialized"):
        rebuilt = _load_state_dict_from_keys(
            storage_reader=TierStorageReader(tmp_path.as_uri(), checkpoint_id="run")
        )
    assert torch.equal(rebuilt["model"]["w"], state["model"]["w"])
    assert torch.equal(rebuilt["optim"]["state"]["0"]["m"], state["optim"]["state"][0]["m"])
    assert (rebuilt["list"][1], rebuilt["a.b"]) == ({"x": 5}, "dot")


def test_a_slice_reads_the_blocks_that_hold_it_and_no_others(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    save(url, "run/1", {"w": torch.arange(8 * 2**20, dtype=torch.int32).reshape(8192, 1024),
                        "other": torch.zeros(2**20)})  # fmt: skip

    class Slice(DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            [item] = plan.items
            from dataclasses import replace

            plan.items = [
                replace(
                    item, storage_offsets=torch.Size([4000, 0]), lengths=torch.Size([512, 1024])
                )
            ]
            return plan

        def resolve_tensor(self, read_item: Any) -> torch.Tensor:
            return self.state_dict["w"][: read_item.lengths[0]]  # type: ignore[no-any-return]

    fresh = {"w": torch.zeros(8192, 1024, dtype=torch.int32)}
    reader = load(url, "run/1", fresh, planner=Slice())
    assert fresh["w"][0, 0] == 4000 * 1024
    assert fresh["w"][511, 1023] == 4512 * 1024 - 1
    assert reader.report.bytes_wanted == 512 * 4096
    assert reader.report.bytes_read <= 8 * 2**20  # two blocks
