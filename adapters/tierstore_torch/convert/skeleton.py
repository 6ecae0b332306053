"""What `torch.save` writes, with holes where tensors have their bytes.

Under `torch.serialization.skip_data` torch seeks over a tensor's bytes instead of writing them, so
a file of any size is laid out in memory. The tensors that it is shown lie in address space that is
reserved and never touched. Each is a storage of its own, and storages are written in the order in
which the pickle meets them.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterable
from typing import Any, cast

import torch

from tierstore.convert.formats import StoredTensor
from tierstore.errors import PlanError
from tierstore.image.layout import Chunk

_ALIGNMENT = 64
_NORESERVE = 0x4000  # linux/mman.h: it does not count as memory


def skeleton(state: Any) -> list[bytes | StoredTensor]:
    """Return the pieces of the file that `torch.save(state)` would write.

    Args:
        state: nested dicts and lists of values; `StoredTensor` stands for a tensor.

    Raises:
        PlanError: torch cannot save a value.
    """
    holes: list[StoredTensor] = []
    sink = _Sink()
    shown = _Shown(_nbytes(state)).state(state, holes)
    try:
        _save(shown, sink)
    except Exception as error:
        raise PlanError(
            f"{_culprit(state)}: torch cannot save this value: {error}",
            hint="leave it out with --exclude",
        ) from error
    filled = [item for item in holes if item.chunk.nbytes]
    sizes = [item.chunk.nbytes for item in filled]
    if sink.holes != sizes:
        raise PlanError(
            f"{_culprit(state)}: this value is stored as a pickle and holds tensors of its own",
            hint="leave it out with --exclude",
        )
    pieces: list[bytes | StoredTensor] = [sink.literals[0]]
    for item, literal in zip(filled, sink.literals[1:], strict=True):
        pieces += [item, literal]
    return pieces


def _save(state: Any, sink: _Sink) -> None:
    with torch.serialization.skip_data():
        torch.save(state, cast("Any", sink))


def _culprit(state: Any, name: str = "") -> str:
    """Return the name of the first value that cannot be saved or has tensors; "" if none."""
    if type(state) in (dict, list):
        pairs = state.items() if type(state) is dict else enumerate(state)
        below = (_culprit(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
        return next(filter(None, below), "")
    if isinstance(state, StoredTensor):
        return ""
    sink = _Sink()
    try:
        _save(state, sink)
    except Exception:
        return name
    return name if sink.holes else ""


def _nbytes(value: Any) -> int:
    if isinstance(value, StoredTensor):
        return _room(value.chunk)
    if type(value) in (dict, list):
        return sum(map(_nbytes, value.values() if type(value) is dict else value))
    return 0


def _room(chunk: Chunk) -> int:
    return -(-chunk.nbytes // _ALIGNMENT) * _ALIGNMENT


class _Shown:
    """Tensors in address space of their own, without memory."""

    def __init__(self, nbytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._space = mmap.mmap(-1, max(1, nbytes), flags=flags)
        self._at = 0

    def state(self, value: Any, holes: list[StoredTensor]) -> Any:
        """Return a state with a tensor for each `StoredTensor`, which are noted in order."""
        if type(value) is dict:
            return {key: self.state(item, holes) for key, item in value.items()}
        if type(value) is list:
            return [self.state(item, holes) for item in value]
        if not isinstance(value, StoredTensor):
            return value
        holes.append(value)
        return self._tensor(value.chunk)

    def _tensor(self, chunk: Chunk) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, chunk.dtype)
        if not chunk.nbytes:
            return torch.empty(chunk.shape, dtype=dtype, device="cpu")
        data = torch.frombuffer(self._space, dtype=torch.uint8, count=chunk.nbytes, offset=self._at)
        self._at += _room(chunk)
        return data.view(dtype).view(chunk.shape)


def check_dtypes(items: Iterable[StoredTensor]) -> None:
    """Try whether torch.save knows the dtypes (it does not know int4 and kin).

    Raises:
        PlanError: it does not; the error names the first tensor of such a dtype.
    """
    first = {item.chunk.dtype: item.chunk.name for item in reversed(list(items))}
    for dtype, name in first.items():
        try:
            torch.save(torch.empty(0, dtype=getattr(torch, dtype), device="cpu"), io.BytesIO())
        except (KeyError, AttributeError, RuntimeError) as error:
            raise PlanError(
                f"{name} is of {dtype}, which torch.save does not know",
                hint="leave it out with --exclude",
            ) from error


class _Sink(io.RawIOBase):
    """Takes what is written, and notes what is passed over."""

    def __init__(self) -> None:
        self.literals: list[bytes] = [b""]
        self.holes: list[int] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        size = len(data)
        self.literals[-1] += bytes(data)
        self._at += size
        return size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_CUR or offset < 0:
            raise io.UnsupportedOperation("torch seeks otherwise than over a tensor")
        if offset:
            self.holes.append(offset)
            self.literals.append(b"")
        self._at += offset
        return self._at
