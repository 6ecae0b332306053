"""Pools of several processes in one folder, some of them killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tierstore.image.pool import StagingPool

WORK = """
import os, sys, time
from tierstore.image.pool import StagingPool, open_image
number, end, turn = int(sys.argv[2]), time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < end:
    pool = StagingPool(sys.argv[1])          # removes what others left
    for size in (4096, 65536, 65536):
        turn += 1
        image = pool.acquire(size, timeout=10)
        assert image.shared and os.path.exists(image.path), "a living pool lost its file"
        mark = (number * 1_000_003 + turn).to_bytes(8, "little")
        image.buffer[:8] = mark
        reader = open_image(image.path, size)
        assert reader.buffer[:8] == mark, "two pools share memory"
        reader.release()
        image.release()
    pool.close()
print(turn)
"""


def start(folder: object, number: int, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WORK, str(folder), str(number), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_dead_leave_nothing_and_the_living_lose_nothing(shm_path, seed):
    chance = random.Random(seed)
    survivors = [start(shm_path, number, 3.0) for number in range(2)]
    time.sleep(0.6)  # imports
    for number in range(4):
        victim = start(shm_path, 10 + number, 60.0)
        time.sleep(0.45 + chance.random() * 0.2)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    for process in survivors:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert int(out) > 10
    StagingPool(str(shm_path)).close()
    assert list(shm_path.iterdir()) == []
