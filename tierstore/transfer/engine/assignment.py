"""Which worker carries out what: all commands of one object go to one. No I/O."""

from __future__ import annotations


class Assignment:
    """The workers that are there, which objects each has, and how busy it is."""

    def __init__(self) -> None:
        self._width: dict[str, int] = {}
        self._busy: dict[str, int] = {}
        self._of: dict[int, str] = {}
        self._weight: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether any command is under way."""
        return any(self._busy.values())

    def join(self, worker: str, width: int) -> None:
        """Take in a worker that carries out `width` commands at once."""
        self._width[worker], self._busy[worker] = width, 0

    def leave(self, worker: str) -> list[int]:
        """Forget a worker; return the numbers of the objects that it had."""
        del self._width[worker], self._busy[worker]
        numbers = [number for number, of in self._of.items() if of == worker]
        for number in numbers:
            self.forget(number)
        return numbers

    def has_room(self, number: int | None = None) -> bool:
        """Whether the object's worker can be given one more command, or any worker can."""
        worker = None if number is None else self._of.get(number)
        if worker is not None:
            return self._busy[worker] < self._width[worker]
        return any(self._busy[each] < width for each, width in self._width.items())

    def take(self, number: int, weight: int = 1) -> None:
        """Count a command of an object; a new one goes to the worker that has most room.

        Args:
            number: of the object.
            weight: how many light commands it counts for, the same for all of one object.
        """
        worker = self._of.get(number)
        if worker is None:
            worker = max(self._width, key=lambda each: self._width[each] - self._busy[each])
            self._of[number] = worker
        self._busy[worker] += weight
        self._weight[number] = weight

    def answered(self, number: int) -> None:
        """Count a command of an object as over."""
        self._busy[self._of[number]] -= self._weight[number]

    def forget(self, number: int) -> None:
        """Let go of an object that nothing is under way of."""
        self._of.pop(number, None)
        self._weight.pop(number, None)

    def of(self, number: int) -> str:
        """Return the worker of an object."""
        return self._of[number]
