"""Errors on their way through DCP.

DCP gathers what failed on every rank, by pickling it, and raises one `CheckpointException` on all
of them. That is a BaseException: `except Exception` does not catch it. So::

    try:
        dcp.save(state, storage_writer=writer)
    except CheckpointException as failed:
        raise cause(failed) from failed          # the same on every rank
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from tierstore.errors import CheckpointError


def cause(error: BaseException) -> BaseException:
    """Return what failed on the lowest rank that failed; any error but DCP's is its own cause."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return error
    rank = min(error.failures)
    inner = cause(error.failures[rank][0])
    if inner is not error and not getattr(inner, "__notes__", None):
        inner.add_note(f"raised on rank {rank}")
    return inner


@contextmanager
def portable() -> Iterator[None]:
    """Raise nothing that cannot be pickled: DCP would leave the other ranks waiting for it."""
    try:
        yield
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - made in the line itself
        except Exception:
            raise CheckpointError(f"{type(error).__name__}: {error}") from error
        raise
