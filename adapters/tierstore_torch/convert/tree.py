"""From stored names and paths back to a nested state dict."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.paths import parse_path
from tierstore.checkpoint.values import decode
from tierstore.errors import FormatError, PlanError, UnsafePickleError


class _Node(dict[Any, Any]):
    """A container that is not finished: by (whether it is an index, key)."""


def nested(entries: Iterable[tuple[str, str, Any]]) -> Any:
    """Return the dicts and lists that leaves came from.

    A tuple that held tensors comes back as a list: the path does not tell them apart.

    Args:
        entries: name, path as the manifest has it, and what goes there. Without a path, and for a
            rank's own part, the name is the key.

    Raises:
        PlanError: something is both a leaf and a container, or nested far too deep.
    """
    root = _Node()
    for name, path, leaf in entries:
        steps = _steps(name, path)
        node = root
        for step in steps[:-1]:
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise PlanError(f"{name} lies below what is a leaf", hint="use --only or --exclude")
        if steps[-1] in node:
            raise PlanError(f"two things are called {name}", hint="use --only or --exclude")
        node[steps[-1]] = leaf
    try:
        return _finished(root)
    except RecursionError:
        raise PlanError("its state is nested too deep", hint="use --only or --exclude") from None


def _steps(name: str, path: str) -> list[tuple[bool, Any]]:
    found = parse_path(path)
    if isinstance(found, dict):  # DCP's
        return [(isinstance(step, int), step) for step in found["dcp"]] or [(False, name)]
    return [_step(step) for step in found] or [(False, name)]


def _step(step: Any) -> tuple[bool, Any]:
    if isinstance(step, str):
        return False, step
    if "item" in step:
        return True, step["item"]
    if "rank" in step:
        return False, f"rank{step['rank']:05d}"
    key = decode(json.dumps(step["key"]))
    try:
        hash(key)
    except TypeError as error:
        raise FormatError(f"{step['key']!r:.60} is no key of a dict") from error
    return False, key


def _finished(node: Any) -> Any:
    if not isinstance(node, _Node):
        return node
    items = [(key, _finished(child)) for (_, key), child in node.items()]
    if node and all(index for index, _ in node):
        items.sort(key=lambda pair: pair[0])
        if [key for key, _ in items] == list(range(len(items))):
            return [child for _, child in items]
    return dict(items)


def loaded(value: ValueEntry, allow_pickle: bool) -> Any:
    """Return a stored value.

    Raises:
        UnsafePickleError: it is a pickle, and pickles are not allowed.
        PlanError: its pickle cannot be loaded.
    """
    if value.kind == "json":
        return decode(bytes(value.data).decode())
    if not allow_pickle:
        raise UnsafePickleError(
            f"{value.name} is stored as a pickle, and loading one can run any code",
            hint="leave it out with --exclude, or trust who wrote it with --allow-pickle",
        )
    try:
        return torch.load(io.BytesIO(value.data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise PlanError(f"{value.name}: its pickle cannot be loaded: {error!r}") from error
