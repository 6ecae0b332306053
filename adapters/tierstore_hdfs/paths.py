"""Where keys lie on HDFS, and the names of what is not yet an object.

::

    <root>/runs/r/x                                      an object
    <root>/runs/r/.tierstore-<name>                      a small object before its rename
    <root>/runs/r/.tierstore-<nonce>/x/<part>            an upload of runs/r/x
    <part> = <index:05d>-<crc32c:08x>-<nonce>
    <name> = <CRC32C of the object's name:08x><nonce:08x>
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from urllib.parse import unquote

from tierstore.blocks import crc32c
from tierstore.errors import ConfigError, InvalidKeyError
from tierstore.keys import check_key

HIDDEN = ".tierstore-"
_HIDDEN = re.compile(r"\.tierstore-[0-9a-f]{16}")
_PART = re.compile(r"(\d{5})-([0-9a-f]{8})-[0-9a-f]{16}")
_LONGEST = 255  # bytes: dfs.namenode.fs-limits.max-component-length


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one tier. `root` is "" or begins with a slash and does not end in one."""

    root: str

    def __post_init__(self) -> None:
        for name in self.root.split("/")[1:]:
            if name in ("", ".", "..", ".snapshot") or ":" in name:
                raise ConfigError(f"HDFS has no folder {self.root!r}")

    def of(self, key: str) -> str:
        """Return the path of an object.

        Raises:
            InvalidKeyError: HDFS or this layout cannot hold the key.
        """
        names = check_key(key).split("/")
        if any(":" in name for name in names):
            raise InvalidKeyError(f"key {key!r} has a colon", hint="HDFS allows none")
        reserved = ".snapshot" in names or (not self.root and names[0] == ".reserved")
        if reserved or any(name.startswith(HIDDEN) for name in names):
            raise InvalidKeyError(f"key {key!r} has a name that is reserved")
        return f"{self.root}/{key}"

    def folder(self, prefix: str) -> str:
        """Return the path of the folder of a prefix that is "" or ends in "/"."""
        return f"{self.root}/{prefix}".rstrip("/") or "/"

    def temporary(self, key: str) -> str:
        """Return a path, never used before, for a small object before its rename."""
        folder, _, name = self.of(key).rpartition("/")
        return f"{folder}/{HIDDEN}{_mark(name)}{secrets.token_hex(4)}"

    def upload_folder(self, key: str) -> tuple[str, str]:
        """Return new folders, outer and inner, for the parts of an upload.

        CONCAT takes no path with a comma, so they lie beside the object or, where a folder has
        one, in the nearest folder above that has none.
        """
        self.of(key)
        names = key.split("/")
        commas = [index for index, name in enumerate(names[:-1]) if "," in name]
        depth = commas[0] if commas else len(names) - 1
        outer = "/".join([*names[:depth], hidden_name()])
        inner = "/".join(_plain(name) for name in names[depth:])
        return outer, f"{outer}/{inner}"


def hidden_name() -> str:
    """Return a new name that no listing shows."""
    return f"{HIDDEN}{secrets.token_hex(8)}"


def is_temporary(hidden: str, key: str) -> bool:
    """Return whether a key is that of a hidden file of an object, by 32 bits of its name."""
    (above, _, name), (folder, _, own) = hidden.rpartition("/"), key.rpartition("/")
    return above == folder and name.startswith(HIDDEN + _mark(own))


def is_hidden(name: str) -> bool:
    """Return whether a listing leaves this name out."""
    return bool(_HIDDEN.fullmatch(name))


def part_name(index: int, crc32c: int) -> str:
    """Return a new name for a part; it tells the CRC32C to whoever resumes."""
    return f"{index:05d}-{crc32c:08x}-{secrets.token_hex(8)}"


def parse_part(name: str) -> tuple[int, int] | None:
    """Return index and CRC32C of a part's name, None for any other name."""
    found = _PART.fullmatch(name)
    return (int(found[1]), int(found[2], 16)) if found else None


def outer_folder(inner: str) -> str:
    """Return the hidden folder of the upload whose parts are in `inner`; empty if there is none."""
    names = inner.split("/")
    for depth, name in enumerate(names[:-1], 1):
        if is_hidden(name):
            return "/".join(names[:depth])
    return ""


def upload_key(outer: str, inner: str) -> str:
    """Return the key of the upload with these folders, relative to the root."""
    above = outer.rpartition("/")[0]
    below = "/".join(unquote(name) for name in inner.removeprefix(f"{outer}/").split("/"))
    return f"{above}/{below}".lstrip("/")


def _mark(name: str) -> str:
    return f"{crc32c(name.encode()):08x}"


def _plain(name: str) -> str:
    plain = name.replace("%", "%25").replace(",", "%2C") if "," in name or "%" in name else name
    if len(plain.encode()) > _LONGEST:
        raise InvalidKeyError(f"the name {name[:60]!r}... is too long for an upload to HDFS")
    return plain
