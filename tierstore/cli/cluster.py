"""Options of commands whose work other machines can do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.options import flag, option
from tierstore.errors import ConfigError
from tierstore.waiting import on

if TYPE_CHECKING:
    from tierstore.transfer.engine.crew import Crew
    from tierstore.transfer.engine.stores import Recipe, Stores

_CREDENTIALS = ("AWS_", "HADOOP_")


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Which machines do the work."""

    on: Annotated[
        str | None,
        option(
            "--on",
            metavar="ray",
            help="Split the work over a Ray cluster's nodes. A folder has to be on each.",
        ),
    ] = None
    address: Annotated[
        str | None,
        option(
            "--ray-address",
            metavar="HOST:PORT",
            envvar="RAY_ADDRESS",
            show_envvar=True,
            help="The cluster; the one that runs on this machine if left out.",
        ),
    ] = None
    sends: Annotated[
        bool,
        flag(
            "--send-credentials",
            help="Let nodes use this machine's AWS_* and HADOOP_* variables instead of their own.",
        ),
    ] = False

    def crew(self, recipe: Recipe, stores: Stores, *, dry: bool = False) -> Crew | None:
        """Return who does the work; None for threads of this process, as in a dry run.

        Raises:
            ConfigError: there is no such cluster, or options are missing.
        """
        from tierstore.transfer.engine.crew import Cluster, find_crew, open_crew

        if self.on is None:
            if self.sends:
                raise ConfigError("--send-credentials is for other machines", hint="add --on ray")
            return None
        if dry:
            find_crew(self.on)
            return None
        sent = {k: v for k, v in os.environ.items() if self.sends and k.startswith(_CREDENTIALS)}
        with on(f"{self.on} {self.address or 'here'}", "a cluster to work on"):
            return open_crew(self.on, recipe, stores, Cluster(self.address or "", sent))
