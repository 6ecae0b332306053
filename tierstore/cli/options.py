"""What commands are told: options that several have, and dataclasses for commands with many."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T", bound="DataclassInstance")

# Nothing is checked here; shells complete the names of files.
PLACE = click.Path(readable=False)
PATH = click.Path(readable=False, path_type=Path)


class Parameter(Protocol):
    """An option or argument that lacks only the name of what it fills."""

    def __call__(self, name: str, /, **more: Any) -> Callable[[F], F]:
        """Return click's decorator."""


def option(*names: str, **more: Any) -> Parameter:
    """Return what `click.option` makes of this and a name."""
    return partial(click.option, *names, **more)


def flag(*names: str, help: str) -> Parameter:  # noqa: A002 - as click calls it
    """Return an option without a value."""
    return option(*names, is_flag=True, help=help)


def argument(**more: Any) -> Parameter:
    """Return what `click.argument` makes of this and a name."""
    return partial(click.argument, **more)


def _not_a_url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value and "://" in value:
        raise click.BadParameter("a run is wanted here; a tier's URL goes behind --config")
    return value


config_option = option(
    "--config",
    "-c",
    multiple=True,
    type=PLACE,
    metavar="FILE|URL",
    help="A configuration file, or a tier's URL; URLs may be repeated. "
    "Default: $TIERSTORE_CONFIG, then ./tierstore.toml.",
)
json_option = flag("--json", help="Print JSON for programs.")
dry_option = flag("--dry-run", "-n", help="Say what would be done, without doing it.")
tier_option = option("--tier", "-t", help="Only this tier, by its name.")
run_argument = argument(callback=_not_a_url, help="The run's name.")
step_argument = argument(type=int, required=False, help="The step. Default: the latest.")


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Let a function whose one argument is a dataclass be called with each field by its name.

    Args:
        options: each field is `Annotated` with its `Parameter`; those of the class itself are shown
            before those that it inherits, and needed ones before all others.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    shown = sorted(
        fields(options),
        key=lambda field: (field.default is not MISSING, field.name not in options.__annotations__),
    )

    def decorate(function: Callable[[T], None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            function(options(**given))

        for field in reversed(shown):
            (parameter,) = hints[field.name].__metadata__
            rest = {"required": True} if field.default is MISSING else {"default": field.default}
            parameter(field.name, **rest)(run)
        return run

    return decorate
