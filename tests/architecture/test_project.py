"""What the project ships beside code: licence, entry points, pins, compose file, clean files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Apache-2.0 as apache.org publishes it.
LICENSE_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
# Joined here, so that this file passes its own test.
REGISTRIES = [
    ".".join(words)
    for words in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("npmjs", "org"),
        ("maven", "org"),
        ("deb", "debian", "org"),
        ("download", "pytorch", "org"),
    )
]
SECRETS = re.compile(
    "|".join(
        (
            r"\bA(KI|SI)A(?!\w*EXAMPLE)[0-9A-Z]{16}\b",
            r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY",
            r"\bgh[pousr]_[A-Za-z0-9]{36}",
            r"\bxox[abp]-[0-9A-Za-z-]{20,}",
            r"\bhf_[A-Za-z]{30,}",
        )
    )
)
PERSONAL_PATHS = re.compile(r"(?<![\w.])/(root|home/\w+|Users/\w+)/")


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name.decode() for name in names.split(b"\0") if name]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a registry's host", re.compile("|".join(map(re.escape, REGISTRIES)))),
        ("a secret", SECRETS),
        ("somebody's own path", PERSONAL_PATHS),
    ],
    ids=["registries", "secrets", "paths"],
)
def test_no_tracked_file_holds(what, pattern):
    found = [
        f"{path.relative_to(ROOT)}: {match.group()[:8]}..."
        for path in _tracked()
        if path.is_file() and (match := pattern.search(path.read_text(errors="replace")))
    ]
    assert not found, f"{what}: {found}"


def test_the_licence_is_apache_2():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == LICENSE_SHA256
    assert PYPROJECT["license"] == "Apache-2.0"


@pytest.mark.parametrize(
    ("scheme", "target"), PYPROJECT["entry-points"]["tierstore.backends"].items()
)
def test_backends_are_found(scheme, target):
    (entry,) = metadata.entry_points(group="tierstore.backends", name=scheme)
    assert entry.value == target
    assert callable(entry.load())


@pytest.mark.torch
@pytest.mark.parametrize(("name", "target"), PYPROJECT["entry-points"]["tierstore.formats"].items())
def test_formats_are_found(name, target):
    if target.startswith("tierstore_torch"):
        pytest.importorskip("torch")
    (entry,) = metadata.entry_points(group="tierstore.formats", name=name)
    assert entry.value == target
    assert callable(entry.load().write)


def test_the_command_is_found():
    (entry,) = metadata.entry_points(group="console_scripts", name="tierstore")
    assert entry.value == PYPROJECT["scripts"]["tierstore"]
    assert callable(entry.load())


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    extras = PYPROJECT["optional-dependencies"].values()
    for text in [*PYPROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(text)
        if wanted.name == "tierstore":
            continue
        (pin,) = pins[canonicalize_name(wanted.name)]
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{text}, but {pin.version} is pinned"


def _compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_offers_minio_on_loopback_with_a_bucket():
    services = _compose()["services"]
    minio, bucket = services["minio"], services["bucket"]
    assert minio["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in minio["ports"])
    assert bucket["depends_on"] == {"minio": {"condition": "service_healthy"}}
    assert "mc mb --ignore-existing minio/tierstore" in bucket["command"][0]
    for service in (minio, bucket):
        assert re.search(r":RELEASE\.[\dTZ-]+$", service["image"]), "an image has a pinned version"
        for name in ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"):
            assert service["environment"][name].startswith(f"${{{name}:-")


def test_compose_offers_hdfs_on_loopback_with_two_datanodes():
    services = _compose()["services"]
    assert re.fullmatch(r"apache/hadoop:\d+\.\d+\.\d+", services["namenode"]["image"])
    ports = set()
    for name in ("namenode", "datanode1", "datanode2"):
        service = services[name]
        assert service["image"] == services["namenode"]["image"]
        assert service["command"] == ["hdfs", name.rstrip("12")]
        (published,) = service["ports"]
        host, outside, inside = published.split(":")
        assert (host, outside) == ("127.0.0.1", inside), "a redirect names the port inside"
        assert service["healthcheck"]["test"][-1].endswith(f"/{inside}")
        site = service["environment"]
        assert site["HDFS-SITE.XML_dfs.replication"] == "2"
        assert site["HDFS-SITE.XML_dfs.datanode.hostname"] == host, "clients are on the host"
        if name != "namenode":
            assert site["HDFS-SITE.XML_dfs.datanode.http.address"] == f"0.0.0.0:{inside}"
            assert service["depends_on"] == {"namenode": {"condition": "service_healthy"}}
            assert not site["ENSURE_NAMENODE_DIR"], "a datanode formats no namenode"
        ports.add(inside)
    assert len(ports) == 3


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("docker") or "false", "compose", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_docker_accepts_the_compose_file():
    if _docker("version").returncode:
        pytest.skip("no docker compose here")
    done = _docker("-f", "docker-compose.yml", "config", "--quiet")
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_commands_of_the_makefile():
    run = ROOT / ".ci" / "run"
    for script in (run, run.with_name("setup")):
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = re.findall(r"^make (\w+)$", run.read_text(), re.MULTILINE)
    assert wanted == ["check", "test"]
    assert set(wanted) <= set(targets)
    assert {"demo", "test", "check", "bench", "servers"} <= set(targets)
