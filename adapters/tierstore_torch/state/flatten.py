"""A state dict as a row of named leaves, and back, without losing the types of keys.

Dicts are always entered; lists where a dict or a tensor is inside, as DCP does, and tuples where a
tensor is, for which a large numpy array counts (see `arrays`): `[0, 1, 2]` is one value, which may
have another length when it is restored. An object with `state_dict` and `load_state_dict` stands
for what its `state_dict` returns. A leaf's path is stored as JSON: a string key as itself, an index
as `{"item": 3}`, another key as `{"key": <tagged value>}`, a rank's own part as `{"rank": 3}`. That
a container is a tuple, or in `per_rank`, is stored behind the path (see `Containers`), so that a
state with a list in place of a tuple is restored as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch

from tierstore.blocks import crc32c
from tierstore.checkpoint import values
from tierstore.checkpoint.paths import Containers, marked
from tierstore.errors import CheckpointError, PlanError, TierstoreError
from tierstore_torch.state.arrays import is_large
from tierstore_torch.state.encoding import check_name, saveable
from tierstore_torch.state.items import is_storable

Step = str | dict[str, Any]
"""One step of a path, as its JSON holds it."""


_OWN = re.compile(r'\[\{"rank": ?([0-9]{1,9})\}')

_PLAIN = Containers()

LayOut = Callable[[object, Any, str, str], Any]

_quote = json.encoder.encode_basestring_ascii  # a tenth of the time of json.dumps
_SCALARS = frozenset((int, float, str, bool, type(None), bytes))


@dataclass(frozen=True, slots=True)
class PerRank:
    """A part of a state dict that every rank has for itself, such as its RNG state.

    Its leaves are stored as `rank00003/<name>`. Restoring at another world size gives a rank what
    the rank of the same number saved, or leaves it as it is if there was none; at the same world
    size every rank's keys must be the same.
    """

    value: Any


def per_rank(value: Any) -> PerRank:
    """Mark `value` as this rank's own; see `PerRank`."""
    return PerRank(value)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf: `name` for people (keys joined with "."), `path` (JSON) for exactness.

    Attributes:
        rank: whose own it is; None if it is no rank's.
        array: numpy's dtype, if it is an array that is stored as a tensor.
        inside: what containers it is in.
    """

    name: str
    path: str
    rank: int | None = None
    array: str = ""
    inside: Containers = _PLAIN

    @property
    def stored_path(self) -> str:
        """The path as a manifest has it."""
        path = self.path if self.inside is _PLAIN else self.inside.mark(self.path)
        return marked(path, self.array) if self.array else path

    @property
    def exact_name(self) -> str:
        """The name used where another leaf, on any rank, has the same name and another path."""
        return f"{self.name}~{crc32c(self.path.encode()):08x}"


@dataclass(slots=True)
class Node:
    """The shape of one container or leaf; of an object, also its name, for errors."""

    kind: Literal["leaf", "array", "dict", "list", "tuple", "stateful", "rank"]
    cls: type[Any]
    keys: dict[Any, None] = field(default_factory=dict)
    key_types: dict[Any, type] | None = None
    children: list[Node] = field(default_factory=list)
    held: Any = None
    name: str = ""


_LEAF = Node("leaf", object)  # one for all: a state may have a million


class Tree:
    """The shape of a state dict; made once, compared at every save.

    Args:
        state: what to look at.
        rank: names this rank's own parts.
        hold: keep what stateful objects returned, for `fill`.
        lay_out: returns what a stateful object's state shall be instead, for `fill`; is given the
            object, its state, its name, and its path without the brackets around it.

    Attributes:
        leaves: in the order in which `match` returns their values.
        same: with `hold`, pairs of leaves, by position, that are in one dict, list or object.
    """

    def __init__(
        self, state: object, *, rank: int, hold: bool = False, lay_out: LayOut | None = None
    ) -> None:
        self.leaves: list[Leaf] = []
        self.same: list[tuple[int, int]] = []
        self._begun: dict[int, int] = {}  # containers, by id, and the first leaf of each
        self._hold = hold
        self._lay_out = lay_out
        self._values: list[Any] = []
        self._rank = rank
        try:
            self._root = self._scan(state, "", "", _PLAIN)
        except RecursionError:
            raise PlanError(
                "the state is nested too deep, or a dict or list in it contains itself"
            ) from None

    @property
    def values(self) -> list[Any]:
        """The leaves' values at the time of the scan; given out once, then forgotten."""
        taken, self._values = self._values, []
        return taken

    def match(self, state: object) -> list[Any] | None:
        """Return the leaves' values of a state of the same shape, or None if the shape differs."""
        out: list[Any] = []
        try:
            return out if _match(self._root, state, out) else None
        except RecursionError:  # a scan tells it
            return None

    def fill(self, state: object, replaced: Iterator[Any]) -> None:
        """Put one value a leaf into `state`, in place; stateful objects load their part.

        Args:
            state: the one that was scanned, with `hold`. Tuples are replaced where they lie.
            replaced: the values, in the order of `leaves`.

        """
        filled = _fill(self._root, state, replaced)
        if isinstance(state, list) and filled is not state:  # of values, and so one leaf
            state[:] = filled

    def check_in_place(self, state: object) -> None:
        """Check that `fill` can put everything into a state itself.

        Raises:
            PlanError: it is a value, or a tuple of values.
        """
        if type(state) is not list and not _stays(self._root, state):
            raise PlanError(
                f"a {type(state).__name__} cannot be restored in place", hint="put it into a dict"
            )

    def _scan(self, value: Any, name: str, path: str, inside: Containers) -> Node:
        """Look at one value; `path` is the JSON of its steps without the brackets around them."""
        if type(value) is torch.Tensor:  # most are
            return self._take(value, name, path, inside)
        first = len(self.leaves)
        node = self._enter(value, name, path, inside)
        if self._hold and node.kind in ("dict", "list", "stateful"):
            known = self._begun.setdefault(id(value), first)
            if known != first:
                self.same += [(known + i, first + i) for i in range(len(self.leaves) - first)]
        return node

    def _enter(self, value: Any, name: str, path: str, inside: Containers) -> Node:
        if isinstance(value, PerRank):
            if inside.own is None:
                inside = replace(inside, own=_depth(path))
            inner = self._scan(value.value, name, path, inside)
            return Node("rank", PerRank, children=[inner])
        if is_stateful(value):
            full = self._full(name, path, inside)
            state = _state_of(value, full[0])
            if self._lay_out is not None:
                state = self._lay_out(value, state, *full)
            inner = self._scan(state, name, path, inside)
            held = state if self._hold else None
            return Node("stateful", type(value), children=[inner], held=held, name=full[0])
        if isinstance(value, dict) and (value or not path):  # an empty one inside is a value
            plain = all(type(key) is str for key in value)
            children = [
                self._scan(v, *_below(name, path, str(k), _step(k)), inside)
                for k, v in value.items()
            ]
            types = None if plain else {key: type(key) for key in value}
            return Node("dict", type(value), dict.fromkeys(value), types, children)
        if isinstance(value, (list, tuple)) and _is_inner(value):
            kind: Literal["list", "tuple"] = "list" if isinstance(value, list) else "tuple"
            if kind == "tuple":
                inside = replace(inside, tuples=(*inside.tuples, _depth(path)))
            children = [
                self._scan(v, *_below(name, path, str(i), {"item": i}), inside)
                for i, v in enumerate(value)
            ]
            return Node(kind, type(value), children=children)
        return self._take(value, name, path, inside)

    def _take(self, value: Any, name: str, path: str, inside: Containers) -> Node:
        name, path = self._full(name, path, inside)
        self._values.append(value)
        rank = None if inside.own is None else self._rank
        if self._hold or not is_large(value):
            self.leaves.append(Leaf(name, f"[{path}]", rank, "", inside))
            return _LEAF
        self.leaves.append(Leaf(name, f"[{path}]", rank, value.dtype.str, inside))
        return Node("array", np.ndarray, held=value.dtype.str)

    def _full(self, name: str, path: str, inside: Containers) -> tuple[str, str]:
        """Return name and path with the rank whose own part they are in."""
        if inside.own is None:
            return name, path
        mark = json.dumps({"rank": self._rank})
        return f"rank{self._rank:05d}/{name}", f"{mark}, {path}" if path else mark


