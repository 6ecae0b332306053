"""What the commands share: options, the open ladder, and how results reach the reader."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tierstore.errors import ConfigError, TierstoreError

if TYPE_CHECKING:
    from rich.console import Console

    from tierstore.ladder.tiers import OpenTier

ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE|URL",
        help="A configuration file, or a tier's URL; URLs may be repeated. "
        "Default: $TIERSTORE_CONFIG, then ./tierstore.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunArgument = Annotated[str, typer.Argument(help="The run's name.", show_default=False)]
StepArgument = Annotated[
    int | None, typer.Argument(help="The step; the latest if left out.", show_default=False)
]
TierOption = Annotated[
    str | None, typer.Option("--tier", "-t", help="Only this tier, by its name.")
]


def console(*, stderr: bool = False) -> Console:
    """Return where people read; colour only on a terminal, full width in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def print_json(value: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(error: TierstoreError) -> None:
    """Print what happened and the next step on standard error."""
    hint, error.hint = error.hint, ""
    out = console(stderr=True)
    out.print("[bold red]error:[/]", end=" ")
    out.print(str(error), markup=False, soft_wrap=True)
    if hint:
        out.print("[bold]next:[/]", end=" ")
        out.print(hint, markup=False, soft_wrap=True)
    error.hint = hint


@contextlib.contextmanager
def open_tiers(sources: list[str] | None, only: str | None = None) -> Iterator[list[OpenTier]]:
    """Open the ladder that the options name, or one tier of it, and close it afterwards.

    Raises:
        ConfigError: there is no such tier.
    """
    from tierstore.config import load_config
    from tierstore.ladder.tiers import open_ladder

    config = load_config(*(sources or []))
    names = [tier.name for tier in config.tiers]
    if only is not None and only not in names:
        raise ConfigError(f"there is no tier {only!r}", hint=f"tiers: {', '.join(names)}")
    tiers = open_ladder(config)
    try:
        yield [tier for tier in tiers if only in (None, tier.name)]
    finally:
        for tier in tiers:
            tier.backend.close()


def size(nbytes: float) -> str:
    """Return a size as a person reads it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError
