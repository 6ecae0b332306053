"""`tierstore doctor`: what it prints of the findings, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import ladder_file, tierstore
from tierstore.backends.local import diagnosis as local_diagnosis


def test_each_tier_with_its_checks(tmp_path: Path) -> None:
    urls = {name: f"file://{tmp_path}/{name}[1]" for name in ("fast", "slow")}
    done = tierstore("doctor", "-c", ladder_file(tmp_path / "t.toml", **urls))
    assert (done.code, done.err) == (0, "")
    heads = [line for line in done.out.splitlines() if not line.startswith(" ")]
    urls["staging memory"] = "file:///dev/shm"
    assert heads == [f"{name}  {url}" for name, url in urls.items()]
    assert "survives the trainer: " in done.out.partition("staging memory")[2]
    assert done.out.count("  ok      conditional create: the second of two creates") == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "t.toml"]


def test_json(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/t"
    done = tierstore("doctor", "--json", "-c", url)
    found = done.json["local"]
    assert (done.code, found["url"]) == (0, url)
    assert found["checks"][0] == {
        "name": "reachable",
        "outcome": "ok",
        "detail": "listing answers",
        "advice": "",
    }


def test_a_warning_has_advice_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_diagnosis, "set_direct", lambda *_, **__: False)
    done = tierstore("doctor", "-c", f"file://{tmp_path}")
    assert done.code == 0
    said = done.out.partition("  warning O_DIRECT: ")[2].splitlines()
    assert said[1].startswith("          -> ")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_one_bad_tier_fails_all_and_hides_none(tmp_path: Path, as_json: list[str]) -> None:
    (tmp_path / "file").write_text("")
    urls = {"bad": f"file://{tmp_path}/file", "good": f"file://{tmp_path}/good"}
    done = tierstore("doctor", *as_json, "-c", ladder_file(tmp_path / "t.toml", **urls))
    assert done.code == 1
    if as_json:
        outcomes = {
            name: {check["outcome"] for check in found["checks"]}
            for name, found in done.json.items()
        }
        assert "failed" in outcomes["bad"]
        assert "failed" not in outcomes["good"]
        assert "failed" not in outcomes["staging memory"]
    else:
        bad, _, good = done.out.partition("good  ")
        assert "failed  writable: " in bad
        assert "-> " in bad
        assert "failed" not in good
