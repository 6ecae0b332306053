"""The ladder that a person asks for: one TOML file, or URLs.

::

    [[tier]]
    name = "nvme"
    url = "file:///nvme/tierstore"

    [[tier]]
    name = "s3"
    url = "s3://bucket/tierstore"
    every = 10                      # every tenth save goes here
    write_bandwidth = 500_000_000   # policy: see `Policy`
    region = "eu-west-1"            # anything else: an option of the tier's backend
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tierstore import registry
from tierstore.errors import ConfigError
from tierstore.regular import open_regular

CONFIG_VARIABLE = "TIERSTORE_CONFIG"
DEFAULT_PATH = Path("tierstore.toml")
_LARGEST = 1024**2  # bytes of a configuration
_MOST_DOTS = 200  # in a line, and so many lines full of them: tomllib keeps all beginnings of a key
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Policy:
    """How hard a tier is used. Each field is a key of every tier.

    Attributes:
        retry_seconds: how long one request is repeated while it fails for a passing reason.
        max_requests: requests in flight; None for what suits the backend.
        read_bandwidth: bytes per second over all requests of this process; None for no limit.
        write_bandwidth: the same for writing.
    """

    retry_seconds: float = 120.0
    max_requests: int | None = None
    read_bandwidth: int | None = None
    write_bandwidth: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.retry_seconds < float("inf"):
            raise ConfigError(f"'retry_seconds' is {self.retry_seconds}, not a time from 0 up")
        for key in ("max_requests", "read_bandwidth", "write_bandwidth"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key!r} is {value}, not at least 1")


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier.

    Attributes:
        name: unique in its ladder; letters, digits, "_" and "-".
        url: where it is, without options and without credentials.
        every: this tier takes every n-th save.
        options: what its backend is told, by the backend's own names.
        policy: how hard it is used.
    """

    name: str
    url: str
    every: int = 1
    options: Mapping[str, object] = field(default_factory=dict)
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"tier name {self.name!r} is not legal",
                hint="use up to 64 letters, digits, '_' and '-', starting with a letter",
            )
        if self.every < 1:
            raise ConfigError(f"tier {self.name!r}: 'every' is {self.every}, not at least 1")


@dataclass(frozen=True, slots=True)
class Config:
    """A ladder: its tiers from the fastest to the most durable.

    Raises:
        ConfigError: there is no tier, two share a name or a place, or the first does not take
            every save.
    """

    tiers: tuple[TierConfig, ...]

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ConfigError("there is no tier", hint="write at least one [[tier]]")
        for what, values in (
            ("name", [tier.name for tier in self.tiers]),
            ("url", [tier.url for tier in self.tiers]),
        ):
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise ConfigError(f"two tiers have the {what} {twice!r}")
        first = self.tiers[0]
        if first.every != 1:
            raise ConfigError(
                f"tier {first.name!r} is the first, so 'every' is 1 and not {first.every}",
                hint="a save that no tier takes would be lost",
            )


def load_config(*sources: str | os.PathLike[str] | Config) -> Config:
    """Return the ladder that `sources` describe.

    Args:
        sources: a Config; or the path of one TOML file; or the URLs of one or more tiers, fastest
            first; or nothing for TIERSTORE_CONFIG (a path or a URL), then ./tierstore.toml.

    Raises:
        ConfigError: there is no such file, or it is wrong; the message names file, tier and key.
    """
    if not sources:
        return load_config(_default_source())
    if len(sources) == 1 and isinstance(sources[0], Config):
        return sources[0]
    urls = [source for source in sources if isinstance(source, str) and registry.is_url(source)]
    if len(urls) == len(sources):
        return _from_urls(urls)
    if len(sources) == 1 and not isinstance(sources[0], Config):
        return _from_file(Path(sources[0]))
    raise ConfigError(
        "a configuration is one TOML file, or one or more URLs, or one Config; not a mixture",
        hint="write every tier as a URL, or all of them into one file",
    )


