"""The first save of many small tensors takes little memory beside its image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import states
from tests.patience import PATIENCE

pytestmark = pytest.mark.torch

SCALE = 1 / 16
MOST = 64 * 1024**2
FIRST_SAVE = """
import json, sys
from benchmarks import states
from benchmarks.measure import measure
from tierstore_torch import Checkpointer

state = states.make("10,000 tensors", scale=float(sys.argv[2]))
states.digests(state)
with Checkpointer(sys.argv[1], run="run") as checkpointer:
    sample = measure(lambda: checkpointer.save(1, state).wait())
print(json.dumps([sample.extra_memory, states.size(state), "numpy.ma" in sys.modules]))
"""


def test_ten_thousand_tensors_take_64_mib_at_most_beside_the_state(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_SAVE, tmp_path.as_uri(), str(SCALE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    extra, size, has_masked_arrays = json.loads(done.stdout)
    count, (rows, columns) = states.SHAPES["10,000 tensors"]
    assert size == count * int(rows * SCALE) * columns * 4
    assert size < extra <= size + MOST
    assert not has_masked_arrays  # 7 MiB for an import that nothing needs
