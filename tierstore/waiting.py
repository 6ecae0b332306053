"""What this process waits for: calls that are under way, and since when nothing has come of them.

Whoever may have to wait says for whom with `on`; the command line looks at `overdue`, and tells.
"""

from __future__ import annotations

from threading import get_ident
from time import monotonic


class Wait:
    """One thread's call; to be used with `with`. Within another one of its thread that one counts.

    A plain class, as there is one for every request.

    Attributes:
        place: for whom it waits: a tier's URL, a server.
        what: what it wants of it, and of which key.
        most: seconds after which it is given up; 0 if nobody knows.
        begun: when it began, by `time.monotonic`.
        since: when a byte last moved, or when it began.
        why: what went wrong, if something did and it is tried again.
    """

    __slots__ = ("begun", "most", "place", "since", "what", "why")

    def __init__(self, place: str, what: tuple[str, ...], most: float) -> None:
        self.place, self.what, self.most, self.why = place, what, most, ""
        self.begun = self.since = monotonic()

    def __enter__(self) -> Wait:
        return _waits.setdefault(get_ident(), self)

    def __exit__(self, kind: object, *rest: object) -> None:
        me = get_ident()
        if _waits.get(me) is self:
            del _waits[me]
            if kind is None:
                _moved[self.place] = monotonic()


_waits: dict[int, Wait] = {}  # of each thread
_moved: dict[str, float] = {}  # when something last came of each place


def on(place: str, *what: str, most: float = 0.0) -> Wait:
    """Say that this thread waits for somebody; see `Wait`."""
    return Wait(place, what, most)


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
