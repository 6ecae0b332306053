"""Peers taking turns at workloads: who hangs, fails or is slow, and the samples of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks import machine
from benchmarks.measure import Sample, summary


class Asked(Protocol):
    """A peer that carries out workloads."""

    name: str

    def ask(self, workload: str, turn: int, deadline: float) -> dict[str, Any]:
        """Return a sample, or an error, or that it is unable; all as JSON has them."""
        ...


@dataclass
class Results:
    """Samples by workload and peer, errors and what was left out by peer.

    Attributes:
        shapes: by workload, what it moves; "" where that is no shape of files.
        patience: seconds that a warm-up may take for the workload to be measured again.
        deadline: seconds after which a peer is taken to hang; that workload, and the reading of
            what it should have written, is then left out.
        once: peers and files that took longer; the warm-up is what counts.
    """

    shapes: Mapping[str, str]
    patience: float
    deadline: float
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    once: set[str] = field(default_factory=set)

    def take(self, peer: Asked, workload: str, turn: int, *, counts: bool) -> None:
        """Ask and keep the answer; a peer that failed once is left out from then on."""
        both = f"{peer.name}, {workload}"
        shape = f"{peer.name}, {self.shapes[workload] or workload}"
        if peer.name in self.errors or both in self.left_out or (counts and shape in self.once):
            return
        answer = peer.ask(workload, turn, self.deadline)
        if "error" in answer:
            self.errors[peer.name] = f"{workload}: {answer['error']}"
            return
        if "unable" in answer:
            for each in {workload, workload.replace("write", "read")}:
                self.left_out[f"{peer.name}, {each}"] = answer["unable"]
            return
        if answer["wall"] > self.patience and self.shapes[workload] != "one file":
            self.once.add(shape)
        if counts or shape in self.once:
            of_all = self.samples.setdefault(workload, {})
            of_all.setdefault(peer.name, []).append(Sample(**answer))

    def document(
        self, rounds: int, settings: Mapping[str, str], moved: Mapping[str, tuple[int, int]]
    ) -> dict[str, Any]:
        """Return all of it as JSON has it; `moved` has the requests and bytes of each workload."""
        return {
            "machine": machine.describe(),
            "rounds": rounds,
            "settings": dict(settings),
            "left_out": self.left_out,
            "errors": self.errors,
            "measured_once": sorted(self.once),
            "workloads": {
                workload: {
                    "bytes": nbytes,
                    "requests": requests,
                    "peers": {n: summary(taken) for n, taken in self.samples[workload].items()},
                }
                for workload, (requests, nbytes) in moved.items()
                if workload in self.samples
            },
        }
