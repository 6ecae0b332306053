"""A process that ends with its Checkpointer open: it exits, and what was under way is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tierstore.config import load_config
from tierstore.ladder.find import choose
from tierstore.ladder.tiers import close_ladder, open_ladder

pytestmark = pytest.mark.torch

_SCRIPT = """
import sys, torch
from tierstore_torch import Checkpointer
ckpt = Checkpointer(sys.argv[1], run="run")
state = {"w": torch.arange(20_000_000, dtype=torch.float32)}
for step in (1, 2):
    ckpt.save(step, state)
if sys.argv[2] == "raises":
    raise RuntimeError("the training loop failed")
"""


_FORKS = """
import multiprocessing, sys, threading, torch
from tierstore.backends.local.backend import LocalBackend
from tierstore_torch import Checkpointer
gate, upload = threading.Event(), LocalBackend.upload
LocalBackend.upload = lambda *a, **how: (gate.wait(), upload(*a, **how))[1]
ckpt = Checkpointer(sys.argv[1], run="run")
save = ckpt.save(1, {"w": torch.zeros(1000)})
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
child.join(float(sys.argv[2]))
print(not save.done, child.exitcode)
gate.set()
save.wait()
ckpt.close()
if child.exitcode is None:
    child.kill()
"""


def test_a_forked_child_does_not_wait_for_its_parents_saves(tmp_path: Path) -> None:
    """Such as a data loader's worker: it has none of the threads that would finish them."""
    command = [sys.executable, "-W", "ignore", "-c", _FORKS, tmp_path.as_uri(), str(PATIENCE)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert done.stdout.split() == ["True", "0"], done.stderr


@pytest.mark.parametrize(("end", "code"), [("raises", 1), ("falls off the end", 0)])
def test_a_forgotten_checkpointer_finishes_and_lets_the_process_exit(
    tmp_path: Path, end: str, code: int
) -> None:
    url = tmp_path.as_uri()
    command = [sys.executable, "-c", _SCRIPT, url, end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == code, done.stderr
    assert ("the training loop failed" in done.stderr) == bool(code)
    assert "shutdown" not in done.stderr
    tiers = open_ladder(load_config(url))
    try:
        found = choose(tiers, "run")
        assert found is not None
        assert found.attempt.step == 2
    finally:
        close_ladder(tiers)
