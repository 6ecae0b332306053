"""Saves and restores under torch's modes: what is made in one is used in the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.integration import checkpointer_cases as cases
from tests.ranks import Ranks
from tierstore_torch import Checkpointer, TierStorageReader, TierStorageWriter, per_rank
from tierstore_torch.dcp.stage import close_staging

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

Mode = Callable[[], AbstractContextManager[Any]]
MODES: dict[str, Mode] = {
    "none": nullcontext,
    "inference": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
}


def training(fill: float = 0.0) -> dict[str, Any]:
    model = torch.nn.Linear(3, 2, device="cpu")
    with torch.no_grad():
        model.weight.fill_(fill)
    optimizer = torch.optim.AdamW(model.parameters())
    if fill:
        with torch.device("cpu"):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    values = {"number": torch.full((2000,), fill, device="cpu"), "list": [fill]}
    return {"model": model, "optimizer": optimizer, **values, "rng": per_rank(fill)}


def weights(state: dict[str, Any]) -> list[float]:
    moments = state["optimizer"].state[state["model"].weight]
    return [*state["model"].weight.flatten().tolist(), *moments["exp_avg"].flatten().tolist()]


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_a_mode_at_one_save_or_restore_does_not_hurt_the_next(
    tmp_path: Path, first: str, second: str
) -> None:
    state = training(2.0)
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        for step, mode in enumerate((first, second)):
            state["number"].fill_(step + 5.0)
            with MODES[mode]():
                checkpointer.save(step, state).wait()
        for mode in (first, second):
            here = training()
            here["number"] = here["number"].bfloat16()  # another dtype
            with MODES[mode]():
                checkpointer.restore(here)
            assert weights(here) == weights(state)
            assert here["number"].unique().tolist() == [6]
            with torch.enable_grad():  # and training goes on from it
                here["model"](torch.ones(1, 3)).sum().backward()
            here["optimizer"].step()


def test_what_an_optimizer_converts_for_inference_is_for_training(tmp_path: Path) -> None:
    """Into the dtype of its parameters, and while it loads."""
    here = training(1.0)
    here["model"].bfloat16()
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        checkpointer.save(1, training(2.0)).wait()
        with torch.inference_mode():
            checkpointer.restore(here)
    here["model"](torch.ones(1, 3).bfloat16()).sum().backward()
    here["optimizer"].step()


@pytest.mark.parametrize("mode", MODES)
def test_tied_targets_are_compared_under_any_mode(tmp_path: Path, mode: str) -> None:
    one = torch.zeros(3)
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        checkpointer.save(1, {"a": torch.ones(3), "b": torch.ones(3)}).wait()
        with MODES[mode]():
            checkpointer.restore({"a": one, "b": one})
    assert one.tolist() == [1, 1, 1]


def test_a_target_that_was_made_for_inference(tmp_path: Path) -> None:
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        with torch.inference_mode():
            saved = {"w": torch.arange(4000.0), "t": torch.arange(6.0).view(2, 3).t()}
            here = {"w": torch.zeros(4000, dtype=torch.float64), "t": torch.zeros(2, 3).t()}
        checkpointer.save(1, saved).wait()
        checkpointer.restore(here)
        assert here["w"].tolist() == saved["w"].tolist()
        assert here["t"].tolist() == saved["t"].tolist()


@pytest.mark.parametrize("first", MODES)
def test_a_mode_at_one_dcp_save_does_not_hurt_the_next(tmp_path: Path, first: str) -> None:
    w = torch.zeros(3000, device="cpu")
    writer = TierStorageWriter(tmp_path.as_uri())
    close_staging()  # of other tests
    for step, mode in enumerate((first, "none", first)):
        w.fill_(step)
        with MODES[mode]():
            if step:
                future = dcp.async_save(
                    {"w": w}, storage_writer=writer, checkpoint_id=f"run/{step}", no_dist=True
                )
                future.result()
            else:
                dcp.save({"w": w}, storage_writer=writer, checkpoint_id=f"run/{step}", no_dist=True)
            here = {"w": torch.full((3000,), -1.0, dtype=torch.float64, device="cpu")}
            reader = TierStorageReader(tmp_path.as_uri(), checkpoint_id=f"run/{step}")
            dcp.load(here, storage_reader=reader, no_dist=True)
        assert here["w"].unique().tolist() == [step]
    close_staging()


def test_ranks_talk_under_any_mode(ranks: Ranks, tmp_path: Path) -> None:
    for texts in ranks.run(2, cases.under_modes, tmp_path.as_uri()):
        assert texts == ["0 0.0", "1 1.0", "2 2.0"]
