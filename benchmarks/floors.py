"""What a save and a load cost at least: copies, checksums and system calls, nothing around them.

They make no checkpoint: nothing is atomic, named, planned or resumed, and a failure is not handled.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmarks.peer import Blocking, State, fsync
from tierstore.blocks import BLOCK_SIZE, block_crcs, cut

if TYPE_CHECKING:
    import torch  # seconds, which only those who save have to wait for

_THREADS = 4
_PART = 8 * BLOCK_SIZE


class BareCopy(Blocking):
    """The floor of a stall: copy every tensor into memory that was touched before."""

    settings = "copy_ loop into touched memory"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._copies: State = {}

    def save(self, step: int, state: State) -> None:  # noqa: ARG002 - keeps only the last step
        import torch

        self._copies = self._copies or {name: torch.zeros_like(t) for name, t in state.items()}
        for name, tensor in state.items():
            self._copies[name].copy_(tensor)

    def load(self, step: int, state: State) -> None:  # noqa: ARG002 - as above
        for name, tensor in state.items():
            tensor.copy_(self._copies[name])


class _Bare(Blocking):
    """Copies a state into one piece of memory that was touched before.

    Args:
        where: as of any peer.
        size: bytes of a request.
    """

    def __init__(self, where: str, size: int) -> None:
        super().__init__(where)
        self._size = size
        self._pool = ThreadPoolExecutor(_THREADS)
        self._image: torch.Tensor | None = None

    def close(self) -> None:
        self._pool.shutdown()

    def _copied(self, state: State) -> list[memoryview]:
        import torch

        total = sum(tensor.nbytes for tensor in state.values())
        if self._image is None:
            self._image = torch.zeros(total, dtype=torch.uint8)
        at = 0
        for tensor in state.values():
            self._image[at : at + tensor.nbytes].view(tensor.dtype).copy_(tensor.view(-1))
            at += tensor.nbytes
        return [_bytes(self._image)]

    def _each(
        self, memory: Sequence[memoryview], work: Callable[[int, list[memoryview]], None]
    ) -> None:
        """Work on all requests' memory, a few at once."""
        total = sum(view.nbytes for view in memory)
        starts = range(0, total, self._size)
        parts = [list(cut(memory, start, self._size)) for start in starts]
        list(self._pool.map(work, starts, parts))


class BareFile(_Bare):
    """The floor of a load from the page cache: read and checksum every 4 MiB."""

    settings = "copy_, write, fsync; preadv into the tensors and CRC32C, 4 threads"

    def __init__(self, where: str) -> None:
        super().__init__(where, BLOCK_SIZE)

    def save(self, step: int, state: State) -> None:
        with self.path(step).open("wb", buffering=0) as file:
            self._each(self._copied(state), partial(_write, file.fileno()))
        fsync(self.path(step))

    def load(self, step: int, state: State) -> None:
        with self.path(step).open("rb", buffering=0) as file:
            self._each(_views(state), partial(_read, file.fileno()))


class BareS3(_Bare):
    """The floor of S3: PUT and GET 32 MiB at a time over plain connections, and checksum them."""

    settings = (
        "copy_, CRC32C, PUT of 32 MiB by http.client; GET into the tensors, CRC32C; 4 threads"
    )

    def __init__(self, where: str) -> None:
        super().__init__(where, _PART)
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def save(self, step: int, state: State) -> None:  # noqa: ARG002 - keeps only the last step
        self._each(self._copied(state), self._put)

    def load(self, step: int, state: State) -> None:  # noqa: ARG002 - as above
        self._each(_views(state), self._get)

    def close(self) -> None:
        super().close()
        for connection in self._connections:
            connection.close()

    def _put(self, start: int, memory: list[memoryview]) -> None:
        _checksum(memory)
        (body,) = memory
        with self._ask("PUT", start, body):
            pass

    def _get(self, start: int, memory: list[memoryview]) -> None:
        with self._ask("GET", start) as answer:
            for view in memory:
                _fill(answer, view)
        _checksum(memory)

    def _ask(
        self, method: str, start: int, body: memoryview | None = None
    ) -> http.client.HTTPResponse:
        address = urlsplit(_signed(f"{self.where}/{os.environ.get('RANK', '0')}-{start}", method))
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(address.netloc)
            self._connections.append(self._local.connection)
        connection: http.client.HTTPConnection = self._local.connection
        connection.request(method, f"{address.path}?{address.query}", body)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{method} {address.path}: {answer.status}")
        return answer


def _fill(answer: http.client.HTTPResponse, view: memoryview) -> None:
    while view.nbytes:
        count = answer.readinto(view)
        if not count:
            raise RuntimeError("the answer was cut short")
        view = view[count:]


def _write(fd: int, start: int, memory: list[memoryview]) -> None:
    _checksum(memory)
    if os.pwritev(fd, memory, start) < sum(view.nbytes for view in memory):
        raise RuntimeError("a short write")


def _read(fd: int, start: int, memory: list[memoryview]) -> None:
    if os.preadv(fd, memory, start) < sum(view.nbytes for view in memory):
        raise RuntimeError("a short read")
    _checksum(memory)


def _checksum(memory: Iterable[memoryview]) -> None:
    for view in memory:
        block_crcs(view)


def _views(state: State) -> list[memoryview]:
    return [_bytes(tensor) for tensor in state.values()]


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data


@cache
def _signed(url: str, method: str) -> str:
    """Return a presigned URL; a key is used again, so signing it is not counted."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    address = urlsplit(url)
    call = {"PUT": "put_object", "GET": "get_object"}[method]
    where = {"Bucket": address.netloc, "Key": address.path[1:]}
    return str(client.generate_presigned_url(call, where, ExpiresIn=86_400))
