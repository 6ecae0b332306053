"""An optimizer's state as it was saved, wherever the optimizer that is here has got to.

An optimizer makes a parameter's state when it first has a gradient for it, some make more at each
step (LBFGS), and a step taken to find out would change what it should not. So what is here says
little about what was saved: the state is laid out from the checkpoint, and only its tensors are
like their parameters, in device, strides and sharding. What the optimizer has already is filled
where it is.

A scheduler has the learning rates too, as numbers or as tensors, which it takes over as they come.
Those that are here are never filled: one scheduler's may be another's at the moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import empty as empty_dtensor

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Tensor
from tierstore.checkpoint.values import decode
from tierstore.errors import PlanError
from tierstore_torch.state.arrays import array_type
from tierstore_torch.state.items import dtype_named, global_shape, is_storable

_LIKE_PARAMETER = frozenset(
    [
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"),
        *("grad_avg", "acc_delta", "ax", "sum", "prev", "step_size"),
    ]
)
"""What torch's optimizers keep in their parameter's shape."""


def laid_out(owner: object, state: Any, name: str, saved: Callable[[], Any]) -> Any:
    """Return an object's state with that of optimizers and schedulers in it as it was saved.

    Args:
        owner: the object: an optimizer or a scheduler, or what has one inside.
        state: what its `state_dict` returned; it is not changed.
        name: of the object.
        saved: returns what the checkpoint has of it: nested dicts and lists of entries.

    Raises:
        PlanError: the checkpoint is of an optimizer of other parameters.
    """
    return _laid_out(owner, state, name, saved()) if _has_any(state) else state


def _has_any(state: Any) -> bool:
    if not isinstance(state, dict):
        return isinstance(state, (list, tuple)) and any(map(_has_any, state))
    return _is_optimizers(state) or _is_schedulers(state) or any(map(_has_any, state.values()))


def _is_optimizers(state: Mapping[Any, Any]) -> bool:
    """Whether it is what the `state_dict` of an optimizer returns, or of what is like one."""
    groups = state.get("param_groups")
    return (
        isinstance(state.get("state"), dict)
        and isinstance(groups, list)
        and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)
    )


def _is_schedulers(state: Mapping[Any, Any]) -> bool:
    """Whether it is what the `state_dict` of a scheduler of learning rates returns."""
    return _are_rates(state.get("_last_lr"))


def _are_rates(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(rate, (float, int, torch.Tensor)) for rate in value)
    )


def _laid_out(owner: object, state: Any, name: str, saved: Any) -> Any:
    if not _has_any(state):
        return state  # as it is: a Counter stays one
    if isinstance(state, dict) and isinstance(saved, dict):
        if _is_optimizers(state):
            return _Optimizer(owner, state, name).laid_out(saved)
        laid = copy.copy(state)
        rated = _is_schedulers(state)
        for key, inner in state.items():
            was = saved.get(key, saved.get(str(key)))
            if rated and _are_rates(inner) and was is not None:
                laid[key] = _rates(inner, was)
            else:
                laid[key] = _laid_out(owner, inner, f"{name}.{key}", was)
        return laid
    if isinstance(state, (list, tuple)) and isinstance(saved, list):
        pairs = zip(state, [*saved, *[None] * len(state)], strict=False)
        items = [_laid_out(owner, s, f"{name}.{i}", w) for i, (s, w) in enumerate(pairs)]
        return items if isinstance(state, list) else _tuple_like(state, items)
    if isinstance(state, (list, tuple)) and isinstance(saved, ValueEntry):
        return None  # without a tensor in it it was a value
    return state


def _tuple_like(here: tuple[Any, ...], items: list[Any]) -> Any:
    return getattr(type(here), "_make", type(here))(items)


def _rates(here: Sequence[Any], saved: Any) -> Any:
    """Return new tensors where tensors were saved, and None for values."""
    if not isinstance(saved, list):
        return None
    device = next((r.device for r in here if isinstance(r, torch.Tensor)), torch.device("cpu"))
    return [
        torch.empty(was.shape, dtype=dtype_named(was.dtype), device=device)
        if isinstance(was, Tensor)
        else None
        for was in saved
    ]


class _Optimizer:
    """One optimizer that is here.

    Args:
        owner: it, or what has it inside.
        state: its state dict.
        name: for errors.
    """

    def __init__(self, owner: object, state: Mapping[str, Any], name: str) -> None:
        self._state = state
        self._name = name
        self._groups: list[dict[str, Any]] = state["param_groups"]
        self._real = _real_groups(owner, self._groups)

    def laid_out(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state dict to fill and to load.

        Args:
            saved: what the checkpoint has of it, nested.
        """
        groups = saved.get("param_groups")
        groups = (
            [was for was in groups if isinstance(was, dict)] if isinstance(groups, list) else []
        )
        pairs = list(zip(self._groups, groups, strict=False))
        known: dict[Any, tuple[Any, Any, bool]] = {}  # by the number that was saved
        for index, (group, was) in enumerate(pairs):
            numbers = _numbers(was, group["params"])
            if len(numbers) != len(group["params"]):
                raise PlanError(
                    f"{self._name}.param_groups.{index}: {len(numbers)} parameters were saved, "
                    f"{len(group['params'])} are here",
                    hint="make the optimizer with the same parameters in the same order and groups",
                )
            real = self._real[index]["params"] if self._real else [None] * len(numbers)
            on_device = bool(group.get("capturable") or group.get("fused"))
            for number, here, parameter in zip(numbers, group["params"], real, strict=True):
                known[number] = here, parameter, on_device
        laid = dict(self._state)
        if pairs or "state" in saved:
            laid["state"] = self._states(saved.get("state"), known, len(pairs))
        laid["param_groups"] = [
            *({k: _like(was[k], v) if k in was else v for k, v in g.items()} for g, was in pairs),
            *self._groups[len(pairs) :],
        ]
        return laid

    def _states(
        self, saved: Any, known: Mapping[Any, tuple[Any, Any, bool]], groups: int
    ) -> dict[Any, Any]:
        """Return the state of each parameter of the first groups as it was saved.

        What is no parameter's is so too; the parameters of other groups keep what they have.
        """
        mine = self._state["state"]
        others = [number for group in self._groups[groups:] for number in group["params"]]
        states: dict[Any, Any] = {number: mine[number] for number in others if number in mine}
        by_text = {str(number): number for number in known}  # as DCP has them
        for key, was in saved.items() if isinstance(saved, dict) else ():
            number = by_text.get(key, key) if isinstance(key, str) else key
            if number in known:
                here, parameter, on_device = known[number]
                place = _Place(f"{self._name}.state.{number}", parameter, on_device=on_device)
            elif isinstance(number, int):
                continue  # of a group that is not here
            else:
                here, place = number, _NOWHERE
            states[number] = _like(was, mine.get(here), place)
        return states


