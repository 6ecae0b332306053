"""How a value that is no tensor is stored."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.values import NotPlainError, encode
from tierstore.errors import PlanError, TierstoreError
from tierstore.logs import logger
from tierstore.text import is_unicode

T = TypeVar("T")

_log = logger(__name__)


def encode_value(name: str, value: object) -> tuple[Literal["json", "opaque"], bytes]:
    """Return a value as tagged JSON, else what torch.save makes of it.

    Raises:
        PlanError: it can be neither.
    """
    try:
        return "json", encode(value).encode()
    except NotPlainError:
        return "opaque", saveable(name, lambda: _pickled(value))


def saveable(name: str, action: Callable[[], T]) -> T:
    """Return what `action` makes of a value to save it; what fails is the value's own code.

    Raises:
        PlanError: it failed.
    """
    try:
        return action()
    except TierstoreError:
        raise
    except Exception as error:
        raise unsaveable(name, error) from error


def unsaveable(name: str, error: Exception) -> PlanError:
    """Return the error that says which value failed when it was looked at to save it."""
    return PlanError(
        f"{name} cannot be saved: {type(error).__name__}: {error}",
        hint="leave it out, or put plain values and tensors in its place",
    )


def check_name(name: str) -> str:
    """Return a name that can be stored.

    Raises:
        PlanError: it has half a surrogate pair, which no file can hold as text.
    """
    if not (name.isascii() or is_unicode(name)):
        raise PlanError(
            f"the key {name!r} cannot be stored: it holds half of a surrogate pair",
            hint="such text comes from decoding with errors='surrogateescape'; rename the key",
        )
    return name


def tell_pickled(values: Iterable[ValueEntry], told: set[str]) -> None:
    """Warn of each value that is stored as a pickle and is not in `told`, and put it there."""
    for value in values:
        if value.kind == "opaque" and value.name not in told:
            told.add(value.name)
            _log.warning(
                "%s is not plain and is stored as a pickle: restoring refuses it without "
                "allow_pickle=True; better, save plain values and tensors",
                value.name,
            )


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
