"""What belongs together: a commit follows once all that it relies on has arrived. No I/O."""

from __future__ import annotations

from collections import Counter

from tierstore.transfer.engine.entries import Entry


class CommitBarrier:
    """Counts the members of groups that are under way, and keeps the commits that wait for them.

    All members of a group are added before the commits that rely on it.
    """

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._commits: dict[str, Entry] = {}

    def __bool__(self) -> bool:
        """Whether commits wait."""
        return bool(self._commits)

    def add(self, entry: Entry) -> bool:
        """Take an object that was listed; return whether it may be begun now."""
        if entry.group:
            self._under_way[entry.group] += 1
        if entry.seals and not self._ready(entry):
            self._commits[entry.key] = entry
            return False
        return True

    def settle(self, entry: Entry, *, arrived: bool) -> list[Entry]:
        """Take note that an object is over; return the commits that may be begun now."""
        if not entry.group:
            return []
        self._under_way[entry.group] -= 1
        if not arrived:
            self._lost[entry.group] += 1
        if self._under_way[entry.group]:
            return []
        del self._under_way[entry.group]
        ready = [commit for commit in self._commits.values() if self._ready(commit)]
        for commit in ready:
            del self._commits[commit.key]
        return ready

    def trouble(self, entry: Entry) -> str:
        """Return why a commit must not follow; empty if it may."""
        lost = sum(self._lost[group] for group in entry.seals)
        files = "1 file" if lost == 1 else f"{lost} files"
        return f"{files} that it relies on did not arrive" if lost else ""

    def _ready(self, commit: Entry) -> bool:
        return not any(group in self._under_way for group in commit.seals)
