"""One run on one tier: its claims, commits and fragments.

How an attempt comes to exist::

    store.write_fragment(fragment)          # each rank, after its segments are durable
    store.try_commit(attempt, nonce)        # each rank: None until all fragments are there

The last writer commits. Whoever sees all fragments may commit, at any time, again: all write the
same manifest, and of several commits the first one stays. There is no coordinator, so a last writer
that dies is replaced by whoever looks next.

Fragments and manifests are arrays, and NumPy takes 0.1 s to import: a look at what there is does
without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tierstore.backend import Backend, ObjectInfo
from tierstore.blocks import crc32c
from tierstore.checkpoint.commit import Commit, looks_deleted
from tierstore.checkpoint.objects import read_object, read_objects, read_record, sizes_in
from tierstore.checkpoint.timeline import Launch
from tierstore.checkpoint.tombstone import is_buried, is_empty_tombstone
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointNotFoundError,
    FormatError,
    IncompleteError,
    IntegrityError,
    NotFoundError,
    TruncatedFileError,
)
from tierstore.keys import RUNS, Attempt, AttemptId, AttemptKeys, RunKeys

if TYPE_CHECKING:
    from tierstore.checkpoint.fragment import Fragment
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.checkpoint.merge import Merged


class CommitEntry(NamedTuple):
    """One object under `commits/`: its bytes, and when it was written by the store's clock."""

    size: int
    mtime: float

    @property
    def alive(self) -> bool:
        """Whether it is no tombstone, as far as its size tells."""
        return not looks_deleted(self.size)


