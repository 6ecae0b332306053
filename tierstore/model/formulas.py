"""The formulas of the document that this project is measured against, as printed and as derived.

The document writes D for the data (bytes), r for the transfer rate (bytes/s), C for the storage
capacity (bytes) and N for the number of storage nodes. Its two storage times are kept under their
own names because they do not agree, neither with each other nor with its own worked example; what
is wrong with each is said where it stands. `tierstore.model.curve` is what predictions use.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.model.checks import not_negative, positive, whole

YEAR = 365.25 * 86_400
"""Seconds in a Julian year."""


def storage_printed(data: float, rate: float, capacity: float, nodes: int) -> float:
    """Return D/r + C/N, as the document prints it.

    Wrong as printed: D/r is in seconds, but C/N is bytes per node. It would need a rate to be a
    time, so the sum has no unit and grows with capacity that nobody reads or writes. It also leaves
    the transfer D/r alone however many nodes there are.

    Args:
        data: D in bytes, from 0 up.
        rate: r in bytes/s, above 0.
        capacity: C in bytes, from 0 up.
        nodes: N, at least 1.

    Raises:
        ModelError: a number is outside of its domain.
    """
    transfer = not_negative("data volume D", data, "bytes") / positive(
        "transfer rate r", rate, "bytes/s"
    )
    each = not_negative("storage capacity C", capacity, "bytes") / whole("number of nodes N", nodes)
    return transfer + each


def storage_derived(data: float, rate: float, capacity: float) -> float:
    """Return (D + C)/r in seconds, as the document derives it.

    Its unit is right. Wrong in what it says: a transfer of D takes the time of moving the whole
    capacity C too, although nothing moves it, and the number of nodes has vanished. It is not what
    `storage_printed` is: that the two are equal would need C/N = C/r, so N = r.

    Args:
        data: D in bytes, from 0 up.
        rate: r in bytes/s, above 0.
        capacity: C in bytes, from 0 up.

    Raises:
        ModelError: a number is outside of its domain.
    """
    total = not_negative("data volume D", data, "bytes") + not_negative(
        "storage capacity C", capacity, "bytes"
    )
    return total / positive("transfer rate r", rate, "bytes/s")


def compute_printed(work: float, parts: float, nodes: int, speed: float) -> float:
    """Return P/K * N/v, as the document prints it.

    Wrong as printed: more nodes N make it longer. It equals `compute_derived` only if N = K.

    Args:
        work: P, from 0 up.
        parts: K, above 0, a plain number.
        nodes: N, at least 1.
        speed: v in units of P per second, above 0.

    Raises:
        ModelError: a number is outside of its domain.
    """
    share = not_negative("work P", work) / positive("divisor K", parts)
    return share * whole("number of nodes N", nodes) / positive("speed v", speed, "per second")


def compute_derived(work: float, speed: float) -> float:
    """Return P/v in seconds, as the document derives it: K and N have cancelled as if equal.

    Args:
        work: P, from 0 up.
        speed: v in units of P per second, above 0.

    Raises:
        ModelError: a number is outside of its domain.
    """
    return not_negative("work P", work) / positive("speed v", speed, "per second")


def scheduling(load: float, resources: float, seconds: float) -> float:
    """Return L/R * s in seconds; the document prints and derives the same.

    Right only where L and R are of one unit and waiting grows linearly: near saturation a queue
    grows without bound instead.

    Args:
        load: L, from 0 up.
        resources: R in the unit of L, above 0.
        seconds: s, what one unit takes, from 0 up.

    Raises:
        ModelError: a number is outside of its domain.
    """
    ratio = not_negative("load L", load) / positive("resources R", resources)
    return ratio * not_negative("time s", seconds, "s")


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """One number of the document's worked example, beside what its own formula gives.

    Attributes:
        what: the quantity and how it is meant to follow.
        unit: of both numbers.
        printed: in the document.
        computed: from the numbers that the document puts in.
    """

    what: str
    unit: str
    printed: float
    computed: float

    @property
    def factor(self) -> float:
        """By how much the printed number is too large."""
        return self.printed / self.computed


def worked_examples() -> tuple[WorkedExample, ...]:
    """Return the numbers of the worked example D = 1e10, C = 1e12, r = 10, each with its error."""
    seconds = storage_derived(1e10, 10, 1e12)
    printed = 1.001e12
    return (
        WorkedExample("(D + C)/r", "s", printed, seconds),
        WorkedExample("(D + C)/r in years", "years", 315, seconds / YEAR),
        WorkedExample("the printed seconds in years", "years", 315, printed / YEAR),
    )
