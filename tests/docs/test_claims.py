"""What the pages name exists, and what exists is named: links, options, keys, names, tables."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from benchmarks.__main__ import app as benchmarks
from tests.conftest import Bucket, HdfsRoot
from tests.docs.pages import PAGES, ROOT, anchors, inline_code, links, name, tables
from tierstore import errors, registry
from tierstore.checkpoint.columns import schema
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.timeline import Launch
from tierstore.cli.commands import Deferred
from tierstore.cli.main import program
from tierstore.config import Policy, TierConfig, load_config
from tierstore.keys import Attempt
from tierstore.ladder.diagnosis import diagnose
from tierstore_hdfs import open_hdfs

OPERATORS, TORCH, FORMAT = (ROOT / f"docs/{page}.md" for page in ("operators", "torch", "format"))
COMMANDS: dict[str, click.Command] = {
    name: command.load()
    for name, command in program().commands.items()
    if isinstance(command, Deferred)
}
BENCHMARKS: dict[str, click.Command] = typer.main.get_command(benchmarks).commands  # type: ignore[attr-defined]
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_CALL = re.compile(r"\(.*\)$")
_PATH = re.compile(r"(?:tierstore|adapters|tests|docs|benchmarks)/[\w./*-]+")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for where, target in links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{where}: there is no {path}"
        if anchor:
            assert anchor in anchors(other), f"{where}: {name(other)} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_of_this_repository_exist(page: Path) -> None:
    for where, text in inline_code(page):
        if _PATH.fullmatch(text):
            assert list(ROOT.glob(text.rstrip("/"))), f"{where}: there is no {text}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    for where, text in inline_code(page):
        words = text.split()
        if words[0] == "make" and len(words) > 1:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets, f"{where}: the Makefile has no {words[1]!r}"
        if words[0] == "tierstore" and len(words) > 1:
            assert words[1] in COMMANDS, f"{where}: there is no command {words[1]!r}"
            for word in words[2:]:
                if word.startswith("-"):
                    assert word in _options(words[1]), f"{where}: {words[1]} has no {word}"
        elif words[0].startswith("--") and words[0] not in _OF_OTHERS:
            commands = [*COMMANDS.values(), *BENCHMARKS.values()]
            known = set().union(*map(_options_of, commands))
            assert words[0] in known, f"{where}: no command has {words[0]}"


def test_every_command_and_option_is_in_the_operators_page() -> None:
    text = OPERATORS.read_text()
    for command in COMMANDS:
        assert f"`tierstore {command}" in text
        missing = [option for option in _options(command) if f"`{option}" not in text]
        assert set(missing) <= {"--help", "-h"}, f"{command}: {missing}"


def test_every_key_of_a_tier_is_in_the_operators_page_with_its_default() -> None:
    known = {key: default for options in _keys() for key, default in _defaults(options)}
    documented = {cells[0].strip("`"): cells[1] for cells in tables(OPERATORS, "key")}
    assert documented.keys() == known.keys()
    for key, default in known.items():
        cell = documented[key].strip("`")
        found = tomllib.loads(f"x = {cell}")["x"] if cell else None
        assert found == default, f"{key}: the default is {default!r}, not {found!r}"


def test_the_checks_of_doctor_are_in_the_operators_page(
    tmp_path: Path, moto_bucket: Bucket
) -> None:
    documented = {cells[0].strip("`") for cells in tables(OPERATORS, "check")}
    good = load_config(tmp_path.as_uri(), moto_bucket.url).tiers
    bad = TierConfig("t", "file:relative")
    found = {check.name for tier in (*good, bad) for check in diagnose(tier)}
    assert found == documented


@pytest.mark.hdfs
def test_what_doctor_says_of_hdfs_is_in_the_operators_page(hdfs_root: HdfsRoot) -> None:
    documented = {cells[0].strip("`") for cells in tables(OPERATORS, "check of HDFS")}
    with closing(open_hdfs(hdfs_root.url)) as backend:
        hdfs_root.write("k", b"x")
        found = {check.name for check in backend.diagnose()}
    assert documented - found == {"joining"}  # only of an encryption zone
    assert found <= documented


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_errors_exist(page: Path) -> None:
    for where, text in inline_code(page):
        if re.fullmatch(r"[A-Z]\w+Error", text):
            known = hasattr(errors, text) or hasattr(builtins, text)
            assert known, f"{where}: there is no {text}"


@pytest.mark.torch
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_dotted_names_exist(page: Path) -> None:
    for where, text in inline_code(page):
        plain = _CALL.sub("", text)
        first, _, rest = plain.partition(".")
        if _DOTTED.fullmatch(plain) and first in _roots() and plain not in _METADATA:
            thing = _roots()[first]
            assert _has(thing, rest), f"{where}: {first} has no {rest}"
        for keyword in re.findall(r"^(\w+)=[^=]", text):
            assert keyword in _parameters(), f"{where}: nothing takes {keyword}="


@pytest.mark.torch
def test_every_parameter_of_the_public_classes_is_in_the_torch_page() -> None:
    from tierstore_torch import Checkpointer, TierStorageReader, TierStorageWriter

    text = TORCH.read_text()
    ours = Checkpointer.restore, Checkpointer.load, Checkpointer.delete
    calls = (Checkpointer, *ours, TierStorageReader, TierStorageWriter)
    wanted = {parameter for call in calls for parameter in inspect.signature(call).parameters}
    for parameter in wanted - {"self", "state", "tiers"}:
        assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not explained"
    for public in importlib.import_module("tierstore_torch").__all__:
        assert public in {"PerRank", "Save"} or public in text, public


@pytest.mark.torch
def test_the_states_of_a_save_are_in_the_torch_page() -> None:
    from tierstore.ladder.handle import State

    cells = " ".join(cells[0] for cells in tables(TORCH, "state"))
    assert set(re.findall(r"`(\w+)`", cells)) == {str(state) for state in State}


def test_the_schema_of_manifests_is_in_the_format_page() -> None:
    documented = [[c.strip("`") for c in cells[:3]] for cells in tables(FORMAT, "column")]
    assert documented == list(_schema())


@pytest.mark.parametrize("kind", ["commit", "launch"])
def test_the_keys_of_records_are_in_the_format_page(kind: str) -> None:
    launch = Launch(1, "0" * 16, None, 1, 0.0)
    commit = Commit(Attempt(1, 1, 1), launch.nonce, "", 0, 0, (0,), 1, 0, 0, 0, 0)
    record = {"commit": commit, "launch": launch}[kind].to_bytes()
    cells = " ".join(cells[0] for cells in tables(FORMAT, f"key of a {kind}"))
    assert sorted(re.findall(r"`(\w+)`", cells)) == sorted(json.loads(record))


def _schema() -> Iterator[list[str]]:
    for column in schema():
        kind = column.type if column.name == "info" else column.type.value_type
        for field in kind:
            yield [column.name, field.name, re.sub(r" not null", "", str(field.type))]


def _options(command: str) -> set[str]:
    return _options_of(COMMANDS[command])


def _options_of(command: click.Command) -> set[str]:
    return {option for each in command.params for option in each.opts if option[0] == "-"}


_OF_OTHERS = {"--shm-size"}
_METADATA = {key.decode() for key in schema().metadata}


def _keys() -> list[type]:
    found = [registry.options_type(scheme) for scheme in registry.schemes()]
    return [TierConfig, Policy, *(options for options in found if options)]


def _defaults(options: type) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(options):
        if options is TierConfig and field.name in ("options", "policy"):
            continue
        missing = field.default is dataclasses.MISSING
        yield field.name, None if missing else field.default


def _roots() -> dict[str, Any]:
    """What the first part of a dotted name on a page stands for."""
    import torch
    import torch.distributed.checkpoint as dcp

    import tierstore_torch as ours

    return {
        "ckpt": ours.Checkpointer,
        "save": ours.Save,
        "writer": ours.TierStorageWriter,
        "reader": ours.TierStorageReader,
        "error": errors.TierstoreError("x"),
        "dcp": dcp,
        "torch": torch,
        "tierstore": importlib.import_module("tierstore"),
        "tierstore_torch": ours,
        "tierstore_s3": importlib.import_module("tierstore_s3"),
    }


def _has(thing: Any, path: str) -> bool:
    for part in path.split("."):
        if not hasattr(thing, part) and inspect.ismodule(thing):
            try:
                importlib.import_module(f"{thing.__name__}.{part}")
            except ImportError:
                return False
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


def _parameters() -> set[str]:
    import torch.distributed.checkpoint as dcp

    import tierstore
    import tierstore_torch as ours

    calls = (
        ours.Checkpointer,
        ours.Checkpointer.restore,
        ours.Checkpointer.load,
        ours.Save.wait,
        tierstore.Run.steps,
        ours.TierStorageReader,
        ours.TierStorageWriter,
        dcp.save,
        dcp.async_save,
        dcp.load,
    )
    return {name for call in calls for name in inspect.signature(call).parameters}