def _below(name: str, path: str, label: str, step: Step) -> tuple[str, str]:
    """Return name and path of what lies one step below; only the top has an empty path."""
    check_name(label)
    text = _quote(step) if isinstance(step, str) else json.dumps(step)
    return (f"{name}.{label}", f"{path}, {text}") if path else (label, text)


def _depth(path: str) -> int:
    """Return how many steps a path has, of which the brackets around it are left out."""
    return len(json.loads(f"[{path}]"))


def rank_of(path: str) -> int | None:
    """Return the rank whose own part a stored path is of, or None."""
    found = _OWN.match(path)
    return int(found[1]) if found else None


def is_stateful(value: object) -> bool:
    """Whether DCP would call `state_dict` and `load_state_dict` on it."""
    kind = type(value)  # isinstance of a protocol costs a microsecond
    return hasattr(kind, "load_state_dict") and hasattr(kind, "state_dict")


def _state_of(value: Any, name: str) -> Any:
    with torch.no_grad():
        return saveable(f"{_of(name)}the state of a {type(value).__name__}", value.state_dict)


def _of(name: str) -> str:
    return f"{name}: " if name else ""  # the whole state is an object


def _step(key: Any) -> Step:
    if type(key) is str:
        return key
    try:
        return {"key": json.loads(values.encode(key))}
    except TypeError:
        raise PlanError(
            f"a key of type {type(key).__name__} cannot be stored: {key!r:.100}",
            hint="use strings, numbers, bytes, None or tuples of these as keys",
        ) from None


