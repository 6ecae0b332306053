"""`Checkpointer.save` where something goes wrong behind it, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tierstore_torch import Checkpointer

pytestmark = pytest.mark.torch


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(f"memory://{tmp_path.name}", run="run") as made:
        yield made


def test_a_step_can_be_saved_more_than_a_hundred_times(checkpointer: Checkpointer) -> None:
    state = {"w": torch.zeros(1)}
    for number in range(1, 103):
        state["w"].fill_(number)
        save = checkpointer.save(5, state)
        save.wait()
        assert save.attempt.number == number
    state["w"].zero_()
    assert checkpointer.restore(state) == 5
    assert state["w"].item() == 102


def test_what_fails_before_it_is_handed_over_gives_its_memory_back(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer.save(1, {"w": torch.ones(1)}).wait()
    for name in ("Shard", "RunKeys"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tierstore_torch.checkpointer.{name}", _no_memory)
            with pytest.raises(MemoryError):
                checkpointer.save(2, {"w": torch.ones(1)})
        checkpointer._pool.acquire(1, timeout=0).release()
    checkpointer.save(3, {"w": torch.ones(1)}).wait()


def _no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError
