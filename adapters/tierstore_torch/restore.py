"""Restore in place: match a state's leaves with what is stored, read, and decide together."""

from __future__ import annotations

import gc
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.checkpoint.values import decode
from tierstore.errors import NotFoundError, PlanError, TierstoreError, UnsafePickleError
from tierstore.ladder.find import Found
from tierstore.transfer.read import ReadReport, Want, fetch
from tierstore_torch.flatten import Leaf, Tree, is_per_rank
from tierstore_torch.group import Group
from tierstore_torch.items import is_storable, tensor_chunks
from tierstore_torch.overlap import wants, whole_want

_log = logging.getLogger(__name__)
_LISTED = 10  # keys an error names


@dataclass(frozen=True, slots=True)
class Rules:
    """What a restore may do.

    Attributes:
        strict: state and checkpoint must have the same keys.
        allow_pickle: values that are not plain may be unpickled, which can run any code.
    """

    strict: bool = True
    allow_pickle: bool = False


def restore_into(state: object, found: Found, group: Group, rules: Rules) -> ReadReport:
    """Fill `state` from a checkpoint. Collective: it ends in the same way on every rank.

    Raises:
        PlanError: keys, shapes or kinds do not fit; nothing has been changed.
        UnsafePickleError: a value is a pickle and `rules` do not allow it; nothing has changed.
        TierstoreError: bytes could not be read; the state is then partly overwritten.
    """
    with _without_collector():
        index = _Index(found.manifest)
        matched = group.together(lambda: _Match(state, index, group.rank))
        fresh = bool(_unexpected(index, matched, group)) and matched.tree.init_optimizers()
        if group.all_max([int(fresh)])[0]:
            matched = group.together(lambda: _Match(state, index, group.rank))
        extra = _unexpected(index, matched, group)
        group.together(lambda: _check(matched, extra, rules))
        plan = group.together(lambda: _Plan(matched, found.manifest, rules))
    report = group.together(lambda: _read(plan.wants, found))
    group.together(lambda: matched.tree.fill(state, plan.replacements()))
    return report


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for garbage in all objects of the process because a plan makes many.

    A plan makes no garbage; looking takes 0.2 s after an import of torch, as long as the plan.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_Hit = tuple[int, Tensor | ValueEntry]
"""A position among a manifest's names, and what is stored under the name."""


class _Index:
    """A manifest's names: tensors first, then values."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._values = list(manifest.values())
        self.names = [*manifest.names(), *(value.name for value in self._values)]
        self._positions = {name: position for position, name in enumerate(self.names)}

    def find(self, leaves: Sequence[Leaf]) -> list[_Hit | None]:
        """Return for each leaf its position in `names` and what is stored for it."""
        found = self._find([leaf.name for leaf in leaves], leaves)
        rest = [index for index, hit in enumerate(found) if hit is None]
        others = [leaves[index] for index in rest]
        exact = self._find([leaf.exact_name for leaf in others], others)
        for index, hit in zip(rest, exact, strict=True):
            found[index] = hit
        return found

    def is_per_rank(self, position: int) -> bool:
        """Whether a name is of one rank's own part."""
        return is_per_rank(self._entries([position])[position].path)

    def _find(self, names: Sequence[str], leaves: Sequence[Leaf]) -> list[_Hit | None]:
        positions = [self._positions.get(name, -1) for name in names]
        entries = self._entries([position for position in positions if position >= 0])
        return [
            (at, entries[at]) if at >= 0 and _is_of(entries[at], leaf) else None
            for at, leaf in zip(positions, leaves, strict=True)
        ]

    def _entries(self, positions: Sequence[int]) -> dict[int, Tensor | ValueEntry]:
        """All at once: one by one takes ten times as long."""
        count = len(self._manifest)
        rows = [position for position in positions if position < count]
        tensors = zip(rows, self._manifest.tensors(rows), strict=True)
        values = ((at, self._values[at - count]) for at in positions if at >= count)
        return dict((*tensors, *values))


def _is_of(entry: Tensor | ValueEntry, leaf: Leaf) -> bool:
    """Whether an entry of a leaf's name is its own; DCP's paths, and none, say less than it."""
    return entry.path == leaf.path or entry.path[:1] != "["


