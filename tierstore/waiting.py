"""What this process waits for: calls that are under way, and since when nothing has come of them.

Whoever may have to wait says for whom with `on`; the command line looks at `overdue`, and tells.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import get_ident
from time import monotonic


@dataclass(slots=True)
class Wait:
    """One thread's call.

    Attributes:
        place: for whom it waits.
        what: what it wants of it.
        begun: when it began, by `time.monotonic`.
        since: when a byte last moved, or when it began.
        why: what went wrong, if something did and it is tried again.
        most: seconds after which it is given up; 0 if nobody knows.
    """

    place: str
    what: str
    begun: float
    since: float
    why: str = ""
    most: float = 0.0


_waits: dict[int, Wait] = {}  # of each thread
_moved: dict[str, float] = {}  # when something last came of each place


def on(place: str, what: str, *, most: float = 0.0) -> AbstractContextManager[Wait]:
    """Say that this thread waits for somebody; within another wait of it that one counts.

    Args:
        place: for whom: a tier's URL, a server.
        what: what is wanted.
        most: seconds after which it is given up.
    """
    return _Waiting(place, what, most)


def moved(*, surely: bool = False) -> None:
    """Say that a byte has moved for this thread's call.

    Args:
        surely: it is of what was wanted; else it counts for nothing once something went wrong, as
            what is sent again and again.
    """
    wait = _waits.get(get_ident())
    if wait is not None and (surely or not wait.why):
        wait.since = monotonic()


def overdue(seconds: float) -> list[Wait]:
    """Return, of each place of which nothing has come for so long, the call that waits longest."""
    now = monotonic()
    found: dict[str, Wait] = {}
    for wait in [*_waits.values()]:
        last = max(wait.since, _moved.get(wait.place, wait.since))
        if now - last >= seconds:
            longest = found.setdefault(wait.place, wait)
            found[wait.place] = min(wait, longest, key=lambda each: each.since)
    return [*found.values()]


class _Waiting:
    """See `on`; a class, as there is one for every request."""

    __slots__ = ("_mine", "_wait")

    def __init__(self, place: str, what: str, most: float) -> None:
        now = monotonic()
        self._wait, self._mine = Wait(place, what, now, now, most=most), False

    def __enter__(self) -> Wait:
        found = _waits.setdefault(get_ident(), self._wait)
        self._mine = found is self._wait
        return found

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._mine:
            _waits.pop(get_ident(), None)
            if kind is None:
                _moved[self._wait.place] = monotonic()
