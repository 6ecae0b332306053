"""A forked child has a Checkpointer of its own, or is told at once why not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Bucket
from tests.integration import checkpointer_cases as cases
from tests.integration.checkpointer_cases import in_child
from tests.patience import PATIENCE
from tests.ranks import Ranks
from tierstore.config import Config, Policy, TierConfig
from tierstore_torch import Checkpointer

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

LARGE = 1_000_000  # torch copies it with several threads


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def training(fill: float) -> dict[str, Any]:
    model = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.nn.init.constant_(model.weight, fill)
    return {"model": model, "optimizer": optimizer, "w": torch.full((LARGE,), fill)}


def train(state: dict[str, Any]) -> None:
    state["model"](torch.ones(8, 1000)).sum().backward()
    state["optimizer"].step()


def child_of_a_trainer(url: str) -> None:
    with Checkpointer(url, run="run") as checkpointer:
        state = training(1.0)
        train(state)
        checkpointer.save(1, state).wait()
        assert checkpointer.restore(state) == 1

        def evaluate() -> object:
            here = training(0.0)
            here["w"] = torch.zeros(LARGE, dtype=torch.bfloat16)
            with Checkpointer(url, run="run") as own:
                step = own.restore(here)
                same = torch.equal(here["model"].weight, state["model"].weight)
                own.save(2, here).wait()
            return step, same, here["w"].unique().tolist()

        assert in_child(evaluate) == "(1, True, [1.0])"
        checkpointer.save(3, state).wait()  # the parent goes on


def test_a_child_restores_and_saves_with_one_of_its_own(tmp_path: Path) -> None:
    child_of_a_trainer(tmp_path.as_uri())


@pytest.mark.minio
def test_a_child_restores_and_saves_on_s3(minio_bucket: Bucket) -> None:
    child_of_a_trainer(minio_bucket.url)


def test_what_is_the_parents_is_refused_and_left_alone(tmp_path: Path) -> None:
    tiers = (
        TierConfig("fast", tmp_path.as_uri()),
        TierConfig("slow", f"memory://{tmp_path.name}", policy=Policy(write_bandwidth=1_000_000)),
    )
    state = {"w": torch.ones(LARGE)}
    with Checkpointer(Config(tiers), run="run") as checkpointer:
        save = checkpointer.save(1, state)
        calls: list[Callable[[], object]] = [
            lambda: checkpointer.save(2, state),
            lambda: checkpointer.restore(state),
        ]
        for call in calls:
            assert "make a new one here" in in_child(call)
        # In a child it stays what it was at the fork, and would be waited for without end.
        assert f"is saved by process {os.getpid()}" in in_child(save.wait)
        assert in_child(checkpointer.close) == "None"
        assert in_child(checkpointer._saver.close) == "None"
        save.wait()


def test_a_child_ends_on_sigterm(tmp_path: Path) -> None:
    with Checkpointer(tmp_path.as_uri(), run="run", sigterm_deadline=PATIENCE) as checkpointer:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writing, b"here")
            time.sleep(PATIENCE)
            os._exit(0)
        assert os.read(reading, 4) == b"here"  # what comes before Python is ready is lost
        os.kill(pid, signal.SIGTERM)
        os.close(reading)
        os.close(writing)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert not checkpointer.stop_requested()


def test_a_child_of_one_rank_of_several_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    for rank, text in enumerate(ranks.run(2, cases.forked_child, tmp_path.as_uri())):
        assert f"CheckpointError: this process was forked from rank {rank} of 2" in text
