"""Options of commands whose work other machines can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.options import flag, option
from tierstore.errors import ConfigError

if TYPE_CHECKING:
    from tierstore.operations.terms import Workers


@dataclass(frozen=True, kw_only=True)
class ClusterArguments:
    """Which machines do the work."""

    on: Annotated[
        str | None,
        option(
            "--on",
            metavar="ray",
            help="Share the work among a Ray cluster's nodes. Folders must exist on all of them.",
        ),
    ] = None
    address: Annotated[
        str | None,
        option(
            "--ray-address",
            metavar="HOST:PORT",
            envvar="RAY_ADDRESS",
            show_envvar=True,
            help="The cluster. Default: the one running on this machine.",
        ),
    ] = None
    sends: Annotated[
        bool,
        flag(
            "--send-credentials",
            help="Let nodes use this machine's AWS_* and HADOOP_* variables instead of their own.",
        ),
    ] = False

    @property
    def workers(self) -> Workers | None:
        """Who does the work; None for this process.

        Raises:
            ConfigError: options are missing.
        """
        from tierstore.operations.terms import Workers

        if self.on is not None:
            return Workers(self.on, self.address or "", self.sends)
        if self.sends:
            raise ConfigError("--send-credentials is for other machines", hint="add --on ray")
        return None
