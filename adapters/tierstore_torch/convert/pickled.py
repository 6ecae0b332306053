"""A pickle read as plain data: nothing is imported, called or set, whatever it asks for.

Python's own unpickler lets a pickle set attributes on all that it may name, and allocates as much
as a pickle says its memo has. This one knows the instructions that protocols 2 to 5 write for plain
values and dataclasses (the module pickletools describes them), and of an object keeps its class's
name and what it was made from.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_SPARSE = 3
"""Bytes of pickle for each container, at least; chunks of one dimension have 4.4."""
_FREE = 1000


class Items(list[tuple[Any, Any]]):
    """The items of a dict. Keys are not hashed: a pickle chooses them."""


class Name(str):
    """What a pickle names: "module.name"."""

    __slots__ = ()


class Made:
    """An object.

    Attributes:
        name: of what makes it.
        args: what that is given.
        state: what it is told afterwards, or None.
    """

    __slots__ = ("args", "name", "state")

    def __init__(self, name: Name, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None


def read_pickle(data: bytes, find: Callable[[str, str], object]) -> Any:
    """Return what a pickle holds.

    Args:
        data: the whole pickle.
        find: is told every module and name that it uses; returns what stands for it, such as a
            `Name`, or raises.

    Raises:
        ValueError: it is damaged, or has instructions that are not needed for plain data.
    """
    try:
        return _Machine(data, find).run()
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError("the pickle is damaged") from error


class _Machine:
    def __init__(self, data: bytes, find: Callable[[str, str], object]) -> None:
        self._data = data
        self._find = find
        self._at = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks that marks were set on
        self._memo: dict[int, Any] = {}
        self._left = _FREE + len(data) // _SPARSE

    def run(self) -> Any:
        while True:
            code = self._data[self._at]
            self._at += 1
            if code == _STOP:
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"the pickle has the instruction {code:#04x} at {self._at - 1}")
            step(self)

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise ValueError("the pickle ends too early")
        self._at += size
        return data

    def number(self, layout: struct.Struct) -> Any:
        value = layout.unpack_from(self._data, self._at)[0]
        self._at += layout.size
        return value

    def line(self) -> str:
        end = self._data.index(b"\n", self._at)
        text = self._data[self._at : end]
        self._at = end + 1
        return text.decode()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def contain(self, value: Any) -> None:
        """Push a container."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("the pickle has far more containers than any metadata")
        self._stack.append(value)

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        found, self._stack = self._stack, self._below.pop()
        return found

    def tuple(self, size: int) -> None:
        stack = self._stack
        found = tuple(stack[-size:])
        if len(found) < size:
            raise IndexError
        del stack[-size:]
        self.contain(found)

    # These three are half of all that a metadata is made of.

    def small(self) -> None:
        self._stack.append(self._data[self._at])
        self._at += 1

    def get_near(self) -> None:
        self._stack.append(self._memo[self._data[self._at]])
        self._at += 1

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def named(self, module: Any, name: Any) -> None:
        self._stack.append(self._find(_of(str, module), _of(str, name)))

    def stack_global(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    def make(self) -> None:
        args = _of(tuple, self.pop())
        self.contain(Made(_of(Name, self.pop()), args))

    def build(self) -> None:
        state = self.pop()
        made = _of(Made, self._stack[-1])
        if made.state is not None:
            raise ValueError("the pickle makes an object twice")
        made.state = state

    def append(self, values: list[Any]) -> None:
        _of(list, self._stack[-1]).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = _of(Items, self._stack[-1])
        target.extend(zip(values[::2], values[1::2], strict=True))


def _of(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise ValueError(f"the pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _structs(layout: str) -> struct.Struct:
    return struct.Struct(f"<{layout}")


_U1, _U2, _U4, _U8, _I4 = map(_structs, ("B", "H", "I", "Q", "i"))
_F8 = struct.Struct(">d")
_STOP = ord(".")


def _text(layout: struct.Struct) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)).decode())


def _raw(layout: struct.Struct) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)))


def _value(layout: struct.Struct) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.number(layout))


def _long(layout: struct.Struct) -> Callable[[_Machine], None]:
    return lambda m: m.push(int.from_bytes(m.take(m.number(layout)), "little", signed=True))


def _pair(m: _Machine) -> list[Any]:
    value = m.pop()
    return [m.pop(), value]


def _frame(m: _Machine) -> None:
    m.number(_U8)


def _proto(m: _Machine) -> None:
    m.number(_U1)


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _proto,
    0x95: _frame,
    ord("("): _Machine.mark,
    ord("0"): lambda m: _dropped(m.pop()),
    ord("1"): lambda m: _dropped(m.marked()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): _Machine.small,
    ord("M"): _value(_U2),
    ord("J"): _value(_I4),
    0x8A: _long(_U1),
    0x8B: _long(_U4),
    ord("G"): _value(_F8),
    0x8C: _text(_U1),
    ord("X"): _text(_U4),
    0x8D: _text(_U8),
    ord("C"): _raw(_U1),
    ord("B"): _raw(_U4),
    0x8E: _raw(_U8),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple(1),
    0x86: lambda m: m.tuple(2),
    0x87: lambda m: m.tuple(3),
    ord("t"): lambda m: m.contain(tuple(m.marked())),
    ord("]"): lambda m: m.contain([]),
    0x8F: lambda m: m.contain([]),  # a set
    ord("}"): lambda m: m.contain(Items()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.marked()),
    0x90: lambda m: m.append(m.marked()),
    ord("s"): lambda m: m.set_items(_pair(m)),
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: _Machine.stack_global,
    0x81: _Machine.make,
    ord("R"): _Machine.make,
    ord("b"): _Machine.build,
    ord("h"): _Machine.get_near,
    ord("j"): lambda m: m.get(m.number(_U4)),
    ord("q"): lambda m: m.put(m.number(_U1)),
    ord("r"): lambda m: m.put(m.number(_U4)),
    0x94: _Machine.memoize,
}


def _dropped(_: Any) -> None:
    """Forget what was taken."""
