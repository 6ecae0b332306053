"""Files of points: they come back as they were written, and say what is wrong with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests import model_points
from tierstore.errors import ConfigError, FormatError, ModelError, NewerFormatError
from tierstore.model.points import load_points


def test_there_and_back(tmp_path: Path) -> None:
    path = Path(model_points.write(tmp_path / "p.json"))
    assert load_points(path) == model_points.measured()


def test_samples_of_the_parts_of_a_put_and_of_reads() -> None:
    tier = model_points.measured().tier("nvme")
    puts, writes, commits = (tier.samples(name) for name in ("put", "write", "commit"))
    for put, write, commit in zip(puts, writes, commits, strict=True):
        assert write.seconds + commit.seconds == pytest.approx(put.seconds)
    assert len(tier.samples("read")) == len(tier.samples("get")) + len(tier.samples("range"))
    found = tier.fit("read").curve
    assert found.bandwidth == pytest.approx(1e9, rel=0.01)


def test_what_cannot_be_fitted_is_named_with_its_tier() -> None:
    empty = model_points.measured(
        model_points.tier("nvme", model_points.NVME, local=True),
    )
    with pytest.raises(ModelError, match="tier nvme: rename: no measured points"):
        empty.tier("nvme").fit("rename")
    with pytest.raises(ConfigError, match=r"tier 's3' is not among .*measured are: nvme"):
        empty.tier("s3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.clear(), "no 'format'"),
        (lambda d: d.update(format="x"), "no 'format'"),
        (lambda d: d.pop("copy"), "'copy' is 0 bytes/s, not a number above 0"),
        (lambda d: d.update(copy=-1), "'copy' is -1 bytes/s, not a number above 0"),
        (lambda d: d.update(copy=math.nan), "'copy' is nan"),
        (lambda d: d.update(copy=10**400), "'copy' is 1e\\+308"),
        (lambda d: d["machine"].update(cores=0), "number of cores is 0"),
        (lambda d: d["tiers"][0].update(part_size=0), "tier 'nvme': part_size is 0"),
        (lambda d: d["tiers"][0].update(concurrency=10**30), "tier 'nvme': concurrency is 1e"),
        (lambda d: d["tiers"][0]["points"][0].update(p50=0), "point 1: p50 is 0"),
        (lambda d: d["tiers"][0]["points"][0].update(p90=math.inf), "point 1: 'p90' is inf"),
        (lambda d: d["tiers"][0]["points"][0].update(cpu=-1), "point 1: cpu is -1"),
        (lambda d: d["tiers"][0]["points"][0].update(seconds=10**400), "'seconds' is 1000"),
        (lambda d: d["tiers"].extend([{}] * 100), "'tiers' has 102 entries"),
        (lambda d: d["tiers"][0]["points"].extend([{}] * 10_000), "points' has 10,"),
        (lambda d: d.update(tiers={}), "'tiers' is not a list"),
        (lambda d: d["tiers"].append(3), "tier 3 is not a table"),
        (lambda d: d["tiers"][0].pop("part_size"), "tier 'nvme' has no 'part_size'"),
        (lambda d: d["tiers"][0].update(local="maybe"), "tier 'nvme': 'local' is 'maybe'"),
        (lambda d: d["tiers"][0].update(point=[]), "tier 'nvme': unknown key 'point'"),
        (lambda d: d["tiers"][1]["points"][2].pop("seconds"), "point 3 has no 'seconds'"),
        (lambda d: d["tiers"][1]["points"][0].update(nbytes="x"), "point 1: 'nbytes' is 'x'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, change: Any, message: str) -> None:
    document = model_points.measured().to_json()
    document = json.loads(json.dumps(document))
    change(document)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=message):
        load_points(path)


def test_newer_and_missing_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(ConfigError, match=r"no such file .*tierstore bench"):
        load_points(path)
    path.write_text(f"[{'{},' * 1_000_000}1]")
    with pytest.raises(FormatError, match="it is too large"):
        load_points(path)
    path.write_text("{")
    with pytest.raises(FormatError, match="cannot be read as JSON"):
        load_points(path)
    path.write_text('{"format": 99}')
    with pytest.raises(NewerFormatError, match="format 99"):
        load_points(path)
    for text in ("[" * 100_000, '{"format": 1' + "0" * 5000, " " * (1 << 24) + "{}"):
        path.write_text(text)
        with pytest.raises(FormatError):
            load_points(path)
