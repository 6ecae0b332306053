"""Interrupting a process at its n-th call of the operating system.

As a program it is a victim: for each line "root operation n" it forks a child that carries out the
operation and is killed right before its n-th call; it answers "killed" or "done".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator

from tierstore.backends.local.backend import open_local
from tierstore.blocks import crc32c

OLD, NEW = b"old" * 3000, b"new!" * 3000
_NAMES = "open close fstat stat mkdir ftruncate pwrite fsync link replace unlink rmdir scandir"
_CALLS = [(os, name) for name in _NAMES.split()] + [(fcntl, "flock"), (fcntl, "fcntl")]


@contextlib.contextmanager
def at_call(n: int, act: Callable[[str], None]) -> Iterator[list[str]]:
    """Call `act` before the n-th call, from 1; yield the names of the calls so far."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            seen.append(name)
            if len(seen) == n:
                act(name)
            return real(*args, **kwargs)

        return call

    originals = [(module, name, getattr(module, name)) for module, name in _CALLS]
    try:
        for module, name, real in originals:
            setattr(module, name, wrap(name, real))
        yield seen
    finally:
        for module, name, real in originals:
            setattr(module, name, real)


def carry_out(root: str, operation: str) -> None:
    """Store NEW at "r/x" in one of the possible ways."""
    backend = open_local(f"file://{root}")
    how, _, absent = operation.partition("-")
    if how == "create":
        backend.create("r/x", NEW, if_absent=bool(absent))
        return
    upload = backend.upload("r/x", len(NEW))
    try:
        for offset in (8192, 0, 4096):
            part = NEW[offset : offset + 4096]
            upload.write(offset, part, crc32c(part))
        upload.commit(if_absent=bool(absent), crc32c=crc32c(NEW))
    finally:
        upload.abort()


OPERATIONS = ("create", "create-absent", "upload", "upload-absent")


def _victim() -> None:
    crc32c(b"")  # load what the children need
    for line in sys.stdin:
        root, operation, n = line.split()
        child = os.fork()
        if child == 0:
            with at_call(int(n), lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                carry_out(root, operation)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = "killed" if killed else "done" if status == 0 else f"status {status}"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _victim()
