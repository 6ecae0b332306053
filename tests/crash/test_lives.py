"""A job whose lives are killed at random. `python -m tests.crash.lives` kills more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Bucket
from tests.crash.lives import Ledger
from tests.forked import ROOT
from tests.patience import PATIENCE

pytestmark = pytest.mark.torch

KILLS = 12


@pytest.mark.minio
def test_what_a_killed_job_acknowledged_is_found(minio_bucket: Bucket) -> None:
    words = ["--kills", str(KILLS), "--seed", "3", "--s3", minio_bucket.url]
    command = [sys.executable, "-m", "tests.crash.lives", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{KILLS} kills, 0 faults"


def test_the_judge() -> None:
    ledger = Ledger()
    assert ledger.judge("a", 0, 0) == ""
    ledger.s3[1] = 2
    ledger.disk["a"][2] = 3
    assert ledger.judge("a", 2, 3) == ledger.judge("a", 2, 4) == ledger.judge("a", 3, 1) == ""
    assert ledger.judge("b", 1, 2) == ""
    for node, life, step in (("a", 1, 2), ("a", 2, 2), ("b", 1, 1), ("b", 0, 0)):
        assert "was acknowledged" in ledger.judge(node, life, step)
