"""Putting a listing in order that comes in none, in bounded memory."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from operator import attrgetter
from tempfile import TemporaryFile
from typing import IO

from tierstore.backend import ObjectInfo

_RUN = 65_536  # objects in memory: some 30 MB
_key = attrgetter("key")


def in_key_order(found: Iterable[ObjectInfo], run: int = _RUN) -> Iterator[ObjectInfo]:
    """Yield objects in the order of their keys, once all are known.

    Up to `run` of them are sorted in memory; more are sorted in runs, which wait in temporary files
    (100 bytes and a key for each object) and are merged as they are needed.
    """
    rest = iter(found)
    runs: list[Iterator[ObjectInfo]] = []
    with ExitStack() as files:
        while part := sorted(islice(rest, run), key=_key):
            if len(part) < run and not runs:
                yield from part
                return
            file = files.enter_context(TemporaryFile("w+", encoding="utf-8"))
            file.writelines(f"{json.dumps([i.key, i.size, i.mtime, i.tag])}\n" for i in part)
            runs.append(_read(file))
        yield from heapq.merge(*runs, key=_key)


def _read(file: IO[str]) -> Iterator[ObjectInfo]:
    file.seek(0)
    for line in file:
        key, size, mtime, tag = json.loads(line)
        yield ObjectInfo(key, size, mtime, tag=tag)
