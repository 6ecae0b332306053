"""The bar of the commands that move bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tierstore.cli.output import console
from tierstore.operations.progress import Advance, unseen
from tierstore.operations.progress import Progress as Begins
from tierstore.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress


def byte_bar() -> Progress:
    """Return a bar on standard error, for tasks that are counted in bytes; gone at its end."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), Remaining())
    return Progress(*columns, console=console(stderr=True), transient=True)


@contextmanager
def bars() -> Iterator[Begins]:
    """Yield what begins a bar of a name and total, on a terminal only."""
    if not sys.stderr.isatty():
        yield unseen
        return
    with ExitStack() as shown:
        bar: Progress | None = None

        def begin(what: str, total: int, /) -> Advance:
            nonlocal bar
            bar = bar or shown.enter_context(byte_bar())
            return partial(bar.advance, bar.add_task(printable(what), total=total))

        yield begin
