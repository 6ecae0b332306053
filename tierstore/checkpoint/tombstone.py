"""Telling tombstones, by the key of the commit whose place they take, wherever the run lies."""

from __future__ import annotations

from tierstore.backend import Backend
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.objects import read_record
from tierstore.errors import AttemptDeletedError, FormatError, InvalidKeyError, NotFoundError
from tierstore.keys import parse_part


def is_buried(backend: Backend, key: str) -> bool:
    """Return whether a tombstone, or nothing, is at a commit's key, by its content.

    What damage has cut to nothing is none: its data is there. What cannot be read counts as alive.
    """
    try:
        data = read_record(backend, key)
    except NotFoundError:
        return True
    if not data:
        return is_empty_tombstone(backend, key)
    try:
        Commit.from_bytes(data, key)
    except AttemptDeletedError:
        return True
    except FormatError:
        pass
    return False


def is_empty_tombstone(backend: Backend, key: str) -> bool:
    """Return whether an empty commit is a tombstone of format 1: its data has gone."""
    part = parse_part(key)
    if part is None:
        raise InvalidKeyError(f"{key!r} is not the key of a commit")
    return next(backend.list(part.group), None) is None
