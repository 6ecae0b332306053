"""What a namenode says, looked at before it is believed ("JSON Schemas", WebHDFS REST API)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from tierstore.errors import StorageError, UnreachableError
from tierstore.text import has_too_many_members, is_unicode

OTHER = "this is not WebHDFS: the URL wants dfs.namenode.http-address, and no proxy in between"
_MOST = 2**63  # Java's long
_LAST = 253_402_300_800_000  # milliseconds: the end of the year 9999
_IN_URLS = "!#$%&'()*+,/:;=?@[]"  # RFC 3986: reserved, or of an escape


@dataclass(frozen=True, slots=True)
class FileStatus:
    """One file or folder.

    Attributes:
        name: in its folder; "" of what was asked for itself.
        kind: "FILE", "DIRECTORY", or "SYMLINK".
        length: bytes.
        changed: milliseconds since 1970 by the namenode's clock.
        erasure_coding: the name of its policy, or "".
        encrypted: it is in an encryption zone.
        file_id: the number of the file itself, whatever its name; 0 where a gateway tells none.
    """

    name: str
    kind: str
    length: int
    changed: int
    erasure_coding: str = ""
    encrypted: bool = False
    file_id: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.kind == "DIRECTORY"


def decoded(body: bytes, op: str) -> dict[str, Any]:
    """Return the object that an answer holds.

    Raises:
        UnreachableError: it was cut off.
        StorageError: it is something else, or has far more members than any page.
    """
    if has_too_many_members(body):
        raise StorageError(f"{op}: the answer is none of WebHDFS", hint=OTHER)
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        if body.startswith(b"{") and not isinstance(error, RecursionError):
            raise UnreachableError(f"{op}: the answer was cut off") from None
        found = None
    if not isinstance(found, dict):
        raise StorageError(f"{op}: the answer is no JSON object", hint=OTHER)
    return found


def at(found: Mapping[str, Any], op: str, *names: str) -> Any:
    """Return what lies in objects within objects.

    Raises:
        StorageError: it is not there.
    """
    value: Any = found
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            raise StorageError(f"{op}: the answer has no {name}", hint=OTHER)
    return value


def number(found: Any, op: str, name: str, below: int = _MOST) -> int:
    """Return a member that is a whole number from 0 up.

    Raises:
        StorageError: it is none, or too large.
    """
    value = found.get(name) if isinstance(found, dict) else None
    if type(value) is not int or not 0 <= value < below:
        raise StorageError(f"{op}: {name} is no number from 0 up", hint=OTHER)
    return value


def file_status(found: Any, op: str) -> FileStatus:
    """Return a FileStatus.

    Raises:
        StorageError: it is none.
    """
    if not isinstance(found, dict):
        raise StorageError(f"{op}: a FileStatus is no object", hint=OTHER)
    name, kind = found.get("pathSuffix"), found.get("type")
    if not isinstance(name, str) or kind not in ("FILE", "DIRECTORY", "SYMLINK"):
        raise StorageError(f"{op}: a FileStatus has no pathSuffix or type", hint=OTHER)
    if "/" in name or name in (".", "..") or "\0" in name or not is_unicode(name):
        raise StorageError(f"{op}: {name[:80]!r} is no name of a file", hint=OTHER)
    policy = found.get("ecPolicy")
    return FileStatus(
        name,
        kind,
        number(found, op, "length"),
        number(found, op, "modificationTime", _LAST),
        policy if isinstance(policy, str) else "",
        found.get("encBit") is True,
        number(found, op, "fileId") if "fileId" in found else 0,
    )


def location(found: Mapping[str, Any], op: str, scheme: str) -> str:
    """Return the URL at a datanode where an operation goes on; it may hold a token.

    Args:
        found: the answer.
        op: the operation.
        scheme: "http" or "https", as namenodes are asked.

    Raises:
        StorageError: it is none, or of another protocol.
    """
    said = at(found, op, "Location")
    url = ""
    try:
        # java.net.URI leaves all letters beyond ASCII as they are.
        url = quote(said if isinstance(said, str) else "", safe=_IN_URLS)
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # no URL, or a port that is none
        named = False
    if not named or parts.scheme != scheme:
        # The URL is not repeated: it may hold a token.
        raise StorageError(f"{op}: the namenode names no {scheme} URL of a datanode", hint=OTHER)
    return url
