"""How an operation that moves bytes tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]
"""Told the bytes of each step, from several threads."""


class Progress(Protocol):
    """Begins a bar, or whatever shows that something goes on.

    With tqdm: ``lambda what, nbytes: tqdm(desc=what, total=nbytes).update``.
    """

    def __call__(self, what: str, nbytes: int, /) -> Advance:
        """Begin something of a name and so many bytes; return what is told the bytes done."""
        ...


def unseen(_what: str, _nbytes: int, /) -> Advance:
    """Show nothing."""
    return lambda _nbytes: None
