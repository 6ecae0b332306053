"""`tierstore.migrate`: a migration from Python, which raises if something did not arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.attempts import contents
from tests.stored import plain, save_arrays
from tierstore.backends.local.backend import LocalBackend
from tierstore.errors import TierstoreError
from tierstore.keys import Attempt

pytestmark = pytest.mark.usefixtures("no_leaks")

DATA = np.arange(1000, dtype=np.float32)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_runs_are_moved_and_told(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for run, step in (("llama-1", 1), ("llama-2", 1), ("llama-2", 2), ("other", 1)):
        tensors = {"w": plain(DATA)}
        save_arrays(LocalBackend(str(source)), run, tensors, attempt=Attempt(step, 1, 1))
    seen: list[int] = []
    done = tierstore.migrate(
        source.as_uri(),
        target.as_uri(),
        runs=["llama-*"],
        steps=["latest"],
        progress=lambda totals: seen.append(totals.found),
    )
    assert done.good
    assert (done.copied > 0, bool(seen)) == (True, True)
    with tierstore.open(target.as_uri()) as store:
        assert store.runs() == ["llama-1", "llama-2"]
        (row,) = store["llama-2"].steps()
        assert row.step == 2
        np.testing.assert_array_equal(store["llama-2"].latest()["w"], DATA)
    again = tierstore.migrate(source.as_uri(), target.as_uri(), runs=["llama-*"], steps=["latest"])
    assert (again.copied, again.sent_bytes) == (0, 0)


def test_what_does_not_arrive_is_raised(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for path, data in ((source, b"one"), (target, b"another")):
        path.mkdir()
        (path / "x").write_bytes(data)
    with pytest.raises(TierstoreError, match=r"1 of 1 objects .* not moved; the first is x: "):
        tierstore.migrate(source, target)
    assert contents(LocalBackend(str(target)))["x"] == b"another"
    tierstore.migrate(source, target, conflict="overwrite")
    assert contents(LocalBackend(str(target)))["x"] == b"one"


@pytest.mark.parametrize("runs", [["none"], ["none-*"]])
def test_a_run_that_is_not_there_is_an_error(tmp_path: Path, runs: list[str]) -> None:
    save_arrays(LocalBackend(str(tmp_path / "a")), "r", {"w": plain(DATA)})
    with pytest.raises(TierstoreError, match="none"):
        tierstore.migrate(tmp_path / "a", tmp_path / "b", runs=runs)


def test_an_unknown_option_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="threads"):
        tierstore.migrate(tmp_path / "a", tmp_path / "b", threads=3)  # type: ignore[call-arg]
