"""`Checkpointer` in one process: what is saved comes back, and what cannot is refused."""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.damage import flip_last_byte
from tests.ranks import resources
from tierstore.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptBlockError,
    InvalidKeyError,
    PlanError,
    TierstoreError,
    UnsafePickleError,
)
from tierstore_torch import Checkpointer, per_rank

pytestmark = pytest.mark.torch

ALL_DTYPES = sorted(
    {
        value
        for name in dir(torch)
        if isinstance(value := getattr(torch, name), torch.dtype)
        and not str(value).startswith(("torch.q", "torch.bcomplex32"))
    },
    key=str,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "tier").as_uri()


@pytest.fixture
def checkpointer(url: str) -> Iterator[Checkpointer]:
    with Checkpointer(url, run="run", segment_bytes=1024**2) as made:
        yield made


def random_bytes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bit pattern, NaNs included, so only bytes can be compared."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def raw(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(checkpointer: Checkpointer, dtype: torch.dtype) -> None:
    def state() -> dict[str, torch.Tensor]:
        shapes = {"matrix": (3, 5), "vector": (700,), "empty": (0, 4)}
        made = {name: random_bytes(dtype, *shape) for name, shape in shapes.items()}
        return {**made, "scalar": random_bytes(dtype, 1)[0]}

    saved, here = state(), state()
    checkpointer.save(1, saved).wait()
    assert checkpointer.restore(here) == 1
    assert {n: raw(t) for n, t in here.items()} == {n: raw(t) for n, t in saved.items()}


