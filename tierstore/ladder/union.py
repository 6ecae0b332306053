"""A ladder as one backend: any key from the highest tier that has it.

It is for whoever reads stored files without asking where they lie. Stored files are the same on
every tier, so a copy that is missing, damaged or out of reach is read from the next tier; nothing
is healed. Two versions of a key would make it chance which one is read: so a key is written only if
no other tier has another version of it, and deleted from every tier.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tierstore.backend import Backend, Capabilities, Check, ObjectInfo, Upload, diagnose
from tierstore.blocks import Buffer, crc32c, crc32c_read
from tierstore.errors import (
    AlreadyExistsError,
    ConfigError,
    DamagedInTransitError,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TierstoreError,
    TransientError,
)
from tierstore.keys import check_key
from tierstore.ladder.tiers import OpenTier, close_ladder
from tierstore.logs import logger
from tierstore.scan import Found, Ways, in_order, key_check, scan
from tierstore.wrappers.delegate import Delegate, DelegatedUpload

T = TypeVar("T")
F = TypeVar("F", bound=Found)
_log = logger(__name__)

AWAY = 30.0
"""Seconds for which a tier that did not answer is asked last."""
_SEEN_BY = ("process", "host", "all")


class UnionBackend(Delegate):
    """All tiers of a ladder as one backend, of which one is written to.

    `atomic_create` holds among those who write to the same tier. An object's `mtime` and `tag` are
    those of the tier that it was found on, so they change when it is found on another.

    Args:
        tiers: of the ladder, the highest first; closed with the union.
        write_to: the name of the tier that is written to; by default the highest.

    Raises:
        ConfigError: there is no such tier, or none at all.
    """

    def __init__(self, tiers: Sequence[OpenTier], write_to: str = "") -> None:
        names = [tier.name for tier in tiers]
        if not names:
            raise ConfigError("a ladder has one tier at least")
        if write_to and write_to not in names:
            raise ConfigError(f"the ladder has no tier {write_to!r}", hint=f"it has {names}")
        self._tiers = tuple(tiers)
        self._written = self._tiers[names.index(write_to) if write_to else 0]
        self._away: dict[str, float] = {}  # until when, by name
        super().__init__(self._written.backend)

    @property
    def url(self) -> str:
        """The names of the tiers."""
        return f"ladder://{','.join(tier.name for tier in self._tiers)}"

    @property
    def capabilities(self) -> Capabilities:
        """To write, those of the tier that is written to; to read, what serves every tier."""
        of_all = [tier.backend.capabilities for tier in self._tiers]
        return replace(
            self.inner.capabilities,
            read_size=max(each.read_size for each in of_all),
            concurrency=max(each.concurrency for each in of_all),
            small_concurrency=max(each.small_concurrency or each.concurrency for each in of_all),
            keeps_alignment=any(each.keeps_alignment for each in of_all),
            seen_by=min((each.seen_by for each in of_all), key=_SEEN_BY.index),
        )

    def local_path(self, key: str) -> str | None:  # noqa: ARG002 - of the protocol
        """An object may lie on several tiers, so it is no file."""
        return None

    def diagnose(self) -> Iterator[Check]:
        """See `tierstore.backend.diagnose`; of every tier."""
        for tier in self._tiers:
            for check in diagnose(tier.backend):
                yield replace(check, name=f"{check.name} on {tier.name}")

    def stat(self, key: str) -> ObjectInfo:
        """See `tierstore.backend.Backend.stat`."""
        return self._first(key, lambda tier: tier.stat(key))

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """See `tierstore.backend.Backend.read_into`."""
        self._first(key, lambda tier: tier.read_into(key, offset, *buffers))

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """See `tierstore.backend.Backend.fetch`."""
        return self._first(key, lambda tier: tier.fetch(key, buffer))

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """See `tierstore.backend.Backend.list`.

        Raises:
            StorageError: a tier cannot be listed; what only that one has would be missing.
        """
        return _merged(
            in_order(tier.backend.list(prefix, after=after, delimiter=delimiter), tier.backend.url)
            for tier in self._tiers
        )

    def scan(self, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
        """See `tierstore.scan.scan`; as `list`."""
        return _merged(scan(tier.backend, ways, after=after) for tier in self._tiers)

    def create(
        self, key: str, buffer: Buffer, *, if_absent: bool = False, durable: bool = True
    ) -> ObjectInfo:
        """See `tierstore.backend.Backend.create`.

        Raises:
            AlreadyExistsError: another tier has another version, even without `if_absent`.
        """
        self.check_only(key, memoryview(buffer).nbytes, lambda: crc32c(buffer))
        return super().create(key, buffer, if_absent=if_absent, durable=durable)

    def upload(self, key: str, size: int | None = None, *, resume: str | None = None) -> Upload:
        """See `tierstore.backend.Backend.upload`."""
        return _UnionUpload(self, key, self.inner.upload(key, size, resume=resume))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects from every tier; a missing one is no error.

        The lowest tier is first: if one fails, what is read is what was read before. One that was
        left would bring the objects back.
        """
        held = [*keys]
        for tier in reversed(self._tiers):
            tier.backend.delete([key for key in held if _can_hold(tier.backend, key)])

    def close(self) -> None:
        """See `tierstore.backend.Backend.close`."""
        close_ladder(self._tiers)

    def check_only(self, key: str, size: int, crc: Callable[[], int | None]) -> None:
        """Look whether other tiers have another version of what is about to be written.

        Args:
            key: of it.
            size: its bytes.
            crc: returns its CRC32C; None if that is not known.

        Raises:
            AlreadyExistsError: one has.
            StorageError: one does not tell.
        """
        for tier in self._tiers:
            if tier is self._written or not _can_hold(tier.backend, key):
                continue
            try:
                info = tier.backend.stat(key)
                ours = crc() if info.size == size else None
                same = ours is not None and ours == _crc_of(tier.backend, info)
            except NotFoundError:
                continue
            if not same:
                raise AlreadyExistsError(
                    f"tier {tier.name} has another version of it",
                    url=self.url,
                    key=key,
                    hint="delete it first, which deletes it from every tier",
                )

    def _first(self, key: str, read: Callable[[Backend], T]) -> T:
        """Return what the highest tier gives of a key."""
        check_key(key)
        errors: dict[str, TierstoreError] = {}
        now = time.monotonic()
        # A stable sort: of those that answer, and of those that did not, the highest is first.
        for tier in sorted(self._tiers, key=lambda tier: self._away.get(tier.name, now) > now):
            try:
                found = read(tier.backend)
            except (NotFoundError, InvalidKeyError):
                continue
            except (StorageError, IntegrityError) as error:
                errors[tier.name] = error
                self._failed(tier.name, key, error)
            else:
                self._away.pop(tier.name, None)
                return found
        for tier in self._tiers:
            if tier.name in errors:
                raise errors[tier.name]
        raise NotFoundError("no tier has it", url=self.url, key=key)

    def _failed(self, tier: str, key: str, error: TierstoreError) -> None:
        if isinstance(error, TransientError) and not isinstance(error, DamagedInTransitError):
            self._away[tier] = time.monotonic() + AWAY
        # Not the error itself: whoever keeps the log record would keep the frames' buffers.
        _log.warning("%s is not read from tier %s: %s", key, tier, str(error))


