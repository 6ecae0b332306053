"""Restore in place: match a state's leaves with what is stored, read, and decide together."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.checkpoint.values import decode
from tierstore.errors import PlanError, TierstoreError, UnsafePickleError
from tierstore.ladder.find import Found
from tierstore.logs import logger
from tierstore.transfer.read import ReadReport
from tierstore_torch.group import Group
from tierstore_torch.state.arrays import array_type, new_array
from tierstore_torch.state.flatten import Leaf, Tree
from tierstore_torch.state.items import global_shape, is_storable, tensor_chunks
from tierstore_torch.state.overlap import wants, whole_want
from tierstore_torch.state.stored import Entry, Stored
from tierstore_torch.state.targets import Target, Twins, check_memory, check_twins, read_wants

_log = logger(__name__)
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
    with without_collector():
        stored = Stored(found.manifest)
        matched = group.together(lambda: _Match(state, stored, group))
        extra = _unexpected(stored, matched, group)
        group.together(lambda: _check(matched, extra, rules))
        plan = group.together(lambda: _Plan(matched, found.manifest, rules))
    group.together(lambda: check_twins(plan.twins, found))
    wanted = [want for target in plan.targets for want in target.wants]
    report = group.together(lambda: read_wants(wanted, found))
    group.together(lambda: matched.tree.fill(state, plan.replacements()))
    return report


@contextmanager
def without_collector() -> Iterator[None]:
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


class _Match:
    """A state's leaves, each with what is stored for it."""

    @torch.inference_mode(False)  # what an optimizer gets here is for training
    @torch.no_grad()
    def __init__(self, state: object, stored: Stored, group: Group) -> None:
        self.tree = Tree(state, rank=group.rank, hold=True, lay_out=stored.laid_out)
        self.tree.check_in_place(state)
        self.values = self.tree.values
        hits = stored.find(self.tree.leaves)
        self.entries = [hit[1] if hit else None for hit in hits]
        self.seen = torch.zeros(len(stored.names), dtype=torch.uint8, device="cpu")
        self.seen[[hit[0] for hit in hits if hit]] = 1
        missing = [
            leaf
            for leaf, value, hit in zip(self.tree.leaves, self.values, hits, strict=True)
            if not hit and not _is_empty(value)
        ]
        self.missing = [leaf.name for leaf in missing if stored.lacks(leaf, group.size)]
        if kept := [leaf.name for leaf in missing if not stored.lacks(leaf, group.size)]:
            _log.warning(
                "rank %d has nothing saved for its own %s and keeps what it has: the checkpoint "
                "is of %d ranks",
                *(group.rank, listed(kept), stored.world_size),
            )


@dataclass(slots=True)
class _Plan:
    """What to read and what to put in, for one rank."""

    matched: _Match
    targets: list[Target]
    twins: list[Twins]
    _values: dict[int, Any]

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, matched: _Match, manifest: Manifest, rules: Rules) -> None:
        self.matched, self._values = matched, {}
        files = [file.name for file in manifest.files]
        targets: list[Target] = []
        wrong: list[str] = []
        for index, (leaf, value, entry) in enumerate(
            zip(matched.tree.leaves, matched.values, matched.entries, strict=True)
        ):
            if entry is None:
                continue
            try:
                found = self._targets_of(index, leaf, value, entry, files, rules)
            except TierstoreError:
                raise
            except Exception as error:  # torch does not let it be looked at
                raise _unusable(leaf.name, error) from error
            if isinstance(found, str):
                wrong.append(found)
            else:
                targets += found
        if wrong:
            raise PlanError(f"{len(wrong)} keys do not fit: {listed(wrong)}")
        self._check_same()
        self.targets, self.twins = check_memory(targets)

    def _targets_of(
        self, index: int, leaf: Leaf, value: Any, entry: Entry, files: Sequence[str], rules: Rules
    ) -> Iterable[Target] | str:
        """Return what to fill of one leaf, or why it does not fit; note its value if it is one."""
        if isinstance(entry, ValueEntry):
            if is_storable(value):
                return f"{leaf.name}: {_kind(entry)} was saved, {_kind_of(value)} is here"
            self._values[index] = decoded(entry, allow_pickle=rules.allow_pickle)
            return ()
        kind = array_type(entry.path)
        if kind and not isinstance(value, torch.Tensor):
            self._values[index], tensor = new_array(entry, kind)
            return _targets(leaf, tensor, entry, files)
        if (want := whole_want(entry, files, value)) is not None:
            return (Target(leaf.name, entry, None, value, (want,)),)
        if not is_storable(value):
            return f"{leaf.name}: {_kind(entry)} was saved, {_kind_of(value)} is here"
        shape = global_shape(leaf.name, value)
        if tuple(entry.shape) != shape:
            return f"{leaf.name}: shape {tuple(entry.shape)} was saved, {shape} is here"
        return _targets(leaf, value, entry, files)

    def _check_same(self) -> None:
        """Check that values that go to one place are equal."""
        leaves, entries = self.matched.tree.leaves, self.matched.entries
        for one, other in self.matched.tree.same:
            left, right = entries[one], entries[other]
            if not (isinstance(left, ValueEntry) and isinstance(right, ValueEntry)):
                continue  # tensors are told apart by their memory
            if left.data != right.data:
                raise PlanError(
                    f"{leaves[one].name} and {leaves[other].name} are the same place here, but "
                    "different values were saved for them",
                    hint="restore into a state where they are apart, or leave one of them out",
                )

    def replacements(self) -> Iterator[Any]:
        """Return each leaf's new value; tensors are filled in place and stay."""
        return (self._values.get(i, value) for i, value in enumerate(self.matched.values))


