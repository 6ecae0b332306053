"""Export: a checkpoint becomes files that other tools read, every byte checked on the way.

What makes the files a whole (an index, DCP's metadata) is written last, and a single file appears
when it is whole. So a killed export leaves nothing that opens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tierstore.blocks import BLOCK_SIZE
from tierstore.convert.files import FilePlan, write_plans
from tierstore.convert.formats import Format, Layout, Outgoing, StoredTensor
from tierstore.convert.place import Place
from tierstore.convert.ranges import range_wants
from tierstore.convert.selection import TensorSelection
from tierstore.errors import AlreadyExistsError, ConfigError, NotFoundError, PlanError
from tierstore.image.layout import Chunk
from tierstore.ladder.find import Found
from tierstore.migration.apart import holds
from tierstore.text import some
from tierstore.transfer.pieces import Slice
from tierstore.transfer.read import fetch
from tierstore.transfer.source import AlignedBuffers


@dataclass(frozen=True, slots=True, eq=False)
class ExportPlan:
    """What an export writes.

    Attributes:
        found: the checkpoint.
        place: where to.
        layout: the files.
        items: the tensors.
        values: how many values are exported.
        dropped: how many tensors and values were not selected.
        existing: files of an earlier export in the target's place.
        seal: the name of the file that makes such files a whole.
    """

    found: Found
    place: Place
    layout: Layout
    items: Sequence[StoredTensor]
    values: int
    dropped: int
    existing: Sequence[str]
    seal: str

    @property
    def files(self) -> list[FilePlan[StoredTensor]]:
        """All files, in the order in which they are written."""
        last = self.layout.last
        return [*self.layout.files, *([] if last is None else [last])]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(item.chunk.nbytes for item in self.items)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a caller wants the export.

    Attributes:
        selection: what is taken, and under which names.
        max_shard: bytes that one file may have.
        allow_pickle: values that are stored as pickles may be loaded.
        force: replace an earlier export.
    """

    selection: TensorSelection
    max_shard: int
    allow_pickle: bool = False
    force: bool = False


def plan_export(found: Found, place: Place, form: Format, wishes: Wishes) -> ExportPlan:
    """Select, rename and lay out what a checkpoint has.

    Raises:
        PlanError: nothing is selected, two things get one name, or the format cannot hold one.
        UnsafePickleError: a value is a pickle, and pickles are not allowed.
        AlreadyExistsError: there is an export already, and `force` is not set.
        ConfigError: with `force`, a file of a tier would be replaced.
    """
    outgoing, dropped = _select(found, wishes)
    layout = form.write(outgoing, place.name)
    existing = _existing(place, form)
    if existing and not wishes.force:
        raise AlreadyExistsError(
            f"{place.backend.url} has {some(existing)}",
            hint="--force replaces them; better, export to a fresh place",
        )
    for replica in found.replicas if existing else ():
        if holds(replica.backend, place.backend, existing[0]):
            raise ConfigError(
                f"{place.url} is part of the tier {replica.backend.url}, where {existing[0]} would "
                "be replaced",
                hint="export to a place outside of all tiers",
            )
    values = len(outgoing.values) - len(layout.left_out)
    return ExportPlan(found, place, layout, outgoing.items, values, dropped, existing, form.seal)


def _select(found: Found, wishes: Wishes) -> tuple[Outgoing, int]:
    manifest, selection = found.manifest, wishes.selection
    items = []
    for tensor in manifest:
        if selection.takes(tensor.name):
            name, path = selection.rename(tensor.name, tensor.path)
            shape = tensor.shape
            chunk = Chunk(name, tensor.dtype, shape, (0,) * len(shape), shape, path)
            items.append(StoredTensor(chunk, tensor))
    stored = list(manifest.values())
    values = list(selection.values(stored))
    names = [item.chunk.name for item in items] + [value.name for value in values]
    if not names:
        raise PlanError(
            f"step {found.attempt.step} of run {found.run!r} has nothing that --only matches"
            if selection.only
            else f"step {found.attempt.step} of run {found.run!r} is empty",
            hint="`tierstore show --tensors` lists the names",
        )
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise PlanError(f"two things would be called {twice!r}", hint="use --only or --exclude")
    items.sort(key=lambda item: item.chunk.name)
    values.sort(key=lambda value: value.name)
    chosen = bool(selection.only)
    outgoing = Outgoing(items, values, chosen, wishes.max_shard, wishes.allow_pickle)
    return outgoing, len(manifest) + len(stored) - len(names)


def _existing(place: Place, form: Format) -> list[str]:
    if not place.name:
        return [name for name in place.names() if form.owns(name)]
    try:
        place.size(place.name)
    except NotFoundError:
        return []
    return [place.name]


def write_export(plan: ExportPlan, progress: Callable[[int], None] | None = None) -> None:
    """Write the files.

    Args:
        plan: what to write.
        progress: told the bytes of every part that was sent, from several threads.

    Raises:
        CorruptBlockError: no tier has a good copy of some bytes.
        StorageError: the target refused, or no tier can be read.
    """
    backend = plan.place.backend
    if plan.existing and not plan.place.name:  # a file of its own is replaced at once
        backend.delete([plan.seal])
        backend.delete(plan.existing)
    fill = _Reader(plan.found, backend.capabilities.concurrency)
    try:
        write_plans(backend, plan.layout.files, fill, progress=progress)
    except NotFoundError:
        plan.found.check_deleted()
        raise
    if plan.layout.last is not None:
        write_plans(backend, [plan.layout.last], fill, progress=progress)


class _Reader:
    """Gets at the bytes of stored tensors: one verified fetch for each part that is written."""

    def __init__(self, found: Found, width: int) -> None:
        self._replicas = found.replicas
        self._names = [file.name for file in found.manifest.files]
        self._files = {file.name: file for file in found.manifest.files}
        self._buffers = AlignedBuffers(BLOCK_SIZE, width)

    def __call__(self, slices: Sequence[Slice[StoredTensor]]) -> None:
        wants = [
            want
            for part in slices
            for want in range_wants(part.item.tensor, self._names, part.begin, part.into)
        ]
        if wants:
            fetch(wants, self._files, self._replicas, threads=1, buffers=self._buffers)
