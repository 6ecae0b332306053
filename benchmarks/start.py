"""How long a command takes that does little: whole processes, beside a bare Python."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine
from benchmarks.measure import describe
from benchmarks.options import JsonFile
from benchmarks.report import heading, row, spread

BARE, BASE = "python -c pass", 'python -c "import typer"'
_COMPLETION = {
    "_TIERSTORE_COMPLETE": "bash_complete",
    "COMP_WORDS": "tierstore ",
    "COMP_CWORD": "1",
}


@dataclass(frozen=True, slots=True)
class Start:
    """A process that is run to its end.

    Attributes:
        words: its program and arguments.
        environment: variables beside this process's.
    """

    words: Sequence[str]
    environment: Mapping[str, str]


def starts(folder: Path) -> dict[str, Start]:
    """Return what is compared; `folder` is an empty tier."""
    python, command = [sys.executable, "-c"], str(Path(sys.executable).with_name("tierstore"))
    words = {
        BARE: [*python, "pass"],
        'python -c "import tierstore"': [*python, "import tierstore"],
        BASE: [*python, "import typer"],
        "tierstore --version": [command, "--version"],
        "tierstore --help": [command, "--help"],
        "tierstore migrate --help": [command, "migrate", "--help"],
        "tierstore <TAB>": [command],
        "tierstore ls, an empty folder": [command, "ls", "-c", folder.as_uri()],
    }
    completes = "tierstore <TAB>"
    return {n: Start(w, _COMPLETION if n == completes else {}) for n, w in words.items()}


def measure(start: Start) -> tuple[float, float]:
    """Return the wall and CPU seconds of one process, from its start to its end.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        start.words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **start.environment},
    )
    wall = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{' '.join(start.words)} failed: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def markdown(document: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        heading(document),
        "",
        f"| | wall, ms | CPU, ms | / `{BASE}` |",
        "|---|---|---|---|",
    ]
    base = document["starts"][BASE]["wall"]["median"]
    for name, found in document["starts"].items():
        times = (spread(found[figure], 1e3, 0) for figure in ("wall", "cpu"))
        lines.append(row([f"`{name}`", *times, f"{found['wall']['median'] / base:.2f}"]))
    return "\n".join(lines) + "\n"


def run(
    *,
    json_file: JsonFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each, after one to warm up.")] = 11,
) -> None:
    """Start the command line in several ways, in turns, beside a bare Python."""
    with tempfile.TemporaryDirectory(prefix="tierstore-bench-") as folder:
        peers = starts(Path(folder))
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
        for turn in range(rounds + 1):
            for name, start in peers.items():
                taken = measure(start)
                if turn:
                    samples[name].append(taken)
    figures = {
        name: {"wall": describe([w for w, _ in taken]), "cpu": describe([c for _, c in taken])}
        for name, taken in samples.items()
    }
    document = {"machine": machine.describe(), "rounds": rounds, "starts": figures}
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(markdown(document))
