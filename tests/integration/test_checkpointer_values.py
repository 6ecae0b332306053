"""Values and keys: what cannot be stored is refused by name, what is a pickle is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from tests.integration import checkpointer_cases as cases
from tests.ranks import Ranks
from tierstore.errors import PlanError, TierstoreError
from tierstore_torch import Checkpointer, TierStorageWriter, cause, per_rank
from tierstore_torch.dcp.stage import close_staging

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

LONE = "a\ud800b"


class Fails:
    """Its pickling fails in its own way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error

    def __deepcopy__(self, memo: object) -> Any:
        raise self.error


class Config:
    """Can be pickled."""


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def endless() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["again"] = state
    return state


UNSAVEABLE: dict[str, tuple[Any, str]] = {
    "lambda": ({"a": {"f": lambda: 0}}, r"a\.f cannot be saved"),
    "lock": ({"a": [{"f": threading.Lock()}]}, r"a\.0\.f cannot be saved: TypeError"),
    "attribute": ({"a": Fails(AttributeError("no x"))}, "a cannot be saved: AttributeError: no x"),
    "in a tuple": ({"a": (1, Fails(ValueError("v")))}, "a cannot be saved: ValueError: v"),
    "own": ({"a": per_rank(Fails(OSError("o")))}, "rank00000/a cannot be saved: OSError: o"),
    "state": ({"a": Stateful(RuntimeError("r"))}, "^a: the state of a Stateful cannot .*Error: r"),
    "own state": (
        {"a": per_rank({"b": Stateful(ValueError("v"))})},
        "^rank00000/a.b: the state of a Stateful cannot be .*Error: v",
    ),
    "lazy": ({"a": nn.LazyLinear(2)}, r"a\.weight: a lazy module's .*run the module once"),
    "endless": (endless(), "contains itself"),
    "key": ({"x": {LONE: 1}}, r"the key 'a\\ud800b' cannot be stored"),
    "key of a tensor": ({LONE: torch.ones(1)}, r"the key 'a\\ud800b' cannot be stored"),
    "key of a state": ({"a": Stateful({LONE: {"x": 1}})}, r"'a\\ud800b' cannot be stored"),
}


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(tmp_path.as_uri(), run="run") as made:
        yield made


@pytest.mark.parametrize("kind", UNSAVEABLE)
def test_what_cannot_be_stored_is_refused_by_name(checkpointer: Checkpointer, kind: str) -> None:
    bad, message = UNSAVEABLE[kind]
    state: dict[str, Any] = {"w": torch.ones(3), "a": 1}
    for step in (1, 2):  # at the first save, and at one that has a plan
        with pytest.raises(PlanError, match=message):
            checkpointer.save(step, state | bad)
        checkpointer.save(step, state).wait()


class Odd(torch.Tensor):
    """Torch does not let it be looked at."""

    @property
    def layout(self) -> torch.layout:  # type: ignore[override]
        raise RuntimeError("not today")


def test_what_torch_refuses_to_look_at_is_named(checkpointer: Checkpointer) -> None:
    odd, plain = torch.ones(2).as_subclass(Odd), torch.ones(2)
    with pytest.raises(PlanError, match=r"^a\.b cannot be saved: RuntimeError: not today"):
        checkpointer.save(1, {"a": {"b": odd}})
    checkpointer.save(1, {"a": {"b": plain}}).wait()
    with pytest.raises(PlanError, match=r"^a\.b cannot be restored into: RuntimeError: not today"):
        checkpointer.restore({"a": {"b": odd}})
    with pytest.raises(PlanError, match=r"a lazy module's parameter has no shape .*run the module"):
        checkpointer.restore({"a": {"b": nn.UninitializedParameter()}})


