"""A real HDFS: a namenode and datanodes, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from tierstore.testing.servers.daemon import Daemon
from tierstore.testing.servers.hadoop import Hadoop, find_hadoop
from tierstore.testing.servers.hdfs_server import HdfsCluster, HdfsServer
from tierstore.testing.servers.process import lasting_port
from tierstore.testing.servers.programs import ServerUnavailableError

_USER = "tierstore"
_TRIES = 3
_FORMAT_SECONDS = 60
_SETTINGS = {
    "dfs.replication": "2",
    "dfs.namenode.fs-limits.min-block-size": "4096",
    "dfs.namenode.safemode.extension": "0",
    "dfs.namenode.datanode.registration.ip-hostname-check": "false",
    # Names of users who are not known to this machine have no groups, which is no reason to warn.
    "hadoop.security.group.mapping": "org.apache.hadoop.security.NullGroupsMapping",
    # A datanode is given up after 14 s, not ten minutes: 2 * recheck + 10 * interval.
    "dfs.heartbeat.interval": "1",
    "dfs.namenode.heartbeat.recheck-interval": "2000",
    # Nor does a datanode that reads or writes elsewhere for a client wait for minutes.
    "dfs.client.socket-timeout": "2000",
    "dfs.client.retry.window.base": "100",
    "dfs.ls.limit": "100",  # so that few files are more than one page of a listing
    "dfs.datanode.hostname": "127.0.0.1",
    "dfs.client.use.datanode.hostname": "true",
}


@contextlib.contextmanager
def hdfs(
    root: Path | None = None,
    *,
    datanodes: int = 2,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[HdfsServer]:
    """Start an empty HDFS, or use the one that TIERSTORE_TEST_HDFS names.

    Permissions are on, the superuser is "tierstore", files have two replicas if there are two
    datanodes, and blocks may be as small as 4 KiB.

    Args:
        root: folder for its data and logs; a temporary one, removed at the end, if None.
        datanodes: how many, at least 1.
        port: the loopback port of the namenode's HTTP; a free one if None.
        settings: of hdfs-site.xml, over the ones above.

    Raises:
        ServerUnavailableError: Java or Maven is missing, or HDFS did not start.
        ConfigError: TIERSTORE_TEST_HDFS is malformed.
    """
    if address := os.environ.get("TIERSTORE_TEST_HDFS"):
        yield HdfsServer.parse(address)
        return
    hadoop = find_hadoop()
    with contextlib.ExitStack() as stack:
        if root is None:
            made = tempfile.TemporaryDirectory(prefix="tierstore-hdfs-", ignore_cleanup_errors=True)
            root = Path(stack.enter_context(made))
        stack.callback(hadoop.archive_classes, root)  # once its daemons have ended
        for attempt in range(1, _TRIES + 1):
            folder = root / str(attempt)
            folder.mkdir(parents=True)
            server = _prepare(hadoop, folder, datanodes, port, settings or {})
            starting = stack.enter_context(contextlib.ExitStack())
            for daemon in (server.namenode, *server.datanodes):
                starting.callback(daemon.stop)
            try:
                _format(hadoop, folder)
                for daemon in (server.namenode, *server.datanodes):
                    daemon.start()
                server.wait_ready()
                break
            except ServerUnavailableError:
                starting.close()
                if port or attempt == _TRIES:  # someone may have taken a free port: try others
                    raise
        yield server


def _prepare(
    hadoop: Hadoop, folder: Path, datanodes: int, port: int | None, settings: Mapping[str, str]
) -> HdfsServer:
    """Write the configuration and return the server, not yet started."""
    rpc, http = f"127.0.0.1:{lasting_port()}", f"127.0.0.1:{port or lasting_port()}"
    names = folder / "namenode"
    _write(folder / "core-site.xml", {"fs.defaultFS": f"hdfs://{rpc}", "hadoop.tmp.dir": folder})
    site: dict[str, object] = {
        **_SETTINGS,
        "dfs.replication": min(2, datanodes),
        "dfs.namenode.name.dir": names.as_uri(),
        "dfs.namenode.http-address": http,
        **settings,
    }
    _write(folder / "hdfs-site.xml", site)
    namenode = Daemon(
        "namenode",
        hadoop.command("server.namenode.NameNode", folder),
        folder=folder,
        data=names,
        address=http,
        env=_environment(),
    )
    others = tuple(_datanode(hadoop, folder, number) for number in range(1, datanodes + 1))
    return HdfsServer(f"http://{http}", _USER, rpc, HdfsCluster(hadoop, folder, namenode, others))


def _datanode(hadoop: Hadoop, folder: Path, number: int) -> Daemon:
    name = f"datanode{number}"
    data, http = folder / name, f"127.0.0.1:{lasting_port()}"
    own = {
        "dfs.datanode.data.dir": data.as_uri(),
        "dfs.datanode.address": f"127.0.0.1:{lasting_port()}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{lasting_port()}",
        "dfs.datanode.http.address": http,
    }
    arguments = [word for key, value in own.items() for word in ("-D", f"{key}={value}")]
    command = hadoop.command("server.datanode.DataNode", folder, *arguments)
    return Daemon(name, command, folder=folder, data=data, address=http, env=_environment())


def _environment() -> dict[str, str]:
    return {"HADOOP_USER_NAME": _USER}


def _write(file: Path, settings: Mapping[str, object]) -> None:
    properties = "".join(
        f"<property><name>{name}</name><value>{escape(str(value))}</value></property>\n"
        for name, value in settings.items()
    )
    file.write_text(f"<configuration>\n{properties}</configuration>\n")


def _format(hadoop: Hadoop, folder: Path) -> None:
    done = subprocess.run(
        hadoop.command("server.namenode.NameNode", folder, "-format", "-nonInteractive"),
        env={**os.environ, **_environment()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_FORMAT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ServerUnavailableError(f"the namenode could not be formatted: {done.stderr[-1000:]}")