class RunStore:
    """One run on one tier. Safe to use from several threads and processes.

    Args:
        backend: the tier; the caller closes it.
        run: the run's name.
    """

    def __init__(self, backend: Backend, run: str) -> None:
        self.backend = backend
        self.keys = RunKeys(run)

    def claims(self) -> dict[int, ObjectInfo]:
        """Return the launch numbers that are taken, each with the record that claims it.

        A claim keeps numbers apart; what is saved does not depend on it.
        """
        return {
            number: info
            for info in self.backend.list(self.keys.launches)
            if (number := self.keys.parse_launch(info.key)) is not None
        }

    def claim_launch(self, launch: Launch) -> None:
        """Take a launch number by creating its record.

        Raises:
            AlreadyExistsError: another process took it; claim a higher one.
        """
        self.backend.create(self.keys.launch(launch.number), launch.to_bytes(), if_absent=True)

    def entries(self) -> dict[Attempt, CommitEntry]:
        """Return everything under `commits/` by attempt, in order, by one listing."""
        found = {}
        for info in self.backend.list(self.keys.commits):
            attempt = self.keys.parse_commit(info.key)
            if attempt is not None:
                found[attempt] = CommitEntry(info.size, info.mtime)
        return found

    def deleted(self, attempt: Attempt, entry: CommitEntry) -> bool:
        """Return whether an entry under `commits/` is a tombstone, by its content if need be."""
        return not entry.alive and is_buried(self.backend, self.keys.commit(attempt))

    def attempts(self) -> Iterator[AttemptId]:
        """Yield whose folders of data there are, committed or not, in order."""
        for info in self.backend.list(self.keys.data, delimiter=True):
            parsed = self.keys.parse_data(info.key)
            if parsed is not None and info.key.endswith("/"):
                yield parsed

    def read_commit(self, attempt: Attempt) -> Commit:
        """Return the commit of an attempt.

        Raises:
            AttemptDeletedError: it is a tombstone.
            CheckpointNotFoundError: there is none.
            FormatError: it is damaged, or another attempt's; see `recover`.
            NewerFormatError: a newer tierstore wrote it.
        """
        key = self.keys.commit(attempt)
        try:
            data = read_record(self.backend, key)
        except NotFoundError as error:
            raise CheckpointNotFoundError(
                f"{self.backend.url}: run {self.keys.run!r} has no commit of {attempt}"
            ) from error
        if not data:  # a tombstone of format 1, or a commit that was cut to nothing
            if is_empty_tombstone(self.backend, key):
                raise AttemptDeletedError(f"{key} is a tombstone: the checkpoint was deleted")
            raise FormatError(f"{key} is damaged: it is empty, and its data is there")
        commit = Commit.from_bytes(data, key)
        if commit.attempt != attempt:
            raise FormatError(f"{key} is the commit of {commit.attempt}")
        return commit

    def recover(self, attempt: Attempt, nonce: str | None = None) -> tuple[Commit, Manifest]:
        """Return what the commit and the manifest of an attempt said, from its fragments.

        Args:
            attempt: the try.
            nonce: its launch's; None takes whichever wrote all of it.

        Raises:
            IncompleteError: not all fragments are there.
            IntegrityError: they are damaged, or contradict each other.
        """
        from tierstore.checkpoint.manifest import Manifest

        for folder in self._folders(attempt):
            if nonce not in (None, folder.nonce):
                continue
            keys = self.keys.attempt(*folder)
            merged = self._merged(folder, keys, None)
            if merged is not None:
                commit = _commit_of(merged)
                return commit, Manifest.open(merged.buffer, keys.manifest(merged.crc32c))
        raise IncompleteError(f"{self.keys.rivals(attempt)}*: not all fragments are there")

    def open_manifest(self, commit: Commit) -> Manifest:
        """Return a commit's manifest, read whole and intact; see `Manifest.checked`.

        Raises:
            AttemptDeletedError: the checkpoint was deleted meanwhile.
            IntegrityError: the manifest is missing, damaged or another attempt's.
            TruncatedFileError: it has another size than the commit says.
        """
        from tierstore.checkpoint.manifest import Manifest

        key = self.keys.attempt(commit.attempt, commit.nonce).manifest(commit.manifest_crc32c)
        try:
            buffer = read_object(self.backend, key, commit.manifest_size)
        except NotFoundError as error:
            self.read_commit(commit.attempt)
            raise IntegrityError(f"{key} is missing, but its commit is there") from error
        if crc32c(buffer) != commit.manifest_crc32c:
            raise IntegrityError(
                f"{key} is damaged: its CRC32C is not what the commit says",
                hint="restore another step, or from another tier",
            )
        manifest = Manifest.open(buffer, key)
        if (manifest.attempt, manifest.nonce) != (commit.attempt, commit.nonce):
            raise FormatError(f"{key} is the manifest of {manifest.attempt}-{manifest.nonce}")
        return manifest

    def write_fragment(self, fragment: Fragment) -> None:
        """Store a rank's fragment. All its files must be durable by now."""
        keys = self.keys.attempt(fragment.attempt, fragment.launch.nonce)
        self.backend.create(keys.fragment(fragment.rank), fragment.to_bytes())

    def try_commit(
        self, attempt: Attempt, nonce: str, ranks: Sequence[int] | None = None
    ) -> Commit | None:
        """Commit an attempt if all its fragments are there and it is not committed yet.

        Args:
            attempt: the try.
            nonce: its launch's.
            ranks: the ranks it needs, ascending; None asks the fragments.

        Returns:
            The commit that exists, whoever wrote it; None while fragments are missing.

        Raises:
            AttemptDeletedError: the attempt was deleted; give up.
            IncompleteError: the fragments or files are complete in number and not in content.
            TruncatedFileError: a file has another size than its fragment says.
            IntegrityError: a fragment is damaged, or fragments contradict each other.
            AlreadyExistsError: another launch committed this attempt: two jobs share the run.
        """
        try:
            return self._same_launch(self.read_commit(attempt), nonce)
        except CheckpointNotFoundError:
            pass
        keys = self.keys.attempt(attempt, nonce)
        merged = self._merged(AttemptId(attempt, nonce), keys, ranks)
        if merged is None:
            return None
        commit = _commit_of(merged)
        self._check_files(keys, merged)
        self.backend.create(keys.manifest(merged.crc32c), merged.buffer)
        try:
            self.backend.create(self.keys.commit(attempt), commit.to_bytes(), if_absent=True)
        except AlreadyExistsError:
            return self._same_launch(self.read_commit(attempt), nonce)
        return commit

    def _folders(self, attempt: Attempt) -> list[AttemptId]:
        """Whose folders of an attempt there are: rivals differ in the nonce."""
        found = self.backend.list(self.keys.rivals(attempt), delimiter=True)
        return [this for info in found if (this := self.keys.parse_data(info.key)) is not None]

    def _merged(
        self, wanted: AttemptId, keys: AttemptKeys, ranks: Sequence[int] | None
    ) -> Merged | None:
        """The manifest that an attempt's fragments make; None while some are missing."""
        found = self._complete(keys, ranks)
        if found is None:
            return None
        try:
            fragments = read_objects(self.backend, found)
        except NotFoundError:
            return None  # swept just now: the next look finds the tombstone
        from tierstore.checkpoint.merge import merge

        merged = merge(fragments, [info.key for info in found])
        if (merged.info.attempt, merged.info.nonce) != wanted:
            raise FormatError(f"{keys.fragments} holds fragments of {merged.info.attempt}")
        return merged

    def _same_launch(self, commit: Commit, nonce: str) -> Commit:
        if commit.nonce != nonce:
            raise AlreadyExistsError(
                f"another process with nonce {commit.nonce} committed this attempt",
                url=self.backend.url,
                key=self.keys.commit(commit.attempt),
                hint="two jobs save under one run name; give one of them another",
            )
        return commit

    def _complete(self, keys: AttemptKeys, ranks: Sequence[int] | None) -> list[ObjectInfo] | None:
        """The fragments of `ranks`, or None at the first gap."""
        found: list[ObjectInfo] = []
        for info in self.backend.list(keys.fragments):
            if ranks is None:
                from tierstore.checkpoint.fragment import read_fragment

                data = read_objects(self.backend, [info])[0]
                ranks = read_fragment(data, info.key).info.ranks
            expected = keys.fragment(ranks[len(found)]) if len(found) < len(ranks) else None
            if expected is None or info.key > expected:
                break
            if info.key == expected:
                found.append(info)
        return found if ranks is not None and len(found) == len(ranks) else None

    def _check_files(self, keys: AttemptKeys, merged: Merged) -> None:
        """Every file that the fragments name is there, whole."""
        here = sizes_in(self.backend, keys.root)
        for name, size in merged.sizes.items():
            if name not in here:
                raise IncompleteError(f"{keys.segment(name)} is missing; its fragment is there")
            if here[name] != size:
                raise TruncatedFileError(
                    f"{keys.segment(name)} has {here[name]} bytes instead of {size}"
                )


def _commit_of(merged: Merged) -> Commit:
    return Commit(
        attempt=merged.info.attempt,
        nonce=merged.info.nonce,
        manifest=f"manifest-{merged.crc32c:08x}.arrow",
        manifest_size=len(merged.buffer),
        manifest_crc32c=merged.crc32c,
        ranks=merged.info.ranks,
        world_size=merged.info.world_size,
        tensors=merged.tensors,
        chunks=merged.chunks,
        files=merged.files,
        nbytes=merged.nbytes,
        started=merged.info.started,
        parent=merged.info.parent,
        format=merged.info.format,
    )


def list_runs(backend: Backend) -> list[str]:
    """Return the names of the runs on a tier, sorted."""
    found = backend.list(RUNS, delimiter=True)
    return [info.key.removeprefix(RUNS)[:-1] for info in found if info.key.endswith("/")]
