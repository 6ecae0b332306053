"""What folders and journals of migrations hold, by a path of its own."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those under way, by its path in the folder."""
    found = (p for p in folder.rglob("*") if p.is_file() and ".tierstore-tmp" not in p.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, with the folders that they are in."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def journal_rows(journal: Path, columns: str) -> list[tuple[Any, ...]]:
    """What a journal holds, such as "upload, part FROM receipt", also while it is in use."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (f"{journal.name}-wal", journal.name):  # what is in both is in the first
            with suppress(FileNotFoundError):
                shutil.copy(journal.with_name(name), folder)
        with closing(sqlite3.connect(Path(folder) / journal.name)) as db:
            try:
                return db.execute(f"SELECT {columns}").fetchall()
            except sqlite3.OperationalError:  # it is made at this moment
                return []


def receipts(journal: Path) -> list[tuple[int, int]]:
    """(upload, part) of every receipt of an upload that is under way."""
    return journal_rows(journal, "upload, part FROM receipt")
