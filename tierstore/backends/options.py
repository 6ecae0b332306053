"""Reading the options of a backend, with errors that name what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from tierstore.errors import ConfigError

T = TypeVar("T")


def known(url: str, options: Mapping[str, object], names: Collection[str]) -> None:
    """Check that every option is one of `names`.

    Raises:
        ConfigError: one is not; the error names the nearest that is.
    """
    for name in options:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}?" if near else "it has no options"
            raise ConfigError(f"{url}: unknown option {name!r}", hint=hint)


def choice(url: str, options: Mapping[str, object], name: str, values: Sequence[T]) -> T:
    """Return an option that has one of `values`; the first is the default.

    Raises:
        ConfigError: it has another value.
    """
    given = options.get(name, values[0])
    for value in values:
        if given == value and type(given) is type(value):
            return value
    wanted = " or ".join(map(repr, values))
    raise ConfigError(f"{url}: option {name!r} is {given!r}", hint=f"use {wanted}")
