"""Options that several comparisons have, and names that are chosen from what there is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all figures here.")]
Disk = Annotated[Path, typer.Option(help="Folder on the disk to measure.", resolve_path=True)]
Peers = Annotated[list[str] | None, typer.Option(help="Peer; may be repeated.")]


def chosen(given: Iterable[str] | None, known: Collection[str]) -> list[str]:
    """Return the names that were given, or else all that are known.

    Raises:
        typer.BadParameter: one of them is not known.
    """
    names = list(given or known)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of: {', '.join(known)}")
    return names
