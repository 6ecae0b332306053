"""The commit: the small record whose presence makes a checkpoint exist on a tier.

Canonical JSON, sealed by a CRC32C of itself. It says nothing that its fragments do not say, so all
committers of an attempt write the same bytes. A commit that is an empty file is a tombstone: the
checkpoint was deleted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from tierstore.blocks import Buffer, crc32c
from tierstore.errors import (
    AttemptDeletedError,
    FormatError,
    InvalidKeyError,
    NewerFormatError,
)
from tierstore.keys import Attempt, RunKeys

FORMAT = 1
"""The version of fragments, manifests and commits that this code writes."""


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
        format: the version of the stored layout.
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
    format: int = FORMAT

    @property
    def whole(self) -> bool:
        """Whether it covers every rank of the job that saved."""
        return self.ranks == tuple(range(self.world_size))

    def to_bytes(self) -> bytes:
        """Return the commit as it is stored."""
        return seal(asdict(self) | {"attempt": str(self.attempt)})

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
        if not data:
            raise AttemptDeletedError(f"{name} is a tombstone: the checkpoint was deleted")
        record = unseal(data, name)
        try:
            commit = cls(
                **record
                | {"attempt": Attempt.parse(record["attempt"]), "ranks": tuple(record["ranks"])}
            )
            RunKeys("run").attempt(commit.attempt, commit.nonce)  # the nonce is one
        except (InvalidKeyError, KeyError, TypeError) as error:
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
    if commit.manifest != f"manifest-{commit.manifest_crc32c:08x}.arrow":
        raise FormatError(f"{name} names the manifest {commit.manifest!r} with another CRC32C")


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
        record = json.loads(bytes(data))
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


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
