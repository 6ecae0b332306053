"""What `tierstore doctor` looks at on a tier, whatever its kind."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from tierstore.backend import Backend, Check
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.errors import (
    AlreadyExistsError,
    ConfigError,
    DamagedInTransitError,
    StorageError,
    TierstoreError,
)
from tierstore.registry import open_backend

_CLOCK_SKEW_WARNING = 5.0
"""Seconds between this clock and the store's above which logs become hard to compare."""


def diagnose(tier: TierConfig) -> Iterator[Check]:
    """Yield findings on one tier; a tier that cannot be reached yields one that says so.

    The tier is opened without retries, so that a fault shows at once and as it is.
    """
    try:
        backend = open_backend(tier.url, tier.options)
    except ConfigError as error:
        yield Check("open", "failed", error.message, error.hint)
        return
    with contextlib.closing(backend):
        prefix = f"doctor/{secrets.token_hex(8)}/"
        try:
            next(backend.list(prefix), None)
            yield Check("reachable", "ok", "listing answers")
            yield from _probe(backend, prefix)
        except TierstoreError as error:
            yield Check("reachable", "failed", error.message, error.hint)
            return
        extra: Callable[[], Iterator[Check]] | None = getattr(backend, "diagnose", None)
        if extra is not None:
            try:
                yield from extra()
            except TierstoreError as error:
                yield Check("details", "warning", error.message, error.hint)


def _probe(backend: Backend, prefix: str) -> Iterator[Check]:
    keys = [f"{prefix}probe", f"{prefix}upload"]
    try:
        try:
            info = backend.create(keys[0], b"tierstore", if_absent=True)
        except StorageError as error:
            advice = error.hint or "correct the tier's URL, or let this user write there"
            yield Check("writable", "failed", error.message, advice)
            return
        yield Check("writable", "ok", "a small object was written")
        yield _readable(backend, keys[0])
        yield _clock(info.mtime)
        yield _conditional(backend, keys[0])
        yield _checksums(backend, keys[1])
    finally:
        with contextlib.suppress(StorageError):
            backend.delete(keys)


def _readable(backend: Backend, key: str) -> Check:
    buffer = bytearray(9)
    try:
        backend.read_into(key, 0, memoryview(buffer))
    except StorageError as error:
        return Check("readable", "failed", error.message, error.hint)
    if buffer != b"tierstore":
        return Check("readable", "failed", "other bytes came back than were written", "check disks")
    return Check("readable", "ok", "the object came back as it was written")


def _clock(mtime: float) -> Check:
    if not mtime:
        return Check("clock", "ok", "this store keeps no times")
    skew = mtime - time.time()
    if abs(skew) > _CLOCK_SKEW_WARNING:
        advice = "ages are judged by the store's clock, so nothing is lost; run a time service"
        return Check("clock", "warning", f"the store's clock is {skew:+.0f} s off ours", advice)
    return Check("clock", "ok", f"within {_CLOCK_SKEW_WARNING:.0f} s of ours")


def _conditional(backend: Backend, key: str) -> Check:
    """A commit must never replace another: a second create with other content has to lose."""
    name = "conditional create"
    try:
        backend.create(key, b"another", if_absent=True)
    except AlreadyExistsError:
        return Check(name, "ok", "the second of two creates was refused")
    except StorageError as error:
        return Check(name, "failed", error.message, "use a store with atomic conditional writes")
    return Check(
        name,
        "failed",
        "a second create replaced the first",
        "do not save here: a commit could be overwritten; use a store with conditional writes",
    )


def _checksums(backend: Backend, key: str) -> Check:
    name = "checksums"
    if not backend.capabilities.server_checksum:
        if backend.capabilities.durable_on_commit:
            return Check(name, "ok", "blocks are checked by readers; writes stay on this host")
        advice = "every upload is read back, which costs time; turn checksums on if the store can"
        return Check(name, "warning", "the store does not check what it receives", advice)
    data = b"x" * 64
    upload = backend.upload(key, len(data))
    try:
        upload.write(0, data, crc32c(b"y" * 64))
        upload.commit(crc32c=crc32c(b"y" * 64))
    except DamagedInTransitError:
        return Check(name, "ok", "the store refuses bytes whose CRC32C is wrong")
    except StorageError as error:
        return Check(name, "failed", error.message, error.hint)
    finally:
        with contextlib.suppress(StorageError):
            upload.abort()
    return Check(
        name,
        "failed",
        "the store accepted bytes with a wrong CRC32C",
        'set checksum = "none" for this tier: uploads are then read back',
    )
