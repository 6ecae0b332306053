"""A second path to what HDFS holds: plain WebHDFS calls that share nothing with tierstore's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

# What a datanode answers that still holds a connection to a namenode that has ended.
_LOST = ("EOFException", "ConnectException")


class HdfsError(Exception):
    """HDFS refused a call of the second path.

    Attributes:
        status: the HTTP status.
        kind: the Java exception's name, "" if the answer names none.
    """

    def __init__(self, what: str, status: int, kind: str, message: str) -> None:
        super().__init__(f"{what}: {status} {kind} {message}")
        self.status = status
        self.kind = kind


class WebHdfs:
    """One user's calls to one namenode. Every call opens and closes its own connections.

    Args:
        endpoint: the namenode's URL, for example "http://127.0.0.1:9870".
        user: who calls.
    """

    def __init__(self, endpoint: str, user: str) -> None:
        self.endpoint = endpoint
        self.user = user

    def call(
        self, method: str, path: str, op: str, *, body: bytes | None = None, **query: str | int
    ) -> bytes:
        """Send one operation, following it to a datanode, and return the answer's body.

        Raises:
            HdfsError: HDFS refused.
            urllib3.exceptions.HTTPError: it did not answer.
        """
        try:
            return self._send(method, path, op, body, query)
        except HdfsError as error:
            if error.kind not in _LOST:
                raise
            return self._send(method, path, op, body, query)

    def _send(
        self, method: str, path: str, op: str, body: bytes | None, query: Mapping[str, str | int]
    ) -> bytes:
        asked = urlencode({"op": op, "user.name": self.user, **query})
        url = f"{self.endpoint}/webhdfs/v1{quote(path)}?{asked}"
        with urllib3.PoolManager(retries=False, timeout=30.0) as http:
            answer = http.request(method, url, redirect=False)
            if answer.status == 307:
                headers = {"Content-Type": "application/octet-stream"}
                answer = http.request(
                    method, answer.headers["Location"], body=body, headers=headers, redirect=False
                )
        if answer.status >= 400:
            raise _error(f"{op} {path}", answer.status, answer.data)
        return answer.data

    def json(self, method: str, path: str, op: str, **query: str | int) -> dict[str, Any]:
        """Send one operation and return its decoded answer. Errors as `call`."""
        decoded: dict[str, Any] = json.loads(self.call(method, path, op, body=None, **query))
        return decoded

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        return self.call("GET", path, "OPEN")

    def write(self, path: str, data: bytes, *, blocksize: int = 128 << 20) -> None:
        """Make or replace a file, with its folders."""
        self.call("PUT", path, "CREATE", body=data, overwrite="true", blocksize=blocksize)

    def make_folder(self, path: str, permission: int = 0o755) -> None:
        """Make a folder, with its parents."""
        self.call("PUT", path, "MKDIRS", permission=f"{permission:o}")

    def set_owner(self, path: str, owner: str) -> None:
        """Give a file or folder to another user; for the superuser."""
        self.call("PUT", path, "SETOWNER", owner=owner)

    def set_permission(self, path: str, permission: int) -> None:
        """Set who may do what."""
        self.call("PUT", path, "SETPERMISSION", permission=f"{permission:o}")

    def status(self, path: str) -> dict[str, Any] | None:
        """Return what HDFS says of a file or folder, None if there is none."""
        try:
            found: dict[str, Any] = self.json("GET", path, "GETFILESTATUS")["FileStatus"]
        except HdfsError as error:
            if error.status == 404:
                return None
            raise
        return found

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it."""
        self.call("DELETE", path, "DELETE", recursive="true")

    def walk(self, path: str, *, folders: bool = False) -> Iterator[str]:
        """Yield the paths of all files below a folder, hidden ones too, in order.

        With `folders` those of folders too; they end in a slash.
        """
        found = self.json("GET", path, "LISTSTATUS")["FileStatuses"]["FileStatus"]
        for entry in sorted(found, key=lambda entry: str(entry["pathSuffix"])):
            below = f"{path.rstrip('/')}/{entry['pathSuffix']}"
            if entry["type"] == "DIRECTORY":
                if folders:
                    yield f"{below}/"
                yield from self.walk(below, folders=folders)
            else:
                yield below


def _error(what: str, status: int, body: bytes) -> HdfsError:
    try:
        remote = json.loads(body)["RemoteException"]
        message = str(remote["message"]).partition("\n")[0]  # a stack trace follows
        return HdfsError(what, status, str(remote["exception"]), message)
    except (ValueError, KeyError, TypeError):
        return HdfsError(what, status, "", body[:200].decode(errors="replace"))
