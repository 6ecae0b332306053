"""Pages of an SQLite file that are damaged on purpose (https://sqlite.org/fileformat2.html)."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

_DEPTH, _CHILDREN = 15, 50
_INTERIOR = {10: 2, 13: 5}  # of an index and of a table, for a leaf of each
_ROWID = b"\x7f"


def endless(path: Path, table: str) -> None:
    """Have a table's first page lead to its rows, and to its last row in a great many ways.

    A table whose first page leads to others already is left as it is.
    """
    with closing(sqlite3.connect(path)) as db:
        found = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        root = (db.execute(found, (table,)).fetchone() or (1,))[0]
        ((size,),) = db.execute("PRAGMA page_size")
    data = bytearray(path.read_bytes())
    start = (root - 1) * size
    head = 100 if root == 1 else 0  # the file has one in the first page
    leaf = bytes(data[start + head : start + head + 200]).ljust(size, b"\0")
    leaf = leaf[:200] + bytes(data[start + 200 : start + size])
    kind, count = _INTERIOR.get(leaf[0], 0), int.from_bytes(leaf[3:5], "big")
    if not kind or not count:
        return
    last = leaf[8 + 2 * (count - 1) :][:2]
    row = _ROWID if kind == 5 else leaf[int.from_bytes(last, "big") :][:60]
    child = len(data) // size + 1
    data += leaf
    data += leaf[:3] + b"\0\1" + leaf[5:8] + last + leaf[10:]
    for _ in range(_DEPTH):
        child += 1
        data += _interior(size, 0, kind, [child] * _CHILDREN, row)
    children = [len(data) // size - _DEPTH - 1, len(data) // size]
    page = _interior(size, head, kind, children, row)
    data[start + head : start + size] = page[head:]
    struct.pack_into(">I", data, 28, len(data) // size)
    path.write_bytes(data)


def _interior(size: int, head: int, kind: int, children: list[int], row: bytes) -> bytes:
    """A page that leads to others, all but the last one by a cell."""
    page = bytearray(size)
    struct.pack_into(">BHHHBI", page, head, kind, 0, len(children) - 1, 0, 0, children[-1])
    at = size
    for number, child in enumerate(children[:-1]):
        content = struct.pack(">I", child) + row
        at -= len(content)
        page[at : at + len(content)] = content
        struct.pack_into(">H", page, head + 12 + 2 * number, at)
    struct.pack_into(">H", page, head + 5, at)
    return bytes(page)
