"""What a checkpoint has under a name, and below a path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.checkpoint.paths import parse_path, plain_path
from tierstore.checkpoint.values import decode
from tierstore_torch.state.flatten import Leaf, rank_of
from tierstore_torch.state.optimizers import laid_out

Entry = Tensor | ValueEntry

Hit = tuple[int, Entry]
"""A position among a manifest's names, and what is stored under the name."""

Place = tuple[bool, Any]
"""A step of a path: whether it is an index, and the key or index."""


class Stored:
    """A manifest's names: tensors first, then values.

    Args:
        manifest: of the checkpoint.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._values = list(manifest.values())
        self.names = [*manifest.names(), *(value.name for value in self._values)]
        self._positions = {name: position for position, name in enumerate(self.names)}

    def find(self, leaves: Sequence[Leaf]) -> list[Hit | None]:
        """Return for each leaf its position in `names` and what is stored for it."""
        found = self._find([leaf.name for leaf in leaves], leaves)
        rest = [index for index, hit in enumerate(found) if hit is None]
        others = [leaves[index] for index in rest]
        exact = self._find([leaf.exact_name for leaf in others], others)
        for index, hit in zip(rest, exact, strict=True):
            found[index] = hit
        return found

    def _below(self, name: str, path: str) -> Any:
        """Return what lies below a path, nested as it was: dicts, lists, and entries as leaves."""
        start = f"{name}." if name else ""
        positions = [at for at, known in enumerate(self.names) if known.startswith(start)]
        steps = json.loads(f"[{path}]")
        root: dict[Place, Any] = {}
        for entry in self._entries(positions).values():
            if places := _places_below(entry.path, steps):
                _put(root, places, entry)
        return _nested(root) if root else None

    def laid_out(self, owner: object, state: Any, name: str, path: str) -> Any:
        """Return an object's state with that of optimizers in it as it was saved."""
        return laid_out(owner, state, name, lambda: self._below(name, path))

    @property
    def world_size(self) -> int:
        """How many ranks saved."""
        return self._manifest.world_size

    def lacks(self, leaf: Leaf, world_size: int) -> bool:
        """Whether a leaf for which nothing is stored should have been saved.

        Of what is a rank's own, not if another number of ranks saved and this one was not among
        them, or saved nothing of its own.
        """
        if leaf.rank is None or world_size == self.world_size:
            return True
        return any(rank_of(path) == leaf.rank for path in self._own_paths)

    def for_ranks(self, positions: Sequence[int], world_size: int) -> tuple[list[str], list[str]]:
        """Return the names at some positions that this many ranks have a place for, and others.

        The others are of ranks that are not here.
        """
        names: tuple[list[str], list[str]] = [], []
        for at, entry in self._entries(positions).items():
            if entry.path == "[]" and isinstance(entry, ValueEntry) and entry.data == b"{}":
                continue  # a rank without a state was saved so
            names[(rank_of(entry.path) or 0) >= world_size].append(self.names[at])
        return names

    @cached_property
    def _own_paths(self) -> list[str]:
        """The paths of what is a rank's own; their names begin alike."""
        found = [at for at, name in enumerate(self.names) if name.startswith("rank")]
        return [entry.path for entry in self._entries(found).values()]

    def _find(self, names: Sequence[str], leaves: Sequence[Leaf]) -> list[Hit | None]:
        positions = [self._positions.get(name, -1) for name in names]
        entries = self._entries([position for position in positions if position >= 0])
        return [
            (at, entries[at]) if at >= 0 and _is_of(entries[at], leaf) else None
            for at, leaf in zip(positions, leaves, strict=True)
        ]

    def _entries(self, positions: Sequence[int]) -> dict[int, Entry]:
        """All at once: one by one takes ten times as long."""
        count = len(self._manifest)
        rows = [position for position in positions if position < count]
        tensors = zip(rows, self._manifest.tensors(rows), strict=True)
        values = ((at, self._values[at - count]) for at in positions if at >= count)
        return dict((*tensors, *values))


def _is_of(entry: Entry, leaf: Leaf) -> bool:
    """Whether an entry of a leaf's name is its own; DCP's paths, and none, say less than it."""
    return plain_path(entry.path) == leaf.path or entry.path[:1] != "["


def _places_below(path: str, above: Sequence[Any]) -> list[Place]:
    """Return the steps of a path below others; none if it is not below them."""
    steps = parse_path(path)
    if isinstance(steps, dict):  # DCP's: its keys are strings whatever they were
        found = [(isinstance(step, int), step) for step in steps["dcp"]]
        outer = [(is_item, key if is_item else str(key)) for is_item, key in map(_place, above)]
        return found[len(outer) :] if found[: len(outer)] == outer else []
    if steps[: len(above)] != list(above):
        return []
    return [_place(step) for step in steps[len(above) :]]


def _place(step: Any) -> Place:
    if isinstance(step, str):
        return False, step
    if "item" in step:
        return True, step["item"]
    if "rank" in step:
        return False, f"rank{step['rank']:05d}"
    key = step["key"]
    return False, key if type(key) in (int, str) else decode(json.dumps(key))


def _put(root: dict[Place, Any], places: Sequence[Place], entry: Entry) -> None:
    node = root
    for place in places[:-1]:
        node = node.setdefault(place, {})
        if not isinstance(node, dict):
            return  # below what is a leaf: no state has both
    node.setdefault(places[-1], entry)


def _nested(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(is_item for is_item, _ in node):
        numbers = sorted(number for _, number in node)
        if numbers == list(range(len(numbers))):
            return [_nested(node[True, number]) for number in numbers]
    return {key: _nested(child) for (_, key), child in node.items()}
