"""A server that a test stops, kills and starts again on the same data and the same ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tierstore.testing.servers.process import ServerProcess
from tierstore.testing.servers.programs import ServerUnavailableError


class Daemon:
    """One program of a cluster.

    Args:
        name: what it is called in messages, and in its log's name.
        command: program and arguments; each start runs it anew.
        folder: of its log.
        data: the folder that it keeps its data in.
        env: variables to set over the parent's own.

    Attributes:
        address: the host and port that it serves HTTP on.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        data: Path,
        address: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.address = address
        self._command = list(command)
        self._env = dict(env or {})
        self._log = folder / f"{name}.log"
        self._process: ServerProcess | None = None

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """The process id of the last start.

        Raises:
            ServerUnavailableError: it was never started.
        """
        return self._started().pid

    @property
    def log(self) -> str:
        """All that it printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it if it is not running; it may take seconds until it answers."""
        if not self.running:
            self.stop()
            self._process = ServerProcess(self._command, log=self._log, env=self._env)

    def stop(self) -> None:
        """Ask it to end and wait until it has. Idempotent."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._started().kill()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._started().pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._started().resume()

    def _started(self) -> ServerProcess:
        if self._process is None:
            raise ServerUnavailableError(f"the {self.name} was never started")
        return self._process
