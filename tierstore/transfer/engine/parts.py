"""The parts of one object: where each lies, what is known of it, and what is to do. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from tierstore.blocks import combine


class Parts:
    """See the module.

    Args:
        size: bytes of the object.
        part: bytes of every part but the last.

    Attributes:
        crcs: the CRC32Cs of those that were read or sent, by index.
        proven: those that were read back as they were sent.
    """

    def __init__(self, size: int, part: int) -> None:
        self.size, self.part = size, part
        self.crcs: dict[int, int] = {}
        self.proven: set[int] = set()
        self._todo: deque[int] = deque()
        self._left: set[int] = set()  # of those that were planned

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.size // self.part)

    @property
    def left(self) -> bool:
        """Whether any that was planned is not done."""
        return bool(self._left)

    def range(self, index: int) -> tuple[int, int]:
        """Return offset and length of a part."""
        offset = index * self.part
        return offset, min(self.part, self.size - offset)

    def whole(self) -> int:
        """Return the CRC32C of the whole from those of its parts."""
        return combine((self.crcs[index], self.range(index)[1]) for index in range(self.count))

    def plan(self, over: Container[int] = ()) -> None:
        """Have all done but those of `over`."""
        self._left = {index for index in range(self.count) if index not in over}
        self.again()

    def again(self) -> None:
        """Have all done that were planned and are not."""
        self._todo = deque(sorted(self._left))

    def next(self) -> int | None:
        """Return which one to begin now; None if all are done or begun."""
        return self._todo.popleft() if self._todo else None

    def done(self, index: int) -> None:
        """Take it that a part is done."""
        self._left.discard(index)

    def hold(self) -> None:
        """Begin no others until `again`."""
        self._todo.clear()
