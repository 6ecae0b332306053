"""Carrying out the commands of a migration: every byte is read once, checked, and written once."""

from __future__ import annotations

import os
import threading

from tierstore.backend import ObjectInfo, Upload, abort_uploads
from tierstore.blocks import combine_blocks
from tierstore.checkpoint.commit import looks_deleted
from tierstore.checkpoint.delete import bury, remove_data
from tierstore.checkpoint.join import join
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.tombstone import is_buried
from tierstore.errors import (
    AlreadyExistsError,
    BlockedError,
    CheckpointError,
    DamagedInTransitError,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TierstoreError,
    TransientError,
    TruncatedFileError,
)
from tierstore.keys import commit_of
from tierstore.logs import logger
from tierstore.scan import place_check
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.ends import Ends
from tierstore.transfer.engine.records import Version
from tierstore.transfer.engine.removal import is_link, path_of, stays
from tierstore.transfer.part import Wrong, checked, crc_at, move, reads_back, wrong_at
from tierstore.transfer.source import Buffers, StoredSource

_log = logger(__name__)
_TOUCHES = 64  # while a file is compared; others remove its other names
_LIGHT = 256 * 1024  # bytes: more of them take longer to move than Python takes for the command

CANNOT_REMOVE = "nothing may be removed from its folder"
BAD_SOURCE = "the source's own checksum is not that of the bytes it gives"
BAD_UPLOAD = "what the destination took is not what it was sent"
BAD_COPY = "the destination gave back other bytes than it was sent; nothing else was touched"


