"""Commands with many options: a dataclass holds them, so that no function takes a dozen."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

DryOption = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Say what would be done and do nothing.")
]

T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a command of a function whose one argument is a dataclass of the command's options.

    Args:
        options: its fields are annotated as the parameters of a command are; those of the class
            itself are shown before those that it inherits, and needed ones before all others.
    """

    def decorate(function: Callable[[T], None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            function(options(**given))

        hints = typing.get_type_hints(options, include_extras=True)
        fields = sorted(
            inspect.signature(options).parameters.values(),
            key=lambda field: (
                field.default is not field.empty,
                field.name not in options.__annotations__,
            ),
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [field.replace(annotation=hints[field.name], kind=keyword) for field in fields]
        )
        run.__annotations__ = hints
        return run

    return decorate
