"""From what names SRC and DST to two open stores and the keys in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode

from tierstore.config import TierConfig
from tierstore.errors import ConfigError, InvalidKeyError, NotFoundError
from tierstore.operations.tiers import hasty

if TYPE_CHECKING:
    from tierstore.migration.ends import Ends
    from tierstore.operations.tiers import Source
    from tierstore.transfer.engine.stores import Recipe

End = str | os.PathLike[str] | TierConfig
"""A URL, a path, the name of a configured tier, or a tier."""
_NUMBER = re.compile(r"[0-9._]+")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CLASS = (
    "the storage class of what is there is changed by a lifecycle rule of the bucket, or by "
    "`aws s3 cp --storage-class` from a place to itself"
)


@dataclass(frozen=True, slots=True)
class Access:
    """How hard the ends may be used, and where tiers are named.

    Attributes:
        bandwidth: bytes a second at each end; None for no other limit than the tier's own.
        requests: in flight at each end; None for the tier's own limit.
        config: the configuration that names tiers; None for the default one, if there is any.
        hasty: somebody waits for the answer and wants to know soon that a store is away.
    """

    bandwidth: int | None = None
    requests: int | None = None
    config: Source | None = None
    hasty: bool = False

    def of(self, tier: TierConfig) -> TierConfig:
        """Return a tier with these limits.

        Raises:
            ConfigError: a limit is less than 1.
        """
        policy = tier.policy
        if (rate := self.bandwidth) is not None:
            policy = replace(policy, read_bandwidth=rate, write_bandwidth=rate)
        if self.requests is not None:
            policy = replace(policy, max_requests=self.requests)
        tier = replace(tier, policy=policy)
        return hasty(tier) if self.hasty else tier


@dataclass(frozen=True, slots=True)
class Location:
    """A URL or path as it was written, as a URL.

    Attributes:
        base: the URL without its query and without a trailing slash.
        query: without its "?", or empty.
        is_folder: there was a trailing slash, a folder on disk, or nothing but the store's root.
        server: those options of the query that say which server is meant; numbers say only how
            it is used.
        named: the tier of that name, if it was written as one.
    """

    base: str
    query: str
    is_folder: bool
    server: str
    named: TierConfig | None = None

    @classmethod
    def parse(cls, end: End, names: _Named | None = None) -> Location:
        """Take apart what was written.

        Args:
            end: a URL, a path or the name of a tier, or a tier.
            names: knows the tiers.

        Raises:
            ConfigError: it is malformed, or holds a secret.
        """
        from tierstore.registry import is_url, parse_url

        if isinstance(end, TierConfig):
            return cls._of_tier(end)
        text = os.fspath(end)
        if not text:
            raise ConfigError("SRC and DST are URLs or paths, not empty")
        if names and (tier := names.find(text)):
            return cls._of_tier(tier)
        if not is_url(text):
            path = os.path.abspath(text)  # noqa: PTH100 - a link keeps its own name
            text = (
                f"file://{quote(path, errors='surrogateescape')}{'/' if text.endswith('/') else ''}"
            )
        address = parse_url(text)
        is_folder = address.slash or not address.path
        if address.folder is not None:
            is_folder = is_folder or address.folder.is_dir()
        query = urlencode(address.query)
        return cls(address.url, query, is_folder, _server(address.query))

    @classmethod
    def _of_tier(cls, tier: TierConfig) -> Location:
        options = {name: str(value) for name, value in tier.options.items()}
        return cls(tier.url, "", True, _server(options), tier)

    @property
    def identity(self) -> str:
        """What is meant, whatever way it is used."""
        return f"{self.base}?{self.server}" if self.server else self.base

    @property
    def parent(self) -> str:
        """The URL of the folder that it is in.

        Raises:
            ConfigError: that is the root of the disk, which is no tier.
        """
        from tierstore.registry import split_url

        folder, _ = split_url(self.base)
        if folder.endswith("//"):
            text = f"{self.base} is no folder, and a single object cannot lie in the root folder"
            raise ConfigError(text, hint="name a folder, or an object in one")
        return folder

    @property
    def name(self) -> str:
        """The last part of its path."""
        from tierstore.registry import split_url

        return split_url(self.base)[1]

    def tier(self, base: str) -> TierConfig:
        """Return how to open a folder with the options of this place."""
        from tierstore.config import load_config
        from tierstore.registry import add_options

        if self.named is not None:
            return replace(self.named, url=base)
        return load_config(add_options(base, self.query)).tiers[0]


@dataclass(frozen=True, slots=True)
class Between:
    """Two open ends, how others open them, and their names in messages and in the journal."""

    ends: Ends
    recipe: Recipe
    source: str
    target: str


@contextmanager
def open_ends(
    source: End, target: End, access: Access, runs: Sequence[str] = ()
) -> Iterator[Between]:
    """Open both ends.

    SRC is one object if there is one of that name, else everything below it. One object goes into
    DST if that ends in "/" or is a folder on disk, else it gets the name DST.

    Args:
        source: SRC as it was written.
        target: DST as it was written.
        access: how hard they may be used, and where tiers are named.
        runs: the runs that are meant; then both ends are roots of tiers.

    Raises:
        ConfigError: one is wrong, or they are one place, or one lies within the other.
    """
    from tierstore.migration.apart import check_apart
    from tierstore.migration.ends import Ends
    from tierstore.registry import join_url
    from tierstore.transfer.engine.entries import SOURCE
    from tierstore.transfer.engine.records import TARGET
    from tierstore.transfer.engine.stores import Recipe

    named = _Named(access.config)
    origin, goal = (Location.parse(text, named) for text in (source, target))
    if runs or not _is_object(origin):
        _refuse_overlap(origin, goal)
        bases, keys = (origin.base, goal.base), None
    else:
        if goal.is_folder:
            goal = replace(goal, base=join_url(goal.base, origin.name))
        _refuse_same(origin, goal)
        bases, keys = (origin.parent, goal.parent), (origin.name, goal.name)
    tiers = {SOURCE: access.of(origin.tier(bases[0])), TARGET: access.of(goal.tier(bases[1]))}
    recipe = Recipe(tiers, sample=keys[0] if keys else "")
    meant = f" runs {', '.join(runs)}" if runs else ""
    with closing(recipe.open()) as stores:
        ends = Ends(stores[SOURCE], stores[TARGET], keys)
        changes_class = bool(tiers[TARGET].options.get("storage_class"))
        check_apart(ends, writes=not access.hasty, hint=_CLASS if changes_class else "")
        yield Between(ends, recipe, f"{origin.identity}{meant}", goal.identity)


class _Named:
    """The tiers that a configuration names, looked for only when a name may be one."""

    def __init__(self, config: Source | None) -> None:
        self._config = config

    def find(self, text: str) -> TierConfig | None:
        """Return the tier of that name; None if there is none, or it is rather a path.

        Raises:
            ConfigError: the configuration is wrong.
        """
        from tierstore.config import load_config

        if not _NAME.fullmatch(text) or Path(text).exists():
            return None
        if self._config is None and not (
            os.environ.get("TIERSTORE_CONFIG") or Path("tierstore.toml").exists()
        ):
            return None
        config = load_config(*([self._config] if self._config else []))
        found = [tier for tier in config.tiers if tier.name == text]
        if not found:
            names = ", ".join(tier.name for tier in config.tiers)
            raise ConfigError(
                f"there is no tier {text!r}", hint=f"tiers: {names}; a path is written ./{text}"
            )
        return found[0]


def _server(options: Mapping[str, str]) -> str:
    return urlencode(sorted(each for each in options.items() if not _NUMBER.fullmatch(each[1])))


def _is_object(place: Location) -> bool:
    from tierstore.wrappers import open_tier

    if place.is_folder:
        return False
    # This is the first request: whoever waits at a terminal wants to know that a store is away.
    with closing(open_tier(hasty(place.tier(place.parent)))) as backend:
        try:
            backend.stat(place.name)
        except (NotFoundError, InvalidKeyError):
            return False
    return True


def _refuse_overlap(origin: Location, goal: Location) -> None:
    _refuse_same(origin, goal)
    one, other = f"{_real(origin)}/", f"{_real(goal)}/"
    if origin.server == goal.server and (one.startswith(other) or other.startswith(one)):
        raise ConfigError(
            f"SRC and DST lie one in the other: {origin.base} and {goal.base}",
            hint="what is written would be read again; choose places beside each other",
        )


def _refuse_same(origin: Location, goal: Location) -> None:
    if (_real(origin), origin.server) == (_real(goal), goal.server):
        raise ConfigError(f"SRC and DST are the same place: {origin.base}")


def _real(place: Location) -> str:
    """Return its URL, on disk without symbolic links."""
    path = place.base.removeprefix("file://")
    return place.base if path == place.base else f"file://{os.path.realpath(unquote(path))}"
