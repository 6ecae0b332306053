"""What `import` and `export` are both told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tierstore.cli.options import DryOption
from tierstore.cli.output import ConfigOption, JsonOption

if TYPE_CHECKING:
    from tierstore.convert.selection import Selection

Names = list[str] | None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is taken, under which names, and how."""

    config: ConfigOption = None
    only: Annotated[
        Names,
        typer.Option(
            "--only",
            metavar="GLOB|NAME",
            help="Only these, and what is below a name; may be repeated.",
        ),
    ] = None
    exclude: Annotated[
        Names,
        typer.Option("--exclude", metavar="GLOB|NAME", help="None of these; may be repeated."),
    ] = None
    strip: Annotated[
        str,
        typer.Option("--strip-prefix", metavar="TEXT", help="Take this off the names' beginning."),
    ] = ""
    add: Annotated[
        str, typer.Option("--add-prefix", metavar="TEXT", help="Put this before every name.")
    ] = ""
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Trust whoever wrote it: unpickling can run any code."),
    ] = False
    dry_run: DryOption = False
    as_json: JsonOption = False

    @property
    def selection(self) -> Selection:
        """What the options select."""
        from tierstore.convert.selection import Selection

        return Selection(tuple(self.only or ()), tuple(self.exclude or ()), self.strip, self.add)
