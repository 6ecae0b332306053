"""Whether the faults that a test ordered have happened: one that has not proves nothing."""

from __future__ import annotations

from tierstore.wrappers.faults import Faulty


def fired(faulty: Faulty) -> list[int]:
    """Return how often each fault of a backend has happened."""
    return [
        sum(map(fault.happens, range(1, faulty._seen[index] + 1)))
        for index, fault in enumerate(faulty._faults)
    ]
