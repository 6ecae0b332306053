"""Node-local parts of a checkpoint joined on a tier that all ranks share."""

from __future__ import annotations

from contextlib import suppress

from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import for_all_ranks
from tierstore.checkpoint.objects import FRAGMENT, read_record
from tierstore.checkpoint.store import RunStore
from tierstore.errors import AlreadyExistsError
from tierstore.keys import Attempt


def join(source: RunStore, target: RunStore, attempt: Attempt) -> Commit | None:
    """Add a node's fragments, and commit if those of all ranks are there then.

    Args:
        source: the run on a tier that is local to a node; the attempt is committed there.
        target: the run on a shared tier, which has the attempt's segments of that node already.
        attempt: the try.

    Returns:
        The commit of all ranks; None while parts of other nodes are missing.

    Raises:
        AttemptDeletedError: the attempt was deleted at either end.
        CheckpointError: the parts do not make a checkpoint; see `RunStore.try_commit`.
        IntegrityError: a fragment is damaged.
    """
    commit = source.read_commit(attempt)
    keys = source.keys.attempt(attempt, commit.nonce)
    for rank in commit.ranks:
        key = keys.fragment(rank)
        fragment = for_all_ranks(read_record(source.backend, key, limit=FRAGMENT), key)
        with suppress(AlreadyExistsError):  # the job wrote one that knows more; the merge compares
            target.backend.create(key, fragment, if_absent=True)
    return target.try_commit(attempt, commit.nonce, range(commit.world_size))
