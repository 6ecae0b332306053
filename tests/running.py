"""How a run is spread over workers, what is quick, and where the time went; hooks of `conftest`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

_SERVERS = {"minio_server", "moto_server", "hdfs_server", "toxics"}
_NOT_QUICK = ("hdfs", "minio", "slow")
_QUICK_KINDS = ("contract", "unit")
_HEAVY_FILES = (  # a third of the files' tests take two thirds of their time
    *("contract/test_local", "contract/test_s3", "unit/test_benchmark_report", "unit/test_cli_m"),
    *("unit/test_dcp_", "unit/test_http_", "unit/test_local", "unit/test_model_", "unit/test_pool"),
    *("unit/test_servers", "unit/test_transfer_", "unit/test_cli_start", "unit/test_convert_trips"),
    *("unit/test_cli_waits", "unit/test_cli_dry", "unit/test_s3_hostile", "unit/test_hdfs_hostile"),
    *("unit/test_migrate_special", "unit/test_values"),
)
_SLOWEST = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-api", action="store_true", help="accept the public API as it is")
    parser.addoption(
        "--quick", action="store_true", help="leave out what needs a server, and the slowest files"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with HDFS, which is the longest chain of tests that one worker runs."""
    items.sort(key=lambda item: not _on_hdfs(item.nodeid))
    if config.getoption("--quick"):
        left_out = [item for item in items if not _is_quick(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _is_quick(item)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests together, and all tests of HDFS: its three JVMs then run only once."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "hdfs" if _on_hdfs(nodeid) else nodeid.partition("::")[0]

    return Scheduling(config, log)


def report(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were slowest and what each kind took, set-up and tear-down included."""
    tests: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tests[report.nodeid] += report.duration
    if not tests:
        return
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, seconds in tests.items():
        kinds[_kind(name)].append(seconds)
    terminalreporter.section(f"the {_SLOWEST} slowest tests")
    for name in sorted(tests, key=tests.__getitem__, reverse=True)[:_SLOWEST]:
        terminalreporter.line(f"{tests[name]:7.1f} s  {name}")
    terminalreporter.section("seconds of each kind, over all workers")
    for kind, taken in sorted(kinds.items(), key=lambda found: -sum(found[1])):
        terminalreporter.line(f"{sum(taken):7.1f} s  {kind}, {len(taken)} tests")


def _kind(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").partition("/")[0]


def _on_hdfs(nodeid: str) -> bool:
    return "hdfs" in nodeid.lower()


def _is_quick(item: pytest.Item) -> bool:
    return (
        _kind(item.nodeid) in _QUICK_KINDS
        and not item.nodeid.removeprefix("tests/").startswith(_HEAVY_FILES)
        and not any(item.get_closest_marker(name) for name in _NOT_QUICK)
        and not _SERVERS & set(getattr(item, "fixturenames", ()))
    )
