"""`tierstore bench`: measure each tier as it is, keep the points, fit the model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tierstore.cli.amounts import duration, nbytes
from tierstore.cli.options import PATH, config_option, json_option
from tierstore.cli.output import (
    console,
    print_error,
    print_json,
    size,
    table,
)
from tierstore.errors import ConfigError, ModelError, TierstoreError
from tierstore.operations.advice import of_tier
from tierstore.regular import open_regular

if TYPE_CHECKING:
    from tierstore.config import TierConfig
    from tierstore.model.bench import Limits, Progress
    from tierstore.model.points import Measured, TierPoints

FITTED = ("put", "write", "commit", "read", "list")
"""What is fitted: "write" and "commit" are the parts of a put, "read" is get and range."""


@click.command
@config_option("config")
@click.option(
    "--seconds", default=60.0, show_default=True, help="On each tier, at most about this long."
)
@click.option(
    "--bytes",
    "limit",
    default="16G",
    show_default=True,
    help="Moved on each tier, both ways, at most.",
)
@click.option("--size", "sizes", multiple=True, help="Of a request, such as 8M; repeatable.")
@click.option("--concurrency", multiple=True, type=int, help="Requests in flight; repeatable.")
@click.option("--points", "-p", type=PATH, help="Write what was measured here.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and where; do nothing.")
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
    from tierstore.config import load_config
    from tierstore.model.bench import Limits
    from tierstore.model.fit import require_scipy

    tiers = load_config(*config).tiers
    bounds = Limits(seconds, nbytes(limit), tuple(int(nbytes(s)) for s in sizes), concurrency)
    require_scipy()
    _check_writable(points)
    if dry_run:
        _plan(tiers, bounds, as_json=as_json)
        return
    measured, failed = _measure(tiers, bounds)
    found = {tier.name: _fitted(tier) for tier in measured.tiers}
    if as_json:
        print_json({**measured.to_json(), "fits": found})
    else:
        for tier in measured.tiers:
            _print_tier(tier, found[tier.name])
    if points is not None:  # last: if it cannot be written, all of it has been shown
        _write(points, json.dumps(measured.to_json(), indent=1))
    _judge(failed)


def _judge(failed: list[tuple[str, TierstoreError]]) -> None:
    for name, error in failed:
        print_error(of_tier(name, error))
    if failed:
        raise click.exceptions.Exit(1)


def _plan(tiers: tuple[TierConfig, ...], limits: Limits, *, as_json: bool) -> None:
    plans: list[dict[str, Any]] = []
    failed: list[tuple[str, TierstoreError]] = []
    for tier in tiers:
        try:
            plans.append(_planned(tier, limits))
        except TierstoreError as error:
            failed.append((tier.name, error))
    print_json(plans) if as_json else _print_plans(plans)
    _judge(failed)


def _measure(
    tiers: tuple[TierConfig, ...], limits: Limits
) -> tuple[Measured, list[tuple[str, TierstoreError]]]:
    from tierstore.model.bench import copy_rate, describe_machine, measure
    from tierstore.model.points import Measured

    done: list[TierPoints] = []
    failed: list[tuple[str, TierstoreError]] = []
    with _sigterm_interrupts():
        for tier in tiers:
            try:
                with _progress(tier.name) as progress:
                    done.append(measure(tier, limits, progress))
            except TierstoreError as error:
                failed.append((tier.name, error))
        return Measured(describe_machine(), copy_rate(), tuple(done)), failed


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Clean up on SIGTERM as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Progress | None]:
    """Show a bar on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(name)

        def tell(cell: Any, done: int, of: int) -> None:
            what = f"{cell.operation} {cell.nbytes} x {cell.concurrency}" if cell else "preparing"
            bar.update(task, description=f"{name}  {what}", completed=done, total=max(of, done))

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


def _planned(tier: TierConfig, limits: Limits) -> dict[str, Any]:
    from tierstore.model.bench import schedule
    from tierstore.registry import open_backend

    with contextlib.closing(open_backend(tier.url, tier.options)) as backend:
        plan = schedule(tier, backend.capabilities, limits)
    return {
        "tier": tier.name,
        "where": f"{tier.url}/bench/",
        "sizes": plan.sizes,
        "concurrency": sorted({cell.concurrency for cell in plan.cells}),
        "kept_bytes": plan.kept,
        "moved_bytes": int(limits.nbytes),
        "seconds": limits.seconds,
    }


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


def _fitted(tier: TierPoints) -> dict[str, Any]:
    """Return what was fitted of each operation, or why it was not."""
    from tierstore.model.fit import left_out

    found: dict[str, Any] = {}
    for operation in FITTED:
        try:
            fit = tier.fit(operation)
        except ModelError as error:
            found[operation] = {"error": str(error)}
        else:
            found[operation] = {
                **asdict(fit),
                "left_out": left_out(tier.samples(operation)),
                "peak": min(fit.curve.at_size(fit.most[1]).peak, fit.most[2]),
            }
    return found


def _print_tier(tier: TierPoints, fits: dict[str, Any]) -> None:
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
    laws = table(["fitted", *fitted], right=fitted)
    for operation, fit in fits.items():
        if "error" in fit and isinstance(fit["error"], str):
            out.print(f"{operation}: {fit['error']}", soft_wrap=True)
            continue
        laws.add_row(operation, *_law(fit, in_bytes=operation != "list"))
    out.print(laws)


def _law(fit: dict[str, Any], *, in_bytes: bool) -> list[str]:
    curve, sure = fit["curve"], fit["intervals"]
    latency, *edges = map(duration, (curve["latency"], *sure["latency"]))
    most, least = (1e-6 / each for each in sure["per_byte"])
    rate = f"{1e-6 / curve['per_byte']:.0f} ({least:.0f}-{most:.0f})" if in_bytes else ""
    shares = (
        f"{curve[name]:.3f}"
        for name in ("latency_contention", "latency_coherence", "contention", "coherence")
    )
    errors = ["" if fit[key] is None else f"{fit[key]:.0%}" for key in ("error", "left_out")]
    return [f"{latency} ({' - '.join(edges)})", rate, *shares, f"{fit['peak']:.0f}", *errors]
