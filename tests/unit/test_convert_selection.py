"""Which names are taken, and what becomes of names and paths."""

from __future__ import annotations

import json

import pytest

from tierstore.convert.selection import TensorSelection
from tierstore.errors import ConfigError, FormatError
from tierstore.text import some


@pytest.mark.parametrize(
    ("only", "taken"),
    [
        ((), "model.w model.layers.0 models.w step"),
        (("model",), "model.w model.layers.0"),
        (("model.",), "model.w model.layers.0"),
        (("model*",), "model.w model.layers.0 models.w"),
        (("model.*", "step"), "model.w model.layers.0 step"),
        (("step",), "step"),
        (("st",), ""),
        (("{step,models.*}",), "models.w step"),
        (("model.[!l]*",), "model.w"),
    ],
)
def test_what_is_taken(only: tuple[str, ...], taken: str) -> None:
    names = ["model.w", "model.layers.0", "models.w", "step"]
    assert [name for name in names if TensorSelection(only).takes(name)] == taken.split()


def test_what_is_excluded() -> None:
    selection = TensorSelection(("model",), ("*.bias", "model.head"))
    names = ["model.w", "model.w.bias", "model.head.w", "model.heads.w"]
    assert [name for name in names if selection.takes(name)] == ["model.w", "model.heads.w"]


def test_a_malformed_glob_is_refused_before_anything_is_read() -> None:
    for only, exclude in ((("[z-a]",), ()), ((), ("[z-a]",))):
        with pytest.raises(ConfigError, match="z-a"):
            TensorSelection(only, exclude)


@pytest.mark.parametrize(
    ("strip", "add", "name", "path", "renamed"),
    [
        ("", "", "a.b", '["a", "b"]', ("a.b", ["a", "b"])),
        ("model.", "", "model.a.b", '["model", "a.b"]', ("a.b", ["a.b"])),
        ("model.", "", "step", '["step"]', ("step", ["step"])),
        ("model.a.", "", "model.a.b", '["model", "a.b"]', ("b", None)),
        ("o.0.", "", "o.0.m", '["o", {"key": 0}, "m"]', ("m", ["m"])),
        ("o.0.", "", "o.0.m", '["o", {"item": 0}, "m"]', ("m", ["m"])),
        ("m", "", "m", '["m"]', ("m", ["m"])),
        ("", "model.", "a.b", '["a", "b"]', ("model.a.b", ["model", "a", "b"])),
        ("", "x.y.", "a", '["a"]', ("x.y.a", ["x", "y", "a"])),
        ("", "old_", "a", '["a"]', ("old_a", None)),
        ("module.", "model.", "module.a", '["module", "a"]', ("model.a", ["model", "a"])),
        ("model.", "", "model.a", "", ("a", None)),
        ("model.", "", "model.a", '{"dcp": ["model", "a"]}', ("a", {"dcp": ["a"]})),
    ],
)
def test_renaming(strip: str, add: str, name: str, path: str, renamed: tuple[str, object]) -> None:
    new, text = TensorSelection((), (), strip, add).rename(name, path)
    assert (new, json.loads(text) if text else None) == renamed


@pytest.mark.parametrize(
    "path",
    [
        *("{", "5", '"x"', "null", "[" * 9000, "9" * 9000, "[5]", "[null]", "[[]]", "{}"),
        *('{"dcp": 5}', '{"dcp": [null]}', '{"dcp": [], "x": 1}', "[{}]", '[{"item": -1}]'),
        *('[{"item": "x"}]', '[{"item": true}]', '[{"rank": 1e999}]', '[{"item": 1, "key": 2}]'),
    ],
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(FormatError, match=r"path|JSON"):
        TensorSelection(strip="model.").rename("model.a", path)


def test_some_names() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcdefgh", 3) == "a, b, c and 5 more"
