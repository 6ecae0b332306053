"""Load what was saved into new memory, without a state to fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.errors import PlanError
from tierstore.image.layout import Chunk
from tierstore.ladder.find import Found
from tierstore.logs import logger
from tierstore.transfer.requests import Want
from tierstore_torch.group import Group
from tierstore_torch.restore import decoded, listed, without_collector
from tierstore_torch.state.arrays import array_type, new_array
from tierstore_torch.state.flatten import rank_of
from tierstore_torch.state.items import dtype_named
from tierstore_torch.state.nested import nested
from tierstore_torch.state.overlap import wants, whole_want
from tierstore_torch.state.targets import read_wants

_log = logger(__name__)

Device = str | torch.device | None


def load_from(found: Found, group: Group, device: Device, *, allow_pickle: bool) -> Any:
    """Return what a checkpoint holds. Collective: it ends in the same way on every rank.

    Args:
        found: the checkpoint.
        group: the ranks; each gets all that is no rank's own, and its own.
        device: where tensors are to be; None for the CPU.
        allow_pickle: values that are not plain may be unpickled, which can run any code.

    Raises:
        UnsafePickleError: a value is a pickle, and pickles are not allowed.
        PlanError: a dtype, the device or the nesting of what is stored is beyond this torch.
        TierstoreError: bytes could not be read.
    """
    with without_collector():
        plan = group.together(
            lambda: _Plan(found.manifest, group, device, allow_pickle=allow_pickle)
        )
    group.together(lambda: read_wants(plan.wants, found))
    return group.together(plan.state)


@dataclass(slots=True)
class _Plan:
    """What to read, and where it belongs."""

    wants: list[Want]
    _leaves: list[tuple[str, str, Any]]

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self, manifest: Manifest, group: Group, device: Device, *, allow_pickle: bool
    ) -> None:
        self.wants, self._leaves = [], []
        place = _checked(device)
        files = [file.name for file in manifest.files]
        for entry in _entries(manifest, group):
            if isinstance(entry, ValueEntry):
                leaf = decoded(entry, allow_pickle=allow_pickle)
            else:
                leaf, reads = _new(entry, files, place)
                self.wants += reads
            self._leaves.append((entry.name, entry.path, leaf))
        self._leaves.sort(key=lambda leaf: leaf[0])

    def state(self) -> Any:
        """Return all leaves, nested as they were."""
        return nested(self._leaves, exact=True)


def _checked(device: Device) -> torch.device:
    """Return the device to load to.

    Raises:
        PlanError: there is none such, or it holds no numbers.
    """
    try:
        place = torch.device("cpu" if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise PlanError(f"map_location is {device!r}: {error}", hint="name a device") from error
    if place.type == "meta":
        raise PlanError(
            "map_location is 'meta', where tensors have no numbers",
            hint="tierstore.open gives names, shapes and dtypes without reading",
        )
    return place


def _entries(manifest: Manifest, group: Group) -> Iterator[Tensor | ValueEntry]:
    """Yield what is for this rank, and log what is of ranks that are not here."""
    others: list[str] = []
    any_own = False
    every: Iterator[Tensor | ValueEntry] = chain(manifest, manifest.values())
    for entry in every:
        rank = rank_of(entry.path)
        any_own |= rank is not None
        if rank in (None, group.rank):
            yield entry
        elif rank is not None and rank >= group.size:
            others.append(entry.name)
    if manifest.world_size == group.size:
        return
    if others and group.rank == 0:
        _log.warning(
            "not loaded, as it is of ranks that are not here: %s; the checkpoint is of %d ranks",
            *(listed(others), manifest.world_size),
        )
    if group.rank >= manifest.world_size and any_own:
        _log.warning(
            "rank %d gets nothing of its own: the checkpoint is of %d ranks",
            *(group.rank, manifest.world_size),
        )


def _new(saved: Tensor, files: Sequence[str], device: torch.device) -> tuple[Any, Sequence[Want]]:
    """Return a new tensor or array for what was saved, and the reads that fill it."""
    kind = array_type(saved.path)
    leaf: Any
    if kind is not None:
        leaf, tensor = new_array(saved, kind)
    else:
        tensor = leaf = torch.empty(saved.shape, dtype=dtype_named(saved.dtype), device=device)
    if (want := whole_want(saved, files, tensor)) is not None:
        return leaf, (want,)
    shape = saved.shape
    whole = Chunk(saved.name, saved.dtype, shape, (0,) * len(shape), shape)
    return leaf, tuple(wants(saved, files, whole, tensor))
