"""The `tierstore` command, called as a user calls it, and ladders for it to look at."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from tests.shards import folder, launch, stage
from tierstore.cli.main import main
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier

COMMAND = [sys.executable, "-c", "from tierstore.cli.main import main; main()"]


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """The errors in one line, without the frame that they may be in."""
        return " ".join(re.sub("[│╭╰─╮╯]", " ", self.err).split())


def tierstore(*words: str) -> Done:
    """Run the command in this process, into pipes."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    done = Done(code, out.getvalue(), err.getvalue())
    assert "Traceback" not in done.err, done.err
    assert "\x1b" not in done.out + done.err, "colour is for terminals"
    return done


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a process."""
    return subprocess.Popen([*COMMAND, *words], text=True, env=os.environ.copy(), **options)


def ladder_file(path: Path, *keys: str, **tiers: str) -> str:
    """Write a configuration of tiers, given by name and URL; `keys` are lines of each."""
    lines = "".join(f"{key}\n" for key in keys)
    path.write_text(
        "".join(f'[[tier]]\nname = "{name}"\nurl = "{url}"\n{lines}' for name, url in tiers.items())
    )
    return str(path)


def save(
    tiers: Sequence[OpenTier],
    step: int,
    *,
    run: str = "run",
    on: int = 1,
    parent: Attempt | None = None,
    rows: int = 300,
    **shape: Any,
) -> Attempt:
    """Save one step of launch `on` as a job of one rank."""
    attempt = Attempt(step, on, 1)
    with closing(Saver(tiers, run)) as saver:
        work = stage(attempt, launch(on, parent=parent), rows=rows, **shape)
        saver.submit(*work).wait(timeout=30)
    return attempt


def folders(at: Path, *names: str) -> list[OpenTier]:
    """Open a tier in a folder of its own for each name."""
    return [folder(name, at / name) for name in names]


def stored(tier: Path, step: int, name: str, run: str = "run") -> Path:
    """Return the one file of a step on a tier whose name matches."""
    (found,) = tier.glob(f"runs/{run}/data/{step:012d}-*/{name}")
    return found
