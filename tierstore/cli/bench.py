"""`tierstore bench`: measure each tier as it is, keep the points, fit the model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tierstore.cli.amounts import duration, nbytes
from tierstore.cli.options import PATH, config_option, json_option
from tierstore.cli.output import (
    console,
    print_json,
    print_unseen,
    size,
    table,
)
from tierstore.errors import ConfigError, ModelError, TierstoreError
from tierstore.regular import open_regular

if TYPE_CHECKING:
    from rich.progress import TaskID

    from tierstore.operations.bench import BenchProgress, Cell, Failures, FittedLaw, TierPoints


@click.command
@config_option("config")
@click.option(
    "--seconds", default=60.0, show_default=True, help="At most about this long on each tier."
)
@click.option(
    "--bytes",
    "limit",
    default="16G",
    show_default=True,
    help="Move at most this much on each tier, both ways together.",
)
@click.option("--size", "sizes", multiple=True, help="Request size, such as 8M; repeatable.")
@click.option("--concurrency", multiple=True, type=int, help="Requests in flight; repeatable.")
@click.option("--points", "-p", type=PATH, help="Write what was measured here.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be written, and where, without doing it."
)
@json_option("as_json")
def run(
    config: tuple[str, ...],
    seconds: float,
    limit: str,
    sizes: tuple[str, ...],
    concurrency: tuple[int, ...],
    points: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure each tier: sizes x concurrency x put, get, range, first byte and list.

    Writes objects below bench/ on every tier, verifies what it reads, and deletes all of it again,
    also on Ctrl-C. Exits with 1 if a tier failed.
    """
    from tierstore.operations.bench import Limits, bench, bench_plan

    bounds = Limits(seconds, nbytes(limit), tuple(int(nbytes(s)) for s in sizes), concurrency)
    _check_writable(points)
    if dry_run:
        plans, failed = bench_plan(config, bounds)
        found = [each.to_json() for each in plans]
        print_json(found) if as_json else _print_plans(found)
        _judge(failed)
        return
    with _sigterm_interrupts(), _bars() as progress:
        done = bench(config, bounds, progress=progress)
    if as_json:
        print_json(done.to_json())
    else:
        for tier in done.measured.tiers:
            _print_tier(tier, done.fits[tier.name])
    if points is not None:  # last: if it cannot be written, all of it has been shown
        _write(points, json.dumps(done.measured.to_json(), indent=1))
    _judge(done.failed)


def _judge(failed: Failures) -> None:
    print_unseen(failed)
    if failed:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Clean up on SIGTERM as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bars() -> Iterator[BenchProgress | None]:
    """Show a bar for each tier, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task: TaskID | None = None
        shown = ""

        def tell(tier: str, cell: Cell | None, done: int, of: int) -> None:
            nonlocal task, shown
            if task is None or tier != shown:
                if task is not None:
                    bar.remove_task(task)
                task, shown = bar.add_task(tier), tier
            what = f"{cell.operation} {cell.nbytes} x {cell.concurrency}" if cell else "preparing"
            bar.update(task, description=f"{tier}  {what}", completed=done, total=max(of, done))

        yield tell


def _check_writable(points: Path | None) -> None:
    """Find out before minutes of measuring that there is no place for the result."""
    if points is not None and not points.parent.is_dir():
        raise ConfigError(f"{points}: there is no folder {points.parent}")
    if points is not None and points.exists() and not points.is_file():
        raise ConfigError(f"{points} is no file that could be replaced")


def _write(points: Path, text: str) -> None:
    try:
        fd = open_regular(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TierstoreError(
            f"{points} cannot be written: {error.strerror}", hint="--json prints the same"
        ) from error


def _print_plans(plans: list[dict[str, Any]]) -> None:
    out = console()
    for each in plans:
        out.print(each["tier"], style="bold", end="")
        out.print(f"  would write below {each['where']}, and delete it again", soft_wrap=True)
        out.print(
            f"  at most {size(each['kept_bytes'])} at a time, {size(each['moved_bytes'])} moved in "
            f"all, about {duration(each['seconds'])}",
            soft_wrap=True,
        )
        sizes = ", ".join(size(one) for one in each["sizes"])
        many = ", ".join(map(str, each["concurrency"]))
        out.print(f"  requests of {sizes}; {many} in flight", soft_wrap=True)


def _print_tier(tier: TierPoints, laws: Mapping[str, FittedLaw | ModelError]) -> None:
    out = console()
    out.print(tier.name, style="bold", end="")
    out.print(f"  {tier.url}  ended by: {tier.stopped}", soft_wrap=True)
    numbers = ("in flight", "p50", "p90", "p99", "first done", "last done", "MB/s", "cpu")
    shown = table(["operation", "size", *numbers], right=("size", *numbers))
    for p in tier.points:
        what = f"{p.nbytes} keys" if p.operation == "list" else size(p.nbytes)
        times = map(duration, (p.p50, p.p90, p.p99, p.first_done, p.last_done))
        rate = "" if p.operation in ("list", "first") else f"{p.rate / 1e6:.0f}"
        shown.add_row(p.operation, what, str(p.concurrency), *times, rate, duration(p.cpu))
    out.print(shown)
    out.print()
    fitted = ("t0", "MB/s of one", "a0", "b0", "a", "b", "best in flight", "error", "left out")
    rows = table(["fitted", *fitted], right=fitted)
    for operation, law in laws.items():
        if isinstance(law, ModelError):
            out.print(f"{operation}: {law}", soft_wrap=True)
            continue
        rows.add_row(operation, *_law(law, in_bytes=operation != "list"))
    out.print(rows)


def _law(law: FittedLaw, *, in_bytes: bool) -> list[str]:
    curve, sure = law.fit.curve, law.fit.intervals
    latency, *edges = map(duration, (curve.latency, *sure["latency"]))
    most, least = (1e-6 / each for each in sure["per_byte"])
    rate = f"{1e-6 / curve.per_byte:.0f} ({least:.0f}-{most:.0f})" if in_bytes else ""
    lost = (
        curve.latency_contention,
        curve.latency_coherence,
        curve.contention,
        curve.coherence,
    )
    shares = (f"{share:.3f}" for share in lost)
    errors = ["" if each is None else f"{each:.0%}" for each in (law.fit.error, law.left_out)]
    return [f"{latency} ({' - '.join(edges)})", rate, *shares, f"{law.peak:.0f}", *errors]
