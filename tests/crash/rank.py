"""One rank of a job without torch, as a process that can be killed where it hurts.

    python -m tests.crash.rank TIER_FOLDER STEP TRY RANK WORLD [OPERATION KEY NTH]

It saves its shard and exits with 0 when the checkpoint is committed. With OPERATION it gets SIGKILL
at its NTH request of this kind whose key contains KEY.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

from tests.patience import PATIENCE
from tests.shards import folder, launch, stage, tier
from tierstore.errors import TierstoreError
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.wrappers.faults import Fault, Faulty


def main() -> int:
    """Save one shard, as the command line says."""
    root, step, number, rank, world, *kill = sys.argv[1:]
    backend = folder("t", Path(root)).backend
    if kill:
        operation, key, nth = kill
        die = Fault(operation, key=key, nth=int(nth), action=lambda _: _die())
        backend = Faulty(backend, die)
    ranks = range(int(world))
    attempt, line = Attempt(int(step), 1, int(number)), launch(world=int(world))
    with closing(Saver([tier("t", backend, ranks)], "run", commit_timeout=PATIENCE)) as saver:
        shard, image = stage(attempt, line, rank=int(rank), world=int(world))
        save = saver.submit(shard, image)
        try:
            save.wait()
        except TierstoreError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            return 1
    return 0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
