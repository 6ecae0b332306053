"""Fuzzing a parser: mutants of good samples, in a forked child that is watched.

Each module of `tests/fuzz` is about one parser and has

* `SEEDS() -> list[bytes]`: good samples, which are parsed without an error;
* `parse(data)`: runs the parser as the product does and uses the result as the product would.
  Nothing but a TierstoreError may come out;
* `reseal(data) -> bytes`, if what is parsed is sealed: checksums and lengths put right, so that
  mutants get past them;
* `mutate(data, rng) -> bytes`, if the parser's own structure can be damaged better than bytes are.

A case is a pure function of (name, seed, number). It fails by a signal, by an exception that is not
ours, a warning, by memory or by time.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, NamedTuple

from tests.mutations import mutate
from tests.patience import PATIENCE
from tierstore.errors import TierstoreError

FOLDER = Path(__file__).parent / "fuzz"
CASES = 5000
"""How many cases of each parser the suite runs."""

MEMORY = 256 * 1024**2
"""Bytes by which a parser may make the process larger."""

_CPU = 5.0  # seconds of a case
_DISTINCT = 20  # findings after which there is no use in more


class Finding(NamedTuple):
    """A case that failed: its number, what tells it from others, and all that is known of it."""

    number: int
    kind: str
    report: str


def names() -> list[str]:
    """Return the parsers that can be fuzzed."""
    files = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in files if not name.startswith(("_", "test_")))


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser, its samples, and the damage that is done to them."""

    name: str
    seeds: list[bytes]
    parse: Callable[[bytes], None]
    reseal: Callable[[bytes], bytes] | None
    mutate: Callable[[bytes, Random], bytes] | None

    @classmethod
    def load(cls, name: str) -> Parser:
        """Return the parser of this name."""
        module: Any = importlib.import_module(f"tests.fuzz.{name}")
        optional = (getattr(module, extra, None) for extra in ("reseal", "mutate"))
        return cls(name, module.SEEDS(), module.parse, *optional)

    def case(self, seed: int, number: int) -> bytes:
        """Return what is parsed in a case."""
        rng = Random(f"{self.name}/{seed}/{number}")
        data = rng.choice(self.seeds)
        own = self.mutate is not None and rng.random() < 0.6
        if self.mutate is not None and own:
            data = self.mutate(data, rng)
        if not own or rng.random() < 0.1:
            data = mutate(data, self.seeds, rng)
        if self.reseal is not None and rng.random() < 0.8:
            data = self.reseal(data)
        return data


def fuzz(
    name: str, *, seed: int = 0, cases: int | None = CASES, first: int = 0, seconds: float = 0.0
) -> Iterator[Finding]:
    """Yield the first failing case of each kind.

    Args:
        name: the parser.
        seed: of all cases.
        cases: how many; None is as many as there is time for.
        first: the number of the first one.
        seconds: how long, if `cases` is None.
    """
    last = sys.maxsize if cases is None else first + cases
    until = time.monotonic() + seconds if cases is None else None
    parser = Parser.load(name)
    for sample in parser.seeds:
        parser.parse(sample)
    kinds: set[str] = set()
    while first < last and len(kinds) < _DISTINCT:
        found, first = _watched(parser, seed, range(first, last), until)
        for finding in found:
            if finding.kind not in kinds:
                kinds.add(finding.kind)
                yield finding
        if until is not None and time.monotonic() > until:
            return


def _watched(
    parser: Parser, seed: int, numbers: range, until: float | None
) -> tuple[list[Finding], int]:
    """Run cases in a child; return what failed, and the number of the case to go on with."""
    at = mmap.mmap(-1, 8)  # shared: the case that is under way
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as found:
        pid = os.fork()
        if not pid:
            _child(parser, seed, numbers, until, at=at, said=said.fileno(), found=found)
        _, status = os.waitpid(pid, 0)
        (number,) = struct.unpack("<q", at)
        found.seek(0)
        findings = list(_unpickled(found))
        if os.WIFEXITED(status) and not os.WEXITSTATUS(status):
            return findings, number + 1
        said.seek(0)
        report = said.read().decode(errors="replace")
    why = f"ended with {os.WEXITSTATUS(status)}"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        slow = {"SIGPROF": f" after {_CPU:g} s of CPU", "SIGALRM": f" after {PATIENCE:g} s"}
        why = name + slow.get(name, "")
    where = next((line for line in report.splitlines() if "/tierstore" in line), "")
    return [*findings, Finding(number, f"{why} {where.strip()}", f"{why}\n{report}")], number + 1


def _unpickled(file: IO[bytes]) -> Iterator[Finding]:
    with suppress(EOFError):
        while True:
            yield pickle.load(file)


def _child(
    parser: Parser,
    seed: int,
    numbers: range,
    until: float | None,
    *,
    at: mmap.mmap,
    said: int,
    found: IO[bytes],
) -> None:
    """Run cases until one ends this process, or makes it so large that others cannot be judged."""
    os.dup2(said, 2)
    faulthandler.enable(2)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
        faulthandler.register(number, file=2, chain=True)
    warnings.simplefilter("error")
    logging.getLogger().handlers = [_Formatting()]
    gc.freeze()
    kinds: set[str] = set()
    started = _memory(resource.getrusage(resource.RUSAGE_SELF))
    _bound_memory()
    for number in numbers:
        struct.pack_into("<q", at, 0, number)
        if until is not None and time.monotonic() > until:
            break
        data = parser.case(seed, number)
        signal.setitimer(signal.ITIMER_PROF, _CPU)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        finding = _failed(parser, number, data)
        grown = _memory(resource.getrusage(resource.RUSAGE_SELF)) - started
        if grown > MEMORY:
            finding = Finding(number, "memory", f"the process is {grown:,} bytes larger")
        if finding is not None and finding.kind not in kinds:
            kinds.add(finding.kind)
            pickle.dump(finding, found)
            found.flush()
        if grown > MEMORY or len(kinds) >= _DISTINCT:
            break
    os._exit(0)


def _failed(parser: Parser, number: int, data: bytes) -> Finding | None:
    try:
        parser.parse(data)
    except TierstoreError as error:
        str(error)
    except BaseException as error:
        frames = list(traceback.extract_tb(error.__traceback__))
        ours = [f for f in frames if "tests" not in Path(f.filename).parts] or frames
        kind = f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}"
        return Finding(number, kind, traceback.format_exc())
    return None


class _Formatting(logging.Handler):
    """Formats each message, which is where a strange value may fail, and forgets it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def _memory(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024


def _bound_memory() -> None:
    """Have what asks for very much fail at once; threads and freed memory are given room."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * MEMORY, -1))
