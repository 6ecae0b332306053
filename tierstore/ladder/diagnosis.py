"""What `tierstore doctor` looks at on a tier, whatever its kind."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tierstore.backend import Backend, Check, local_path
from tierstore.backend import diagnose as itself
from tierstore.backends.local.scratch import NAME as SCRATCH
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.errors import (
    AlreadyExistsError,
    ConfigError,
    DamagedInTransitError,
    DeadlineError,
    TierstoreError,
    TransientError,
    UnreachableError,
)
from tierstore.registry import open_backend
from tierstore.transfer.part import reads_back

_CLOCK_SKEW_WARNING = 5.0
"""Seconds between this clock and the store's above which logs become hard to compare."""
_PROBE = b"tierstore"


def diagnose(tier: TierConfig) -> Iterator[Check]:
    """Yield findings on one tier; a tier that cannot be reached yields one that says so.

    The tier is opened without retries, so that a fault shows at once and as it is. What is written
    for it lies below `doctor/` and is removed, also when the caller stops in the middle.
    """
    try:
        backend = open_backend(tier.url, tier.options)
    except ConfigError as error:
        yield _failed("open", error)
        return
    with contextlib.closing(backend):
        yield from _examine(backend)


def _examine(backend: Backend) -> Iterator[Check]:
    prefix = f"doctor/{secrets.token_hex(8)}/"
    try:
        next(backend.list(prefix), None)
    except TierstoreError as error:
        yield _failed("reachable", error)
        return
    yield Check("reachable", "ok", "listing answers")
    with leaving_no_folders(backend):
        yield from _probe(backend, prefix)
        yield from _details(backend)


def _details(backend: Backend) -> Iterator[Check]:
    """Yield what the backend says about itself."""
    try:
        yield from itself(backend)
    except TierstoreError as error:
        yield Check("details", "warning", error.message, error.hint or _advice(error))


def _failed(name: str, error: TierstoreError, advice: str = "") -> Check:
    return Check(name, "failed", error.message, error.hint or advice or _advice(error))


def _advice(error: TierstoreError) -> str:
    if isinstance(error, UnreachableError | DeadlineError):
        return "check the address, that the server runs, and the network on the way to it"
    if isinstance(error, TransientError):
        return "the store is busy: try again, and look at its log if it stays so"
    return "look at the store's own log"


def _probe(backend: Backend, prefix: str) -> Iterator[Check]:
    keys = [f"{prefix}probe", f"{prefix}upload"]
    begun = time.time()
    try:
        try:
            info = backend.create(keys[0], _PROBE, if_absent=True)
        except TierstoreError as error:
            busy = isinstance(error, TransientError)
            advice = "" if busy else "correct the tier's URL, or let this user write there"
            yield _failed("writable", error, advice)
            return
        ended = time.time()
        yield Check("writable", "ok", "a small object was written")
        yield _readable(backend, keys[0])
        yield _clock(info.mtime, begun, ended)
        yield _conditional(backend, keys[0])
        yield _checksums(backend, keys[1])
        yield from _left_behind(backend, prefix, keys)
    finally:
        with contextlib.suppress(TierstoreError):
            backend.delete(keys)


def _readable(backend: Backend, key: str) -> Check:
    name, buffer = "readable", bytearray(len(_PROBE))
    try:
        backend.read_into(key, 0, memoryview(buffer))
    except TierstoreError as error:
        return _failed(name, error)
    if buffer != _PROBE:
        advice = "save nothing here before the disks, and what is between, were checked"
        return Check(name, "failed", "other bytes came back than were written", advice)
    return Check(name, "ok", "the object came back as it was written")


def _clock(mtime: float, begun: float, ended: float) -> Check:
    """Compare the store's time of a write with ours around it: a slow store has no other clock."""
    if not mtime:
        return Check("clock", "ok", "this store keeps no times")
    skew = mtime - min(max(mtime, begun), ended)
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
    except TransientError as error:
        return _failed(name, error)
    except TierstoreError as error:
        return _failed(name, error, "use a store with atomic conditional writes")
    return Check(
        name,
        "failed",
        "a second create replaced the first",
        "do not save here: a commit could be overwritten; use a store with conditional writes",
    )


def _checksums(backend: Backend, key: str) -> Check:
    name = "checksums"
    if not backend.capabilities.server_checksum:
        if not reads_back(backend.capabilities, verify=False):
            return Check(name, "ok", "blocks are checked by readers; writes stay on this host")
        # Whether it could is for the backend to say: many a store cannot.
        return Check(name, "ok", "the store checks none, so every upload is read back")
    data, wrong = b"x" * 64, crc32c(b"y" * 64)
    try:
        upload = backend.upload(key, len(data))
        try:
            upload.write(0, data, wrong)
            upload.commit(crc32c=wrong)
        finally:
            with contextlib.suppress(TierstoreError):
                upload.abort()
    except DamagedInTransitError:
        return Check(name, "ok", "the store refuses bytes whose CRC32C is wrong")
    except TierstoreError as error:
        return _failed(name, error)
    return Check(
        name,
        "failed",
        "the store accepted bytes with a wrong CRC32C",
        'set checksum = "none" for this tier: uploads are then read back',
    )


def _left_behind(backend: Backend, prefix: str, keys: Iterable[str]) -> Iterator[Check]:
    """Delete what was written; only what then stays is worth a word."""
    advice = "old checkpoints would never go: allow deleting below the tier's root"
    try:
        backend.delete(keys)
        left = [info.key for info in backend.list(prefix)]
    except TierstoreError as error:
        yield Check("deletable", "warning", error.message, error.hint or advice)
        return
    if left:
        detail = f"still there after deleting: {', '.join(left)}"
        yield Check("deletable", "warning", detail, advice)


@contextlib.contextmanager
def leaving_no_folders(backend: Backend) -> Iterator[None]:
    """Remove the folders that a first write makes on a local tier, unless they are in use by then.

    What was written has to be deleted before.
    """
    root = _root(backend)
    new = _missing_folders(root) if root else []
    try:
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # no longer empty: somebody saves here now
                folder.rmdir()


def _root(backend: Backend) -> Path | None:
    """Return the tier's folder, if it is one on this machine."""
    path = local_path(backend, "doctor")
    return Path(path).parent if path else None


def _missing_folders(root: Path) -> list[Path]:
    """Return the folders that a first write makes, innermost first."""
    return [each for each in (root / SCRATCH, root, *root.parents) if not each.exists()]
