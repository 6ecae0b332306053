"""The tiers of a ladder, opened, and which ranks share each of them.

Whether a folder is shared is discovered, not configured: on every machine one process writes a
probe, and after a barrier every process opens the exact names. So a node-local disk, a shared file
system and a path that is wrongly believed to be shared are all told apart.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tierstore.backend import Backend
from tierstore.config import Config, TierConfig
from tierstore.errors import CheckpointError, NotFoundError, TierstoreError
from tierstore.wrappers import open_tier

Exchange = Callable[[object], Sequence[object]]
"""Gathers one small picklable object of every rank at every rank, in the order of ranks."""


@dataclass(frozen=True, slots=True)
class OpenTier:
    """One tier in use.

    Attributes:
        config: what was asked for.
        backend: the tier, with its policy around it.
        ranks: the ranks, ascending, that see the same files there as this one.
    """

    config: TierConfig
    backend: Backend
    ranks: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """The tier's name, unique in the ladder."""
        return self.config.name

    @property
    def every(self) -> int:
        """The tier takes every n-th save."""
        return self.config.every

    def covers(self, world_size: int) -> bool:
        """Whether all ranks share this tier."""
        return self.ranks == tuple(range(world_size))


def open_ladder(
    config: Config, *, rank: int = 0, world_size: int = 1, exchange: Exchange | None = None
) -> list[OpenTier]:
    """Open every tier and find out who shares it. A collective call when there are several ranks.

    Args:
        config: the ladder.
        rank: this process's number.
        world_size: how many processes there are.
        exchange: the gather; needed when there are several.

    Raises:
        ConfigError: a tier's URL or options are wrong.
        StorageError: a probe could not be written.
        CheckpointError: another rank could not open the ladder; all ranks raise.
    """
    if world_size > 1 and exchange is None:
        raise ValueError("several ranks need an exchange")
    gather: Exchange = exchange if exchange is not None else lambda item: [item]
    backends: list[Backend] = []
    error: TierstoreError | None = None
    try:
        for tier in config.tiers:
            backends.append(open_tier(tier))  # noqa: PERF401 - what is open is closed on error
    except TierstoreError as failed:
        error = failed
    try:
        _agree(gather, error)
        shared = _discover(config.tiers, backends, rank, gather)
    except BaseException:
        _close(backends)
        raise
    return [OpenTier(*each) for each in zip(config.tiers, backends, shared, strict=True)]


def close_ladder(tiers: Iterable[OpenTier]) -> None:
    """Close every tier's backend."""
    _close(tier.backend for tier in tiers)


def _close(backends: Iterable[Backend]) -> None:
    for backend in backends:
        backend.close()


def _agree(gather: Exchange, error: TierstoreError | None) -> None:
    """Raise on every rank if any rank has an error: nobody is left waiting in a collective."""
    texts = gather(str(error) if error else None)
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text is not None:
            raise CheckpointError(f"rank {rank} could not open the ladder: {text}")


def _discover(
    tiers: Sequence[TierConfig], backends: Sequence[Backend], rank: int, gather: Exchange
) -> list[tuple[int, ...]]:
    """Return for each tier the ranks that share it with this one."""
    machines = gather(_machine())
    everyone = tuple(range(len(machines)))
    if len(everyone) == 1:
        return [everyone for _ in tiers]
    folders = [n for n, tier in enumerate(tiers) if tier.url.startswith("file:")]
    first_of_machine = machines.index(machines[rank]) == rank
    views = _probe([backends[n] for n in folders], gather, writes=first_of_machine)
    shared = []
    for number, tier in enumerate(tiers):
        if number in folders:
            at = folders.index(number)
            mine = views[rank][at]
            # Who sees nothing at all shares with nobody.
            shared.append(
                tuple(r for r in everyone if r == rank or (mine and views[r][at] == mine))
            )
        else:
            shared.append((rank,) if tier.url.startswith("memory:") else everyone)
    return shared


def _probe(
    backends: Sequence[Backend], gather: Exchange, *, writes: bool
) -> list[list[tuple[str, ...]]]:
    """Return by rank and backend the probes that are visible there."""
    probe = f"probes/{secrets.token_hex(8)}"
    error: TierstoreError | None = None
    views: list[tuple[str, ...]] = []
    try:
        try:
            for backend in backends if writes else ():
                backend.create(probe, b"probe")
        except TierstoreError as failed:
            error = failed
        _agree(gather, error)
        names = [name for name in gather(probe if writes else None) if isinstance(name, str)]
        try:
            views = [tuple(n for n in names if _exists(backend, n)) for backend in backends]
        except TierstoreError as failed:
            error = failed
        everyones = cast("list[list[tuple[str, ...]]]", list(gather(views)))
        _agree(gather, error)
        return everyones
    finally:
        for backend in backends if writes else ():
            with suppress(TierstoreError):
                backend.delete([probe])


def _exists(backend: Backend, key: str) -> bool:
    try:
        backend.stat(key)
    except NotFoundError:
        return False
    return True


def _machine() -> tuple[str, ...]:
    """Return what processes with the same view of local disks have in common."""
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/mnt").readlink()))
    return tuple(facts)
