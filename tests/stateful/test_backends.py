"""Backends against a dictionary, driven by Hypothesis; the same examples in every run."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fired import fired
from tierstore.backend import Backend
from tierstore.backends.local.backend import LocalOptions, open_local
from tierstore.backends.memory import open_memory
from tierstore.config import TierConfig
from tierstore.errors import DeadlineError, UnreachableError
from tierstore.ladder.tiers import OpenTier
from tierstore.ladder.union import UnionBackend
from tierstore.registry import open_backend
from tierstore.testing.machine import BackendMachine
from tierstore.wrappers import open_tier
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Budget, Retrying

_numbers = itertools.count()


def _run(
    new_place: Callable[[], Callable[[], Backend]], examples: int, *, steps=25, many_parts=True
) -> None:
    namespace = {"new_place": staticmethod(new_place), "many_parts": many_parts}
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("Machine", (BackendMachine,), namespace), settings=profile)


def test_memory():
    def new_place() -> Callable[[], Backend]:
        url = f"memory://machine/{next(_numbers)}"
        return lambda: open_memory(url)

    _run(new_place, 60)


@pytest.mark.parametrize("direct", ["auto", "never"])
def test_local(tmp_path: Path, direct):
    def new_place() -> Callable[[], Backend]:
        root = tmp_path / str(next(_numbers))
        return lambda: open_local(f"file://{root}", LocalOptions(direct=direct))

    _run(new_place, 15)


def test_tmpfs():
    root = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="tierstore-test-"))

    def new_place() -> Callable[[], Backend]:
        place = root / str(next(_numbers))
        return lambda: open_local(f"file://{place}", LocalOptions(fsync=False))

    try:
        _run(new_place, 30)
    finally:
        shutil.rmtree(root)


def test_retries_hide_a_flaky_tier():
    """Every fifth request fails, and of every seventh that changes something the answer is lost."""
    faults = [Fault("*", nth=3, every=5, error=UnreachableError("gone"))] + [
        Fault(operation, nth=2, every=7, error=DeadlineError("no answer"), after=True)
        for operation in ("create", "write", "commit", "abort", "delete", "read_into", "stat")
    ]

    made: list[Faulty] = []

    def new_place() -> Callable[[], Backend]:
        url = f"memory://machine/{next(_numbers)}"

        def opened() -> Backend:
            made.append(Faulty(open_memory(url), *faults))
            return Retrying(made[-1], budget=Budget(1e9), pause=lambda _: False)

        return opened

    _run(new_place, 60)
    happened = [sum(times) for times in zip(*map(fired, made), strict=True)]
    assert all(happened), happened


@pytest.mark.parametrize("write_to", ["memory", "nvme"])
def test_a_union(tmp_path: Path, write_to):
    def new_place() -> Callable[[], Backend]:
        number = next(_numbers)
        urls = {"memory": f"memory://machine/{number}", "nvme": f"file://{tmp_path}/{number}"}

        def opened() -> Backend:
            tiers = [OpenTier(c := TierConfig(*each), open_tier(c)) for each in urls.items()]
            return UnionBackend(tiers, write_to)

        return opened

    _run(new_place, 15)


def test_s3(s3_bucket):
    pytest.importorskip("boto3")

    def new_place() -> Callable[[], Backend]:
        base, _, query = s3_bucket.url.partition("?")
        url = f"{base}/{next(_numbers)}?{query}".rstrip("?")
        return lambda: open_backend(url)

    _run(new_place, 3, steps=12, many_parts=False)  # each step looks at everything
    s3_bucket.assert_no_uploads()


@pytest.mark.hdfs
def test_hdfs(hdfs_root):
    def new_place() -> Callable[[], Backend]:
        url = f"{hdfs_root.url}/{next(_numbers)}"
        return lambda: open_backend(url)

    _run(new_place, 3, steps=12, many_parts=False)  # each step looks at everything
    assert hdfs_root.keys() == []
