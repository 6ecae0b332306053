"""Everything that can save a state and load it back, ours and others', behind one small face.

Each peer runs with the settings that its own documentation recommends for durable checkpoints;
`settings` says which, and the report prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.floors import BareCopy, BareFile, BareS3
from benchmarks.peer import Blocking, Peer, State, fsync

if TYPE_CHECKING:
    import torch  # seconds, which only those who save have to wait for


class TorchSave(Blocking):
    """torch.save and torch.load."""

    settings = "torch.save + fsync; torch.load(weights_only=True) + copy_"

    def save(self, step: int, state: State) -> None:
        import torch

        torch.save(state, self.path(step))
        fsync(self.path(step))

    def load(self, step: int, state: State) -> None:
        import torch

        loaded = torch.load(self.path(step), weights_only=True)
        for name, tensor in state.items():
            tensor.copy_(loaded[name])


class Safetensors(Blocking):
    """The safetensors library."""

    settings = "save_file + fsync; safe_open + copy_"

    def save(self, step: int, state: State) -> None:
        from safetensors.torch import save_file

        save_file(state, self.path(step))
        fsync(self.path(step))

    def load(self, step: int, state: State) -> None:
        from safetensors import safe_open

        with safe_open(self.path(step), framework="pt") as file:
            for name, tensor in state.items():
                tensor.copy_(file.get_tensor(name))

    def load_slice(self, step: int, name: str, rows: int, out: torch.Tensor) -> None:  # noqa: ARG002 - the file knows
        from safetensors import safe_open

        with safe_open(self.path(step), framework="pt") as file:
            out.copy_(file.get_slice(name)[: len(out)])


class _Dcp(Blocking):
    """Any reader and writer of torch.distributed.checkpoint."""

    def writer(self, step: int) -> Any:
        raise NotImplementedError

    def reader(self, step: int) -> Any:
        raise NotImplementedError

    def save(self, step: int, state: State) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(state, storage_writer=self.writer(step))

    def save_async(self, step: int, state: State) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        future: Any = dcp.async_save(state, storage_writer=self.writer(step))
        wait: Callable[[], object] = future.result
        return wait

    def load(self, step: int, state: State) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(state, storage_reader=self.reader(step))

    def load_slice(self, step: int, name: str, rows: int, out: torch.Tensor) -> None:
        import torch
        import torch.distributed.checkpoint as dcp

        whole = {name: torch.empty(rows, *out.shape[1:])}  # for its shape; never touched
        dcp.load(whole, storage_reader=self.reader(step), planner=_slice_planner(out))


def _slice_planner(out: torch.Tensor) -> Any:
    """Return a planner that asks for the leading rows only, as one of many ranks does."""
    from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan
    from torch.distributed.checkpoint.planner import ReadItem

    class Slice(DefaultLoadPlanner):
        def create_local_plan(self) -> LoadPlan:
            plan = super().create_local_plan()
            plan.items = [replace(item, lengths=out.shape) for item in plan.items]
            return plan

        def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:  # noqa: ARG002
            return out

    return Slice()


class DcpFile(_Dcp):
    """DCP's own file writer as it comes."""

    settings = "FileSystemWriter, defaults: sync_files=True, one thread; FileSystemReader"
    threads = 1

    def writer(self, step: int) -> Any:
        from torch.distributed.checkpoint import FileSystemWriter

        return FileSystemWriter(f"{self.where}/{step}", thread_count=self.threads)

    def reader(self, step: int) -> Any:
        from torch.distributed.checkpoint import FileSystemReader

        return FileSystemReader(f"{self.where}/{step}")


class DcpFileThreads(DcpFile):
    """DCP's own file writer with more threads."""

    settings = "FileSystemWriter(thread_count=4), sync_files=True; FileSystemReader"
    threads = 4


class DcpFsspec(_Dcp):
    """DCP over fsspec and s3fs."""

    settings = "FsspecWriter(thread_count=4) over s3fs; FsspecReader"

    def writer(self, step: int) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(f"{self.where}/{step}", thread_count=4)

    def reader(self, step: int) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(f"{self.where}/{step}")


