"""Import directions, cycles, sizes and what an import costs."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CODE = ("tierstore", "adapters", "benchmarks")
MAX_FILE_LINES, MEDIAN_FILE_LINES = 500, 150
MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 60, 12
MAX_PARAMETERS = 8
HEAVY = ("torch", "boto3", "botocore", "pyarrow", "moto", "hypothesis", "safetensors", "ray")


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def _functions(path: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_import_cycles():
    graph = grimp.build_graph(
        "tierstore",
        "tierstore_hdfs",
        "tierstore_ray",
        "tierstore_s3",
        "tierstore_torch",
        cache_dir=None,
    )
    on_cycle = [
        f"{module} -> {imported}"
        for module in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(module))
        if graph.chain_exists(importer=imported, imported=module)
    ]
    assert not on_cycle, f"these imports lie on a cycle: {on_cycle}"


def test_no_file_is_too_long():
    sizes = {path: len(path.read_text().splitlines()) for path in _files(*CODE, "tests")}
    long = [f"{path.relative_to(ROOT)}: {n}" for path, n in sizes.items() if n > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines, split the idea: {long}"
    assert statistics.median(sizes[path] for path in _files(*CODE)) <= MEDIAN_FILE_LINES


def test_no_function_is_too_long():
    for_all = [item for path in _files(*CODE, "tests") for item in _functions(path)]
    long = [f"{name}: {_lines(f)}" for name, f in for_all if _lines(f) > MAX_FUNCTION_LINES]
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"
    ours = [_lines(f) for path in _files(*CODE) for _, f in _functions(path)]
    assert statistics.median(ours) <= MEDIAN_FUNCTION_LINES


def test_no_function_takes_too_much():
    functions = [item for path in _files(*CODE) for item in _functions(path)]
    many = [name for name, node in functions if _parameters(node) > MAX_PARAMETERS]
    assert not many, f"more than {MAX_PARAMETERS} parameters: {many}"


def test_one_module_writes_tombstones():
    """What deletes elsewhere would forget the readers: see docs/design/002-commits.md."""
    writers = {
        str(path.relative_to(ROOT))
        for path in _files("tierstore", "adapters")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "tombstone"
    }
    assert writers == {"tierstore/checkpoint/delete.py"}


def test_operations_neither_print_nor_exit():
    """A service and a notebook call them."""
    said = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for path in _files("tierstore/operations")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.Attribute)
        and ast.unparse(node)
        in ("print", "exit", "SystemExit", "sys.exit", "sys.stdout", "sys.stderr")
    ]
    assert not said


def test_no_room_for_everything():
    rooms = [path for path in _files(*CODE) if path.stem in ("utils", "util", "helpers", "misc")]
    assert not rooms


def test_faults_are_not_asserted():
    asserts = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files("tierstore", "adapters")
        if "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not asserts, f"assert is gone under python -O: {asserts}"


@pytest.mark.parametrize(
    "module",
    ["tierstore", "tierstore.cli.main", "tierstore.config", "tierstore.testing"],
)
def test_imports_stay_light(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy.stdout.split(), f"import {module} also imports {heavy.stdout.strip()}"