class _Match:
    """A state's leaves, each with what is stored for it."""

    def __init__(self, state: object, index: _Index, rank: int) -> None:
        self.tree = Tree(state, rank=rank, hold=True)
        self.values = self.tree.values
        self.entries: list[Tensor | ValueEntry | None] = []
        self.missing: list[str] = []
        hits = index.find(self.tree.leaves)
        self.seen = torch.zeros(len(index.names), dtype=torch.uint8)
        self.seen[[hit[0] for hit in hits if hit]] = 1
        for leaf, value, hit in zip(self.tree.leaves, self.values, hits, strict=True):
            self.entries.append(hit[1] if hit else None)
            if hit:
                continue
            if leaf.rank is not None:
                _log.warning(
                    "rank %d has nothing saved for %s and keeps what it has", rank, leaf.name
                )
            elif not _is_empty(value):
                self.missing.append(leaf.name)


@dataclass(slots=True)
class _Plan:
    """What to read and what to put in, for one rank."""

    matched: _Match
    wants: list[Want]
    _values: dict[int, Any] = field(default_factory=dict)

    def __init__(self, matched: _Match, manifest: Manifest, rules: Rules) -> None:
        self.matched, self.wants, self._values = matched, [], {}
        files = [file.name for file in manifest.files]
        wrong: list[str] = []
        for index, (leaf, value, entry) in enumerate(
            zip(matched.tree.leaves, matched.values, matched.entries, strict=True)
        ):
            if entry is None:
                continue
            if isinstance(entry, Tensor) and (want := whole_want(entry, files, value)) is not None:
                self.wants.append(want)
            elif isinstance(entry, ValueEntry) != (not is_storable(value)):
                wrong.append(f"{leaf.name}: {_kind(entry)} was saved, {_kind_of(value)} is here")
            elif isinstance(entry, ValueEntry):
                self._values[index] = _decoded(entry, rules)
            elif tuple(entry.shape) != _global_shape(value):
                wrong.append(
                    f"{leaf.name}: shape {tuple(entry.shape)} was saved, "
                    f"{_global_shape(value)} is here"
                )
            else:
                self.wants += _tensor_wants(leaf, value, entry, files)
        if wrong:
            raise PlanError(f"{len(wrong)} keys do not fit: {_listed(wrong)}")

    def replacements(self) -> Iterator[Any]:
        """Return each leaf's new value; tensors are filled in place and stay."""
        return (self._values.get(i, value) for i, value in enumerate(self.matched.values))


def _tensor_wants(
    leaf: Leaf, value: torch.Tensor, saved: Tensor, files: Sequence[str]
) -> Iterator[Want]:
    for chunk, target in tensor_chunks(leaf.name, value, leaf.path):
        yield from wants(saved, files, chunk, target)


def _read(wanted: Sequence[Want], found: Found) -> ReadReport:
    names = {want.file for want in wanted}
    files = {file.name: file for file in found.manifest.files if file.name in names}
    try:
        return fetch(wanted, files, found.replicas)
    except NotFoundError:
        found.check_deleted()
        raise


def _unexpected(index: _Index, matched: _Match, group: Group) -> list[str]:
    """Return the stored names that no rank asked for, of parts that are not one rank's own."""
    seen = group.max_tensor(matched.seen)
    unseen = torch.nonzero(seen == 0).flatten().tolist()
    return [index.names[position] for position in unseen if not index.is_per_rank(position)]


def _check(matched: _Match, extra: Sequence[str], rules: Rules) -> None:
    if not rules.strict or not (matched.missing or extra):
        return
    parts = []
    if matched.missing:
        parts.append(f"{len(matched.missing)} keys were not saved: {_listed(matched.missing)}")
    if extra:
        parts.append(f"{len(extra)} saved keys have no place here: {_listed(extra)}")
    raise PlanError("; ".join(parts), hint="pass strict=False to restore what fits")


def _decoded(entry: ValueEntry, rules: Rules) -> Any:
    if entry.kind == "json":
        return decode(bytes(entry.data).decode())
    if not rules.allow_pickle:
        raise UnsafePickleError(
            f"{entry.name} is stored as a pickle, and loading one can run any code",
            hint="if you trust who wrote the checkpoint, make the Checkpointer with "
            "allow_pickle=True; better, save plain values and tensors only",
        )
    try:
        return torch.load(io.BytesIO(entry.data), map_location="cpu", weights_only=False)
    except TierstoreError:
        raise
    except Exception as error:
        raise PlanError(f"{entry.name}: its pickle cannot be loaded: {error!r}") from error


def _global_shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "global_shape", None) or value.shape)


def _is_empty(value: object) -> bool:
    """DCP stores no empty containers; one that is here loses nothing by staying empty."""
    return isinstance(value, (dict, list, tuple)) and not value


def _kind(entry: Tensor | ValueEntry) -> str:
    return "a value" if isinstance(entry, ValueEntry) else f"a tensor of shape {entry.shape}"


def _kind_of(value: object) -> str:
    return f"a {type(value).__name__}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names)[:_LISTED]) + more
