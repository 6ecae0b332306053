"""Encryption zones of an HDFS, whose keys are in a file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.patience import PATIENCE
from tierstore.testing.servers import HdfsServer
from tierstore.testing.servers.hadoop import Hadoop, find_hadoop

_KEY = "zone"


def key_provider(folder: Path) -> str:
    """Make a key and return `hadoop.security.key.provider.path` of a namenode that is to know it.

    Raises:
        ServerUnavailableError: Java or Maven is missing.
    """
    address = f"jceks://file{folder}/keys.jceks"
    main = "org.apache.hadoop.crypto.key.KeyShell"
    _run(find_hadoop(), main, folder, "create", _KEY, "-size", "128", "-provider", address)
    return address


def make_zone(server: HdfsServer, path: str) -> None:
    """Make an empty folder an encryption zone. Takes a second: it is a JVM."""
    assert server.cluster
    main, folder = "org.apache.hadoop.hdfs.tools.CryptoAdmin", server.cluster.folder
    create = ("-createZone", "-keyName", _KEY, "-path", path)
    _run(server.cluster.hadoop, main, folder, *create, user=server.user)


def _run(hadoop: Hadoop, main: str, folder: Path, *words: str, user: str = "keys") -> None:
    command: Sequence[str] = hadoop.command("MAIN", folder, *words, heap=128)
    subprocess.run(
        [main if word.endswith(".MAIN") else word for word in command],
        env={**os.environ, "HADOOP_USER_NAME": user},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
