"""The bar of the commands that move bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tierstore.cli.output import console
from tierstore.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]
"""Told the bytes of each step."""


def byte_bar() -> Progress:
    """Return a bar on standard error, for tasks that are counted in bytes; gone at its end."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), Remaining())
    return Progress(*columns, console=console(stderr=True), transient=True)


@contextmanager
def bars() -> Iterator[Callable[[str, int], Advance]]:
    """Yield what begins a bar of a name and total, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _what, _total: lambda _nbytes: None
        return
    with byte_bar() as shown:
        yield lambda what, total: partial(
            shown.advance, shown.add_task(printable(what), total=total)
        )


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show one bar."""
    with bars() as begin:
        yield begin(what, total)
