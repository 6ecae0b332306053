"""The `tierstore` command, and others, as a child process that imports nothing anew.

`python -m tests.forked` has imported them once, and forks for each that is asked for: a start takes
milliseconds. The children are the asker's own, as those of `subprocess` are.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MOST = 1 << 20
_USED = (
    "encodings.idna", "tierstore.backends.local.backend", "tierstore.cli.main",
    "tierstore.cli.migrate",
    "tierstore.transfer.engine.crew", "tierstore.transfer.engine.one_object", "tierstore.wrappers",
    "tierstore_hdfs.backend", "tierstore_s3.backend", "tests.crash.rank",
)  # fmt: skip
_libc = ctypes.CDLL(None)


class _Forker:
    """The process that forks, started when it is first asked; no descriptor of it is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address = f"\0tierstore-{os.getpid()}-{os.urandom(8).hex()}"
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: Any, descriptors: list[int]) -> int:
        """Return the process id of a new child of this process."""
        with self._lock, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            if self._process is None or self._process.poll() is not None:
                self._start()
            asking.connect(self._address)
            # An orphan belongs to the nearest ancestor that wants it.
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(asking, [json.dumps(request).encode()], descriptors)
                return int(asking.recv(_MOST))
            finally:
                _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)

    def _start(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self._address)
            listening.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(os.getpid()), str(listening.fileno())],
                cwd=ROOT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # only one thread may fork
                stdin=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )


_forker = _Forker()


class _Forked(subprocess.Popen[str]):
    """`Popen` that asks instead of starting a program."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        pipes = given[9:15]  # each is an end of ours, or of the child, or -1
        theirs = [pipes[0], pipes[3], pipes[5]]
        request = {
            "module": args[0],
            "words": args[1:],
            "cwd": str(Path.cwd()),
            "env": dict(os.environ),
        }
        used = [end if end >= 0 else number for number, end in enumerate(theirs)]
        self.pid = _forker.fork(request, used)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def forked(
    *words: str, module: str = "tierstore.cli.main", **options: Any
) -> subprocess.Popen[str]:
    """Start `main()` of a module as a process: `tests.command.start` at a tenth of the price."""
    return _Forked((module, *words), text=True, **options)


def _main(parent: int, listening: int) -> None:
    """Fork as long as the parent lives; only in a child this ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for module in _USED:
        import_module(module)
    gc.freeze()
    with socket.socket(fileno=listening) as server:
        while True:
            asking, _ = server.accept()
            with asking:
                data, descriptors, _, _ = socket.recv_fds(asking, _MOST, 3)
                pid = _orphan()
                if not pid:
                    break
                for descriptor in descriptors:
                    os.close(descriptor)
                asking.sendall(str(pid).encode())
    _become(json.loads(data), descriptors)


def _orphan() -> int:
    """Fork a child whose parent has ended; return its process id, in the child 0."""
    told, tell = os.pipe()
    between = os.fork()
    if not between:
        pid = os.fork()
        if pid:
            os.write(tell, str(pid).encode())
            os._exit(0)
    else:
        os.waitpid(between, 0)
        pid = int(os.read(told, 64))
    os.close(told)
    os.close(tell)
    return pid


def _become(request: Any, descriptors: list[int]) -> None:
    """Go on as a new process with these words, this environment and these streams."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["words"]]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.exit(import_module(request["module"]).main())


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
