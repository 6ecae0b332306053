"""Every parser survives 5,000 damaged samples. Which ones is fixed: a failure is no bad luck.

`python -m tests.fuzz NAME --minutes N` tries others.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.forked import forked
from tests.fuzzing import names


@pytest.mark.parametrize("name", names())
def test_nothing_but_our_errors(name: str) -> None:
    running = forked(name, module="tests.fuzz.__main__", stdout=subprocess.PIPE)
    said, _ = running.communicate()
    assert running.returncode == 0, said
