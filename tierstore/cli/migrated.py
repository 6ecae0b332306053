"""What a migration shows: a bar and a summary for people, a line of JSON an event for programs."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from tierstore.cli.amounts import duration
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import byte_bar
from tierstore.cli.stopping import stopped_by_signals
from tierstore.operations.terms import MoveProgress
from tierstore.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tierstore.operations.moved import Moved, Report, Totals

_SHOWN = 20
"""Failed objects that are listed for people; programs get all."""
_MUCH = 10**8  # bytes from which CPU time for each of them says something
_EVERY = 1.0  # seconds between two lines of progress for programs


class View(MoveProgress, ABC):
    """Where a move is shown.

    Attributes:
        signals: those that have stopped it.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []

    @contextmanager
    def running(self, stop: Callable[[], None]) -> Iterator[None]:
        """Show a pass, and have the first SIGINT or SIGTERM stop it."""
        with self.shown(), stopped_by_signals(stop, self.signals):
            yield

    @abstractmethod
    def shown(self) -> AbstractContextManager[object]:
        """Return what is open while a pass is shown."""


class JsonView(View):
    """One line of JSON for each event.

    Args:
        dry: only what is trouble is told of each object.
    """

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__()
        self._dry = dry
        self._due = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """See `View.shown`."""
        self._due = 0.0
        yield

    def report(self, report: Report) -> None:
        """See `MoveProgress.report`."""
        if self._dry and report.outcome.value not in ("failed", "left_out"):
            return
        event = {"event": "object", "key": report.key, "outcome": report.outcome.value}
        print_json({**event, "bytes": report.size, "reason": report.reason}, indent=None)

    def tick(self, totals: Totals) -> None:
        """See `MoveProgress.tick`."""
        if time.monotonic() >= self._due and not self._dry:
            self._due = time.monotonic() + _EVERY
            print_json({"event": "progress", **_numbers(totals)}, indent=None)

    def over(self, done: Moved) -> None:
        """See `MoveProgress.over`."""
        totals = done.totals
        if done.dry_run:
            plan = {name: {"objects": n, "bytes": b} for name, n, b in _planned(totals)}
            read = done.read_seconds and round(done.read_seconds, 3)
            more = {"removed": totals.removed, "read_seconds": read}
            print_json({"event": "plan", **plan, **more}, indent=None)
            return
        rest = {
            "complete": done.complete,
            "journal": str(done.journal),
            "seconds": done.seconds,
            "cpu_seconds": done.cpu_seconds,
            "retries": done.retries,
        }
        if done.effort:
            rest |= {"workers": done.effort.workers, "workers_lost": done.effort.lost}
        print_json({"event": "summary", **_numbers(totals), **rest}, indent=None)

    def removed(self, keys: Sequence[str]) -> None:
        """See `MoveProgress.removed`."""
        for key in keys:
            print_json({"event": "deleted", "key": key}, indent=None)


class TextView(View):
    """A bar while it lasts, failures as they come, and a summary."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told: dict[str, int] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """See `View.shown`."""
        self._told = {}
        with byte_bar() if sys.stderr.isatty() else nullcontext() as self._bar:
            if self._bar:
                self._task = self._bar.add_task("listing", total=None)
            yield

    def report(self, report: Report) -> None:
        """See `MoveProgress.report`."""
        word = {"failed": "failed", "left_out": "left out"}.get(report.outcome.value)
        if word is None:
            return
        self._told[word] = self._told.get(word, 0) + 1
        text = printable(f"{word}: {report.key}: {report.reason}")
        if self._told[word] > _SHOWN:
            return
        if self._bar is None:
            say(text, stderr=True)
        else:  # above the bar
            self._bar.console.print(text, soft_wrap=True)

    def tick(self, totals: Totals) -> None:
        """See `MoveProgress.tick`."""
        if self._bar is None or self._task is None:
            return
        over = sum(totals.settled.values())
        more = "" if totals.listed else "+"
        text = f"{over:,} of {totals.found:,}{more} objects"
        self._bar.update(
            self._task, description=text, completed=totals.moved, total=totals.found_bytes or None
        )

    def over(self, done: Moved) -> None:
        """See `MoveProgress.over`."""
        self._say_more()
        if done.dry_run:
            _say_plan(done)
        else:
            _say_summary(done)

    def _say_more(self) -> None:
        for word, number in self._told.items():
            if number > _SHOWN:
                more = f"and {number - _SHOWN} more {word}; --json lists them all"
                say(more, stderr=True)


def _say_summary(done: Moved) -> None:
    totals = done.totals
    settled = {o.value: n for o, n in totals.settled.items()}
    words = {
        "copied": "copied",
        "same": "there already",
        "kept": "kept",
        "waiting": "waiting for the other ranks",
        "left_out": "left out",
        "blocked": "waiting for their place",
        "failed": "failed",
    }
    counted = [f"{settled[name]:,} {word}" for name, word in words.items() if settled[name]]
    say(f"{count(totals.found, 'object')}: {', '.join(counted) or 'none over'}")
    seconds, used = done.seconds, done.cpu_seconds
    line = f"{size(totals.sent)} sent in {seconds:.1f} s"
    if totals.sent:
        line += f", {size(totals.sent / max(seconds, 1e-9))}/s"
    line += f"; {used:.1f} s of CPU"
    if totals.sent >= _MUCH:
        line += f", {used / totals.sent * 1e9:.2f} s a GB"
    if totals.reused:
        line += f"; {size(totals.reused)} were sent before"
    if done.retries:
        line += f"; {count(done.retries, 'request')} repeated"
    if done.effort:
        line += f"; {count(done.effort.workers, 'worker')}"
        line += f", {done.effort.lost} lost" if done.effort.lost else ""
    say(line)
    if totals.removed:
        say(f"{totals.removed:,} removed from the source")
    if not done.complete:
        say(f"not done: run the same command again to resume from {done.journal}")


def _say_plan(done: Moved) -> None:
    totals = done.totals
    means = {
        "copy": "would be copied",
        "same": "are there already",
        "keep": "differ from what is there and would be kept",
        "wait": "would be copied once what is in their place is gone",
        "leave_out": "would be left out",
        "fail": "would fail",
    }
    for name, objects, nbytes in _planned(totals):
        if objects or name == "copy":
            say(f"{count(objects, 'object')} of {size(nbytes)} {means[name]}")
    if totals.removed:
        say(f"{totals.removed:,} would be removed from the source")
    if done.read_seconds:
        say(f"reading what would be copied takes about {duration(done.read_seconds)} from here")


def _planned(totals: Totals) -> Iterator[tuple[str, int, int]]:
    """Yield what would become of objects, how many of them, and their bytes."""
    names = {
        "copied": "copy",
        "same": "same",
        "kept": "keep",
        "blocked": "wait",
        "left_out": "leave_out",
        "failed": "fail",
    }
    for outcome, number in totals.settled.items():
        if name := names.get(outcome.value):
            yield name, number, totals.bytes[outcome]


def _numbers(totals: Totals) -> dict[str, Any]:
    return {
        "objects": totals.found,
        "bytes": totals.found_bytes,
        "listed": totals.listed,
        **{outcome.value: number for outcome, number in totals.settled.items()},
        "sent_bytes": totals.sent,
        "reused_bytes": totals.reused,
        "removed": totals.removed,
        "workers": totals.workers,
    }
