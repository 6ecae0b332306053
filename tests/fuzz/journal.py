"""Journals of migrations, which the next life of one goes on from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

from tests.mutations import mutate_json
from tierstore.blocks import crc32c
from tierstore.transfer.engine.entries import Entry
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Machine
from tierstore.transfer.engine.messages import Fed, Joined, Open, Opened
from tierstore.transfer.engine.records import TARGET, Begun, Finished, Receipt, Version, Void
from tierstore.transfer.engine.rules import Destination, Orders

_ENDS = "file:///from", "file:///to"
_MIB = 1024**2
_ONE, _TWO = Version(20 * _MIB, 1.5), Version(9, 2.0, "tag")
_FOLDER = Path("/dev/shm")


def _file() -> Path:
    return _FOLDER / f"tierstore-fuzz-{os.getpid()}"


def SEEDS() -> list[bytes]:
    records = [
        *(Begun(1, "a", _ONE, 8 * _MIB, "token"), Receipt(1, 0, 11), Receipt(1, 2, 2**32 - 1)),
        *(Begun(2, "b", _TWO, 4, ""), Void(2), Finished(3, "c", _TWO, _ONE)),
        Begun(4, "d", _TWO, 4, "t"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        journal = Journal(path, *_ENDS)
        for record in records:
            journal.append(record)
        journal.close()
        return [path.read_bytes(), path.read_bytes() + _line(b'["digests", "' + b"A" * 64 + b'"]')]


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (crc32c(text), text)


def parse(data: bytes) -> None:
    path = _file()
    path.write_bytes(data)
    try:
        journal = Journal(path, *_ENDS)
        journal.close()
    finally:
        path.unlink()
    past = journal.past()
    past.finished(TARGET, "c", _TWO, _ONE)
    machine = Machine(Orders({TARGET: Destination(lambda _: 8 * _MIB)}), past)
    entries = [Entry(key, held.begun.version) for (_, key), held in past.held.items()]
    commands = [*machine.begin(), *machine.handle(Joined("worker", 9))]
    commands += machine.handle(Fed((*entries, Entry("z", _TWO)), last=True))
    for command in commands:
        if isinstance(command, Open):
            done = ((0, min(8 * _MIB, command.entry.version.size)),)
            machine.handle(Opened(command.job, command.token, done))


def mutate(data: bytes, rng: Random) -> bytes:
    """Change what one line says."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = lines[at][:9] + mutate_json(lines[at][9:], rng) + b"\n"
    return b"".join(lines)


def reseal(data: bytes) -> bytes:
    """Put the CRC32C of each line right."""
    return b"".join(_line(line[9:]) for line in data.splitlines())
