"""What the engine is fed with, page by page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from tierstore.scan import LeftOut
from tierstore.transfer.engine.messages import Dead, Entry, Item, Listed

_PAGE = 256


class Listing:
    """Hands out pages of what is to be moved. To be used from one thread at a time."""

    def __init__(self, found: Iterable[Item]) -> None:
        self._found = iter(found)

    def next(self) -> Listed:
        """Return the next page.

        Raises:
            TierstoreError: an end cannot be listed.
        """
        page = list(islice(self._found, _PAGE))
        entries = tuple(each for each in page if isinstance(each, Entry))
        dead = tuple(each for each in page if isinstance(each, Dead))
        left_out = tuple(each for each in page if isinstance(each, LeftOut))
        return Listed(entries, last=len(page) < _PAGE, dead=dead, left_out=left_out)