def test_strides_views_and_aliases(checkpointer: Checkpointer) -> None:
    base = torch.randn(6, 8)
    numbers = torch.randn(4, 4, dtype=torch.complex64)
    saved = {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "conjugate": numbers.conj(),
        "negative": numbers.conj().imag,
        "expanded": torch.randn(1, 3).expand(4, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "tied": base,
        "tied again": base,
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    checkpointer.save(1, saved).wait()
    here = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in saved.items()}
    here["transposed"] = torch.zeros(6, 8).t()  # filled through its strides
    here["strided"] = torch.zeros(6, 8)[::2, 1::3]
    here["conjugate"] = torch.zeros(4, 4, dtype=torch.complex64).conj()
    here["parameter"] = torch.nn.Parameter(torch.zeros(3))
    checkpointer.restore(here)
    for name, tensor in saved.items():
        assert torch.equal(here[name], tensor), name
    assert isinstance(here["parameter"], torch.nn.Parameter)
    assert here["parameter"].requires_grad


def test_numbers_are_converted_to_the_dtype_that_is_here(checkpointer: Checkpointer) -> None:
    saved = torch.randn(1000, 3)
    checkpointer.save(1, {"w": saved, "n": torch.arange(5)}).wait()
    here = {"w": torch.zeros(1000, 3, dtype=torch.bfloat16), "n": torch.zeros(5)}
    checkpointer.restore(here)
    assert torch.equal(here["w"], saved.bfloat16())
    assert here["n"].tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_larger_than_a_segment(checkpointer: Checkpointer) -> None:
    saved = {"big": torch.randn(1000, 1000), "small": [torch.randn(1000) for _ in range(500)]}
    save = checkpointer.save(1, saved)
    save.wait()
    here = {"big": torch.zeros(1000, 1000), "small": [torch.zeros(1000) for _ in range(500)]}
    checkpointer.restore(here)
    assert torch.equal(here["big"], saved["big"])
    assert all(map(torch.equal, here["small"], saved["small"]))
    assert save.bytes == 4_000_000 + 500 * 4_000


def test_segments_open_with_the_safetensors_library(
    checkpointer: Checkpointer, tmp_path: Path
) -> None:
    saved = {f"layer.{i}": torch.randn(100, 100) for i in range(60)}
    checkpointer.save(1, saved).wait()
    files = sorted(tmp_path.glob("tier/runs/run/data/*/*.safetensors"))
    assert len(files) > 1
    opened = {n: t for file in files for n, t in safetensors.torch.load_file(file).items()}
    assert opened.keys() == saved.keys()
    assert all(torch.equal(opened[name], saved[name]) for name in saved)


def test_ten_thousand_tensors(checkpointer: Checkpointer) -> None:
    saved = {"layers": [{"w": torch.full((3,), i)} for i in range(10_000)]}
    checkpointer.save(1, saved).wait()
    here = {"layers": [{"w": torch.zeros(3, dtype=torch.int64)} for _ in range(10_000)]}
    checkpointer.restore(here)
    assert all(
        torch.equal(a["w"], b["w"]) for a, b in zip(saved["layers"], here["layers"], strict=True)
    )


class Pair(NamedTuple):
    left: torch.Tensor
    right: object


def test_containers_and_values_keep_their_types(checkpointer: Checkpointer) -> None:
    def state(fill: float, **values: Any) -> dict[Any, Any]:
        return {
            1: {"x": torch.full((2,), fill)},
            "1": {"x": torch.full((3,), fill)},
            "a.b": torch.full((1,), fill),
            "a": {"b": torch.full((2,), fill), "c": OrderedDict(z=torch.full((1,), fill))},
            "pair": Pair(torch.full((2,), fill), values.get("right")),
            ("tuple", 3): torch.full((2,), fill),
            None: values.get("none"),
            "empty": {},
            "numbers": values.get("numbers"),
            "values": {"list": values.get("list"), "deep": [{"lr": values.get("lr")}]},
        }

    given = {
        "right": "text",
        "none": float("inf"),
        "numbers": np.arange(4.0),
        "list": [1, (2, b"3"), {4}],
        "lr": 0.1,
    }
    checkpointer.save(1, state(5.0, **given)).wait()
    here = state(0.0, list=["shorter"])
    ordered, pair = here["a"]["c"], here["pair"].left
    checkpointer.restore(here)
    assert here["numbers"].dtype == np.float64
    assert here.pop("numbers").tolist() == given["numbers"].tolist()
    wanted = state(5.0, **given)
    del wanted["numbers"]
    assert str(here) == str(wanted)
    assert here["a"]["c"] is ordered  # in place
    assert here["pair"].left is pair
    assert type(here["pair"]) is Pair


def test_modules_and_a_fresh_optimizer_are_restored_in_place(checkpointer: Checkpointer) -> None:
    def training() -> dict[str, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def step(state: dict[str, Any]) -> float:
        loss = state["model"](torch.arange(20.0).view(4, 5)).square().sum()
        loss.backward()
        state["optimizer"].step()
        state["optimizer"].zero_grad()
        state["schedule"].step()
        return loss.item()

    first = training()
    for _ in range(3):
        step(first)
    checkpointer.save(3, first).wait()
    second = training()
    assert checkpointer.restore(second) == 3
    assert [step(first) for _ in range(3)] == [step(second) for _ in range(3)]


def test_later_changes_do_not_leak_into_a_save(checkpointer: Checkpointer) -> None:
    state = {"w": torch.zeros(1_000_000), "step": 0, "log": [0]}
    for step in range(1, 4):
        state["w"].fill_(step)
        state["step"] = state["log"][0] = step
        saved = checkpointer.save(step, state)
        state["w"].fill_(-1)
        state["step"] = state["log"][0] = -1
        saved.wait()
    for step in (1, 2, 3):
        assert checkpointer.restore(state, step=step) == step
        assert torch.equal(state["w"], torch.full((1_000_000,), float(step)))
        assert (state["step"], state["log"]) == (step, [step])


def test_a_changed_structure_is_planned_anew(checkpointer: Checkpointer) -> None:
    states: list[dict[str, Any]] = [
        {"a": torch.ones(3)},
        {"a": torch.ones(4)},
        {"a": torch.ones(4, dtype=torch.float64)},
        {"a": torch.ones(4, dtype=torch.float64), "b": 1},
        {"a": 7, "b": torch.ones(2)},
        {"a": [torch.ones(1)], "b": torch.ones(2)},
    ]
    for step, state in enumerate(states):
        checkpointer.save(step, state).wait()
    for step, state in enumerate(states):
        here = {
            k: torch.zeros_like(v) if isinstance(v, torch.Tensor) else v for k, v in state.items()
        }
        checkpointer.restore(here, step=step)
        assert str(here) == str(state)


class Config:
    """Not plain, so only a pickle holds it."""

    def __init__(self, width: int) -> None:
        self.width = width


def test_a_pickle_is_refused_unless_allowed(url: str) -> None:
    with Checkpointer(url, run="run") as careful:
        careful.save(1, {"w": torch.ones(2), "config": Config(3)}).wait()
        here = {"w": torch.zeros(2), "config": None}
        with pytest.raises(UnsafePickleError, match="config is stored as a pickle"):
            careful.restore(here)
        assert here["w"].tolist() == [0, 0]
        only = {"w": torch.zeros(2)}
        assert careful.restore(only, strict=False) == 1  # what is not asked for is not unpickled
        assert only["w"].tolist() == [1, 1]
    with Checkpointer(url, run="run", allow_pickle=True) as trusting:
        assert trusting.restore(here) == 1
        assert here["config"].width == 3


def test_sparse_tensors_take_the_opaque_path(url: str) -> None:
    sparse = torch.eye(4).to_sparse()
    with Checkpointer(url, run="run", allow_pickle=True) as checkpointer:
        checkpointer.save(1, {"s": sparse, "w": torch.ones(1)}).wait()
        here = {"s": torch.zeros(4, 4).to_sparse(), "w": torch.zeros(1)}
        checkpointer.restore(here)
    assert torch.equal(here["s"].to_dense(), torch.eye(4))


def test_what_does_not_fit_is_listed_and_nothing_is_changed(checkpointer: Checkpointer) -> None:
    checkpointer.save(1, {"a": torch.ones(2), "b": torch.ones(3), "c": 5}).wait()
    here = {"a": torch.zeros(2), "x": torch.zeros(1), "c": 0}
    with pytest.raises(PlanError, match=r"1 keys were not saved: x; 1 saved keys .* here: b"):
        checkpointer.restore(here)
    assert here["a"].tolist() == [0, 0]
    assert checkpointer.restore(here, strict=False) == 1
    assert here["a"].tolist() == [1, 1]
    assert here["c"] == 5
    assert here["x"].tolist() == [0]
    with pytest.raises(PlanError, match=r"2 keys do not fit: a: shape \(2,\) was saved, \(3,\)"):
        checkpointer.restore({"a": torch.zeros(3), "b": None, "c": 0}, strict=False)
    with pytest.raises(PlanError, match="cannot hold"):
        checkpointer.restore({"a": torch.zeros(2, dtype=torch.bits8), "b": torch.zeros(3), "c": 0})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.empty(3, device="meta")}, "w: a meta tensor has no numbers"),
        ({object(): torch.ones(1)}, "a key of type object cannot be stored"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(
    checkpointer: Checkpointer, state: object, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        checkpointer.save(1, state)
    checkpointer.save(1, {"w": torch.ones(1)}).wait()  # and leaves nothing behind that hurts


@pytest.mark.parametrize("enabled", [True, False])
def test_a_restore_leaves_the_garbage_collector_as_it_was(
    checkpointer: Checkpointer, *, enabled: bool
) -> None:
    checkpointer.save(1, {"w": torch.ones(2)}).wait()
    (gc.enable if enabled else gc.disable)()
    try:
        checkpointer.restore({"w": torch.zeros(2)})
        assert gc.isenabled() == enabled
        with pytest.raises(PlanError):
            checkpointer.restore({"w": torch.zeros(3)})
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_nothing_to_restore(checkpointer: Checkpointer) -> None:
    assert checkpointer.restore({"w": torch.ones(1)}) is None
    with pytest.raises(CheckpointNotFoundError, match="step 7"):
        checkpointer.restore({"w": torch.ones(1)}, step=7)


def test_a_rollback_makes_the_new_line_the_latest(url: str) -> None:
    here = {"w": torch.zeros(1)}
    with Checkpointer(url, run="run") as first:
        for step in (50, 100, 200):
            first.save(step, {"w": torch.full((1,), float(step))}).wait()
    with Checkpointer(url, run="run") as second:
        assert second.restore(here, step=50) == 50
        second.save(60, {"w": torch.full((1,), 60.0)}).wait()
        assert second.restore(here) == 60
        assert second.restore(here, step=50) == 50  # rolled back within one process
        second.save(55, {"w": torch.full((1,), 55.0)}).wait()
    with Checkpointer(url, run="run") as third:
        assert third.restore(here) == 55
        assert here["w"].item() == 55


def test_saving_without_restoring_warns(url: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        with Checkpointer(url, run="run") as checkpointer, caplog.at_level(logging.WARNING):
            checkpointer.save(step, {"w": torch.zeros(1)}).wait()
    assert "begins anew without restoring" in caplog.text


def test_the_same_step_can_be_saved_again(checkpointer: Checkpointer) -> None:
    state = {"w": torch.zeros(1)}
    attempts = []
    for number in range(3):
        state["w"].fill_(number)
        save = checkpointer.save(5, state)
        save.wait()
        attempts.append(save.attempt.number)
    assert attempts == [1, 2, 3]
    checkpointer.restore(state)
    assert state["w"].item() == 2


def test_damage_is_healed_from_the_next_tier_or_raised(tmp_path: Path) -> None:
    urls = [(tmp_path / name).as_uri() for name in ("a", "b")]
    here = {"w": torch.zeros(1000)}
    with Checkpointer(*urls, run="run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"w": torch.full((1000,), float(step))}).wait()
        flip_last_byte(tmp_path / "a", 2)
        assert checkpointer.restore(here) == 2
        assert here["w"].unique().tolist() == [2]
        flip_last_byte(tmp_path / "b", 2)
        with pytest.raises(CorruptBlockError):
            checkpointer.restore(here)
        assert checkpointer.restore(here, allow_older=True) == 1
        assert here["w"].unique().tolist() == [1]


def test_tiers_take_every_nth_save(tmp_path: Path) -> None:
    config = tmp_path / "tiers.toml"
    config.write_text(
        f'[[tier]]\nname = "fast"\nurl = "{(tmp_path / "a").as_uri()}"\n'
        f'[[tier]]\nname = "slow"\nurl = "{(tmp_path / "b").as_uri()}"\nevery = 2\n'
    )
    with Checkpointer(config, run="run") as checkpointer:
        saves = [checkpointer.save(step, {"w": torch.ones(1)}) for step in (1, 2, 3)]
        for save in saves:
            save.wait()
        states = [[str(s.state) for s in save.status().values()] for save in saves]
        assert states == [["committed"] * 2, ["committed", "skipped"], ["committed"] * 2]
        with pytest.raises(CheckpointError, match="not to tier 'slow'"):
            saves[1].wait("slow")
        rows = saves[0].report()
        assert [(row["tier"], row["state"]) for row in rows] == [
            ("fast", "committed"),
            ("slow", "committed"),
        ]


def test_a_failing_tier_does_not_stop_the_others(tmp_path: Path) -> None:
    urls = [(tmp_path / name).as_uri() for name in ("a", "b")]
    with Checkpointer(*urls, run="run") as checkpointer:
        checkpointer.save(1, {"w": torch.ones(10)}).wait()
        blocked = tmp_path / "b" / "runs" / "run" / "data"
        blocked.rename(tmp_path / "moved")
        blocked.write_text("a file where the folder was")
        save = checkpointer.save(2, {"w": torch.ones(10)})
        save.wait("local")
        with pytest.raises(TierstoreError, match="data") as raised:
            save.wait("local2")
        assert save.failed["local2"] is raised.value
        assert save.status()["local"].state == "committed"
        assert save.report()[1]["error"]


def test_a_hundred_saves_grow_nothing(url: str) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8)))
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model, "optimizer": optimizer, "rng": per_rank(torch.get_rng_state())}
    with Checkpointer(url, run="run") as checkpointer:
        for step in range(30):
            checkpointer.save(step, state).wait()
        gc.collect()  # of earlier tests: their files would be closed meanwhile
        before = resources()
        for step in range(30, 130):
            checkpointer.save(step, state).wait()
        after = resources()
    assert after[0] - before[0] < 4096  # KiB
    assert after[1:] == before[1:]


