"""What `import` and `export` are both told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.options import config_option, dry_option, flag, json_option, option

if TYPE_CHECKING:
    from tierstore.operations.convert import ConvertOptions
    from tierstore.operations.progress import Progress

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ConversionArguments:
    """What is taken, under which names, and how."""

    config: Annotated[tuple[str, ...], config_option] = ()
    only: Annotated[
        Names,
        option(
            "--only",
            multiple=True,
            metavar="GLOB|NAME",
            help="Only these, and what is below a name; may be repeated.",
        ),
    ] = ()
    exclude: Annotated[
        Names,
        option("--exclude", multiple=True, metavar="GLOB|NAME", help="None of these; repeatable."),
    ] = ()
    strip: Annotated[
        str, option("--strip-prefix", metavar="TEXT", help="Remove this prefix from names.")
    ] = ""
    add: Annotated[
        str, option("--add-prefix", metavar="TEXT", help="Add this prefix to names.")
    ] = ""
    allow_pickle: Annotated[
        bool, flag("--allow-pickle", help="Trust whoever wrote it: unpickling can run any code.")
    ] = False
    dry_run: Annotated[bool, dry_option] = False
    as_json: Annotated[bool, json_option] = False

    def options(
        self, progress: Progress, *, tier: str | None, form: str, force: bool
    ) -> ConvertOptions:
        """Return it as operations take it."""
        return {
            "tier": tier,
            "form": form,
            "force": force,
            "only": self.only,
            "exclude": self.exclude,
            "strip_prefix": self.strip,
            "add_prefix": self.add,
            "allow_pickle": self.allow_pickle,
            "dry_run": self.dry_run,
            "progress": progress,
        }
