"""`--include`, `--exclude` and `--filter-from`: rules whose order on the command line counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from tierstore.cli.options import PATH, option
from tierstore.errors import ConfigError
from tierstore.regular import NotRegularError, open_regular

if TYPE_CHECKING:
    from tierstore.patterns import Selection, Sign

_ORDER = f"{__name__}.order"
Globs = tuple[str, ...]


class Selecting(click.Command):
    """A command that notes in which order its rules were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words apart; see `click.Command.parse_args`."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [each.name for each in order]
        return super().parse_args(ctx, args)


@dataclass(frozen=True, kw_only=True)
class SelectionArguments:
    """Which keys are meant: the options of a `Selecting` command."""

    include: Annotated[
        Globs,
        option(
            "--include",
            multiple=True,
            metavar="GLOB",
            help="Only these; the first matching rule decides.",
        ),
    ] = ()
    exclude: Annotated[
        Globs,
        option("--exclude", multiple=True, metavar="GLOB", help="None of these; repeatable."),
    ] = ()
    filter_from: Annotated[
        tuple[Path, ...],
        option(
            "--filter-from",
            multiple=True,
            type=PATH,
            metavar="FILE",
            help="Rules '+ GLOB' and '- GLOB', one per line; '-' reads standard input.",
        ),
    ] = ()

    @property
    def selects(self) -> bool:
        """Whether there is any rule."""
        return bool(self.include or self.exclude or self.filter_from)

    def selection(self) -> Selection:
        """Return what the rules select, in the order in which they were given.

        Raises:
            ConfigError: a pattern is malformed, or a file of rules cannot be read.
        """
        from tierstore.patterns import EVERYTHING, Selection

        rules: list[tuple[Sign, str]] = []
        only = False
        for given in self._in_order():
            if given is None:
                rules, only = [], False
            else:
                sign, pattern, implies = given
                rules.append((sign, pattern))
                only = only or implies
        return Selection([*rules, ("-", EVERYTHING)] if only else rules)

    def _in_order(self) -> Iterator[tuple[Sign, str, bool] | None]:
        """Yield each rule and whether what no rule names is out; None forgets those before it."""
        from tierstore.patterns import parse_rules

        order = click.get_current_context().meta[_ORDER]
        given: dict[str, Iterator[Any]] = {
            "include": iter(self.include),
            "exclude": iter(self.exclude),
            "filter_from": iter(self.filter_from),
        }
        for name in order:
            if name == "filter_from":
                path = next(given[name])
                for rule in parse_rules(_read(path), where=str(path)):
                    yield rule and (*rule, False)
            elif name in given:
                include = name == "include"
                yield "+" if include else "-", next(given[name]), include


def _read(path: Path) -> str:
    """Return the text of a file of rules.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if str(path) == "-":
            return sys.stdin.read()
        with os.fdopen(open_regular(path), encoding="utf-8") as file:
            return file.read()
    except NotRegularError as error:
        hint = "write - for the standard input"
        raise ConfigError(f"--filter-from {path} {error.strerror}", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"--filter-from {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"--filter-from {path} is no UTF-8 text") from None
