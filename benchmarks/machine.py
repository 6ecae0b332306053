"""The machine a benchmark runs on: its description, its page cache, its disk's own speed."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

_DIRECT_READ = 4 * 1024 * 1024
_PACKAGES = (
    *("tierstore", "torch", "safetensors", "fsspec", "s3fs", "boto3", "s3torchconnector"),
    *("hdfs-native", "pyarrow", "urllib3", "numpy", "scipy"),
)


def describe(place: Path | None = None) -> dict[str, Any]:
    """Return what a reader needs to judge figures: processor, memory, kernel, disk, versions, load.

    Args:
        place: a folder on the disk that is measured; the current one by default.
    """
    import torch

    info = Path("/proc/cpuinfo").read_text()
    model = next((x.split(":")[1].strip() for x in info.splitlines() if "model name" in x), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "load": round(os.getloadavg()[0], 2),
        "disk": _disk(place or Path()),
        "packages": _versions(),
    }


def _disk(place: Path) -> str:
    """Return the type and the size of the file system that `place` is on."""
    where, best, found = str(place.resolve()), "", "?"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, kind = line.split()[:3]
        below = where == mounted or where.startswith(mounted.rstrip("/") + "/")
        if below and len(mounted) >= len(best):
            best, found = mounted, kind
    return f"{found} of {shutil.disk_usage(place).total / 2**30:.0f} GiB"


def _versions() -> dict[str, str]:
    """Return the versions of this project's and of its peers' packages, as far as they are here."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def drop_caches(folder: Path | None) -> None:
    """Empty the page cache, or where that is not allowed what it has of `folder`."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        if folder:
            forget(folder)


def forget(folder: Path) -> None:
    """Empty the page cache of what lies in `folder`; whoever else writes there may keep his."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(f"{parent}/{name}", os.O_RDONLY)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)


def scratch(place: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder on the disk to measure, which goes in the end, as far as it lets itself."""
    return tempfile.TemporaryDirectory(
        dir=place, prefix="tierstore-bench-", ignore_cleanup_errors=True
    )


def fill_cache(folder: Path) -> None:
    """Read all that lies in `folder` into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_DIRECT_READ):
                    pass


def direct_read_rate(path: Path, threads: int = 4) -> float:
    """Return the bytes per second at which the disk itself gives `path`, O_DIRECT in 4 MiB reads.

    Raises:
        OSError: the file system refuses O_DIRECT.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffers = [mmap.mmap(-1, _DIRECT_READ) for _ in range(threads)]
    size = os.fstat(fd).st_size

    def read(worker: int) -> None:
        for offset in range(worker * _DIRECT_READ, size, threads * _DIRECT_READ):
            os.preadv(fd, [buffers[worker]], offset)

    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
        return size / (time.perf_counter() - started)
    finally:
        os.close(fd)
