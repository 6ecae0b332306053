"""Typed paths in a state dict, as they are stored: JSON text that nobody vouched for."""

from __future__ import annotations

import json
from typing import Any

from tierstore.errors import FormatError


def parse_path(text: str) -> list[Any] | dict[str, list[Any]]:
    """Return the steps of a stored path; none if nothing is known.

    Each is a string key, or {"item": 3} of a list, {"key": <tagged value>}, or {"rank": 3}. What
    DCP has saved is {"dcp": [...]}, of strings and indices.

    Raises:
        FormatError: it is something else.
    """
    if not text:
        return []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the path {text[:60]!r} is not JSON: {error}") from error
    if type(found) is dict and set(found) == {"dcp"} and type(found["dcp"]) is list:
        good = all(type(step) is str or _is_index(step) for step in found["dcp"])
    else:
        good = type(found) is list and all(type(step) is str or _is_step(step) for step in found)
    if not good:
        raise FormatError(f"{text[:60]!r} is no path in a state dict")
    return found  # type: ignore[no-any-return]


def _is_step(step: object) -> bool:
    if type(step) is not dict or len(step) != 1:
        return False
    ((kind, value),) = step.items()
    return kind == "key" or (kind in ("item", "rank") and _is_index(value))


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
