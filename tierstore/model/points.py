"""What `tierstore bench` measured, as JSON: the machine, each tier as it was, its points."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tierstore.errors import ConfigError, FormatError, ModelError, NewerFormatError
from tierstore.model.checks import not_negative, positive, whole
from tierstore.model.fit import Fit, Sample, fit
from tierstore.registry import parse_options
from tierstore.regular import open_regular
from tierstore.text import has_too_many_members

FORMAT = 1
_MOST_BYTES = 1 << 24
_MOST_TIERS = 64
_MOST_POINTS = 10_000  # of a tier; `tierstore bench` measures some hundreds
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """One operation at one size and concurrency, over several rounds; times in seconds.

    Attributes:
        operation: "put", "get", "range", "first" (a read of one byte) or "list".
        nbytes: of a request; keys, of a listing.
        concurrency: requests in flight.
        rounds: how often all of them were started together.
        requests: how many there were.
        seconds: of one request: the median over rounds of a round's mean.
        commit: of that, what made a put visible and durable (fsync included); 0 for the others.
        p50: median of all requests.
        p90: a tenth took longer.
        p99: a hundredth took longer.
        longest: of all requests.
        first_done: from the common start to the end of the first request; median over rounds.
        last_done: the same for the last one.
        rate: bytes/s (keys/s) that the requests of a round moved together; median over rounds.
        cpu: processor seconds of this client per request.
        stable: more rounds would not have changed `seconds` much.
        uncertainty: relative standard error of `seconds`, from the spread between rounds.
    """

    operation: str
    nbytes: int
    concurrency: int
    rounds: int
    requests: int
    seconds: float
    commit: float
    p50: float
    p90: float
    p99: float
    longest: float
    first_done: float
    last_done: float
    rate: float
    cpu: float
    stable: bool
    uncertainty: float = 0.0

    def check(self, where: str) -> None:
        """Raise ModelError if a number is none that was measured."""
        for name in ("concurrency", "rounds", "requests"):
            whole(f"{where}: {name}", getattr(self, name))
        for name in ("seconds", "p50", "p90", "p99", "longest"):
            positive(f"{where}: {name}", getattr(self, name), "s")
        for name in ("nbytes", "commit", "first_done", "last_done", "rate", "cpu", "uncertainty"):
            not_negative(f"{where}: {name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class TierPoints:
    """One tier as it was measured.

    Attributes:
        name: the tier's.
        url: where it was, without credentials.
        local: it is a folder or memory of this machine.
        every: it takes every n-th save.
        concurrency: requests in flight that a save has.
        part_size: bytes of a request of a save.
        read_size: bytes of a request of a restore.
        reads_back: a save reads again what it wrote, as the store checks nothing itself.
        stopped: why measuring ended: "stable", "seconds", "bytes" or "rounds".
        points: what was measured.
    """

    name: str
    url: str
    local: bool
    every: int
    concurrency: int
    part_size: int
    read_size: int
    reads_back: bool
    stopped: str
    points: tuple[Point, ...] = ()

    def samples(self, operation: str) -> list[Sample]:
        """Return the points of one operation, to be fitted.

        Beside those of points there are "write" and "commit", the two parts of a put, and "read":
        "get" and "range", which are the same request.
        """
        of = {"read": ("get", "range"), "write": ("put",), "commit": ("put",)}
        return [
            Sample(p.nbytes, p.concurrency, _seconds(p, operation), p.uncertainty)
            for p in self.points
            if p.operation in of.get(operation, (operation,))
        ]

    def fit(self, operation: str) -> Fit:
        """Fit one operation.

        Raises:
            ModelError: points are missing; the message names tier and operation.
        """
        try:
            return _fit(self, operation)
        except ModelError as error:
            raise ModelError(
                f"tier {self.name}: {operation}: {error.message}", hint=error.hint
            ) from None


def _seconds(point: Point, operation: str) -> float:
    if operation == "commit":
        return max(1e-9, point.commit)
    return max(1e-9, point.seconds - point.commit) if operation == "write" else point.seconds


@lru_cache(maxsize=256)
def _fit(tier: TierPoints, operation: str) -> Fit:
    return fit(tier.samples(operation))


@dataclass(frozen=True, slots=True)
class Measured:
    """A file of points.

    Attributes:
        machine: what it was measured on; "cores" is used by predictions.
        copy: bytes/s at which one core copies memory.
        tiers: in the order of the ladder.
    """

    machine: Mapping[str, str | int | float]
    copy: float
    tiers: tuple[TierPoints, ...]

    def tier(self, name: str) -> TierPoints:
        """Return a tier by its name.

        Raises:
            ConfigError: it was not measured.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        names = ", ".join(tier.name for tier in self.tiers)
        raise ConfigError(
            f"tier {name!r} is not among the measured points",
            hint=f"measured are: {names}; `tierstore bench` measures the others",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {"format": FORMAT, **asdict(self)}


def load_points(path: Path) -> Measured:
    """Read a file that `tierstore bench` wrote.

    Raises:
        ConfigError: there is no such file.
        FormatError: it is no file of points; the message names what is wrong.
        NewerFormatError: a newer tierstore wrote it.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES or has_too_many_members(text):
            raise FormatError(f"{path} is no file of points: it is too large")
        content = json.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file", hint="`tierstore bench --points FILE` writes one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}") from None
    try:
        return _measured(content)
    except (ConfigError, ModelError) as error:
        raise FormatError(
            f"{path} is no file of points: {error}", hint="measure again with `tierstore bench`"
        ) from None


def _measured(content: object) -> Measured:
    top = _table(content, "the document")
    if isinstance(found := top.get("format"), int) and found > FORMAT:
        raise NewerFormatError(f"the points have format {found}", hint="update tierstore")
    if top.get("format") != FORMAT:
        raise ConfigError("the document has no 'format' that is known")
    copy = positive("'copy'", top.get("copy", 0), "bytes/s")
    machine = _table(top.get("machine", {}), "'machine'")
    if isinstance(cores := machine.get("cores"), int | float):
        positive("'machine': number of cores", cores)
    tiers = []
    for number, entry in enumerate(_list(top.get("tiers"), "'tiers'", _MOST_TIERS), 1):
        table = dict(_table(entry, f"tier {number}"))
        where = f"tier {table.get('name', number)!r}"
        points = _list(table.pop("points", []), f"{where}: 'points'", _MOST_POINTS)
        parsed = tuple(
            _parse(Point, _table(point, f"{where}: a point"), f"{where}: point {at}")
            for at, point in enumerate(points, 1)
        )
        for at, point in enumerate(parsed, 1):
            point.check(f"{where}: point {at}")
        tier = _parse(TierPoints, table, where)
        for name in ("every", "concurrency", "part_size", "read_size"):
            whole(f"{where}: {name}", getattr(tier, name), most=10**18)
        tiers.append(replace(tier, points=parsed))
    return Measured(machine, copy, tuple(tiers))


def _parse(kind: type[T], table: Mapping[str, object], where: str) -> T:
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in table:
            raise ConfigError(f"{where} has no {field.name!r}")
    return parse_options(kind, table, where=where)


def _table(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a table")
    return value


def _list(value: object, what: str, most: int) -> Sequence[object]:
    if not isinstance(value, list):
        raise ConfigError(f"{what} is not a list")
    if len(value) > most:
        raise ConfigError(f"{what} has {len(value):,} entries, more than {most:,}")
    return value
