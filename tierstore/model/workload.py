"""Whose checkpoint, on which cluster: a count of parameters, or a shape of MLPerf Storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierstore.errors import ConfigError
from tierstore.model.checks import not_negative, positive, share, whole

BYTES_PER_PARAMETER = 14
"""2 of the model in bfloat16 and 12 of AdamW in float32: master weight and two moments."""
MOST_NODES = 10**6
_MODEL_BYTES = 2
_VOCABULARY = 128_256


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of MLPerf Storage's checkpointing workload, and how it is laid out over ranks.

    Attributes:
        hidden: width of a layer.
        ffn: width of its feed-forward part (gated: three matrices).
        layers: how many.
        heads: of attention.
        kv_heads: of its keys and values.
        tensor: ranks that share a layer (TP).
        pipeline: stages (PP).
        data: replicas (DP).
        zero: 3 where replicas share everything, 1 where they share the optimizer's state only.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    tensor: int
    pipeline: int
    data: int
    zero: int

    @property
    def parameters(self) -> int:
        """How many parameters: embedding and output, attention, feed-forward, norms."""
        h = self.hidden
        attention = 2 * h * h + 2 * h * (h // self.heads * self.kv_heads)
        layer = attention + 3 * h * self.ffn + 2 * h
        return 2 * _VOCABULARY * h + self.layers * layer + h

    @property
    def ranks(self) -> int:
        """How many processes save it."""
        return self.tensor * self.pipeline * self.data

    @property
    def largest_rank(self) -> float:
        """Bytes of the rank that writes most in the published layout.

        With ZeRO 1 only the first replica writes the model; tierstore balances instead.
        """
        if self.zero == 3:
            return self.parameters * BYTES_PER_PARAMETER / self.ranks
        model = self.parameters * _MODEL_BYTES / (self.tensor * self.pipeline)
        return model + self.parameters * (BYTES_PER_PARAMETER - _MODEL_BYTES) / self.ranks


SHAPES: Mapping[str, Shape] = {
    "8b": Shape(4096, 14_336, 32, 32, 8, 1, 1, 8, 3),
    "70b": Shape(8192, 28_672, 80, 128, 8, 8, 1, 8, 3),
    "405b": Shape(16_384, 53_248, 126, 128, 8, 8, 32, 2, 1),
    "1t": Shape(25_872, 98_304, 128, 192, 32, 8, 64, 2, 1),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What is saved each time.

    Attributes:
        name: for people.
        nbytes: of one checkpoint.
        largest_rank: bytes of the rank that writes most in the published layout; None without one.
        ranks: that save it; None where the cluster decides.
    """

    name: str
    nbytes: float
    largest_rank: float | None = None
    ranks: int | None = None

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Return the workload of a shape's name, or of a number of parameters such as "8e9".

        Raises:
            ConfigError: it is neither.
            ModelError: the number is not above 0.
        """
        if shape := SHAPES.get(text.lower()):
            nbytes = float(shape.parameters * BYTES_PER_PARAMETER)
            return cls(f"MLPerf {text.lower()}", nbytes, shape.largest_rank, shape.ranks)
        try:
            parameters = float(text)
        except ValueError:
            raise ConfigError(
                f"{text!r} is neither a shape nor a number of parameters",
                hint=f"shapes are {', '.join(SHAPES)}; a number is written as 8e9",
            ) from None
        positive("number of parameters", parameters)
        return cls(f"{parameters:g} parameters", parameters * BYTES_PER_PARAMETER)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines of a job, and what is known of the way to its stores.

    Attributes:
        nodes: how many.
        gpus: ranks on each.
        mtbf: seconds between failures of one node, on average.
        restart: seconds from a failure until the restore begins.
        node_loss: share of failures after which a node comes back empty.
        network: bytes/s of one node to remote tiers; None for no limit but what was measured.
        copy: bytes/s at which one rank stages its state; None for the measured memory copy.
        spread: sigma of the lognormal spread between nodes.
        images: saves that may be in staging memory.
        ceilings: tier -> bytes/s that the store gives to all nodes together.
        shared: tiers on a file system that all nodes see, although their URL is a local one.

    Raises:
        ModelError: a number is outside of its domain.
    """

    nodes: int
    gpus: int
    mtbf: float
    restart: float = 300.0
    node_loss: float = 0.2
    network: float | None = None
    copy: float | None = None
    spread: float = 0.1
    images: int = 1
    ceilings: Mapping[str, float] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        whole("number of nodes", self.nodes, most=MOST_NODES)
        whole("number of ranks on a node", self.gpus)
        whole("number of staging images", self.images)
        positive("mean time between failures of a node", self.mtbf, "s")
        not_negative("restart", self.restart, "s")
        not_negative("spread between nodes", self.spread)
        share("share of failures that lose a node", self.node_loss)
        for what, value in (("network", self.network), ("copy", self.copy)):
            if value is not None:
                positive(what, value, "bytes/s")
        for tier, value in self.ceilings.items():
            positive(f"ceiling of tier {tier}", value, "bytes/s")
