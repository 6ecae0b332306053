"""The tiers of a ladder, opened, and which ranks share each of them.

A backend says who is sure to see it (`Capabilities.seen_by`). What is not seen by all may still be
shared, which is discovered, not configured: on every machine one process writes a probe, or every
process where a backend promises nothing, and after a barrier every process opens the exact names.
So memory, a node-local disk, a shared file system and a path that is wrongly believed to be shared
are all told apart. Where no probe can be written the tier is taken to be its machine's, or
process's, own, and saves to it fail or succeed as they can.
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
from tierstore.logs import logger
from tierstore.wrappers import open_tier

_log = logger(__name__)

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
    places = [
        _Place(tier, backend, machines if seen_by == "host" else everyone)
        for tier, backend in zip(tiers, backends, strict=True)
        if (seen_by := backend.capabilities.seen_by) != "all"
    ]
    by_rank = _probe(places, rank, gather)
    found = {
        place.tier.name: place.sharing(rank, views)
        for place, *views in zip(places, *by_rank, strict=True)
    }
    return [found.get(tier.name, everyone) for tier in tiers]


@dataclass(frozen=True, slots=True)
class _Place:
    """A tier that not all may see.

    Attributes:
        tier: what was asked for.
        backend: the tier.
        homes: of every rank; those of one home are sure to see the same.
    """

    tier: TierConfig
    backend: Backend
    homes: Sequence[object]

    @property
    def writers(self) -> set[int]:
        """The first rank of every home: they write the probes."""
        return {*{home: rank for rank, home in reversed([*enumerate(self.homes)])}.values()}

    def sharing(self, rank: int, views: Sequence[_View]) -> tuple[int, ...]:
        """Return the ranks that see the same as `rank`.

        Who sees nothing at all shares with nobody but those of its home who look at the same URL.
        """
        mine = views[rank]
        return tuple(
            other
            for other, view in enumerate(views)
            if view == mine and (mine.probes or self.homes[other] == self.homes[rank])
        )


@dataclass(frozen=True, slots=True)
class _View:
    """What one rank sees of a tier: the probes, or, without any, which place it is."""

    probes: tuple[str, ...]
    url: str


def _probe(places: Sequence[_Place], rank: int, gather: Exchange) -> list[list[_View]]:
    """Return by rank and place the probes that are visible there.

    A tier that cannot be used is seen by nobody: it is reported, and it is the saves that fail.
    """
    probe = f"probes/{secrets.token_hex(8)}"
    written: list[Backend] = []
    try:
        for place in places:
            if rank not in place.writers:
                continue
            try:
                place.backend.create(probe, b"probe")
                written.append(place.backend)
            except TierstoreError as error:
                _log.warning(
                    "tier %s cannot be written, so it is taken to be shared by the ranks of this "
                    "machine only: %s",
                    place.tier.name,
                    str(error),
                )
        names = cast("list[str]", list(gather(probe)))
        views = []
        for place in places:
            wanted = [names[writer] for writer in sorted(place.writers)]
            seen = _seen(place.tier, place.backend, wanted)
            views.append(_View(seen, "" if seen else place.tier.url))
        return cast("list[list[_View]]", list(gather(views)))
    finally:
        for backend in written:
            with suppress(TierstoreError):
                backend.delete([probe])


def _seen(tier: TierConfig, backend: Backend, names: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(name for name in names if _exists(backend, name))
    except TierstoreError as error:
        _log.warning(
            "tier %s cannot be read, so which machines share it is unknown: %s",
            *(tier.name, str(error)),
        )
        return ()


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
