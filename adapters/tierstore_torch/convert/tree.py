"""Stored values as Python's."""

from __future__ import annotations

import io
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.values import decode
from tierstore.errors import PlanError, UnsafePickleError


def loaded(value: ValueEntry, allow_pickle: bool) -> Any:
    """Return a stored value.

    Raises:
        UnsafePickleError: it is a pickle, and pickles are not allowed.
        PlanError: its pickle cannot be loaded.
    """
    if value.kind == "json":
        return decode(bytes(value.data).decode())
    if not allow_pickle:
        raise UnsafePickleError(
            f"{value.name} is stored as a pickle, and loading one can run any code",
            hint="leave it out with --exclude, or trust who wrote it with --allow-pickle",
        )
    try:
        return torch.load(io.BytesIO(value.data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise PlanError(f"{value.name}: its pickle cannot be loaded: {error!r}") from error
