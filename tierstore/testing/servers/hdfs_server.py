"""An HDFS that answers: its addresses, its daemons, and what an administrator does to it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from tierstore.errors import ConfigError
from tierstore.registry import join_url
from tierstore.testing.servers.daemon import Daemon
from tierstore.testing.servers.hadoop import Hadoop
from tierstore.testing.servers.programs import ServerUnavailableError
from tierstore.testing.servers.webhdfs import HdfsError, WebHdfs

_ADMIN_SECONDS = 60
_BEANS = "/jmx?qry=Hadoop:service=NameNode,name="


@dataclass(frozen=True, slots=True)
class HdfsCluster:
    """The processes and files of an HDFS that was started here.

    Attributes:
        hadoop: its programs.
        folder: of its configuration files and logs.
        namenode: the one namenode.
        datanodes: all of them.
    """

    hadoop: Hadoop
    folder: Path
    namenode: Daemon
    datanodes: tuple[Daemon, ...]


@dataclass(frozen=True, slots=True)
class HdfsServer:
    """An HDFS that answers.

    Attributes:
        endpoint: the namenode's URL, for example "http://127.0.0.1:9870".
        user: its superuser.
        rpc: the host and port of Hadoop's own protocol, "" if it is not known.
        cluster: its processes when it was started here, else None.
    """

    endpoint: str
    user: str
    rpc: str = ""
    cluster: HdfsCluster | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, url: str) -> HdfsServer:
        """Return the server at "http://user@host:port", "#host:port" of its RPC behind it.

        Raises:
            ConfigError: a part is missing.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not (parts.hostname and parts.port):
            raise ConfigError("TIERSTORE_TEST_HDFS is not of the form http://user@host:port")
        if not parts.username:
            raise ConfigError(f"TIERSTORE_TEST_HDFS names no user for {parts.hostname}")
        endpoint = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        return cls(endpoint, parts.username, parts.fragment)

    @property
    def address(self) -> str:
        """The host and port that the namenode serves HTTP on, for example "127.0.0.1:9870"."""
        return urlsplit(self.endpoint).netloc

    @property
    def namenode(self) -> Daemon:
        """The namenode's process. Raises ServerUnavailableError if it was not started here."""
        return self._own().namenode

    @property
    def datanodes(self) -> tuple[Daemon, ...]:
        """The datanodes' processes. Raises ServerUnavailableError as `namenode` does."""
        return self._own().datanodes

    def environment(self) -> dict[str, str]:
        """Return the variables that name its superuser to Hadoop's clients, and so to tierstore."""
        return {"HADOOP_USER_NAME": self.user}

    def url(self, path: str = "/") -> str:
        """Return the tier URL of a folder."""
        return join_url(f"hdfs://{self.address}", path.removeprefix("/"))

    def client(self, user: str | None = None) -> WebHdfs:
        """Return a second path to its files, as the superuser or as `user`."""
        return WebHdfs(self.endpoint, user or self.user)

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Yield the path of a new folder; remove it at the end, with all that is in it.

        Raises:
            ServerUnavailableError: it does not answer, or refuses.
        """
        path, client = f"/tierstore-{secrets.token_hex(6)}", self.client()
        try:
            client.make_folder(path)
            try:
                yield path
            finally:
                client.remove(path)
        except (urllib3.exceptions.HTTPError, HdfsError) as error:
            raise ServerUnavailableError(
                f"HDFS at {self.endpoint} does not serve {self.user}: {error}",
                hint="start it, or correct TIERSTORE_TEST_HDFS, which names it and its superuser",
            ) from error

    def admin(self, *arguments: str) -> str:
        """Run `hdfs dfsadmin` and return what it printed. Takes seconds: it is a JVM.

        Raises:
            ServerUnavailableError: it was not started here.
            RuntimeError: the command failed.
        """
        own = self._own()
        command = own.hadoop.command("tools.DFSAdmin", own.folder, *arguments, heap=128)
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            timeout=_ADMIN_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"dfsadmin {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def safe_mode(self, *, on: bool) -> None:
        """Refuse every change, or take changes again."""
        self.admin("-safemode", "enter" if on else "leave")

    def set_quota(self, path: str, *, names: int | None = None, space: int | None = None) -> None:
        """Limit a folder to so many files and folders, itself included, and bytes of all replicas.

        None takes a limit away.
        """
        no_limit = -1  # HdfsConstants.QUOTA_RESET
        self.client().call(
            "PUT",
            path,
            "SETQUOTA",
            namespacequota=no_limit if names is None else names,
            storagespacequota=no_limit if space is None else space,
        )

    def blocks(self, path: str, datanode: int) -> list[Path]:
        """Return the files in which a datanode keeps a file's blocks, those it has, in order."""
        found = self.client().json("GET", path, "GET_BLOCK_LOCATIONS")["LocatedBlocks"]
        names = [f"blk_{block['block']['blockId']}" for block in found["locatedBlocks"]]
        data = self.datanodes[datanode].data
        return [file for name in names for file in data.rglob(name)]

    def state(self) -> dict[str, object]:
        """Return the namenode's own figures: FSState, NumLiveDataNodes, CapacityTotal, ...

        Raises:
            ServerUnavailableError: it does not answer.
        """
        return self._bean("FSNamesystemState")

    def wait_ready(self, *, datanodes: int | None = None, seconds: float = 60.0) -> None:
        """Return once the namenode takes writes and so many datanodes (all, if None) are there.

        Raises:
            ServerUnavailableError: a daemon ended, or they were not ready within `seconds`.
        """
        own = self._own()
        wanted = len(own.datanodes) if datanodes is None else datanodes

        def ready() -> bool:
            state = self.state()
            if state.get("FSState") != "Operational" or state["NumLiveDataNodes"] != wanted:
                return False
            # The namenode does not notice at once that one restarts.
            return datanodes is not None or all(map(_listens, own.datanodes))

        self._wait(ready, own.datanodes if datanodes is None else (), seconds)
        self.client().status("/")  # the first request of all takes a second

    def wait_dead(self, datanodes: int, *, seconds: float = 60.0) -> None:
        """Return once the namenode has given so many datanodes up, and their replicas.

        Raises:
            ServerUnavailableError: it had not within `seconds`.
        """

        def given_up() -> bool:
            # It counts a datanode as dead some seconds before it stops sending clients there.
            state = self.state()
            living = json.loads(str(self._bean("NameNodeInfo")["LiveNodes"]))
            capacity = sum(node["capacity"] for node in living.values())
            return state["NumDeadDataNodes"] == datanodes and state["CapacityTotal"] == capacity

        self._wait(given_up, (), seconds)

    def _bean(self, name: str) -> dict[str, object]:
        try:
            with urllib3.PoolManager(retries=False, timeout=5.0) as http:
                answer = http.request("GET", f"{self.endpoint}{_BEANS}{name}")
            found: dict[str, object] = json.loads(answer.data)["beans"][0]
        except (urllib3.exceptions.HTTPError, ValueError, LookupError) as error:
            raise ServerUnavailableError(f"the namenode does not tell its state: {error}") from None
        return found

    def _wait(self, done: Callable[[], bool], daemons: tuple[Daemon, ...], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for daemon in (self.namenode, *daemons):
                if not daemon.running:
                    raise ServerUnavailableError(f"the {daemon.name} ended: {daemon.log[-1000:]}")
            try:
                if done():
                    return
            except ServerUnavailableError:
                pass
            time.sleep(0.1)
        raise ServerUnavailableError(
            f"HDFS was not ready in {seconds} s: {self.namenode.log[-1000:]}"
        )

    def _own(self) -> HdfsCluster:
        if self.cluster is None:
            raise ServerUnavailableError(f"the HDFS at {self.address} was not started here")
        return self.cluster


def _listens(daemon: Daemon) -> bool:
    host, _, port = daemon.address.partition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return False
    return True
