"""The published page is whole, needs nothing from elsewhere, and hides nothing behind its plots."""

from __future__ import annotations

import json
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.measure import Sample, summary
from benchmarks.plots import Bar, bars, short
from benchmarks.start import BASE
from benchmarks.storage_judge import errors, judge
from benchmarks.storage_model import Verdict

_VOID = ("meta", "link", "img", "br", "hr", "input", "path", "use")


class Page(HTMLParser):
    """Checks that elements close in order; collects those that carry something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = dict.fromkeys(("processor", "kernel", "python", "torch"), "x")
    return machine | {"cores": 2, "memory_gib": 1, "packages": {"some": "1.0"}}


def _samples(*walls: float) -> dict[str, dict[str, float]]:
    return summary([Sample(wall, 1.0, 1, 1, wall / 4) for wall in walls])


def _checkpoint() -> dict[str, Any]:
    peers = {
        name: {"async": _samples(wall, wall * 1.1), "save": _samples(wall)}
        for name, wall in (("bare copy", 1.0), ("tierstore", 1.5), ("<other> & co", 3.0))
    }
    found = {"bytes": 10**9, "disk_direct_read": [2e9], "errors": {}, "measured_once": {}}
    return {
        "machine": _machine(),
        "rounds": 2,
        "settings": {"tierstore": "as recommended"},
        "scenarios": {"300 tensors": found | {"peers": peers}},
    }


def _storage() -> dict[str, Any]:
    points = []
    for operation in ("put", "get"):
        for size in (1, 4, 8, 16, 32):
            for many in (1, 2, 3, 4, 6, 8):
                seconds = 0.01 + size / 400 * (0.5 + 0.5 * many)
                points.append(
                    {
                        "store": "minio-4",
                        "nodes": 4,
                        "operation": operation,
                        "request": size << 20,
                        "concurrency": many,
                        "bytes": (size << 20) * many,
                        "capacity": 1 << 30,
                        "limit": None,
                        "varied": "D",
                        "fitted": size in (1, 8, 32) and many not in (3, 6),
                        "seconds": {"low": seconds, "median": seconds, "high": seconds * 1.1},
                        "times": [seconds, seconds * 1.1],
                    }
                )
    settings = {"minio-4": "four of them"}
    fits = judge(points)
    return {
        "machine": _machine(),
        "rounds": 1,
        "settings": settings,
        "fits": fits,
        "points": points,
    }


def _timeline() -> dict[str, Any]:
    rows = [
        {"tier": "", "what": "stall", "begin": 0.0, "end": 0.01},
        {"tier": "disk", "what": "write", "begin": 0.01, "end": 0.5},
    ]
    return {"machine": _machine(), "rounds": 1, "bytes": 10**9, "timeline": rows}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    documents = {"checkpoint": _checkpoint(), "storage": _storage(), "timeline": _timeline()}
    folder = tmp_path_factory.mktemp("figures")
    paths = [folder / f"{name}.json" for name in documents]
    for path, document in zip(paths, documents.values(), strict=True):
        path.write_text(json.dumps(document))
    return list(map(str, paths))


@pytest.fixture(scope="module")
def published(written: list[str]) -> tuple[Path, Path]:
    html, markdown = (Path(written[0]).with_name(name) for name in ("r.html", "r.md"))
    done = _publish(*written, "--html", str(html), "--markdown", str(markdown))
    assert done.exit_code == 0, done.output
    return html, markdown


def _publish(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


def test_the_page_is_whole_and_needs_nothing_else(published: tuple[Path, Path]) -> None:
    html, markdown = published
    page = Page()
    page.feed(html.read_text())
    assert page.open == []
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    for name in ("checkpoint", "storage", "timeline"):
        assert name in ids
    for tag, attributes in page.found:
        assert tag not in ("script", "iframe", "img", "base", "object")
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name) or "#").startswith("#"), attributes
    text = html.read_text()
    assert "@import" not in text
    assert "url(http" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert markdown.read_text().count("\n## ") == 3


def test_every_plot_has_words_and_its_table(published: tuple[Path, Path]) -> None:
    html, _ = published
    page = Page()
    page.feed(html.read_text())
    pictures = page.all("svg")
    assert len(pictures) == len(page.all("figcaption")) == 3 + 6 + 1
    labels = [str(attributes["aria-label"]) for attributes in pictures]
    assert all(attributes["role"] == "img" for attributes in pictures)
    stall = next(label for label in labels if "stall of an asynchronous save" in label)
    assert "tierstore 0.394" in stall
    assert "<other> & co 0.788" in stall
    words = "".join(page.words)
    assert "394" in words, "the table has what the plot shows"
    assert "<other> & co" in words
    assert "With some 1.0." in words
    assert "tierstore: as recommended" in words
    assert "#010203" not in html.read_text(), "all ink is the page's own"


def test_the_models_error_stands_beside_the_formulas() -> None:
    document = _storage()
    for fit in document["fits"]:
        held_out = fit["errors"]["held out"]
        assert held_out["points"] == 18
        assert held_out["calibrated"] < 0.02
        assert held_out["printed"] > 1e8
        assert held_out["derived"] > held_out["D/r"] > held_out["calibrated"]


def test_errors_are_of_each_kind_of_point() -> None:
    def point(predicted: float, **what: object) -> dict[str, Any]:
        forms = dict.fromkeys(("calibrated", "D/r", "derived", "printed"), predicted)
        return {"predicted": forms, "seconds": {"median": 2.0}, **what}

    found = errors([point(3.0, fitted=False, varied="r"), point(2.0, fitted=True, varied="D")])
    assert found["r"]["calibrated"] == 0.5
    assert found["fitted"]["calibrated"] == 0
    assert set(found) == {"r", "fitted"}


def test_every_comparison_can_be_published(tmp_path: Path) -> None:
    """Those without plots; the others are in `written`."""
    seconds = _samples(1.0, 2.0)
    layout = {"ranks": 8, "played": 2, "parallel": "DP 8", "published_bytes": 10**11}
    layout |= {"scale": 0.01, "largest_rank_bytes": 10**8}
    peers = {"tierstore": {"save": seconds, "load": seconds}}
    verdict = dict.fromkeys((field.name for field in fields(Verdict)), 0.5) | {"tier": "t"}
    row = {"rung": "r", "predicted": 1.0, "simulated": 1.0, "real": 1.0}
    starts = {name: {"wall": seconds["wall"], "cpu": seconds["cpu"]} for name in (BASE, "ls")}
    base = {"machine": _machine(), "rounds": 2, "settings": {"tierstore": "defaults"}}
    workload = {"bytes": 1, "requests": 1, "peers": {"tierstore": seconds}}
    documents = {
        "mlperf": base | {"mlperf": {"8b": {"layout": layout, "bytes": 1, "peers": peers}}},
        "files": base
        | {"workloads": {"read": workload}, "left_out": {}, "errors": {}, "measured_once": []},
        "model": {"verdicts": [verdict]},
        "start": base | {"starts": starts},
        "ladder": {"rows": [row]},
        "manifest": base
        | {"figures": {"x": {"commit": 1.0, "open_and_find": 1.0, "manifest_bytes": 1}}},
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    paths = [str(tmp_path / f"{name}.json") for name in documents]
    done = _publish(*paths, "--markdown", str(tmp_path / "r.md"))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "r.md").read_text()
    for expected in ("MLPerf 8b: 2 of 8 ranks", "### read", "| t |", "| r |", "| x |", "| `ls` |"):
        assert expected in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no comparison's figures"),
        ('{"x": 1}', "holds no comparison's figures"),
        ('{"timeline": []}', "is not whole"),
    ],
)
def test_a_file_that_is_no_result_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    done = _publish(str(path), "--html", str(tmp_path / "r.html"))
    assert done.exit_code == 2
    text = " ".join(done.output.replace("│", " ").split())
    assert "bad.json" in text.replace(" ", "")
    assert message in text
    assert not (tmp_path / "r.html").exists()


def test_two_files_of_one_name_are_refused(written: list[str], tmp_path: Path) -> None:
    done = _publish(written[0], written[0], "--html", str(tmp_path / "r.html"))
    assert done.exit_code == 2
    assert "two files have the same name" in " ".join(done.output.split())


def test_nothing_to_write_is_an_error(written: list[str]) -> None:
    assert "nothing to write" in " ".join(_publish(*written).output.split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00123, "0.00123"),
        (0.5, "0.5"),
        (12.34, "12.3"),
        (99999, "99999"),
        (1e7, "1e+07"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_the_same_figures_give_the_same_picture() -> None:
    found = [Bar("tierstore", 1, 2, 3), Bar("other", 2, 3, 4)]
    assert bars("t", "s", found).svg == bars("t", "s", found).svg
