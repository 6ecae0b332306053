"""What the ranks do in test_reshard; see tests.ranks."""

from __future__ import annotations

from tests import layouts
from tierstore_torch import Checkpointer


def save(urls: list[str], layout: str, step: int) -> str:
    """Save the known numbers in one layout; return the commit's attempt."""
    state = layouts.build(layout)
    layouts.fill(state, step)
    with Checkpointer(*urls, run=layout) as checkpointer:
        done = checkpointer.save(step, state.dict)
        done.wait()
    return str(done.attempt)


def load(urls: list[str], run: str, layout: str, saved_by: int) -> tuple[int | None, list[str]]:
    """Restore into one layout; return the step and what differs."""
    state = layouts.build(layout)
    with Checkpointer(*urls, run=run) as checkpointer:
        step = checkpointer.restore(state.dict)
    return step, layouts.differences(state, step or 0, saved_by)
