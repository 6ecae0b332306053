"""Carrying out the commands of an engine: every byte is read once, checked, and written once."""

from __future__ import annotations

from tierstore.backend import Backend, ObjectInfo, Upload, abort_uploads
from tierstore.blocks import combine_blocks
from tierstore.checkpoint.join import join
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AlreadyExistsError,
    BlockedError,
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
from tierstore.transfer.engine.entries import Entry, Outcome
from tierstore.transfer.engine.records import Version
from tierstore.transfer.engine.removal import Remover, path_of
from tierstore.transfer.engine.stores import Stores
from tierstore.transfer.part import Wrong, checked, crc_at, move, reads_back, wrong_at
from tierstore.transfer.source import Buffers, StoredSource

_log = logger(__name__)
_LIGHT = 256 * 1024  # bytes: more of them take longer to move than Python takes for the command

BAD_SOURCE = "the source's own checksum is not that of the bytes it gives"
BAD_UPLOAD = "what the destination took is not what it was sent"
BAD_COPY = "the destination gave back other bytes than it was sent; nothing else was touched"


class _MissedError(Exception):
    """A source did not do its part.

    Attributes:
        cause: what it said.
    """

    def __init__(self, cause: TierstoreError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Source:
    """A store that is read; its errors are told from those of a destination."""

    def __init__(self, store: Backend) -> None:
        self._store = store

    def stat(self, key: str) -> ObjectInfo:
        try:
            return self._store.stat(key)
        except TierstoreError as error:
            raise _MissedError(error) from error

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        try:
            return self._store.fetch(key, buffer)
        except TierstoreError as error:
            raise _MissedError(error) from error

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        try:
            self._store.read_into(key, offset, buffer)
        except TierstoreError as error:
            raise _MissedError(error) from error


class Worker:
    """Carries out commands, from any number of threads.

    Args:
        stores: that they are about.
        buffers: lend memory for a range.
        affinity: where what is light is done.
        durable: False if whoever asks flushes a destination that can be, before believing in small
            objects.
    """

    def __init__(
        self, stores: Stores, buffers: Buffers, affinity: Affinity, *, durable: bool = True
    ) -> None:
        self._stores, self._buffers, self._affinity = stores, buffers, affinity
        self._sources = {name: _Source(store) for name, store in stores.by_name.items()}
        self._targets = {
            name: _Target(stores[name], buffers, durable=durable) for name in stores.targets
        }
        self._remover = Remover(stores, buffers)
        self._uploads: dict[int, Upload] = {}

    def carry_out(self, task: m.Task) -> m.Answer:
        """Return the answer to a command; errors are answers too."""
        if _size(task) > _LIGHT:
            self._affinity.leave()
        else:
            self._affinity.join()
        try:
            return self._carry_out(task)
        except _MissedError as error:
            return _failed(task, error.cause, missed=True)
        except TierstoreError as error:
            return m.Discarded(task.job) if isinstance(task, m.Discard) else _failed(task, error)
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
                return self._remover.remove(task)
            case m.Sweep():
                return self._remover.sweep(task)

    def _try(self, task: m.Try) -> m.Answer:
        entry = task.entry
        # On a disk reading is the only way to know; elsewhere it is a request for each object.
        if entry.version.size and path_of(self._stores[entry.source], entry.key):
            with self._buffers.take(1) as byte:
                self._sources[entry.source].read_into(entry.key, 0, byte)
        place_check(self._stores[entry.target])(entry.target_key)
        return m.Tried(task.job)

    def _look(self, task: m.Look) -> m.Answer:
        info = self._sources[task.entry.source].stat(task.entry.key)
        version = Version.of(info)
        if not version.same(task.entry.version):
            return m.Changed(task.job, version)
        store, key = task.entry.place
        try:
            there = self._stores[store].stat(key)
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
        except _MissedError as error:
            if not isinstance(error.cause, IntegrityError):
                raise
            # It has become shorter, or it is damaged there.
            if changed := self._changed(task, None):
                return changed
            raise

    def _compare(self, task: m.Compare) -> m.Answer:
        offset, length, blocks = task.offset, task.length, task.entry.blocks
        with self._lent(task.entry).view(offset, length) as part:
            crc = combine_blocks(_checked(part, offset, blocks), length)
            other = None
            if task.both:
                store, key = task.entry.place
                other = crc_at(self._stores[store], key, offset, part)
        return m.Compared(task.job, task.index, crc, other)

    def _copy(self, task: m.Copy) -> m.Answer:
        entry = task.entry
        with self._buffers.take(entry.version.size) as data:
            info = self._sources[entry.source].fetch(entry.key, data)
            crcs = _checked(data, 0, entry.blocks)
            crc = combine_blocks(crcs, entry.version.size)
            return self._differs(task, info, crc) or self._create(task, data, crcs)

    def _create(self, task: m.Copy, data: memoryview, crcs: list[int]) -> m.Answer:
        target, key = self._targets[task.entry.target], task.entry.target_key
        absent = not task.replace
        try:
            info = target.store.create(key, data, if_absent=absent, durable=target.durable)
        except AlreadyExistsError:
            return m.Conflicted(task.job)
        if target.back is not None and wrong_at(target.store, key, 0, data, crcs):
            return m.Failed(task.job, BAD_COPY)
        return m.Copied(task.job, Version.of(info))

    def _open(self, task: m.Open) -> m.Answer:
        target, key = self._stores[task.entry.target], task.entry.target_key
        size = task.entry.version.size
        if not task.token:
            upload = target.upload(key, size)
        else:
            try:
                upload = target.upload(key, size, resume=task.token)
            except StorageError as error:
                if type(error) not in (NotFoundError, StorageError):
                    raise  # the store would not say
                return m.Gone(task.job)
            if upload.token != task.token:  # begun anew
                upload.abort()
                return m.Gone(task.job)
        self._uploads[task.job] = upload
        token = upload.token if target.capabilities.resumable_upload else ""
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
            back=self._targets[task.entry.target].back,
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
        store, key = task.entry.place
        with self._buffers.take(task.length) as part:
            crc = crc_at(self._stores[store], key, task.offset, part)
            return m.Checked(task.job, task.index, crc)

    def _discard(self, task: m.Discard) -> m.Answer:
        upload, target = self._uploads.pop(task.job, None), self._stores[task.store]
        if upload is None and not task.token:
            abort_uploads(target, task.key)
            return m.Discarded(task.job)
        if upload is None:
            upload = target.upload(task.key, task.size, resume=task.token)
        upload.abort()
        return m.Discarded(task.job)

    def _unite(self, task: m.Unite) -> m.Answer:
        source, target = self._stores[task.entry.source], self._stores[task.entry.target]
        run, attempt = commit_of(task.entry.key)
        if join(RunStore(source, run), RunStore(target, run), attempt) is None:
            return m.United(task.job, None)
        return m.United(task.job, Version.of(target.stat(task.entry.key)))

    def _lent(self, entry: Entry) -> StoredSource:
        return StoredSource(self._sources[entry.source], entry.key, self._buffers)

    def _changed(
        self, task: m.Compare | m.Copy | m.Send | m.Commit, crc: int | None
    ) -> m.Changed | None:
        """Look whether the source still has what was listed, and gave the bytes that it has."""
        info = self._sources[task.entry.source].stat(task.entry.key)
        return self._differs(task, info, crc)

    def _differs(
        self, task: m.Compare | m.Copy | m.Send | m.Commit, info: ObjectInfo, crc: int | None
    ) -> m.Changed | None:
        version = Version.of(info)
        if not version.same(task.entry.version):
            return m.Changed(task.job, version)
        if None not in (crc, info.crc32c) and crc != info.crc32c:
            return m.Changed(task.job, version, BAD_SOURCE)
        return None


class _Target:
    """A destination.

    Attributes:
        store: the same.
        back: memory to read back what it holds; None if it checks what it is sent.
        durable: whether a small object is, once it was created.
    """

    def __init__(self, store: Backend, buffers: Buffers, *, durable: bool) -> None:
        verified = reads_back(store.capabilities, verify=True)
        self.store, self.back = store, buffers if verified else None
        self.durable = durable or not store.capabilities.flushes


def _checked(part: memoryview, offset: int, blocks: tuple[int, ...]) -> list[int]:
    return checked(part, offset, blocks, _damaged)


def _damaged(wrong: Wrong) -> Exception:
    return _MissedError(
        IntegrityError(
            f"block {wrong.block} of it is damaged at the source: its CRC32C is not what the "
            "manifest says",
            hint="migrate from another tier that has this checkpoint",
        )
    )


def _failed(task: m.Task, error: TierstoreError, *, missed: bool = False) -> m.Failed:
    if isinstance(error, InvalidKeyError):
        return m.Failed(task.job, str(error), outcome=Outcome.LEFT_OUT)
    if isinstance(error, BlockedError):
        return m.Failed(task.job, str(error), outcome=Outcome.BLOCKED)
    # These were repeated for long; whoever fills a destination or is away stays so.
    fatal = isinstance(error, OutOfSpaceError | TransientError)
    return m.Failed(task.job, str(error), fatal, missed=missed)


def _size(task: m.Task) -> int:
    """Return how many bytes a command moves."""
    match task:
        case m.Copy():
            return task.entry.version.size
        case m.Compare() | m.Send() | m.Check():
            return task.length
        case _:
            return 0
