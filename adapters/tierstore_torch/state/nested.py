"""From stored names and paths back to a nested state dict."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tierstore.checkpoint.paths import Containers, containers, parse_path
from tierstore.checkpoint.values import decode
from tierstore.errors import FormatError, PlanError
from tierstore_torch.state.flatten import PerRank

_Step = tuple[bool, Any]
"""Whether it is an index, and the key or index."""


class _Node(dict[_Step, Any]):
    """A container that is not finished."""

    is_tuple = False
    is_own = False


def nested(entries: Iterable[tuple[str, str, Any]], *, exact: bool = False) -> Any:
    """Return the dicts and lists that leaves came from. Integer keys come in their order.

    Args:
        entries: name, path as the manifest has it, and what goes there. Without a path the name is
            the key.
        exact: give tuples and `per_rank` back too; all that is a rank's own is of one rank. Else
            tuples that held tensors come as lists, and a rank's own part below a key of its number.

    Raises:
        PlanError: something is both a leaf and a container, or nested far too deep.
        FormatError: a path cannot be one.
    """
    hint = "restore into a state that you have" if exact else "use --only or --exclude"
    top = _Node()  # holds the state itself, which may be a leaf
    for name, path, leaf in entries:
        steps = _steps(name, path, ranks=not exact)
        inside = containers(path) if exact else Containers()
        node = top
        for depth, step in enumerate([(False, ""), *steps[:-1]] if steps else []):
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise PlanError(f"{name} lies below what is a leaf", hint=hint)
            node.is_own |= inside.own == depth
            node.is_tuple |= depth in inside.tuples
        last = steps[-1] if steps else (False, "")
        if last in node:
            raise PlanError(f"two things are called {name}", hint=hint)
        node[last] = PerRank(leaf) if inside.own == len(steps) else leaf
    try:
        return _finished(top.get((False, ""), {}))
    except RecursionError:
        raise PlanError("its state is nested too deep", hint=hint) from None


def _steps(name: str, path: str, *, ranks: bool) -> list[_Step]:
    found = parse_path(path)
    if isinstance(found, dict):  # DCP's
        return [(isinstance(step, int), step) for step in found["dcp"]] or [(False, name)]
    steps = [_step(step) for step in found if ranks or not _is_rank(step)]
    return steps if steps or (path and not ranks) else [(False, name)]


def _is_rank(step: Any) -> bool:
    return isinstance(step, dict) and "rank" in step


def _step(step: Any) -> _Step:
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
    indexed = bool(node) and all(index for index, _ in node)
    if indexed or all(type(key) is int for key, _ in items):
        items.sort(key=lambda pair: pair[0])
    whole: Any = dict(items)
    if indexed and [key for key, _ in items] == list(range(len(items))):
        values = [child for _, child in items]
        whole = tuple(values) if node.is_tuple else values
    return PerRank(whole) if node.is_own else whole
