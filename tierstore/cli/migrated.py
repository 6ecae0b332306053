"""What a migration shows: a bar and a summary for people, a line of JSON an event for programs."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from tierstore.cli.amounts import duration
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import byte_bar
from tierstore.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tierstore.transfer.engine.machine import Totals
    from tierstore.transfer.engine.messages import Report

_SHOWN = 20
"""Failed objects that are listed for people; programs get all."""
_MUCH = 10**8  # bytes from which CPU time for each of them says something
_EVERY = 1.0  # seconds between two lines of progress for programs


class View(ExitStack, ABC):
    """Where a migration is shown; entered while it lasts.

    Attributes:
        failed: how many objects did.
        left_out: how many things were, without somebody asking for it.
        blocked: the keys of objects that wait until what is in their place is gone.
    """

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__()
        self.failed = self.left_out = 0
        self.blocked: set[str] = set()
        self._dry = dry

    def report(self, report: Report) -> None:
        """Count and show how an object ended."""
        outcome = report.outcome.value
        self.failed += outcome == "failed"
        self.left_out += outcome == "left_out" and not report.asked
        if outcome == "blocked":
            self.blocked.add(report.key)
        self.show(report)

    @abstractmethod
    def show(self, report: Report) -> None:
        """Show how an object ended."""

    @abstractmethod
    def tick(self, totals: Totals) -> None:
        """Show how far it is."""

    @abstractmethod
    def summary(
        self, totals: Totals, cost: dict[str, float], *, complete: bool, journal: str
    ) -> None:
        """Show how it ended."""

    @abstractmethod
    def plan_summary(self, totals: Totals, seconds: float | None) -> None:
        """Show the plan; `seconds` is how long reading what is to be copied takes."""

    def planning(self, add: Callable[[str, int], None]) -> Callable[[Report], None]:
        """Return how to report what would be done, telling `add` of key and size to be copied."""

        def report(report: Report) -> None:
            if report.outcome.value == "copied":
                add(report.key, report.size)
            self.report(report)

        return report


class JsonView(View):
    """One line of JSON for each event."""

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__(dry=dry)
        self._due = 0.0

    def show(self, report: Report) -> None:
        """See `View.show`."""
        if self._dry and report.outcome.value not in ("failed", "left_out"):
            return
        event = {"event": "object", "key": report.key, "outcome": report.outcome.value}
        print_json({**event, "bytes": report.size, "reason": report.reason}, indent=None)

    def tick(self, totals: Totals) -> None:
        """See `View.tick`."""
        if time.monotonic() >= self._due and not self._dry:
            self._due = time.monotonic() + _EVERY
            print_json({"event": "progress", **_numbers(totals)}, indent=None)

    def summary(
        self, totals: Totals, cost: dict[str, float], *, complete: bool, journal: str
    ) -> None:
        """See `View.summary`."""
        rest = {"complete": complete, "journal": journal, **cost}
        print_json({"event": "summary", **_numbers(totals), **rest}, indent=None)

    def plan_summary(self, totals: Totals, seconds: float | None) -> None:
        """See `View.plan_summary`."""
        plan = {name: {"objects": n, "bytes": b} for name, n, b in _planned(totals)}
        rest = {"removed": totals.removed, "read_seconds": seconds and round(seconds, 3)}
        print_json({"event": "plan", **plan, **rest}, indent=None)


class TextView(View):
    """A bar while it lasts, failures as they come, and a summary."""

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__(dry=dry)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told: dict[str, int] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = self.enter_context(byte_bar())
            self._task = self._bar.add_task("listing", total=None)
        return self

    def show(self, report: Report) -> None:
        """See `View.show`."""
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
        """See `View.tick`."""
        if self._bar is None or self._task is None:
            return
        over = sum(totals.settled.values())
        more = "" if totals.listed else "+"
        text = f"{over:,} of {totals.found:,}{more} objects"
        self._bar.update(
            self._task, description=text, completed=totals.moved, total=totals.found_bytes or None
        )

    def summary(
        self, totals: Totals, cost: dict[str, float], *, complete: bool, journal: str
    ) -> None:
        """See `View.summary`."""
        settled = {o.value: n for o, n in totals.settled.items()}
        self._say_more()
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
        seconds, used = cost["seconds"], cost["cpu_seconds"]
        line = f"{size(totals.sent)} sent in {seconds:.1f} s"
        if totals.sent:
            line += f", {size(totals.sent / max(seconds, 1e-9))}/s"
        line += f"; {used:.1f} s of CPU"
        if totals.sent >= _MUCH:
            line += f", {used / totals.sent * 1e9:.2f} s a GB"
        if totals.reused:
            line += f"; {size(totals.reused)} were sent before"
        if cost["retries"]:
            line += f"; {count(int(cost['retries']), 'request')} repeated"
        if "workers" in cost:
            line += f"; {count(int(cost['workers']), 'worker')}"
            line += f", {lost:.0f} lost" if (lost := cost["workers_lost"]) else ""
        say(line)
        if totals.removed:
            say(f"{totals.removed:,} removed from the source")
        if not complete:
            say(f"not done: the same command goes on from {journal}")

    def plan_summary(self, totals: Totals, seconds: float | None) -> None:
        """See `View.plan_summary`."""
        self._say_more()
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
        if seconds:
            say(f"reading what would be copied takes about {duration(seconds)} from here")

    def _say_more(self) -> None:
        for word, number in self._told.items():
            if number > _SHOWN:
                more = f"and {number - _SHOWN} more {word}; --json lists them all"
                say(more, stderr=True)


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
