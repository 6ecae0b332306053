"""Which tensors and values a conversion takes, and what they are called afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tierstore.checkpoint.paths import parse_path
from tierstore.patterns import matcher

if TYPE_CHECKING:
    from tierstore.checkpoint.fragment import ValueEntry

_GLOB = frozenset("*?[{\\")


@dataclass(frozen=True, slots=True)
class TensorSelection:
    """Which names are taken.

    Attributes:
        only: globs, or names, each of which also stands for everything below it; empty for all.
        exclude: the same, of what is not taken although `only` has it.
        strip: taken off the beginning of names that begin so.
        add: put before every name after that.

    Raises:
        ConfigError: a glob is malformed.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strip: str = ""
    add: str = ""

    def __post_init__(self) -> None:
        for pattern in (*self.only, *self.exclude):
            _matches("", pattern)

    def takes(self, name: str) -> bool:
        """Whether a name is selected."""
        wanted = not self.only or any(_matches(name, pattern) for pattern in self.only)
        return wanted and not any(_matches(name, pattern) for pattern in self.exclude)

    def values(self, found: Iterable[ValueEntry]) -> Iterator[ValueEntry]:
        """Yield the values that are selected, as they are called afterwards."""
        for value in found:
            if self.takes(value.name):
                name, path = self.rename(value.name, value.path)
                yield replace(value, name=name, path=path)

    def rename(self, name: str, path: str) -> tuple[str, str]:
        """Return the name and the path, as JSON text, that something has afterwards.

        The path keeps the types of its keys as far as the prefixes consist of whole keys; else it
        is empty, which says no more than the name.
        """
        stripped = self.strip and name.startswith(self.strip) and name != self.strip
        if not stripped and not self.add:
            return name, path
        found = parse_path(path) if path else None
        steps = found["dcp"] if isinstance(found, dict) else found
        if stripped:
            name = name.removeprefix(self.strip)
            steps = _without(steps, self.strip)
        if self.add:
            name = self.add + name
            whole = self.add.endswith(".")
            steps = [*self.add[:-1].split("."), *steps] if steps is not None and whole else None
        if steps is None:
            return name, ""
        return name, json.dumps({"dcp": steps} if isinstance(found, dict) else steps)


def _matches(name: str, pattern: str) -> bool:
    if _GLOB.intersection(pattern):
        return matcher(pattern)(name)
    return name == pattern or name.startswith(pattern.removesuffix(".") + ".")


def _without(steps: list[object] | None, prefix: str) -> list[object] | None:
    """Take off the leading keys that the prefix consists of; None where it ends within one."""
    rest = list(steps or ())
    while rest and prefix:
        label = _label(rest.pop(0)) + "."
        if not prefix.startswith(label):
            return None
        prefix = prefix.removeprefix(label)
    return rest if rest and not prefix else None


def _label(step: object) -> str:
    if isinstance(step, dict):
        return str(step.get("item", step.get("key", "")))
    return str(step)
