"""The time line of a save as a Markdown table."""

from __future__ import annotations

from typing import Any

from benchmarks.report import GB, heading


def markdown(document: dict[str, Any]) -> str:
    """Return a row for each stage: when it begins and ends after the call of `save`."""
    lines = [
        heading(document),
        "",
        f"### A save of {document['bytes'] / GB:.2f} GB, from the stall to the last tier",
        "",
        "| stage | begins, s | ends, s |",
        "|---|---|---|",
    ]
    lines += [
        f"| {label(row)} | {row['begin']:.3f} | {row['end']:.3f} |" for row in document["timeline"]
    ]
    return "\n".join(lines) + "\n"


def label(row: dict[str, Any]) -> str:
    """Return what a stage is called."""
    return f"{row['tier']}: {row['what']}" if row["tier"] else "stall"