class _UnionUpload(DelegatedUpload):
    """An upload to the tier that is written to."""

    def __init__(self, owner: UnionBackend, key: str, inner: Upload) -> None:
        super().__init__(owner, key, inner)
        self._union = owner

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """See `tierstore.backend.Upload.commit`; as `UnionBackend.create`."""
        size = sum(length for _, length in self.done)
        self._union.check_only(self._key, size, lambda: crc32c)
        return super().commit(if_absent=if_absent, crc32c=crc32c)


def _merged(listings: Iterable[Iterator[F]]) -> Iterator[F]:
    """Yield what is listed, in order, each key once: of the first listing that has it."""
    last = None
    # UTF-8, whose order keys have; the bytes of a name that is no text are surrogates.
    by_key = heapq.merge(*listings, key=lambda each: each.key.encode(errors="surrogateescape"))
    for found in by_key:
        if found.key != last:
            yield found
        last = found.key


def _can_hold(backend: Backend, key: str) -> bool:
    check_key(key)
    try:
        key_check(backend)(key)
    except InvalidKeyError:
        return False
    return True


def _crc_of(backend: Backend, info: ObjectInfo) -> int:
    """Return the CRC32C of an object, which is read if the store does not know it."""
    if info.crc32c is not None:
        return info.crc32c
    read = partial(backend.read_into, info.key)
    return crc32c_read(read, info.size, backend.capabilities.read_size)
