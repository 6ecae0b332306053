"""The public API, written down: a change of it is seen in review, and `make api` accepts it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = (
    "tierstore",
    "tierstore.errors",
    "tierstore.backend",
    "tierstore.registry",  # what a backend of others needs
    "tierstore.config",
    "tierstore.testing",
    "tierstore_torch",
)
# What Python versions print differently, or is an address.
_UNSTABLE = re.compile(r" at 0x[0-9a-f]+")


def _public(module) -> list[str]:
    declared = getattr(module, "__all__", None)
    if declared is not None:
        return sorted(declared)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    )


def _signature(value) -> str:
    try:
        return _UNSTABLE.sub("", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return ""


def _describe(place: str, value) -> Iterator[str]:
    if not inspect.isclass(value):
        yield place + (_signature(value) if callable(value) else "")
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"{place}({bases}){'' if issubclass(value, Exception) else _signature(value)}"
    for name in sorted(set(vars(value)) | set(getattr(value, "__annotations__", ()))):
        if name.startswith("_"):
            continue
        member = inspect.getattr_static(value, name, None)
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        yield f"{place}.{name}{_signature(member) if inspect.isfunction(member) else ''}"


def _api() -> Iterator[str]:
    for name in MODULES:
        module = importlib.import_module(name)
        for public in _public(module):
            yield from _describe(f"{name}.{public}", getattr(module, public))


def test_the_public_api_is_as_written_down(pytestconfig):
    pytest.importorskip("torch")
    now = "\n".join(_api()) + "\n"
    if pytestconfig.getoption("--update-api"):
        SNAPSHOT.write_text(now)
    assert now.splitlines() == SNAPSHOT.read_text().splitlines(), "make api accepts the change"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name):
    if name == "tierstore_torch":
        pytest.importorskip("torch")
    module = importlib.import_module(name)
    assert module.__doc__
    for public in _public(module):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"
