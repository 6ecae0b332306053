"""Typed paths in a state dict, as they are stored: JSON text that nobody vouched for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tierstore.blocks import crc32c
from tierstore.errors import FormatError

# The last step of the path of an array: its JSON is not parsed for that, as there may be a million.
_TYPE = r"[<>|][biufcmMUS][0-9]{1,9}(?:\[[0-9]{0,9}[A-Za-z]{1,9}\])?"
_MARK = re.compile(rf'(?:, |, \{{|\{{)"array": "({_TYPE})"\}}\]?$')
_CLOSING = str.maketrans("[{", "]}")
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_TUPLES, _OWN = rf'"tuples": \[{_NUMBER}(?:, {_NUMBER})*\]', rf'"own": {_NUMBER}'
_CONTAINERS = re.compile(rf", (\{{(?:{_TUPLES}(?:, {_OWN})?|{_OWN})\}})\]$")


@dataclass(frozen=True, slots=True)
class Containers:
    """What the steps of a path do not tell of the containers that it leads through.

    A container is meant by how many steps lead to it, without the rank's.

    Attributes:
        tuples: those that are tuples; what else has items is a list.
        own: the one that is each rank's own as a whole; None if there is none, or nobody said so.
    """

    tuples: tuple[int, ...] = ()
    own: int | None = None

    @property
    def digest(self) -> int:
        """A number that tells these from others; 0 where there is nothing to say."""
        return crc32c(self.mark("[]").encode()) if self != Containers() else 0

    def mark(self, path: str) -> str:
        """Return a path that says so too; the inverse is `containers`."""
        facts: dict[str, Any] = {"tuples": [*self.tuples]} if self.tuples else {}
        if self.own is not None:
            facts["own"] = self.own
        return f"{path[:-1]}, {json.dumps(facts)}]" if facts else path


def parse_path(text: str) -> list[Any] | dict[str, list[Any]]:
    """Return the steps of a stored path; none if nothing is known.

    Each is a string key, or {"item": 3} of a list, {"key": <tagged value>}, or {"rank": 3}. What
    DCP has saved is {"dcp": [...]}, of strings and indices. That it is an array is left out, and
    what `containers` tells.

    Raises:
        FormatError: it is something else.
    """
    text = plain_path(text)
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


def marked(path: str, dtype: str) -> str:
    """Return the path of a tensor that is a numpy array of a dtype, in numpy's words."""
    mark = json.dumps({"array": dtype})
    if path.startswith("["):
        return f"{path[:-1]}, {mark}]"
    return f"{path[:-1]}, {mark[1:]}" if path else mark


def array_mark(path: str) -> str | None:
    """Return the dtype of the array that a tensor of this path is; None if it is no array."""
    found = _MARK.search(path) if '"array": "' in path else None
    return found[1] if found else None


def containers(path: str) -> Containers:
    """Return what a stored path says of the containers that it leads through."""
    found = _CONTAINERS.search(_without_array(path))
    if found is None:
        return Containers()
    facts = json.loads(found[1])
    return Containers(tuple(facts.get("tuples", ())), facts.get("own"))


def plain_path(path: str) -> str:
    """Return a path without what says that an array is there, and what containers there are."""
    if not path.endswith(("}]", "}")):  # most
        return path
    path = _without_array(path)
    found = _CONTAINERS.search(path)
    return path if found is None else path[: found.start()] + "]"


def _without_array(path: str) -> str:
    found = _MARK.search(path) if '"array": "' in path else None
    if found is None:
        return path
    rest = path[: found.start()]
    return rest and rest + path[0].translate(_CLOSING)


def _is_step(step: object) -> bool:
    if type(step) is not dict or len(step) != 1:
        return False
    ((kind, value),) = step.items()
    return kind == "key" or (kind in ("item", "rank") and _is_index(value))


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