class S3TorchConnector(_Dcp):
    """The S3 connector for PyTorch."""

    settings = "S3StorageWriter(thread_count=4), path style; S3StorageReader's DCP-optimised reader"

    def _config(self) -> Any:
        from s3torchconnector import S3ClientConfig

        return S3ClientConfig(force_path_style=True)

    def writer(self, step: int) -> Any:
        from s3torchconnector.dcp import S3StorageWriter

        return S3StorageWriter(
            "us-east-1", f"{self.where}/{step}/", s3client_config=self._config(), thread_count=4
        )

    def reader(self, step: int) -> Any:
        from s3torchconnector.dcp import S3StorageReader

        return S3StorageReader("us-east-1", f"{self.where}/{step}/", s3client_config=self._config())


class TierstoreDcp(_Dcp):
    """This project under DCP's calls."""

    settings = "TierStorageWriter, TierStorageReader, defaults"

    def __init__(self, where: str) -> None:
        super().__init__(_url(where))
        self._writer: Any = None

    def writer(self, step: int) -> Any:
        from tierstore_torch import TierStorageWriter

        if self._writer is None:
            self._writer = TierStorageWriter(self.where, checkpoint_id=f"bench-dcp/{step}")
        self._writer.reset(f"bench-dcp/{step}")
        return self._writer

    def reader(self, step: int) -> Any:
        from tierstore_torch import TierStorageReader

        return TierStorageReader(self.where, checkpoint_id=f"bench-dcp/{step}")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@cache
def _slice() -> Any:
    """Return the class of a part of a larger tensor, in torch's own protocol for that."""
    import torch

    class Slice(torch.Tensor):
        global_shape: tuple[int, ...]
        global_offsets: tuple[tuple[int, ...], ...]
        local_offsets: tuple[tuple[int, ...], ...]
        local_sizes: tuple[tuple[int, ...], ...]

    return Slice


class Tierstore(_Dcp):
    """This project's `Checkpointer`."""

    settings = "Checkpointer, defaults"

    def __init__(self, where: str) -> None:
        from tierstore_torch import Checkpointer

        super().__init__(_url(where))
        self._checkpointer = Checkpointer(self.where, run="bench")

    def save(self, step: int, state: State) -> None:
        self._checkpointer.save(step, state).wait()

    def save_async(self, step: int, state: State) -> Callable[[], object]:
        wait: Callable[[], object] = self._checkpointer.save(step, state).wait
        return wait

    def load(self, step: int, state: State) -> None:
        self._checkpointer.restore(state, step=step, strict=False)

    def load_slice(self, step: int, name: str, rows: int, out: torch.Tensor) -> None:
        part = out.as_subclass(_slice())
        part.global_shape = (rows, *out.shape[1:])
        part.global_offsets = part.local_offsets = ((0,) * out.ndim,)
        part.local_sizes = (tuple(out.shape),)
        self.load(step, {name: part})

    def close(self) -> None:
        self._checkpointer.close()


def _url(where: str) -> str:
    return where if "://" in where else f"file://{where}"


LOCAL: dict[str, type[Peer]] = {
    "bare copy": BareCopy,
    "bare file": BareFile,
    "tierstore": Tierstore,
    "tierstore dcp": TierstoreDcp,
    "torch.save": TorchSave,
    "safetensors": Safetensors,
    "dcp file": DcpFile,
    "dcp file, 4 threads": DcpFileThreads,
}
REMOTE: dict[str, type[Peer]] = {
    "bare s3": BareS3,
    "tierstore s3": Tierstore,
    "tierstore dcp s3": TierstoreDcp,
    "dcp fsspec s3fs": DcpFsspec,
    "s3torchconnector": S3TorchConnector,
}
PEERS = LOCAL | REMOTE


def by_place(names: Iterable[str]) -> list[list[str]]:
    """Return those on disk, then those on S3, as far as there are any.

    One place after the other is measured: all peers at once would not fit in memory.
    """
    groups: tuple[list[str], list[str]] = [], []
    for name in names:
        groups[name in REMOTE].append(name)
    return [group for group in groups if group]