def test_closing_frees_threads_files_and_staging_memory(url: str) -> None:
    with Checkpointer(url, run="run") as checkpointer:  # what is imported late is imported now
        checkpointer.save(1, {"w": torch.ones(1000)}).wait()
    gc.collect()  # of earlier tests: their files would be closed meanwhile
    _, files, threads = resources()
    for step in (2, 3):
        checkpointer = Checkpointer(url, run="run")
        save = checkpointer.save(step, {"w": torch.ones(1000)})
        checkpointer.close()
        checkpointer.close()
        assert save.done
        assert not save.failed
    assert resources()[1:] == (files, threads)
    with pytest.raises(CheckpointError, match="closed"):
        checkpointer.save(4, {"w": torch.ones(1000)})


def test_sigterm_needs_the_main_thread(url: str) -> None:
    errors: list[BaseException] = []

    def make() -> None:
        try:
            Checkpointer(url, run="run", sigterm_deadline=5)
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


@pytest.mark.parametrize(
    "number", [torch.tensor, np.int64, np.array], ids=["tensor", "numpy", "array"]
)
def test_a_step_may_be_of_any_integer_type(
    checkpointer: Checkpointer, tmp_path: Path, number: Any
) -> None:
    """A tensor is another key of a dict each time: tries were one, and overwrote each other."""
    for value in (1.0, 2.0, 3.0):
        checkpointer.save(number(7), {"w": torch.full((4,), value)}).wait()
    commits = sorted(path.name[-7:-5] for path in tmp_path.glob("tier/runs/run/commits/*"))
    assert commits == ["01", "02", "03"]
    for step in (None, 7, number(7)):
        here = {"w": torch.zeros(4)}
        assert checkpointer.restore(here, step=step) == 7
        assert here["w"].tolist() == [3.0] * 4


@pytest.mark.parametrize(
    "step",
    [-1, 10**12, "5", None, 5.0, np.float32(5), np.array([5, 6]), torch.tensor(5.0)],
    ids=str,
)
def test_a_step_is_a_number(checkpointer: Checkpointer, step: Any) -> None:
    with pytest.raises(InvalidKeyError, match=r"step .* is not"):
        checkpointer.save(step, {"w": torch.ones(1)})
    if step is not None:
        with pytest.raises(TierstoreError, match="step"):
            checkpointer.restore({"w": torch.ones(1)}, step=step)
    checkpointer.save(0, {"w": torch.ones(1)}).wait()