class _Place:
    """Makes the tensors of one parameter's state.

    Args:
        name: for errors.
        parameter: None if it is not known.
        on_device: whether "step" is where the parameter is rather than on the CPU.
    """

    def __init__(self, name: str, parameter: Any, *, on_device: bool = False) -> None:
        self._name = name
        self._parameter = parameter
        self._on_device = on_device

    def tensor(self, key: Any, saved: Tensor, here: Any) -> torch.Tensor:
        """Return the tensor to fill: what is here, if it can hold what was saved exactly."""
        shape, dtype = saved.shape, dtype_named(saved.dtype)
        usable = isinstance(here, torch.Tensor) and is_storable(here)
        if usable and (here.dtype == dtype or tuple(here.shape) != shape):  # an error, named later
            return cast("torch.Tensor", here)
        like = self._parameter
        if like is None and saved.only_place is None and shape and _is_distributed():
            raise PlanError(
                f"{self._name}.{key}: its parts were saved by several ranks, and the parameter "
                "that they are sharded like cannot be found",
                hint="let the object show its parameters, as an optimizer's param_groups does",
            )
        if like is None or not is_storable(like):
            device = torch.device("cpu") if like is None else like.device
            return torch.empty(shape, dtype=dtype, device=device)
        its_shape = global_shape(f"{self._name}.{key}", like)
        if key in _LIKE_PARAMETER and its_shape != shape:
            raise PlanError(
                f"{self._name}.{key}: shape {shape} was saved, {its_shape} is its parameter's",
                hint="make the optimizer with the same parameters in the same order",
            )
        if key == "step":
            device = like.device if self._on_device else torch.device("cpu")
            return torch.empty(shape, dtype=dtype, device=device)
        if its_shape == shape:
            return torch.empty_like(like, dtype=dtype, requires_grad=False)
        if isinstance(like, DTensor) and shape:
            everywhere = [Replicate()] * like.device_mesh.ndim
            return empty_dtensor(
                *shape, dtype=dtype, device_mesh=like.device_mesh, placements=everywhere
            )
        return torch.empty(shape, dtype=dtype, device=like.device)


_NOWHERE = _Place("", None)


def _like(saved: Any, here: Any, place: _Place = _NOWHERE, key: Any = None) -> Any:
    """Return what has the structure that was saved, with a tensor for a tensor."""
    if isinstance(saved, Tensor) and not array_type(saved.path):
        return place.tensor(key, saved, here)
    if isinstance(saved, (Tensor, ValueEntry)):
        return None  # any value: the one that was saved takes its place
    if isinstance(saved, dict):
        inner = here if isinstance(here, dict) else {}
        return {k: _like(was, inner.get(k), place, k) for k, was in saved.items()}
    known = [*here] if isinstance(here, (list, tuple)) else []
    known += [None] * (len(saved) - len(known))
    items = [_like(was, one, place) for was, one in zip(saved, known, strict=False)]
    return _tuple_like(here, items) if isinstance(here, tuple) else items


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _numbers(saved: Any, default: list[Any]) -> list[Any]:
    """Return the numbers that a saved group gives its parameters."""
    entry = saved.get("params") if isinstance(saved, dict) else None
    if not isinstance(entry, ValueEntry) or entry.kind != "json":
        return default
    numbers = decode(bytes(entry.data).decode())
    plain = isinstance(numbers, list) and all(isinstance(n, (int, str)) for n in numbers)
    return numbers if plain else default


def _real_groups(owner: object, groups: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """Return the groups that have the parameters themselves, if it is clear which they are."""
    lengths = [len(group["params"]) for group in groups]
    if _lengths(own := _groups_of(owner)) == lengths:
        return cast("list[Any]", own)
    found = {id(real): real for real in map(_groups_of, _parts(owner)) if _lengths(real) == lengths}
    return next(iter(found.values())) if len(found) == 1 else None


def _parts(owner: object) -> Iterable[object]:
    for value in list(getattr(owner, "__dict__", {}).values()):
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _groups_of(value: object) -> Any:
    return None if isinstance(value, type) else getattr(value, "param_groups", None)


def _lengths(groups: Any) -> list[int] | None:
    try:
        return [len(group["params"]) for group in groups]
    except (TypeError, KeyError):
        return None
