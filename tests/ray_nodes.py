"""A Ray cluster of several nodes on loopback: `python -m tests.ray_nodes FOLDER CPUS...`.

Prints its address, then one line for each node: its raylet's process id. Ends, with all that it
started, when its standard input does. It is a process of its own, as Ray reads its environment when
it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE
from tierstore.testing.servers import ServerUnavailableError

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it resolves 127.0.0.1 to an outer address
    "AWS_EC2_METADATA_DISABLED": "true",  # no credentials are found there
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Nodes:
    """A running cluster: its address, where it logs, and its nodes' raylets."""

    address: str
    folder: Path
    raylets: tuple[int, ...]

    def workers(self, node: int) -> list[int]:
        """Return the process ids of the migration's workers on a node."""
        processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in processes if _is_worker_of(pid, self.raylets[node])]

    def kill(self, node: int) -> None:
        """Have a node lose its power: its raylet and its workers end at once."""
        for pid in (self.raylets[node], *self.workers(node)):
            os.kill(pid, signal.SIGKILL)


def _is_worker_of(pid: int, raylet: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1]
    except OSError:  # it is gone
        return False
    return command.startswith(b"ray::Actor") and int(parent) == raylet


@contextmanager
def ray_nodes(*cpus: int) -> Iterator[Nodes]:
    """Start a cluster of a node for each number of CPUs; stop it at the end.

    Raises:
        ServerUnavailableError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ServerUnavailableError("Ray is missing: pip install 'tierstore[ray]'")
    # A path of its own, and a short one: sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()  # where it notes the latest cluster
        command = [sys.executable, "-m", "tests.ray_nodes", folder, *map(str, cpus)]
        process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, "RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            raylets = tuple(int(process.stdout.readline()) for _ in cpus)
            yield Nodes(address, Path(folder), raylets)
        finally:
            process.stdin.close()
            process.wait(PATIENCE)
            process.stdout.close()


def _main(folder: str, *cpus: str) -> None:
    from ray.cluster_utils import Cluster

    head: dict[str, object] = {"_system_config": {}, "temp_dir": folder, "include_dashboard": False}
    cluster = Cluster()
    try:
        for number, count in enumerate(cpus):
            # Each has an address of its own, so that a driver finds its node, which is the first.
            more = {"node_ip_address": f"127.0.0.{number + 1}", **({} if number else head)}
            memory = 80 * 1024**2
            cluster.add_node(num_cpus=int(count), wait=False, object_store_memory=memory, **more)
        cluster.wait_for_nodes(timeout=PATIENCE)
        print(cluster.address)
        for node in cluster.list_all_nodes():
            print(node.all_processes["raylet"][0].process.pid)
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    _main(*sys.argv[1:])
