"""A server as a child process that cannot outlive the process that started it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import urllib3

from tierstore.testing.servers.programs import ServerUnavailableError

_GUARD = Path(__file__).with_name("guard.py")
_STOP_SECONDS = 15.0


def free_port() -> int:
    """Return a TCP port on loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lasting_port() -> int:
    """Return a free TCP port on loopback that the kernel gives to no outgoing connection.

    For a server that is stopped and started again: meanwhile, a client that keeps on trying an
    ephemeral port may be given that very port, connect to itself, and hold it.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    low = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 32768
    for _ in range(100):
        port = random.randrange(10_000, low) if low > 10_000 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    return free_port()


class ServerProcess:
    """A running server.

    Args:
        command: program and arguments.
        log: file that takes its output; its end is quoted when the server does not start.
        env: variables to set over the parent's own.

    Attributes:
        pid: process id of the server itself.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._name = Path(command[0]).name
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **(env or {})},
            )
        if self._guard.stdin is None or self._guard.stdout is None:
            raise RuntimeError("Popen made no pipes")  # pragma: no cover
        self._lifeline = self._guard.stdin
        with self._guard.stdout as answer:
            line = answer.readline()
        if not line:
            self.stop()
            raise ServerUnavailableError(f"{self._name} did not start: {self._tail()}")
        self.pid = int(line)

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""
        return self._guard.poll() is None

    def wait_ready(self, url: str, *, seconds: float = 30.0) -> None:
        """Return once `url` answers 200.

        Raises:
            ServerUnavailableError: the server ended, or did not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        with urllib3.PoolManager(retries=False, timeout=2.0) as http:
            while time.monotonic() < deadline:
                if not self.running:
                    raise ServerUnavailableError(f"{self._name} ended at once: {self._tail()}")
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    if http.request("GET", url).status == 200:
                        return
                time.sleep(0.02)
        raise ServerUnavailableError(f"{self._name} gave no answer in {seconds} s: {self._tail()}")

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self._guard.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """Ask the server to end, insist after some seconds, and wait until it has. Idempotent."""
        self._lifeline.close()
        try:
            self._guard.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # the server gets SIGKILL with its guard
            self._guard.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _tail(self) -> str:
        return self._log.read_text(errors="replace").strip()[-500:] or "it printed nothing"
