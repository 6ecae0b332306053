"""From a URL to a backend: entry points, options, and the rule that URLs hold no secrets.

A backend is found by its URL's scheme in the entry-point group "tierstore.backends". Its factory
says which options it knows::

    @dataclass(frozen=True)
    class Options:
        region: str | None = None

    @declares(Options)
    def open_thing(url: str, options: Options) -> Backend: ...

A URL's path is what it reads: nothing in it is decoded, as by `aws s3`, rclone and fsspec, so that
`s3://b/50%41.txt` is the key `50%41.txt`. Only in a file URL is "%41" an "A" and "#" refused (RFC
8089). Options follow the last "?"; a path with a "?" and no options has one more behind it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tierstore.backend import Backend
from tierstore.errors import ConfigError
from tierstore.waiting import on

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# What is promised to backends of others, and to whoever opens one; the rest is for tierstore.
__all__ = ["declares", "open_backend"]

GROUP = "tierstore.backends"
CREDENTIALS_HINT = (
    "credentials come from the environment or from the files that the store's own tools read, "
    "such as AWS_ACCESS_KEY_ID or AWS_PROFILE"
)
_SECRET = re.compile(
    r"secret|passw|token(?!_file$)|signature|credential|access_?key|api_?key", re.IGNORECASE
)

_DECODED = ("file",)  # schemes whose paths are percent-encoded
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Factory = Callable[..., Backend]
OptionsT = typing.TypeVar("OptionsT")
BackendT = typing.TypeVar("BackendT", bound=Backend)


@dataclass(frozen=True, slots=True)
class Address:
    """A tier URL, taken apart.

    Attributes:
        scheme: lower case.
        host: bucket, host:port or name; empty for file URLs.
        path: what is meant, with its leading slash, without a trailing one.
        query: options written into the URL.
        url: the URL without its query and without a trailing slash.
        slash: there was a trailing slash.
    """

    scheme: str
    host: str
    path: str
    query: Mapping[str, str]
    url: str
    slash: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that is meant, None for all but `file://`."""
        return Path(self.path or "/") if self.scheme == "file" else None


def is_url(text: str) -> bool:
    """Return whether `text` is a URL rather than a path."""
    return "://" in text


def path_of(text: str) -> str:
    """Return the path that a URL or path names.

    Raises:
        ConfigError: it is a URL and malformed.
    """
    return parse_url(text).path if is_url(text) else text


def parse_url(url: str) -> Address:
    """Take a tier URL apart.

    Raises:
        ConfigError: it is malformed, or holds a secret. The message repeats no secret.
    """
    if not is_url(url):
        shown = url.partition("?")[0].rpartition("@")[2]
        raise ConfigError(f"{shown!r} is not a URL", hint="write one such as file:///nvme/t")
    bare, query = _apart(url)
    scheme, _, rest = bare.partition("://")
    netloc, slash, tail = rest.partition("/")
    host = netloc.rpartition("@")[2]
    bare = f"{scheme}://{host}{slash}{tail}"
    if host != netloc:
        bare = bare.partition("?")[0]
        raise ConfigError(f"the URL of {bare} holds a user or password", hint=CREDENTIALS_HINT)
    if "?" in bare:  # somebody may have meant options
        refuse_secrets(dict(parse_qsl(bare.partition("?")[2])), where=bare.partition("?")[0])
    try:
        urlsplit(f"x://{host}")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(
            f"the URL {bare} is malformed: {error}",
            hint="options are ?NAME=VALUE; a path with a '?' has one more '?' behind it",
        ) from None
    if not scheme:
        raise ConfigError(f"the URL {bare!r} has no scheme", hint=nearest("", schemes()))
    if _CONTROL.search(bare):
        raise ConfigError(f"the URL {bare!r} has a control character")
    scheme = scheme.lower()
    if "#" in bare and scheme in _DECODED:
        raise ConfigError(f"the URL {bare} has a '#'", hint="write it as %23")
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ConfigError(f"the URL {bare} gives an option twice")
    refuse_secrets(options, where=f"the URL of {bare}")
    path = _read(scheme, f"{slash}{tail}").rstrip("/")
    written = _closed(f"{scheme}{bare[len(scheme) :]}".rstrip("/"))
    return Address(scheme, host, path, options, written, bare.endswith("/"))


def join_url(folder: str, name: str) -> str:
    """Return the URL of something in a folder.

    Args:
        folder: a URL without options.
        name: a key below it.
    """
    bare, _ = _apart(folder)
    decoded = bare.partition("://")[0].lower() in _DECODED
    if decoded:
        name = quote(name, errors="surrogateescape")
    return _closed(f"{bare}/{name}")


def split_url(url: str) -> tuple[str, str]:
    """Return the URL of the folder that something is in, and its name there: undo `join_url`."""
    bare, _ = _apart(url)
    folder, _, name = bare.rpartition("/")
    return _closed(folder), _read(bare.partition("://")[0].lower(), name)


def add_options(url: str, query: str) -> str:
    """Return a URL without options, and with what is to stand behind its "?"; "" for none."""
    return f"{_apart(url)[0]}?{query}" if query else url


def _apart(url: str) -> tuple[str, str]:
    """Return what is before the last "?", and what is behind it."""
    bare, mark, query = url.rpartition("?")
    return (bare, query) if mark else (url, "")


def _closed(bare: str) -> str:
    """Return a URL without options so that no part of it is taken for some."""
    return f"{bare}?" if "?" in bare else bare


def _read(scheme: str, path: str) -> str:
    """Return the path that is written so."""
    return unquote(path, errors="surrogateescape") if scheme in _DECODED else path


