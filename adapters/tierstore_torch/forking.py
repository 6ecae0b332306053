"""What a process leaves in order when it forks, so that its child can save and restore.

torch copies large tensors with OpenMP's threads. A fork copies what GNU's OpenMP knows of them and
not the threads themselves, and the child's first large copy would wait for them for ever. So they
are ended before a fork; the next copy starts new ones, in either process, within a millisecond.

A connection to the other ranks does not survive a fork, and nothing brings it back.
"""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

_SOFT = 1  # omp_pause_soft: what threads keep for themselves stays

_inherited: Any = None


def is_inherited() -> bool:
    """Return whether the process group was made by the process that forked this one."""
    return _inherited is not None and _world() is _inherited


def _world() -> Any:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


@functools.cache
def _openmp() -> list[ctypes.CDLL]:
    """Return GNU's OpenMP, each copy of it that this process has loaded."""
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text().splitlines()
        paths = sorted({line[line.index("/") :] for line in maps if "/libgomp" in line})
        libraries = [ctypes.CDLL(path) for path in paths]
        return [each for each in libraries if hasattr(each, "omp_pause_resource_all")]
    return []


def _before() -> None:
    for library in _openmp():
        library.omp_pause_resource_all(_SOFT)


def _in_child() -> None:
    global _inherited  # noqa: PLW0603 - one per process, as the group is
    _inherited = _world()


os.register_at_fork(before=_before, after_in_child=_in_child)
