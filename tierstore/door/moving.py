"""`tierstore.migrate`: a migration that raises if something did not arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from tierstore.operations.move import MigrateOptions
from tierstore.operations.move import migrate as moved
from tierstore.operations.terms import GRACE, OnConflict

if TYPE_CHECKING:
    from tierstore.operations.ends import End
    from tierstore.operations.moved import MigrationResult
    from tierstore.patterns import Selection


def migrate(
    source: End,
    target: End,
    *,
    runs: Sequence[str] = (),
    steps: Sequence[str | int] = (),
    select: Selection | None = None,
    conflict: OnConflict = "fail",
    delete_source: bool = False,
    grace: float = GRACE,
    **options: Unpack[MigrateOptions],
) -> MigrationResult:
    """Copy what is at one place to another, verify it, and go on after any kill by the same call.

    ::

        tierstore.migrate("file:///nvme/t", "s3://bucket/t", runs=["llama-*"], steps=["latest"])

    Source and target are two tiers if `runs` says which checkpoints are wanted; else the source is
    one object or all that is below it. What is there already and identical is not sent again.
    Commits arrive last: a reader never sees half a checkpoint.

    Args:
        source: a URL, a path, the name of a configured tier, or a `TierConfig`.
        target: the same; one object goes into it if it ends in "/".
        runs: globs: checkpoints of runs with such names.
        steps: of these runs: 100, "100:200", "100:" or "latest"; all if empty.
        select: which keys, where no runs are named.
        conflict: what to do where the target has something else already.
        delete_source: remove from the source what is verified at the target.
        grace: seconds that readers of a checkpoint have before its data is removed.
        options: see `MigrateOptions`.

    Raises:
        ConfigError: an argument is wrong, or the two are one place, or one lies in the other.
        TierstoreError: something did not arrive, and what; there is nothing to migrate; or an end
            cannot be asked.
    """
    result = moved(
        source,
        target,
        runs=runs,
        steps=steps,
        select=select,
        conflict=conflict,
        delete_source=delete_source,
        grace=grace,
        **options,
    )
    result.check()
    return result
