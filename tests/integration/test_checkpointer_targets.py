"""Memory that is restored into: shared, read-only, or gone; found before anything is changed."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dcp_local import load
from tierstore.errors import PlanError
from tierstore_torch import Checkpointer
from tierstore_torch.state import targets

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

State = dict[str, torch.Tensor]


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(tmp_path.as_uri(), run="run") as made:
        yield made


def tied(*shape: int, dtype: torch.dtype = torch.float32) -> State:
    both = torch.zeros(shape, dtype=dtype)
    return {"embed": both, "head": both}


def view() -> State:
    buffer = torch.zeros(8, 4)
    return {"buffer": buffer, "part": buffer[2:4]}


def transposed() -> State:
    buffer = torch.zeros(4, 4)
    return {"buffer": buffer, "part": buffer.t()}


def columns() -> State:
    buffer = torch.zeros(5, 6)
    return {"buffer": buffer[:, :4], "part": buffer[:, 3:]}


def reinterpreted() -> State:
    buffer = torch.zeros(6, dtype=torch.complex64)
    return {"buffer": buffer, "part": torch.view_as_real(buffer)[:, 1]}


def conjugate() -> State:
    buffer = torch.zeros(6, dtype=torch.complex64)
    return {"buffer": buffer, "part": buffer.conj()}


def expanded() -> State:
    part = torch.zeros(3, 1).expand(3, 5)
    return {"buffer": torch.zeros(2), "part": part}


def windows() -> State:
    return {"buffer": torch.zeros(2), "part": torch.zeros(8).unfold(0, 3, 1)}


SHARED: dict[str, tuple[Callable[[], State], str]] = {
    "a view": (view, "buffer and part share memory"),
    "transposed": (transposed, "buffer and part share memory"),
    "columns": (columns, "buffer and part share memory"),
    "reinterpreted": (reinterpreted, "buffer and part share memory"),
    "conjugate": (conjugate, "buffer and part share memory"),
    "expanded": (expanded, "part: several of its elements are the same memory"),
    "windows": (windows, "part: several of its elements are the same memory"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_targets_that_share_memory_are_named(
    checkpointer: Checkpointer, tmp_path: Path, kind: str
) -> None:
    make, message = SHARED[kind]
    apart = {name: torch.ones_like(tensor).contiguous() for name, tensor in make().items()}
    checkpointer.save(1, apart).wait()
    here = make() | {"other": torch.zeros(1)}
    for restore in (
        lambda: checkpointer.restore(here, strict=False),
        lambda: checkpointer.restore(here, strict=False, allow_older=True),
        lambda: load(tmp_path.as_uri(), "run/1", {name: here[name] for name in apart}),
    ):
        with pytest.raises(PlanError, match=message):
            restore()
        assert not any(tensor.any() for tensor in here.values())


def test_neighbours_in_one_buffer_are_not_shared(checkpointer: Checkpointer) -> None:
    def state() -> State:
        flat, wide = torch.zeros(20), torch.zeros(5, 6, dtype=torch.bfloat16)
        numbers = torch.zeros(7, dtype=torch.complex64)
        return {
            "first": flat[:8],
            "second": flat[8:].view(3, 4),
            "left": wide[:, :2],
            "right": wide[:, 2:],
            "real": numbers.real,
            "imaginary": numbers.imag,
            "even": torch.zeros(9)[::2],
        }

    saved, here = state(), state()
    for number, tensor in enumerate(saved.values()):
        tensor.fill_(number + 1)
    checkpointer.save(1, saved).wait()
    checkpointer.restore(here)
    assert all(torch.equal(here[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_are_restored_if_they_were_tied(
    checkpointer: Checkpointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(targets, "PIECE", 4096)
    saved = tied(100, 30)
    saved["embed"].copy_(torch.randn(100, 30).bfloat16())
    checkpointer.save(1, saved).wait()
    for restore in (checkpointer.restore, lambda state: load(tmp_path.as_uri(), "run/1", state)):
        here = tied(100, 30, dtype=dtype)
        restore(here)
        assert torch.equal(here["embed"].float(), saved["embed"])
        assert here["embed"] is here["head"]


def test_tied_weights_that_were_saved_apart_are_named(
    checkpointer: Checkpointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "PIECE", 4096)
    apart = {"embed": torch.ones(100, 30), "head": torch.ones(100, 30)}
    apart["head"][99, 29] = 2
    checkpointer.save(1, {"embed": torch.ones(100, 30), "head": torch.ones(100, 30)}).wait()
    checkpointer.save(2, apart).wait()
    here = tied(100, 30)
    for restore in (
        lambda: checkpointer.restore(here, allow_older=True),
        lambda: load(tmp_path.as_uri(), "run/2", here),
    ):
        with pytest.raises(PlanError, match="embed and head are the same memory here, but differe"):
            restore()
        assert not here["embed"].any()


def test_a_model_whose_layers_are_tied(checkpointer: Checkpointer) -> None:
    def model() -> torch.nn.ModuleDict:
        made = torch.nn.ModuleDict({"e": torch.nn.Embedding(9, 4), "h": torch.nn.Linear(4, 9)})
        made["h"].weight = made["e"].weight
        return made

    first, second = model(), model()
    checkpointer.save(1, {"model": first, "again": first}).wait()
    checkpointer.restore({"model": second, "again": second})
    assert torch.equal(first["e"].weight, second["e"].weight)
    assert second["h"].weight is second["e"].weight


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["as it is", "converted"])
def test_a_read_only_target_is_named(
    checkpointer: Checkpointer, tmp_path: Path, dtype: torch.dtype
) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(bytes(4096 * 8))
    checkpointer.save(1, {"a": torch.ones(3), "w": torch.ones(1000)}).wait()
    with file.open("rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    array = np.frombuffer(memory, np.float32 if dtype is torch.float32 else np.float64)
    here: dict[str, Any] = {"a": torch.zeros(3), "w": torch.from_numpy(array[:1000])}
    for restore in (
        lambda: checkpointer.restore(here),
        lambda: load(tmp_path.as_uri(), "run/1", here),
    ):
        with pytest.raises(PlanError, match="w: its memory is read-only"):
            restore()
        assert not here["a"].any()


def test_a_target_without_its_memory_is_named(checkpointer: Checkpointer) -> None:
    checkpointer.save(1, {"w": torch.ones(1000)}).wait()
    here = {"w": torch.zeros(1000)}
    here["w"].untyped_storage().resize_(0)
    with pytest.raises(PlanError, match="w: its memory has been freed"):
        checkpointer.restore(here)


class Counter:
    def __init__(self, count: int) -> None:
        self.count = count

    def __repr__(self) -> str:
        return f"Counter({self.count})"

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda n: {"count": n}, "count"),
        (lambda n: [{"count": n}], "0.count"),
        (Counter, "count"),
    ],
    ids=["dict", "list", "object"],
)
def test_one_place_for_two_values(
    checkpointer: Checkpointer, make: Callable[[int], Any], name: str
) -> None:
    for step, (left, right) in enumerate([(1, 1), (1, 2)]):
        checkpointer.save(step, {"a": make(left), "b": {"c": make(right)}}).wait()
    here = make(0)
    with pytest.raises(PlanError, match=rf"a\.{name} and b\.c\.{name} are the same place here"):
        checkpointer.restore({"a": here, "b": {"c": here}})
    assert str(here) == str(make(0))
    checkpointer.restore({"a": here, "b": {"c": here}}, step=0)
    assert str(here) == str(make(1))
