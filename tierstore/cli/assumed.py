"""What `tierstore predict` and `tierstore plan` share: the cluster, and numbers nobody measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.amounts import assignments, nbytes, number, seconds
from tierstore.cli.options import PATH, json_option, option
from tierstore.errors import ConfigError

if TYPE_CHECKING:
    from tierstore.operations.predict import Setting


def _truth(text: str) -> float:
    values = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
    if text.lower() not in values:
        raise ConfigError(f"{text!r} is neither yes nor no")
    return values[text.lower()]


KNOWN = {
    "restart": seconds,
    "node_loss": number,
    "network": nbytes,
    "copy": nbytes,
    "cores": number,
    "spread": number,
    "images": number,
    "interval": seconds,
    "days": number,
    "seed": number,
    "stragglers": number,
    "slowness": number,
    "shape": number,
    "ceiling.": nbytes,
    "shared.": _truth,
    "every.": number,
}
"""What may be assumed; a name that ends in "." is followed by a tier's."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """What is saved, by which machines, and what is known of them."""

    model: Annotated[
        str,
        option(
            "--params",
            "--shape",
            metavar="N|SHAPE",
            help="What is saved: a number of parameters (8e9) or an MLPerf shape (8b, 70b, 405b, "
            "1t).",
        ),
    ]
    nodes: Annotated[int, option("--nodes", type=int, help="Machines of the job.")]
    mtbf: Annotated[
        str,
        option("--mtbf", help="Mean time between failures of one machine, such as 150d."),
    ]
    points: Annotated[
        Path, option("--points", "-p", type=PATH, help="The file that `tierstore bench` wrote.")
    ]
    gpus: Annotated[
        int, option("--gpus", type=int, show_default=True, help="Ranks on each machine.")
    ] = 8
    assume: Annotated[
        tuple[str, ...],
        option(
            "--assume",
            "-a",
            multiple=True,
            metavar="KEY=VALUE",
            help="A number that nobody measured; repeatable.",
        ),
    ] = ()
    as_json: Annotated[bool, json_option] = False

    def read(self) -> Setting:
        """Return it as the model takes it.

        Raises:
            ConfigError: an option or an assumption is wrong, or there is no file of points.
            FormatError: that file is none.
            ModelError: a number is outside of its domain.
        """
        from tierstore.operations.predict import setting

        assumed = assignments(self.assume, KNOWN, what="assumption")
        mtbf = seconds(self.mtbf)
        return setting(self.model, self.nodes, mtbf, self.points, gpus=self.gpus, assume=assumed)
