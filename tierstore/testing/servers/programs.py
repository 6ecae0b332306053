"""Find a server program: on PATH, in Go's bin folder, or installed once with `go install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tierstore.errors import TierstoreError

_INSTALL_SECONDS = 1800


class ServerUnavailableError(TierstoreError):
    """A server program is missing, could not be installed, or did not start."""


def _go_bin(go: str) -> Path:
    answer = subprocess.run(
        [go, "env", "GOBIN", "GOPATH"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split("\n")
    return Path(answer[0]) if answer[0] else Path(answer[1].split(os.pathsep)[0]) / "bin"


def find_program(names: Sequence[str], module: str, *, marker: bytes = b"") -> Path:
    """Return the path of a program, installing it with Go when it is nowhere.

    Args:
        names: the program's names on PATH, best first; the last is the name `go install` gives it.
        module: the Go package to install, with its version.
        marker: bytes inside the program that tell it from another of the same name.

    Raises:
        ServerUnavailableError: it is missing and Go is too, or the installation failed.
    """

    def is_it(program: Path) -> bool:
        return program.exists() and (not marker or marker in program.read_bytes())

    for name in names:
        found = shutil.which(name)
        if found and is_it(Path(found)):
            return Path(found)
    go = shutil.which("go")
    if go is None:
        raise ServerUnavailableError(
            f"{names[0]} is not on PATH, and neither is go to install it with",
            hint=f"install {names[0]}, or Go and then: go install {module}",
        )
    program = _go_bin(go) / names[-1]
    if not is_it(program):
        _install(go, module, names[0])
    if not is_it(program):
        raise ServerUnavailableError(f"go install {module} did not make {program}")
    return program


def _install(go: str, module: str, name: str) -> None:
    print(  # noqa: T201 - minutes of silence would look like a hang
        f"installing {name} once: go install {module} (some minutes)", file=sys.stderr, flush=True
    )
    try:
        subprocess.run(
            [go, "install", module],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ServerUnavailableError(
            f"go install {module} failed: {error.stderr.strip()[-500:]}",
            hint=f"run it by hand, or put {name} on PATH",
        ) from None
    except subprocess.TimeoutExpired:
        raise ServerUnavailableError(
            f"go install {module} took more than {_INSTALL_SECONDS} s",
            hint="run it by hand and try again",
        ) from None
