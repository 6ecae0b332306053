"""The commit: the small record whose presence makes a checkpoint exist on a tier.

Canonical JSON, sealed by a CRC32C of itself. It says nothing that its fragments do not say, so all
committers of an attempt write the same bytes. A tombstone takes its place when the checkpoint is
deleted: a record of one size, which no commit has, so that a listing tells it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tierstore.blocks import Buffer, crc32c
from tierstore.errors import (
    AttemptDeletedError,
    FormatError,
    InvalidKeyError,
    NewerFormatError,
)
from tierstore.keys import Attempt, AttemptId, RunKeys

FORMAT = 2
"""The version of fragments, manifests, commits and claims that this code writes."""

TOMBSTONE_SIZE = 128
"""Bytes of a tombstone; a commit has more, and one that damage has cut to it has no seal."""

_LATEST = 1e12  # seconds since 1970: what is above is no time

MAX_RANKS = 100_000
"""Ranks that a job may have: keys have five digits for one."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What exists on a tier.

    Attributes:
        attempt: the try.
        nonce: the 16 hexadecimal digits of its launch.
        manifest: the manifest's file name in the attempt's folder.
        manifest_size: its bytes.
        manifest_crc32c: the CRC32C of its bytes.
        ranks: the ranks it covers, ascending; on a node-local tier, the node's.
        world_size: ranks in the job that saved.
        tensors, chunks, files: how many the manifest names.
        nbytes: bytes of all tensors.
        started: when its launch began; see `tierstore.checkpoint.timeline.Launch`.
        parent: the attempt that its launch restored; None if it began anew.
        format: the version of the stored layout. One of format 1 does not tell the two before.
    """

    attempt: Attempt
    nonce: str
    manifest: str
    manifest_size: int
    manifest_crc32c: int
    ranks: tuple[int, ...]
    world_size: int
    tensors: int
    chunks: int
    files: int
    nbytes: int
    started: float = 0.0
    parent: AttemptId | None = None
    format: int = FORMAT

    @property
    def id(self) -> AttemptId:
        """The attempt with its launch's nonce."""
        return AttemptId(self.attempt, self.nonce)

    @property
    def whole(self) -> bool:
        """Whether it covers every rank of the job that saved."""
        # In this order: a world size is what somebody wrote, the ranks are all there.
        return len(self.ranks) == self.world_size and self.ranks == tuple(range(self.world_size))

    def to_bytes(self) -> bytes:
        """Return the commit as it is stored."""
        record = asdict(self) | {
            "attempt": str(self.attempt),
            "parent": self.parent and str(self.parent),
        }
        if self.format == 1:
            del record["started"], record["parent"]
        return seal(record)

    @classmethod
    def from_bytes(cls, data: Buffer, name: str = "a commit") -> Commit:
        """Parse a stored commit.

        Args:
            data: the whole record.
            name: its key, for errors.

        Raises:
            AttemptDeletedError: it is a tombstone.
            NewerFormatError: a newer tierstore wrote it.
            FormatError: it is damaged or something else.
        """
        record = unseal(data, name)
        if record.get("deleted"):
            raise AttemptDeletedError(f"{name} is a tombstone: the checkpoint was deleted")
        try:
            attempt = Attempt.parse(record["attempt"])
            told: dict[str, Any] = {"attempt": attempt, "ranks": tuple(record["ranks"])}
            if record["format"] != 1:
                told["started"] = check_started(record["started"])
                told["parent"] = check_parent(record["parent"], attempt.launch)
            commit = cls(**record | told)
            RunKeys("run").attempt(commit.attempt, commit.nonce)  # the nonce is one
        except (InvalidKeyError, LookupError, TypeError, ValueError) as error:
            raise FormatError(f"{name} is not a commit: {error!r}") from error
        _check(commit, name)
        return commit


def _check(commit: Commit, name: str) -> None:
    """What a sealed record may still get wrong, if something else sealed it."""
    kinds = {"int": int, "str": str}
    wrong = [
        field.name
        for field in fields(commit)
        if (kind := kinds.get(str(field.type))) and type(getattr(commit, field.name)) is not kind
    ]
    if not all(type(rank) is int for rank in commit.ranks):
        wrong.append("ranks")
    if wrong:
        raise FormatError(f"{name} is not a commit: {wrong[0]!r} is of another type")
    numbers = (getattr(commit, field.name) for field in fields(commit) if str(field.type) == "int")
    if not all(0 <= number < 2**63 for number in numbers):
        raise FormatError(f"{name} is not a commit: it has a number that cannot be true")
    if not are_ranks(commit.ranks, commit.world_size):
        raise FormatError(f"{name} is not a commit: its ranks are not some of {commit.world_size}")
    if commit.manifest != f"manifest-{commit.manifest_crc32c:08x}.arrow":
        raise FormatError(f"{name} names the manifest {commit.manifest!r} with another CRC32C")


def tombstone(attempt: Attempt) -> bytes:
    """Return the record that takes the place of a commit."""
    record = seal({"attempt": str(attempt), "deleted": True, "format": FORMAT})
    return record[:-1].ljust(TOMBSTONE_SIZE - 1) + b"\n"


def looks_deleted(size: int) -> bool:
    """Whether what lies at a commit's key is a tombstone, by its size in a listing.

    Damage may have cut a commit to that size, and an empty one was the tombstone of format 1: as
    long as its data is there, its content decides (`tierstore.checkpoint.tombstone`).
    """
    return size in (0, TOMBSTONE_SIZE)


def check_started(value: Any) -> float:
    """Return a stored time of a launch.

    Raises:
        ValueError: it is no time.
    """
    started = float(value)
    if not 0 <= started < _LATEST:
        raise ValueError(f"{started} is no time since 1970")
    return started


def check_parent(value: Any, launch: int) -> AttemptId | None:
    """Return the stored parent of a launch, which has a lower number.

    Raises:
        ValueError, TypeError, LookupError: it is none.
    """
    if value is None:
        return None
    if isinstance(value, str):
        parent = AttemptId.parse(value)
    else:
        parent = AttemptId(Attempt.parse(value[1]), "")  # format 1: its number, and no nonce
    if not 0 < parent.launch.number < launch:
        raise ValueError(f"launch {launch} cannot go on from {parent.launch.number}")
    return parent


def are_ranks(ranks: Sequence[int], world_size: int) -> bool:
    """Whether these ascend, and are ranks of a job that has `world_size`."""
    if not (ranks and ranks[0] >= 0 and ranks[-1] < world_size <= MAX_RANKS):
        return False
    return list(ranks) == sorted(set(ranks))


def seal(record: dict[str, Any]) -> bytes:
    """Return canonical JSON of a record and of its CRC32C."""
    body = _canonical(record)
    return _canonical(record | {"crc32c": f"{crc32c(body):08x}"}) + b"\n"


def unseal(data: Buffer, name: str) -> dict[str, Any]:
    """Return a sealed record without its CRC32C.

    Raises:
        NewerFormatError: its "format" is newer than this tierstore's.
        FormatError: it is damaged or something else.
    """
    try:
        record = json.loads(bytes(data), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is damaged: it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise FormatError(f"{name} is damaged: it is not a JSON object")
    version = record.get("format")
    if type(version) is int and version > FORMAT:
        raise NewerFormatError(
            f"{name} has format {version}; this tierstore reads up to {FORMAT}",
            hint="upgrade tierstore",
        )
    seal_text = record.pop("crc32c", None)
    if seal_text != f"{crc32c(_canonical(record)):08x}":
        raise FormatError(f"{name} is damaged: its CRC32C does not match")
    return record


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number")
    return number


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
