"""What runs on a node: an actor that opens the stores itself and carries out commands."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import tierstore
from tierstore.errors import TierstoreError
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.crew import worker_of
from tierstore.transfer.engine.stores import Recipe
from tierstore_ray.sight import Sight


class Answered(NamedTuple):
    """An answer, and what this worker has used since it began.

    Attributes:
        event: the answer.
        cpu_seconds: of its process.
        retries: requests that it repeated.
    """

    event: m.Answer
    cpu_seconds: float
    retries: int


class Actor:
    """One per node; bytes go from store to store through its own buffers, never through Ray."""

    def begin(
        self, version: str, recipe: Recipe, sight: Sight, environment: Mapping[str, str]
    ) -> str:
        """Open the stores; return why this node cannot take part, or nothing.

        Args:
            version: of tierstore where the migration was started.
            recipe: how to open the stores.
            sight: what has to be seen of them.
            environment: variables to set first.
        """
        if version != tierstore.__version__:
            return f"it has tierstore {tierstore.__version__}, not {version}: install the same"
        os.environ.update(environment)
        try:
            self._stores = recipe.open()
        except TierstoreError as error:
            return str(error)
        self._worker = worker_of(self._stores, Affinity())
        self._begun = time.process_time()
        return sight.trouble(self._stores)

    def carry_out(self, task: m.Task) -> Answered:
        """Return the answer to a command. From any number of threads."""
        event = self._worker.carry_out(task)
        return Answered(event, time.process_time() - self._begun, self._stores.retries)
