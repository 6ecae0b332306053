"""One way of saving a state and loading it back, ours or another's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch  # seconds, which only those who save have to wait for

State = dict[str, "torch.Tensor"]


class Peer(Protocol):
    """One way of saving and loading. `where` is a folder, or an s3:// URL where `remote`."""

    settings: str

    def __init__(self, where: str) -> None: ...

    def save(self, step: int, state: State) -> None:
        """Return when the state is durable."""
        ...

    def save_async(self, step: int, state: State) -> Callable[[], object]:
        """Return once training may go on, with a call that waits for the rest."""
        ...

    def load(self, step: int, state: State) -> None:
        """Fill the state's tensors."""
        ...

    def load_slice(self, step: int, name: str, rows: int, out: torch.Tensor) -> None:
        """Fill `out` with the leading rows of the tensor `name`, which has `rows` of them."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Blocking:
    """What a peer without an asynchronous save or slices has."""

    settings = ""

    def __init__(self, where: str) -> None:
        self.where = where

    def save(self, step: int, state: State) -> None:
        raise NotImplementedError

    def save_async(self, step: int, state: State) -> Callable[[], object]:
        self.save(step, state)
        return lambda: None

    def load_slice(self, step: int, name: str, rows: int, out: torch.Tensor) -> None:
        import torch

        whole = {name: torch.empty(rows, *out.shape[1:])}
        self.load(step, whole)
        out.copy_(whole[name][: len(out)])

    def load(self, step: int, state: State) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def path(self, step: int) -> Path:
        """Return this rank's file of a step, its folder made."""
        folder = Path(self.where) / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{os.environ.get('RANK', '0')}.bin"


def fsync(path: Path) -> None:
    """Flush a file and the folder that names it to the disk."""
    for target in (path, path.parent):
        fd = os.open(target, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def stalled(peer: Peer, step: int, state: State) -> float:
    """Save asynchronously, wait for the end, and return the seconds the caller was blocked."""
    started = time.perf_counter()
    wait = peer.save_async(step, state)
    stall = time.perf_counter() - started
    wait()
    return stall
