"""A fault at every single request of a migration, before or after it is carried out."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest

from tierstore.backend import Capabilities
from tierstore.backends.memory import open_memory
from tierstore.blocks import BLOCK_SIZE
from tierstore.errors import AccessError, DamagedInTransitError, StorageError, UnreachableError
from tierstore.migration.ends import Ends
from tierstore.migration.listing import objects
from tierstore.patterns import Selection
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.feed import Listing
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.run import Engine
from tierstore.wrappers.faults import Fault, Faulty

CONTENT = {
    "a small one": b"small",
    "empty": b"",
    "in parts": os.urandom(2 * BLOCK_SIZE + 17),
    "there already": os.urandom(BLOCK_SIZE + 1),
    "tiny": b"t",
}
ERRORS = [UnreachableError("it is away"), AccessError("denied"), DamagedInTransitError("flipped")]


class Store(Faulty):
    """Objects in memory, sent and read in blocks, checked by the store or not."""

    checks = True

    @cached_property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        plain = self.inner.capabilities
        return replace(plain, part_size=BLOCK_SIZE, concurrency=3, server_checksum=self.checks)


class Unchecked(Store):
    """One that has to be read back."""

    checks = False


def filled(kind: type[Store], keys: list[str]) -> Store:
    store = kind(open_memory(f"memory://{secrets.token_hex(8)}"))
    for key in keys:
        store.inner.create(key, CONTENT[key])
    return store


def migrate(path: Path, source: Store, target: Store) -> tuple[Engine, dict[str, str]]:
    outcomes: dict[str, str] = {}
    journal = Journal(path, "from", "to")

    def report(told: m.Report) -> None:
        outcomes[told.key] = told.outcome.value

    try:
        ends = Ends(source, target)
        migration = Engine(ends.stores, journal, Listing(objects(ends, Selection())), report=report)
        migration.run()
    finally:
        journal.close()
    return migration, outcomes


def contents(store: Store) -> dict[str, bytes]:
    found = {}
    for info in store.inner.list(""):
        buffer = bytearray(info.size)
        store.inner.read_into(info.key, 0, memoryview(buffer))
        found[info.key] = bytes(buffer)
    return found


@pytest.mark.parametrize("kind", [Store, Unchecked])
@pytest.mark.parametrize("at", ["source", "target"])
@pytest.mark.parametrize("after", [False, True])
def test_every_request_fails_once(
    kind: type[Store], at: str, after: bool, tmp_path: Path, no_leaks: None
) -> None:
    number = 0
    while True:
        number += 1
        source = filled(kind, list(CONTENT))
        target = filled(kind, ["there already"])
        error: StorageError = ERRORS[number % 3]
        ill = source if at == "source" else target
        ill._faults = (Fault("*", nth=number, error=error, after=after),)
        path = tmp_path / f"{number}"
        first, outcomes = migrate(path, source, target)
        happened = len(ill.calls) >= number
        ill._faults = ()
        arrived = contents(target)
        for key, outcome in outcomes.items():
            if outcome in ("copied", "same"):
                assert arrived[key] == CONTENT[key], (number, key)
        second, outcomes = migrate(path, source, target)
        assert second.complete
        assert set(outcomes.values()) <= {"copied", "same"}, (number, outcomes)
        assert contents(target) == CONTENT, number
        # Whose name never arrived is not known to be there.
        unheard = at == "target" and after and happened
        unheard = unheard and ill.calls[number - 1].operation == "upload"
        assert len(target.inner._space.uploads) == unheard
        if not happened:
            assert first.complete
            assert number > 10
            return