def _targets(leaf: Leaf, value: torch.Tensor, saved: Tensor, files: Sequence[str]) -> list[Target]:
    return [
        Target(leaf.name, saved, chunk, tensor, list(wants(saved, files, chunk, tensor)))
        for chunk, tensor in tensor_chunks(leaf.name, value, leaf.path)
    ]


def _unusable(name: str, error: Exception) -> PlanError:
    return PlanError(
        f"{name} cannot be restored into: {type(error).__name__}: {error}",
        hint="put a plain tensor in its place, or leave it out",
    )


def _unexpected(stored: Stored, matched: _Match, group: Group) -> list[str]:
    """Return the stored names that no rank asked for, though some rank should have."""
    seen = group.max_tensor(matched.seen)
    names, of_others = stored.for_ranks((seen == 0).nonzero().flatten().tolist(), group.size)
    if of_others and group.rank == 0:
        _log.warning(
            "not restored, as it is of ranks that are not here: %s; the checkpoint is of %d ranks",
            *(listed(of_others), stored.world_size),
        )
    return names


def _check(matched: _Match, extra: Sequence[str], rules: Rules) -> None:
    parts = []
    if matched.missing:
        parts.append(f"{len(matched.missing)} keys were not saved: {listed(matched.missing)}")
    if extra:
        parts.append(f"{len(extra)} saved keys have no place here: {listed(extra)}")
    if not parts:
        return
    if rules.strict:
        raise PlanError(
            "; ".join(parts),
            hint="strict=False restores the rest; what an object has only later, such as after a "
            "first step, it must be given before",
        )
    _log.warning("not restored: %s", "; ".join(parts))


def decoded(entry: ValueEntry, *, allow_pickle: bool) -> Any:
    """Return a stored value.

    Raises:
        UnsafePickleError: it is a pickle, and pickles are not allowed.
        PlanError: its pickle cannot be loaded.
    """
    if entry.kind == "json":
        return decode(bytes(entry.data).decode())
    if not allow_pickle:
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


def _is_empty(value: object) -> bool:
    """DCP stores no empty containers; one that is here loses nothing by staying empty."""
    return isinstance(value, (dict, list, tuple)) and not value


def _kind(entry: Tensor | ValueEntry) -> str:
    return "a value" if isinstance(entry, ValueEntry) else f"a tensor of shape {entry.shape}"


def _kind_of(value: object) -> str:
    kind = f"a {type(value).__name__}"
    if not isinstance(value, torch.Tensor) or value.layout is torch.strided:
        return f"{kind} that is quantised" if getattr(value, "is_quantized", False) else kind
    return f"{kind} of layout {str(value.layout).removeprefix('torch.')}"


def listed(names: Sequence[str]) -> str:
    """Return some names for an error or the log, sorted, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names)[:_LISTED]) + more
