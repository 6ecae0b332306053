"""Hadoop's classes as the JVM has them in memory, so that a start does not load them one by one.

A daemon's start costs two thirds then. The first HDFS of a machine notes the classes it loads, and
at its end they are archived for those that follow ("class data sharing"); it takes ten seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_DUMP_SECONDS = 120
_LIST = ".classes"


def place_of(java: Path, jars: Sequence[Path], cache: Path) -> Path:
    """Return where the archive of a JVM and of jars is, or will be; of others it is another."""
    found = [(str(file), file.stat()) for file in (java.resolve(), *jars)]
    known = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found])
    return cache / f"hadoop-{hashlib.sha256(known.encode()).hexdigest()[:16]}.jsa"


def options(archive: Path, folder: Path) -> tuple[str, ...]:
    """Return the JVM's options: it takes the archive, or notes its classes in a folder."""
    if archive.is_file():
        return (f"-XX:SharedArchiveFile={archive}",)
    notes = folder / f"{secrets.token_hex(4)}{_LIST}"
    return ("-XX:+IgnoreUnrecognizedVMOptions", f"-XX:DumpLoadedClassList={notes}")


def make(archive: Path, root: Path, command: Sequence[str]) -> None:
    """Archive what is noted anywhere below `root`. Without one all works too: errors are ignored.

    Args:
        archive: the file to make, at once or not at all.
        root: of the folders of daemons that have ended.
        command: the JVM with the options that decide whether it takes an archive.
    """
    noted = [file.read_text().splitlines() for file in root.rglob(f"*{_LIST}")]
    if archive.is_file() or not noted:
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            listing, made = Path(folder) / "listing", Path(folder) / "made"
            listing.write_text("\n".join(dict.fromkeys(line for lines in noted for line in lines)))
            subprocess.run(
                [
                    *(command[0], "-Xshare:dump", f"-XX:SharedArchiveFile={made}"),
                    *(f"-XX:SharedClassListFile={listing}", *command[1:]),
                ],
                env={**os.environ, "JAVA_TOOL_OPTIONS": ""},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DUMP_SECONDS,
                check=True,
            )
            made.replace(archive)
