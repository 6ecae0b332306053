"""A ladder, open: its runs."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tierstore.door.ladder import OpenLadder
from tierstore.door.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierstore.config import Config
    from tierstore.ladder.tiers import OpenTier


def open(*tiers: str | os.PathLike[str] | Config) -> Store:  # noqa: A001 - it is called tierstore.open
    """Open a ladder to look at its runs. Torch is not needed.

    ::

        with tierstore.open("tierstore.toml") as store:
            checkpoint = store["llama-8b"].latest()
            checkpoint["model.w"][0:4]

    Args:
        tiers: a TOML file, or one or more URLs, fastest first, or one Config; nothing for
            TIERSTORE_CONFIG, then ./tierstore.toml.

    Raises:
        ConfigError: the configuration is wrong, or a package for it is missing.
    """
    from tierstore.config import load_config
    from tierstore.ladder.tiers import open_ladder

    return Store(open_ladder(load_config(*tiers)))


class Store:
    """The runs of a ladder. Made by `tierstore.open`; closing it closes the tiers.

    `store[name]` is the run of a name, whether there is anything of it or not. Any thread may use
    it.
    """

    def __init__(self, tiers: Sequence[OpenTier]) -> None:
        self._ladder = OpenLadder(tiers)

    def runs(self, *, allow_unseen: bool = False) -> list[str]:
        """Return the names of the runs on all tiers, sorted.

        Args:
            allow_unseen: leave out what only tiers hold that cannot be listed, with a warning.

        Raises:
            TierstoreError: a tier cannot be listed; it names it.
        """
        from tierstore.door.steps import check_seen
        from tierstore.operations.inspect import runs

        found = runs(self._ladder.tiers)
        check_seen(found.unseen, allow_unseen=allow_unseen)
        return list(found.names)

    def __getitem__(self, run: str) -> Run:
        """Return a run.

        Raises:
            InvalidKeyError: the name cannot be that of a run.
            CheckpointError: the store is closed.
        """
        self._ladder.check_open()
        return Run(self._ladder, run)

    __iter__ = None  # see `runs`

    def close(self) -> None:
        """Close the tiers. Idempotent."""
        self._ladder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tierstore.Store of {self._ladder}>"
