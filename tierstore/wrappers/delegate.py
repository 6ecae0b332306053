"""A backend around a backend: what all wrappers share.

A wrapper says in `around` what happens before and after one request; everything else passes
through. Uploads are wrapped too, so their `write`, `commit` and `abort` come by `around` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from tierstore.backend import (
    Backend,
    Capabilities,
    Check,
    ObjectInfo,
    Upload,
    abort_uploads,
    adopt,
    diagnose,
    local_path,
)
from tierstore.blocks import Buffer
from tierstore.errors import StorageError, UnsupportedError
from tierstore.scan import Found, Scans, Ways, key_check, place_check, scan

T = TypeVar("T")
F = TypeVar("F", bound=Found)
_PAGE = 256

READS = frozenset({"read_into", "fetch"})
WRITES = frozenset({"create", "write"})


@dataclass(slots=True)
class Call:
    """One request on its way through a wrapper.

    Attributes:
        operation: "stat", "list" (one page of it), "read_into", "fetch", "create", "flush",
            "upload", "write", "commit", "abort" or "delete".
        key: the key or prefix; empty for "delete" and "flush".
        offset: where in the object, for "read_into" and "write".
        buffers: what is read into or written; a wrapper may put others here.
    """

    operation: str
    key: str
    offset: int = 0
    buffers: tuple[Buffer, ...] = ()

    @property
    def read(self) -> int:
        """Bytes this request reads."""
        return self._size() if self.operation in READS else 0

    @property
    def written(self) -> int:
        """Bytes this request writes."""
        return self._size() if self.operation in WRITES else 0

    def _size(self) -> int:
        return sum([memoryview(buffer).nbytes for buffer in self.buffers])


class Delegate:
    """A backend that does what `inner` does.

    Args:
        inner: the backend to wrap; closed with the wrapper.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def around(self, call: Call, run: Callable[[], T]) -> T:  # noqa: ARG002 - for overriding
        """Carry out `call` by `run`, which may be called more than once."""
        return run()

    @property
    def url(self) -> str:
        """See `tierstore.backend.Backend.url`."""
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        """See `tierstore.backend.Backend.capabilities`."""
        return self.inner.capabilities

    def local_path(self, key: str) -> str | None:
        """Return the file of `key` where the tier keeps it as one on this machine."""
        return local_path(self.inner, key)

    def diagnose(self) -> Iterator[Check]:
        """See `tierstore.backend.diagnose`; what it takes is not policy's business."""
        return diagnose(self.inner)

    def stat(self, key: str) -> ObjectInfo:
        """See `tierstore.backend.Backend.stat`."""
        return self.around(Call("stat", key), lambda: self.inner.stat(key))

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """See `tierstore.backend.Backend.list`; a page of it is one call of `around`."""

        def begin(after: str | None) -> Iterator[ObjectInfo]:
            return self.inner.list(prefix, after=after, delimiter=delimiter)

        return self._paged(prefix, _Pages(begin, after))

    def scan(self, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
        """See `tierstore.scan.scan`; it is asked for as a listing is."""
        if not isinstance(self.inner, Scans):
            return self.list("", after=after)
        return self._paged("", _Pages(lambda after: scan(self.inner, ways, after=after), after))

    # What is asked of every key of a listing is the store's own method, not one call per wrapper.

    @property
    def check_key(self) -> Callable[[str], object]:
        """See `tierstore.scan.key_check`."""
        return key_check(self.inner)

    @property
    def check_place(self) -> Callable[[str], object]:
        """See `tierstore.scan.place_check`."""
        return place_check(self.inner)

    def _paged(self, prefix: str, pages: _Pages[F]) -> Iterator[F]:
        while page := self.around(Call("list", prefix), pages.next):
            yield from page

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """See `tierstore.backend.Backend.read_into`."""
        call = Call("read_into", key, offset, buffers)
        self.around(
            call, lambda: self.inner.read_into(key, offset, *(memoryview(b) for b in call.buffers))
        )

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """See `tierstore.backend.Backend.fetch`."""
        call = Call("fetch", key, 0, (buffer,))
        return self.around(call, lambda: self.inner.fetch(key, memoryview(call.buffers[0])))

    def create(
        self, key: str, buffer: Buffer, *, if_absent: bool = False, durable: bool = True
    ) -> ObjectInfo:
        """See `tierstore.backend.Backend.create`."""
        call = Call("create", key, 0, (buffer,))
        return self.around(
            call,
            lambda: self.inner.create(key, call.buffers[0], if_absent=if_absent, durable=durable),
        )

    def flush(self) -> None:
        """See `tierstore.backend.Backend.flush`."""
        self.around(Call("flush", ""), self.inner.flush)

    def upload(self, key: str, size: int | None = None, *, resume: str | None = None) -> Upload:
        """See `tierstore.backend.Backend.upload`."""
        inner = self.around(
            Call("upload", key), lambda: self.inner.upload(key, size, resume=resume)
        )
        return DelegatedUpload(self, key, inner)

    def adopt(self, key: str, path: str, size: int) -> ObjectInfo | None:
        """See `tierstore.backend.adopt`."""
        return self.around(Call("adopt", key), lambda: adopt(self.inner, key, path, size))

    def abort_uploads(self, key: str) -> None:
        """See `tierstore.backend.abort_uploads`."""
        self.around(Call("abort", key), lambda: abort_uploads(self.inner, key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `tierstore.backend.Backend.delete`."""
        held = [*keys]  # may be sent again
        self.around(Call("delete", ""), lambda: self.inner.delete(held))

    def close(self) -> None:
        """See `tierstore.backend.Backend.close`."""
        self.inner.close()


class DelegatedUpload:
    """The upload of a wrapped backend."""

    def __init__(self, owner: Delegate, key: str, inner: Upload) -> None:
        self._owner, self._key, self._inner = owner, key, inner

    @property
    def token(self) -> str:
        """See `tierstore.backend.Upload.token`."""
        return self._inner.token

    @property
    def done(self) -> list[tuple[int, int]]:
        """See `tierstore.backend.Upload.done`."""
        return self._inner.done

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """See `tierstore.backend.Upload.write`."""
        call = Call("write", self._key, offset, (buffer,))
        self._owner.around(call, lambda: self._inner.write(offset, call.buffers[0], crc32c))

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """See `tierstore.backend.Upload.read_back`."""
        call = Call("read_into", self._key, offset, (buffer,))
        return self._owner.around(
            call, lambda: self._inner.read_back(offset, memoryview(call.buffers[0]))
        )

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """See `tierstore.backend.Upload.commit`."""
        return self._owner.around(
            Call("commit", self._key),
            lambda: self._inner.commit(if_absent=if_absent, crc32c=crc32c),
        )

    def abort(self) -> None:
        """See `tierstore.backend.Upload.abort`."""
        self._owner.around(Call("abort", self._key), self._inner.abort)


class _Pages(Generic[F]):
    """A listing in pages. After an error the next page starts behind the last good one."""

    def __init__(self, begin: Callable[[str | None], Iterator[F]], after: str | None) -> None:
        self._begin, self._after = begin, after
        self._items: Iterator[F] | None = None

    def next(self) -> list[F]:
        """Return the next items; none at the end."""
        if self._items is None:
            self._items = self._begin(self._after)
        items, self._items = self._items, None
        page: list[F] = []
        try:
            page.extend(islice(items, _PAGE))
            self._items = items
        except UnsupportedError:
            raise  # such as no order, without which nothing can be gone on with
        except StorageError:
            if not page:
                raise  # otherwise what came before is progress, and the next page meets the error
        if page:
            self._after = page[-1].key
        return page