class Masked(torch.Tensor):
    """Its numbers are in other tensors, as those of torch's MaskedTensor are."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> Masked:
        made: Masked = torch.Tensor._make_wrapper_subclass(cls, numbers.shape)  # type: ignore[attr-defined]
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        return NotImplemented

    def __reduce_ex__(self, _: Any) -> Any:
        return Masked, (self.numbers,)


def test_a_tensor_without_numbers_of_its_own_is_a_pickle(
    tmp_path: Path,
) -> None:
    with Checkpointer(tmp_path.as_uri(), run="run", allow_pickle=True) as checkpointer:
        checkpointer.save(1, {"m": Masked(torch.ones(3))}).wait()
        state = {"m": Masked(torch.zeros(3))}
        checkpointer.restore(state)
        assert state["m"].numbers.tolist() == [1, 1, 1]


def test_a_target_that_is_stored_as_a_pickle_is_told_apart(checkpointer: Checkpointer) -> None:
    checkpointer.save(1, {"a": torch.ones(3, 3)}).wait()
    with pytest.raises(
        PlanError, match=r"a: a tensor of .* saved, a Tensor of layout sparse_coo is"
    ):
        checkpointer.restore({"a": torch.eye(3).to_sparse()})


def test_what_one_rank_cannot_store_no_rank_stores(ranks: Ranks, tmp_path: Path) -> None:
    for texts in ranks.run(2, cases.lone_surrogates, tmp_path.as_uri()):
        assert "PlanError: the key 'x\\ud800' cannot be stored" in texts[0]
        assert texts[1] == "None"


@pytest.mark.parametrize("async_", [False, True], ids=["save", "async_save"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"m": {"f": Fails(AttributeError("no x"))}}, "m.f cannot be saved: AttributeError: no x"),
        ({LONE: torch.ones(1)}, r"the key 'a\\ud800b' cannot be stored"),
        ({LONE: 1}, r"the key 'a\\ud800b' cannot be stored"),
    ],
    ids=["value", "key of a tensor", "key of a value"],
)
def test_what_dcp_cannot_store_is_refused_by_name(
    tmp_path: Path, state: dict[str, Any], message: str, *, async_: bool
) -> None:
    writer = TierStorageWriter(tmp_path.as_uri(), checkpoint_id="run/1")
    with pytest.raises((CheckpointException, TierstoreError)) as failed:
        _save(state, writer, async_=async_)
    with pytest.raises(PlanError, match=message):
        raise cause(failed.value)
    close_staging()


def _save(state: dict[str, Any], writer: TierStorageWriter, *, async_: bool) -> None:
    if async_:
        dcp.async_save(state, storage_writer=writer, no_dist=True).result()
    else:
        dcp.save(state, storage_writer=writer)


def test_a_pickle_is_told_once_with_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"w": torch.ones(1), "m": {"config": Config(), "plain": (1, {2})}}
    for told in (1, 2):  # each of them tells it
        with Checkpointer(tmp_path.as_uri(), run=f"run{told}") as checkpointer:
            for step in (1, 2):
                checkpointer.save(step, state | {f"more {step}": step}).wait()
        assert _told(caplog) == ["m.config"] * told
    with Checkpointer(tmp_path.as_uri(), run="knows", allow_pickle=True) as checkpointer:
        checkpointer.save(1, state).wait()
    assert len(_told(caplog)) == 2
    dcp.save(state, storage_writer=TierStorageWriter(tmp_path.as_uri(), checkpoint_id="dcp/1"))
    assert _told(caplog) == ["m.config"] * 3


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [r for r in caplog.records if r.name == "tierstore_torch.state.encoding"]
    assert all(r.levelno == logging.WARNING and "allow_pickle" in r.message for r in records)
    return [record.message.split()[0] for record in records]


@pytest.mark.parametrize(
    ("saved", "here"),
    [
        ({}, {}),
        ([], [1]),
        ([1, (2, 3)], []),
        (torch.ones(3), torch.zeros(3)),
        ((torch.ones(3), torch.ones(2)), (torch.zeros(3), torch.zeros(2))),
        (Stateful({"a": 1}), Stateful({"a": 0})),
    ],
    ids=["empty", "empty list", "list", "tensor", "tensors", "object"],
)
def test_what_can_be_saved_can_be_restored(
    checkpointer: Checkpointer, saved: Any, here: Any
) -> None:
    save = checkpointer.save(1, saved)
    save.wait()
    assert checkpointer.restore(here) == 1
    if isinstance(saved, Stateful):
        saved, here = saved.state, here.state
    assert str(here) == str(saved)


LARGE = np.zeros(20_000)
IN_PLACE_NEVER = [5, None, (1, 2), (torch.ones(1), 3), per_rank(5), LARGE, (torch.ones(1), LARGE)]


@pytest.mark.parametrize("state", IN_PLACE_NEVER, ids=lambda state: f"{state!r:.30}")
def test_what_cannot_be_restored_cannot_be_saved(checkpointer: Checkpointer, state: Any) -> None:
    with pytest.raises(PlanError, match="put it into a dict"):
        checkpointer.save(1, state)
    checkpointer.save(1, {"w": 1}).wait()
    with pytest.raises(PlanError, match="put it into a dict"):
        checkpointer.restore(state)


def test_an_empty_state_and_others(checkpointer: Checkpointer) -> None:
    checkpointer.save(1, {}).wait()
    with pytest.raises(PlanError, match="1 keys were not saved: w"):
        checkpointer.restore({"w": 1})
    checkpointer.save(2, {"w": 1}).wait()
    with pytest.raises(PlanError, match="1 saved keys have no place here: w"):
        checkpointer.restore({})
    assert checkpointer.restore({}, strict=False) == 2


def test_a_rank_without_a_state(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(2, cases.stateless_rank, tmp_path.as_uri()) == [[1, 5.0], [1, 0.0]]
