"""Talk between the ranks of one job, on a gloo group of its own.

Collectives in the background of training break the training group, so nothing here ever uses it.
Without torch.distributed there is one rank and every exchange is with itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from tierstore.errors import CheckpointError, TierstoreError
from tierstore.text import printable
from tierstore_torch import forking, torch_private

T = TypeVar("T")
_LEAST = 1.0  # seconds that a collective has, also when no time is left


@dataclass(frozen=True, slots=True)
class _Failure:
    rank: int
    error: TierstoreError


class Group:
    """The ranks that save and restore together. Every method is collective unless it says not.

    Args:
        process_group: whose ranks; the default group if None. Made by every one of its ranks.
        timeout: seconds after which a rank that does not take part is given up.
        time_left: tells the seconds until this process has to end, if anybody has said so: no
            collective takes longer.

    Raises:
        CheckpointError: this process was forked from a rank of several.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None,
        *,
        timeout: float,
        time_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._group: Any = None
        self._timeout, self._time_left = timeout, time_left
        self.rank, self.size = 0, 1
        if not (dist.is_available() and dist.is_initialized()):
            return
        members = dist.get_process_group_ranks(process_group)
        self.rank, self.size = members.index(dist.get_rank()), len(members)
        self._root = members[0]
        if self.size > 1 and forking.is_inherited():
            raise CheckpointError(
                f"this process was forked from rank {self.rank} of {self.size}, and what connects "
                "that to the others does not survive a fork",
                hint="start it with spawn, or fork before torch.distributed is set up",
            )
        if self.size > 1:
            self._group = dist.new_group(
                members,
                timeout=timedelta(seconds=timeout),
                backend="gloo",
                use_local_synchronization=True,  # ranks outside `members` need not call this
            )

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.size
        self._call("exchange", lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def all_max(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each of a few integers: one small all-reduce (about 1 ms)."""
        if self._group is None:
            return list(values)
        return cast("list[int]", self.max_tensor(torch.tensor(values, device="cpu")).tolist())

    def max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace each element of a CPU tensor by the largest that any rank has."""
        if self._group is not None:
            reduce = dist.ReduceOp.MAX
            self._call("exchange", lambda: dist.all_reduce(tensor, reduce, group=self._group))
        return tensor

    def broadcast(self, value: T | None) -> T:
        """Return rank 0's value on every rank; the others' arguments are not looked at."""
        if self._group is None:
            return cast("T", value)
        box: list[Any] = [value if self.rank == 0 else None]
        root = self._root
        self._call("broadcast", lambda: dist.broadcast_object_list(box, root, group=self._group))
        return cast("T", box[0])

    def centrally(self, make: Callable[[], Any], decide: Callable[[list[Any]], Sequence[T]]) -> T:
        """Run `make` on every rank, `decide` on rank 0, and return each rank its own decision.

        Args:
            make: returns what this rank sends to rank 0.
            decide: takes all ranks' sendings, returns one decision a rank.

        Raises:
            TierstoreError: the same one on every rank, whichever of them it happened on.
        """
        offer = self._attempt(make)
        if self._group is None:
            decided = self._attempt(lambda: decide(self._unwrap([offer])))
            return cast("T", self._unwrap([decided])[0][0])
        offers: list[Any] | None = [None] * self.size if self.rank == 0 else None
        root = self._root
        self._call("gather", lambda: dist.gather_object(offer, offers, root, group=self._group))
        answers: list[Any] | None = None
        if offers is not None:
            collected = offers
            decisions = self._attempt(lambda: decide(self._unwrap(collected)))
            failed = isinstance(decisions, _Failure)
            answers = [decisions] * self.size if failed else list(decisions)
        box: list[Any] = [None]
        self._call(
            "scatter",
            lambda: dist.scatter_object_list(box, answers, root, group=self._group),
        )
        return cast("T", self._unwrap(box)[0])

    def agree(self, error: BaseException | None) -> list[TierstoreError | None]:
        """Return every rank's error, or None where there was none, in rank order."""
        return self.all_gather(None if error is None else _portable(error))

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank and return its result, or raise on all what failed on one."""
        result = self._attempt(action)
        failures = self.all_gather(result if isinstance(result, _Failure) else None)
        self._unwrap(failures)
        return cast("T", result)

    def close(self) -> None:
        """Forget the group. Not collective; harmless if torch.distributed has gone before."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            return _Failure(self.rank, _portable(error))

    def _unwrap(self, values: list[Any]) -> list[Any]:
        failures = [value for value in values if isinstance(value, _Failure)]
        if not failures:
            return values
        first = failures[0]
        if first.rank != self.rank or len(failures) > 1:
            ranks = ", ".join(str(failure.rank) for failure in failures)
            first.error.add_note(f"raised on rank {ranks} of {self.size}")
        raise first.error

    def _call(self, what: str, action: Callable[[], object]) -> None:
        left = self._time_left()
        try:
            if left is not None:
                torch_private.set_timeout(self._group, max(_LEAST, min(left, self._timeout)))
            action()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"rank {self.rank} lost the other {self.size - 1} ranks during a {what}: {error}",
                hint="see the other ranks' logs; the job must be restarted",
            ) from error


def _portable(error: BaseException) -> TierstoreError:
    """Return an error that can be pickled and is one of ours."""
    if isinstance(error, TierstoreError):
        return error
    wrapped = CheckpointError(f"{type(error).__name__}: {error}")
    lines = "".join(traceback.format_exception(error))
    wrapped.add_note(printable(lines, keep="\n"))  # it travels; a cause does not
    return wrapped
