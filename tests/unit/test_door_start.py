"""What opening the door needs: no torch, and little until something is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.stored import plain, save_arrays
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.fragment import ValueEntry

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tierstore_torch", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import tierstore, tierstore.errors
with tierstore.open(sys.argv[1]) as store:
    run = store["r"]
    checkpoint = run.latest()
    print(checkpoint.keys(), checkpoint["w"].dtype, checkpoint["w"][1:].tolist())
    try:
        checkpoint["dtype"]
    except tierstore.errors.FormatError as error:
        print(error)
"""
LIGHT = """
import sys, tierstore
with tierstore.open(sys.argv[1]) as store:
    store["r"]
print(*(set(sys.modules) & {"torch", "boto3", "pyarrow", "numpy", "awscrt"}))
"""


def run(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", code, folder.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_door_opens_where_torch_is_not_installed(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32).reshape(2, 2)
    values = [ValueEntry("dtype", "", "json", b'{"$dtype":"float32"}')]
    save_arrays(LocalBackend(str(tmp_path)), "r", {"w": plain(data)}, values=values)
    assert run(WITHOUT_TORCH, tmp_path).splitlines() == [
        "['dtype', 'w'] float32 [[2.0, 3.0]]",
        "a stored value is torch's, which is not installed (pip install 'tierstore[torch]')",
    ]


def test_opening_a_store_imports_little(tmp_path: Path) -> None:
    assert run(LIGHT, tmp_path).strip() == ""
