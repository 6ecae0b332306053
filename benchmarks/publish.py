"""Publish comparisons: their JSON files as Markdown tables and as one HTML page with plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import (
    ladder,
    manifest,
    mlperf_report,
    pictures,
    rates,
    report,
    start,
    storage_model,
    storage_report,
    timeline_report,
)
from benchmarks.page import Section, page

_TITLE = "tierstore: benchmarks"


def _none(_: dict[str, Any]) -> Iterator[pictures.Placed]:
    return iter(())


def _verdicts(document: dict[str, Any]) -> str:
    verdicts = [storage_model.Verdict(**each) for each in document["verdicts"]]
    return storage_model.markdown(verdicts) + "\n"


@dataclass(frozen=True, slots=True)
class Kind:
    """What one comparison's JSON becomes.

    Attributes:
        title: for people; "{}" is the file's name.
        text: its tables.
        plots: its plots.
    """

    title: str
    text: Callable[[dict[str, Any]], str]
    plots: Callable[[dict[str, Any]], Iterator[pictures.Placed]] = _none


KINDS = {
    "scenarios": Kind("Checkpoints", report.markdown, pictures.of_checkpoints),
    "mlperf": Kind("MLPerf checkpoints", mlperf_report.markdown, pictures.of_mlperf),
    "timeline": Kind("Time line of a save", timeline_report.markdown, pictures.of_timeline),
    "workloads": Kind("Files: {}", rates.markdown, pictures.of_workloads),
    "fits": Kind("Storage time", storage_report.markdown, pictures.of_storage),
    "verdicts": Kind("The storage-time model on new points", _verdicts),
    "rows": Kind("A job of four processes beside its prediction", ladder.markdown),
    "starts": Kind("Starting the command", start.markdown),
    "figures": Kind("A million chunks", manifest.markdown),
}
"""A key that only this comparison's JSON has -> what becomes of it."""


def section(path: Path) -> Section:
    """Return what a file becomes.

    Raises:
        typer.BadParameter: it cannot be read, or is no comparison's.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as JSON: {error}") from None
    kind = next(
        (k for key, k in KINDS.items() if isinstance(document, dict) and key in document), None
    )
    if kind is None:
        raise typer.BadParameter(
            f"{path} holds no comparison's figures; write one with `python -m benchmarks NAME "
            f"--json {path}`"
        )
    try:
        text, plots = kind.text(document), list(kind.plots(document))
    except (KeyError, TypeError, AttributeError) as error:
        raise typer.BadParameter(
            f"{path} is not whole, or of another version: {type(error).__name__}: {error}"
        ) from None
    packages = document.get("machine", {}).get("packages", {})
    used = ", ".join(f"{name} {version}" for name, version in packages.items())
    text += f"\nWith {used}.\n" if used else ""
    return Section(path.stem, kind.title.format(path.stem), text, plots)


def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON of comparisons.")],
    *,
    html: Annotated[Path | None, typer.Option("--html", help="Write the page here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables here.")
    ] = None,
) -> None:
    """Publish what comparisons wrote with --json."""
    if html is None and markdown is None:
        raise typer.BadParameter("nothing to write: name --html or --markdown, or both")
    sections = [section(path) for path in files]
    if len({each.name for each in sections}) < len(sections):
        raise typer.BadParameter("two files have the same name; each becomes a section of its own")
    if markdown:
        parts = "\n".join(f"## {each.title}\n\n{each.text}" for each in sections)
        markdown.write_text(f"# {_TITLE}\n\n{parts}")
    if html:
        html.write_text(page(_TITLE, sections))