def refuse_secrets(keys: Collection[str], *, where: str) -> None:
    """Raise ConfigError if a key is a name under which a secret would be written."""
    for key in keys:
        if _SECRET.search(key):
            raise ConfigError(f"{where} holds the secret {key!r}", hint=CREDENTIALS_HINT)


@runtime_checkable
class _Declaring(Protocol):
    options_type: type


def declares(
    options: type[OptionsT],
) -> Callable[[Callable[[str, OptionsT], BackendT]], Callable[[str, OptionsT], BackendT]]:
    """Mark a backend factory with the dataclass of the options it knows.

    Args:
        options: a frozen dataclass; every field is a str, int, float, bool or Literal, or one of
            these or None, and has a default.
    """

    def mark(factory: Callable[[str, OptionsT], BackendT]) -> Callable[[str, OptionsT], BackendT]:
        factory.options_type = options  # type: ignore[attr-defined]
        return factory

    return mark


def nearest(key: str, known: Collection[str]) -> str:
    """Return a hint: the known key that `key` may have meant, or all of them."""
    close = difflib.get_close_matches(key, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def field_names(options: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return tuple(field.name for field in dataclasses.fields(options))


def parse_options(
    options: type[OptionsT],
    given: Mapping[str, object],
    *,
    where: str,
    also_known: Collection[str] = (),
) -> OptionsT:
    """Check and convert options.

    Args:
        options: the dataclass that declares them.
        given: names and values; text is converted where a number or truth value is declared.
        where: what the options belong to, for the message.
        also_known: names that are legal beside these, to be suggested for a misspelt one.

    Raises:
        ConfigError: a name is unknown or a value has the wrong type.
    """
    hints = typing.get_type_hints(options)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in hints:
            refuse_secrets([key], where=where)
            raise ConfigError(
                f"{where}: unknown key {key!r}", hint=nearest(key, {*hints, *also_known})
            )
        values[key] = _convert(value, hints[key], f"{where}: {key!r}")
    return typing.cast("Callable[..., OptionsT]", options)(**values)


def _convert(value: object, hint: object, where: str) -> object:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if union else (hint,)
    for kind in kinds:
        if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                if math.isfinite(number := float(value)):
                    return number
            continue
        if type(value) is kind or value in typing.get_args(kind):  # the latter for Literal
            return value
        if isinstance(value, str) and kind in _FROM_TEXT:
            with contextlib.suppress(ValueError, KeyError):
                return _FROM_TEXT[kind](value)
    names = " or ".join(_describe(kind) for kind in kinds if kind is not types.NoneType)
    raise ConfigError(f"{where} is {value!r}, which is not {names}")


def _describe(kind: object) -> str:
    if isinstance(kind, type):
        return "a finite number" if kind is float else f"of type {kind.__name__}"
    return "one of " + ", ".join(map(repr, typing.get_args(kind)))


_FROM_TEXT: Mapping[object, Callable[[str], object]] = {
    int: int,
    bool: lambda text: {"true": True, "false": False, "1": True, "0": False}[text.lower()],
}


@functools.cache
def _entries() -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def schemes() -> list[str]:
    """Return the URL schemes that have a backend, sorted."""
    return sorted(_entries())


def find_factory(scheme: str) -> Factory:
    """Return the backend factory of a URL scheme.

    Raises:
        ConfigError: there is none, or it needs a package that is not installed.
    """
    entry = _entries().get(scheme)
    if entry is None:
        raise ConfigError(
            f"no backend is installed for {scheme}:// URLs",
            hint=nearest(scheme, schemes()),
        )
    try:
        factory: Factory = entry.load()
    except ModuleNotFoundError as error:
        raise _missing_package(scheme, error) from error
    return factory


def options_type(scheme: str) -> type | None:
    """Return the dataclass of the options that a scheme's backend knows, or None if it tells not.

    Raises:
        ConfigError: as `find_factory`.
    """
    factory: object = find_factory(scheme)
    return factory.options_type if isinstance(factory, _Declaring) else None


def open_backend(url: str, options: Mapping[str, object] | None = None) -> Backend:
    """Open the backend of a URL.

    Args:
        url: for example "s3://bucket/prefix?region=eu-west-1"; its query adds to `options`.
        options: what the backend is told beside the URL.

    Raises:
        ConfigError: the scheme or an option is unknown, an option is given twice, the URL holds a
            secret, or a package is missing.
    """
    address = parse_url(url)
    factory = find_factory(address.scheme)
    given = merge_query(address, options or {}, where=address.url)
    declared = options_type(address.scheme)
    settings: object = given
    if declared is not None:
        settings = parse_options(declared, given, where=address.url)
    try:
        with on(address.url, "opening it"):
            return factory(address.url, settings)
    except ModuleNotFoundError as error:
        raise _missing_package(address.scheme, error) from error


def merge_query(
    address: Address, options: Mapping[str, object], *, where: str
) -> dict[str, object]:
    """Return the options of a URL's query and those given beside it.

    Raises:
        ConfigError: one is given in both.
    """
    if both := sorted(options.keys() & address.query.keys()):
        raise ConfigError(f"{where}: {both[0]!r} is given both in the URL and beside it")
    return {**address.query, **options}


def _missing_package(scheme: str, error: ModuleNotFoundError) -> ConfigError:
    from importlib import metadata

    package = "tierstore"
    if scheme in (metadata.metadata(package).get_all("Provides-Extra") or ()):
        package = f"tierstore[{scheme}]"
    return ConfigError(
        f"{scheme}:// needs {error.name}, which is not installed", hint=f"pip install '{package}'"
    )