class Worker:
    """Carries out commands, from any number of threads.

    Args:
        ends: the two stores, with their policy around them.
        buffers: lend memory for a range.
        affinity: where what is light is done.
        durable: False if whoever asks flushes the destination before believing in small objects.
    """

    def __init__(
        self, ends: Ends, buffers: Buffers, affinity: Affinity, *, durable: bool = True
    ) -> None:
        self._ends, self._buffers, self._affinity, self._durable = ends, buffers, affinity, durable
        self._source, self._target = ends.source, ends.target
        verified = reads_back(ends.target.capabilities, verify=True)
        self._back = buffers if verified else None  # what the target holds is read into
        self._uploads: dict[int, Upload] = {}
        self._touched = threading.Lock()

    def carry_out(self, task: m.Task) -> m.Answer:
        """Return the answer to a command; errors are answers too."""
        if _size(task) > _LIGHT:
            self._affinity.leave()
        else:
            self._affinity.join()
        try:
            return self._carry_out(task)
        except TierstoreError as error:
            if isinstance(task, m.Discard):
                return m.Discarded(task.job)
            if isinstance(error, InvalidKeyError):
                return m.Failed(task.job, str(error), outcome=m.Outcome.LEFT_OUT)
            if isinstance(error, BlockedError):
                return m.Failed(task.job, str(error), outcome=m.Outcome.BLOCKED)
            # These were repeated for long; whoever fills the destination or is away stays so.
            fatal = isinstance(error, OutOfSpaceError | TransientError)
            return m.Failed(task.job, str(error), fatal)
        except Exception as error:
            _log.exception("a worker failed")
            return m.Failed(task.job, f"{type(error).__name__}: {error}", fatal=True)

    def _carry_out(self, task: m.Task) -> m.Answer:
        match task:
            case m.Try():
                return self._try(task)
            case m.Look():
                return self._look(task)
            case m.Compare() | m.Copy() | m.Send():
                return self._read(task)
            case m.Open():
                return self._open(task)
            case m.Commit():
                return self._commit(task)
            case m.Check():
                return self._check(task)
            case m.Discard():
                return self._discard(task)
            case m.Unite():
                return self._unite(task)
            case m.Remove():
                return self._remove(task)
            case m.Sweep():
                return self._sweep(task)

    def _try(self, task: m.Try) -> m.Answer:
        entry = task.entry
        # On a disk reading is the only way to know; elsewhere it is a request for each object.
        if entry.version.size and path_of(self._source, entry.key):
            with self._buffers.take(1) as byte:
                self._source.read_into(entry.key, 0, byte)
        place_check(self._target)(self._ends.target_key(entry.key))
        return m.Tried(task.job)

    def _look(self, task: m.Look) -> m.Answer:
        info = self._source.stat(task.entry.key)
        version = Version.of(info)
        if not version.same(task.entry.version):
            return m.Changed(task.job, version)
        try:
            there = self._target.stat(self._ends.target_key(task.entry.key))
        except NotFoundError:
            return m.Looked(task.job, info.crc32c, None, None)
        found = Version.of(there)
        return m.Looked(task.job, info.crc32c, found, there.crc32c)

    def _read(self, task: m.Compare | m.Copy | m.Send) -> m.Answer:
        """Carry out what reads the source."""
        try:
            match task:
                case m.Compare():
                    return self._compare(task)
                case m.Copy():
                    return self._copy(task)
                case m.Send():
                    return self._send(task)
        except IntegrityError:  # it has become shorter, or it is damaged there
            if changed := self._changed(task, None):
                return changed
            raise

    def _compare(self, task: m.Compare) -> m.Answer:
        offset, length, blocks = task.offset, task.length, task.entry.blocks
        with self._lent(task.entry).view(offset, length) as part:
            crc = combine_blocks(checked(part, offset, blocks, _damaged), length)
            other = None
            if task.both:
                other = crc_at(self._target, self._ends.target_key(task.entry.key), offset, part)
        return m.Compared(task.job, task.index, crc, other)

    def _copy(self, task: m.Copy) -> m.Answer:
        entry = task.entry
        with self._buffers.take(entry.version.size) as data:
            info = self._source.fetch(entry.key, data)
            crcs = checked(data, 0, entry.blocks, _damaged)
            crc = combine_blocks(crcs, entry.version.size)
            return self._differs(task, info, crc) or self._create(task, data, crcs)

    def _create(self, task: m.Copy, data: memoryview, crcs: list[int]) -> m.Answer:
        key, absent = self._ends.target_key(task.entry.key), not task.replace
        try:
            info = self._target.create(key, data, if_absent=absent, durable=self._durable)
        except AlreadyExistsError:
            return m.Conflicted(task.job)
        if self._back is not None and wrong_at(self._target, key, 0, data, crcs):
            return m.Failed(task.job, BAD_COPY)
        return m.Copied(task.job, Version.of(info))

    def _open(self, task: m.Open) -> m.Answer:
        key, size = self._ends.target_key(task.entry.key), task.entry.version.size
        if not task.token:
            upload = self._target.upload(key, size)
        else:
            try:
                upload = self._target.upload(key, size, resume=task.token)
            except StorageError as error:
                if type(error) not in (NotFoundError, StorageError):
                    raise  # the store would not say
                return m.Gone(task.job)
            if upload.token != task.token:  # begun anew
                upload.abort()
                return m.Gone(task.job)
        self._uploads[task.job] = upload
        token = upload.token if self._target.capabilities.resumable_upload else ""
        return m.Opened(task.job, token, tuple(upload.done))

    def _send(self, task: m.Send) -> m.Answer:
        # Read back while others are sent; what could not be, or is wrong, is after the commit.
        moved = move(
            self._uploads[task.job],
            self._lent(task.entry),
            task.offset,
            task.length,
            known=task.entry.blocks,
            blame=_damaged,
            back=self._back,
        )
        return m.Sent(task.job, task.index, moved.crc, checked=moved.proven)

    def _commit(self, task: m.Commit) -> m.Answer:
        if changed := self._changed(task, task.crc):
            return changed
        try:
            upload = self._uploads[task.job]
            info = upload.commit(if_absent=not task.replace, crc32c=task.crc)
        except AlreadyExistsError:
            return m.Conflicted(task.job)
        except TruncatedFileError:
            return m.Short(task.job)
        except DamagedInTransitError:
            return m.Changed(task.job, task.entry.version, BAD_UPLOAD)
        except NotFoundError:
            return m.Gone(task.job)
        del self._uploads[task.job]
        return m.Committed(task.job, Version.of(info))

    def _check(self, task: m.Check) -> m.Answer:
        with self._buffers.take(task.length) as part:
            key = self._ends.target_key(task.entry.key)
            return m.Checked(task.job, task.index, crc_at(self._target, key, task.offset, part))

    def _discard(self, task: m.Discard) -> m.Answer:
        upload, key = self._uploads.pop(task.job, None), self._ends.target_key(task.key)
        if upload is None and not task.token:
            abort_uploads(self._target, key)
            return m.Discarded(task.job)
        if upload is None:
            upload = self._target.upload(key, task.size, resume=task.token)
        upload.abort()
        return m.Discarded(task.job)

    def _unite(self, task: m.Unite) -> m.Answer:
        run, attempt = commit_of(task.entry.key)
        if join(RunStore(self._source, run), RunStore(self._target, run), attempt) is None:
            return m.United(task.job, None)
        return m.United(task.job, Version.of(self._target.stat(task.entry.key)))

    def _remove(self, task: m.Remove) -> m.Answer:
        entry = task.entry
        if task.only_link and not is_link(self._source, entry.key):
            return m.Removed(task.job, kept=True)
        if why := stays(self._ends, entry.key):  # also if it went by another way to it meanwhile
            return m.Failed(task.job, why)
        if task.dry:
            path = path_of(self._source, entry.key)
            may = path is None or os.access(path.parent, os.W_OK | os.X_OK)
            return m.Removed(task.job) if may else m.Failed(task.job, CANNOT_REMOVE)
        try:
            version = Version.of(self._source.stat(entry.key))
        except NotFoundError:
            return m.Removed(task.job)
        if entry.seals and looks_deleted(version.size) and is_buried(self._source, entry.key):
            return m.Removed(task.job)  # a worker was lost after it had done it
        if version.same(entry.version):
            self._delete(entry)
            return m.Removed(task.job)
        with self._touched:  # by one at a time: each removal touches what is left
            if version.size != entry.version.size or not self._only_touched(entry):
                return m.Removed(task.job, changed=True)
            self._delete(entry)
        return m.Removed(task.job)

    def _delete(self, entry: m.Entry) -> None:
        if entry.seals:
            bury(self._source, entry.key)
        else:
            self._source.delete([entry.key])

    def _only_touched(self, entry: m.Entry) -> bool:
        """Whether the source has another version, but still the bytes that the destination has.

        So it is with a file that has several names, when the first of them is removed.
        """
        version = Version.of(self._source.stat(entry.key))
        for _ in range(_TOUCHES):
            before = version
            if not self._equal(entry.key, entry.version.size):
                return False
            version = Version.of(self._source.stat(entry.key))
            if version.same(before):
                return True
        return False

    def _equal(self, key: str, size: int) -> bool:
        part = self._target.capabilities.part_size
        for offset in range(0, size, part):
            with self._buffers.take(min(part, size - offset)) as data:
                crc = crc_at(self._source, key, offset, data)
                if crc_at(self._target, self._ends.target_key(key), offset, data) != crc:
                    return False
        return True

    def _sweep(self, task: m.Sweep) -> m.Answer:
        def check(key: str) -> None:
            if why := stays(self._ends, key):
                raise CheckpointError(f"{key}: {why}")

        remove_data(self._source, task.dead.commit, check)
        return m.Removed(task.job)

    def _lent(self, entry: m.Entry) -> StoredSource:
        return StoredSource(self._source, entry.key, self._buffers)

    def _changed(
        self, task: m.Compare | m.Copy | m.Send | m.Commit, crc: int | None
    ) -> m.Changed | None:
        """Look whether the source still has what was listed, and gave the bytes that it has."""
        return self._differs(task, self._source.stat(task.entry.key), crc)

    def _differs(
        self, task: m.Compare | m.Copy | m.Send | m.Commit, info: ObjectInfo, crc: int | None
    ) -> m.Changed | None:
        version = Version.of(info)
        if not version.same(task.entry.version):
            return m.Changed(task.job, version)
        if None not in (crc, info.crc32c) and crc != info.crc32c:
            return m.Changed(task.job, version, BAD_SOURCE)
        return None


def _damaged(wrong: Wrong) -> IntegrityError:
    return IntegrityError(
        f"block {wrong.block} of it is damaged at the source: its CRC32C is not what the "
        "manifest says",
        hint="migrate from another tier that has this checkpoint",
    )


def _size(task: m.Task) -> int:
    """Return how many bytes a command moves."""
    match task:
        case m.Copy():
            return task.entry.version.size
        case m.Compare() | m.Send() | m.Check():
            return task.length
        case _:
            return 0
