"""The bar of the commands that move bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tierstore.cli.output import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def byte_bar(screen: Console) -> Progress:
    """Return a bar for tasks that are counted in bytes: on a terminal only, and gone at its end."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), Remaining())
    return Progress(
        "{task.description}",
        *columns,
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of one task; what is given is told the bytes of each step."""
    with byte_bar(console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield partial(bar.advance, task)
