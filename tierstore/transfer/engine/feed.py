"""What an engine is fed with: a listing, which ends, or whatever comes while somebody feeds it."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from tierstore.scan import LeftOut
from tierstore.transfer.engine.entries import Dead, Entry, Item
from tierstore.transfer.engine.messages import Fed

_PAGE = 256


class Feed(Protocol):
    """Gives items, each commit behind all that it relies on.

    Attributes:
        ahead: how many may wait in the engine, at most twice as many, before it asks for more.
        goes_on: a failure ends nothing but its object, as whoever feeds knows what to do about it;
            else a store that is full or does not answer ends it all.
    """

    ahead: int
    goes_on: bool

    def next(self) -> Fed:
        """Wait for items and return some; `last` if no others will come. From one thread.

        Raises:
            TierstoreError: it cannot go on.
        """
        ...

    def close(self) -> None:
        """Have nobody wait in `next` for what may never come. From any thread."""
        ...


class Listing:
    """Anything that can be iterated over, page by page.

    Args:
        found: the items. They are taken as they are needed, by another thread.
    """

    ahead = 4096
    goes_on = False

    def __init__(self, found: Iterable[Item]) -> None:
        self._found = iter(found)

    def next(self) -> Fed:
        """See `Feed.next`."""
        page = list(islice(self._found, _PAGE))
        return _fed(page, last=len(page) < _PAGE)

    def close(self) -> None:
        """See `Feed.close`; a store that does not answer has a deadline of its own."""


class Inbox:
    """Whatever is put in, from any thread, until it is closed.

    The engine takes all of it at once, so that what is urgent overtakes what is not.
    """

    ahead = sys.maxsize
    goes_on = True

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, *items: Item) -> None:
        """Have some more moved.

        Raises:
            ValueError: it was closed, by its user or because the engine has stopped.
        """
        with self._changed:
            if self._closed:
                raise ValueError("the inbox of an engine is closed")
            self._items.extend(items)
            self._changed.notify()

    def next(self) -> Fed:
        """See `Feed.next`."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            page = [self._items.popleft() for _ in range(min(_PAGE, len(self._items)))]
            return _fed(page, last=self._closed and not self._items)

    def close(self) -> None:
        """Let the engine end once it has moved what was put in. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def _fed(page: list[Item], *, last: bool) -> Fed:
    return Fed(
        tuple(each for each in page if isinstance(each, Entry)),
        last,
        tuple(each for each in page if isinstance(each, Dead)),
        tuple(each for each in page if isinstance(each, LeftOut)),
    )