def _match(node: Node, value: Any, out: list[Any]) -> bool:
    if node.kind == "leaf":
        out.append(value)
        return isinstance(value, torch.Tensor) or not (_is_inner(value) or is_large(value))
    if type(value) is not node.cls:
        return False
    if node.kind == "array":
        out.append(value)
        return is_large(value) and value.dtype.str == node.held
    if node.kind in ("rank", "stateful"):
        inner = value.value if node.kind == "rank" else _state_of(value, node.name)
        return _match(node.children[0], inner, out)
    if node.kind == "dict":
        if value.keys() != node.keys.keys():
            return False
        if node.key_types is not None and {key: type(key) for key in value} != node.key_types:
            return False
        return all(
            _match(child, value[key], out)
            for key, child in zip(node.keys, node.children, strict=True)
        )
    if len(value) != len(node.children):
        return False
    return all(_match(child, item, out) for child, item in zip(node.children, value, strict=True))


def _is_inner(value: Any) -> bool:
    """Whether a scan enters this value rather than take it as a leaf."""
    if isinstance(value, dict):
        return bool(value)
    if isinstance(value, list):
        return any(isinstance(item, dict) or _holds(item) for item in value)
    return not isinstance(value, (torch.Tensor, np.ndarray)) and _holds(value)


def _holds(value: Any) -> bool:
    """Whether a tensor, a large array, or what may have one, is anywhere inside."""
    if type(value) in _SCALARS:
        return False
    if isinstance(value, (torch.Tensor, PerRank)) or is_large(value):
        return True
    if isinstance(value, dict):
        return any(_holds(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds(item) for item in value)
    return is_stateful(value)


def _stays(node: Node, value: Any) -> bool:
    """Whether `_fill` returns the value itself."""
    if node.kind in ("leaf", "array"):  # an array is replaced, though it is stored as a tensor
        return is_storable(value)
    if node.kind == "rank":
        return _stays(node.children[0], value.value)
    return node.kind != "tuple" or all(map(_stays, node.children, value))


def _load(value: Any, state: Any, name: str) -> None:
    # What an optimizer makes of its state is for training, in whatever mode this is called.
    inference = torch.is_inference_mode_enabled() and isinstance(value, torch.optim.Optimizer)
    try:
        with torch.inference_mode(False) if inference else nullcontext():
            value.load_state_dict(state)
    except TierstoreError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{_of(name)}a {type(value).__name__} did not take its state: "
            f"{type(error).__name__}: {error}",
            hint="what came before it is restored already; make it as it was when it was saved",
        ) from error


def _fill(node: Node, value: Any, replaced: Iterator[Any]) -> Any:
    if node.kind == "leaf":
        return next(replaced)
    if node.kind == "rank":
        inner = _fill(node.children[0], value.value, replaced)
        return value if inner is value.value else PerRank(inner)
    if node.kind == "stateful":
        _load(value, _fill(node.children[0], node.held, replaced), node.name)
        return value
    if node.kind == "dict":
        for key, child in zip(node.keys, node.children, strict=True):
            value[key] = _fill(child, value[key], replaced)
        return value
    items = [_fill(c, v, replaced) for c, v in zip(node.children, value, strict=True)]
    if node.kind == "list":
        value[:] = items
        return value
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    rebuild = cast("Callable[..., Any]", getattr(type(value), "_make", type(value)))
    return rebuild(items)