def _default_source() -> str | Path:
    if named := os.environ.get(CONFIG_VARIABLE):
        return named
    if DEFAULT_PATH.exists():
        return DEFAULT_PATH
    raise ConfigError(
        f"there is no configuration: {CONFIG_VARIABLE} is not set and ./{DEFAULT_PATH} is missing",
        hint="name a TOML file or tier URLs",
    )


def _from_urls(urls: list[str]) -> Config:
    tiers: list[TierConfig] = []
    for url in urls:
        tier = _tier(url, {}, where=registry.parse_url(url).url)
        taken = {other.name for other in tiers}
        tiers.append(replace(tier, name=_unique(tier.name, taken)))
    return Config(tuple(tiers))


def _unique(name: str, taken: set[str]) -> str:
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name}{number}"
    return unique


def _from_file(path: Path) -> Config:
    content = _read(path)
    for key in content:
        if key != "tier":
            raise ConfigError(f"{path}: unknown key {key!r}", hint=registry.nearest(key, ["tier"]))
    tables = content.get("tier", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: 'tier' is not a list of tables", hint="write it as [[tier]]")
    with _naming(str(path)):
        return Config(tuple(_from_table(table, path, at) for at, table in enumerate(tables, 1)))


def _read(path: Path) -> dict[str, object]:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigError(f"{path} has more than {_LARGEST:,} bytes: it is no configuration")
        dots = max(line.count(b".") for line in text.split(b"\n"))
        if dots > _MOST_DOTS or text.count(b".") > _MOST_DOTS**2:
            raise ConfigError(f"{path} has keys of very many parts: it is no configuration")
        return tomllib.loads(text.decode())
    except FileNotFoundError:
        new = f"for a tier in a new folder write {path.absolute().as_uri()}"
        hint = "" if path.suffix == DEFAULT_PATH.suffix else new
        raise ConfigError(f"{path}: there is no such file", hint=hint) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path} is a folder, not a TOML file",
            hint=f"for a tier in this folder write {path.absolute().as_uri()}",
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of tomllib, or the text is not UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _from_table(table: Mapping[str, object], path: Path, number: int) -> TierConfig:
    where = f"{path}: tier {table.get('name', number)!r}"
    rest = dict(table)
    url = rest.pop("url", None)
    if not isinstance(url, str):
        raise ConfigError(f"{where} has no 'url' that is text", hint=_misspelt("url", rest))
    if "name" not in rest:
        raise ConfigError(f"{where} has no 'name'", hint=_misspelt("name", rest))
    return _tier(url, rest, where=where)


def _misspelt(key: str, given: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(given), 1)
    return f"is {close[0]!r} meant for it?" if close else ""


@dataclass(frozen=True, slots=True)
class _Own:
    """The keys of a tier that are neither policy nor for its backend."""

    name: str | None = None
    every: int = 1


def _tier(url: str, keys: Mapping[str, object], *, where: str) -> TierConfig:
    """Sort the keys of a tier, and those in its URL, into its own, policy and backend options."""
    with _naming(where):
        address = registry.parse_url(url)
        given = registry.merge_query(address, keys, where=where)
        own_keys, policy_keys = registry.field_names(_Own), registry.field_names(Policy)
        own = {key: given.pop(key) for key in own_keys if key in given}
        policy = {key: given.pop(key) for key in policy_keys if key in given}
        declared = registry.options_type(address.scheme)
        if declared is not None:  # only checked here: `open_backend` makes the options
            known = ("url", *own_keys, *policy_keys)
            registry.parse_options(declared, given, where=where, also_known=known)
        settings = registry.parse_options(_Own, own, where=where)
        return TierConfig(
            name=settings.name or _default_name(address),
            url=address.url,
            every=settings.every,
            options=given,
            policy=registry.parse_options(Policy, policy, where=where),
        )


def _default_name(address: registry.Address) -> str:
    if address.scheme != "file":
        return address.scheme
    return "memory" if f"{address.path}/".startswith("/dev/shm/") else "local"  # noqa: S108


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put `where` before the message of a ConfigError that does not start with it."""
    try:
        yield
    except ConfigError as error:
        if error.message.startswith(where):
            raise
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
