"""What folders and journals of migrations hold, by a path of its own."""

from __future__ import annotations

import json
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those under way, by its path in the folder."""
    found = (p for p in folder.rglob("*") if p.is_file() and ".tierstore-tmp" not in p.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, with the folders that they are in."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def receipts(journal: Path) -> list[tuple[int, int]]:
    """(upload, part) of every receipt."""
    lines = [line.partition(b" ")[2] for line in journal.read_bytes().split(b"\n")]
    records = [json.loads(line) for line in lines if line.startswith(b'["part"')]
    return [(upload, index) for _, upload, index, _ in records]
