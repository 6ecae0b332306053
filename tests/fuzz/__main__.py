"""`python -m tests.fuzz`: fuzz a parser for longer than the suite does, or repeat a case."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzzing import CASES, Parser, fuzz, names


def main() -> int:
    """Return 1 if a case failed."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", nargs="?", help="the parser; without one, all are listed")
    parser.add_argument("--minutes", type=float, help="how long, instead of a number of cases")
    parser.add_argument("--cases", type=int, default=CASES, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, help="by default 0, or with --minutes one of the time")
    parser.add_argument("--case", type=int, help="parse this one alone, here")
    parser.add_argument("--save", type=Path, help="write what --case parses to a file")
    given = parser.parse_args()
    if given.name is None:
        print(*names(), sep="\n")
        return 0
    if given.name not in names():
        parser.error(f"there is no parser {given.name!r}, only {', '.join(names())}")
    if given.seed is None:
        given.seed = 0 if given.minutes is None else int(time.time())
    return _one(given) if given.case is not None else _many(given)


def _one(given: argparse.Namespace) -> int:
    parser = Parser.load(given.name)
    data = parser.case(given.seed, given.case)
    if given.save is not None:
        given.save.write_bytes(data)
    print(f"{len(data)} bytes: {data[:400]!r}", flush=True)
    parser.parse(data)
    return 0


def _many(given: argparse.Namespace) -> int:
    bounds = {"cases": given.cases}
    if given.minutes is not None:
        bounds = {"cases": None, "seconds": given.minutes * 60}
    failed = 0
    for finding in fuzz(given.name, seed=given.seed, **bounds):
        failed += 1
        again = f"python -m tests.fuzz {given.name} --seed {given.seed} --case {finding.number}"
        print(f"{finding.report.strip()}\n{again}\n", flush=True)
    print(f"{given.name}: {failed or 'no'} kinds of failures, seed {given.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
