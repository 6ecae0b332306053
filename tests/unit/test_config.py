"""The configuration: what it accepts, and that each error names file, tier, key and remedy."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import dataclass

import pytest

from tierstore import registry
from tierstore.config import Config, Policy, TierConfig, load_config
from tierstore.errors import ConfigError


@dataclass(frozen=True)
class Options:
    region: str | None = None
    depth: int = 1


@pytest.fixture(autouse=True)
def known_backends(monkeypatch):
    """Every scheme has the same few options: what is tested is the configuration."""
    monkeypatch.setattr(registry, "options_type", lambda _scheme: Options)


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "tierstore.toml"
        path.write_text(text)
        return path

    return write


def test_a_whole_file(toml):
    config = load_config(
        toml("""
            [[tier]]
            name = "nvme"
            url = "file:///nvme/tierstore/"
            [[tier]]
            name = "s3"
            url = "s3://bucket/t"
            every = 10
            region = "eu"
            retry_seconds = 5
            write_bandwidth = 1_000
        """)
    )
    assert config == Config(
        (
            TierConfig("nvme", "file:///nvme/tierstore"),
            TierConfig(
                "s3",
                "s3://bucket/t",
                10,
                {"region": "eu"},
                Policy(retry_seconds=5.0, write_bandwidth=1000),
            ),
        )
    )
    assert load_config(config) is config
    assert pickle.loads(pickle.dumps(config)) == config


def test_urls_get_names():
    config = load_config(
        "file:///dev/shm/t", "file:///a", "file:///b?every=2", "s3://b/p?region=eu&max_requests=3"
    )
    assert [tier.name for tier in config.tiers] == ["memory", "local", "local2", "s3"]
    assert config.tiers[2].every == 2
    assert config.tiers[3] == TierConfig(
        "s3", "s3://b/p", 1, {"region": "eu"}, Policy(max_requests=3)
    )
    assert load_config("memory://x?name=fast").tiers[0].name == "fast"


def test_a_folder_beside_shared_memory_is_not_memory():
    assert load_config("file:///dev/shmoo/t").tiers[0].name == "local"


def test_nothing_given_means_the_variable_then_the_file(toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"TIERSTORE_CONFIG is not set and \./tierstore\.toml is"):
        load_config()
    toml('[[tier]]\nname = "here"\nurl = "file:///a"')
    assert load_config().tiers[0].name == "here"
    monkeypatch.setenv("TIERSTORE_CONFIG", "s3://b/p")
    assert load_config().tiers[0].name == "s3"


S3 = '[[tier]]\nname = "s3"\nurl = "s3://b/p"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (S3 + "regoin = 'x'", r"tierstore\.toml: tier 's3': unknown key 'regoin'.*'region'"),
        (S3 + "evry = 2", r"tier 's3': unknown key 'evry' \(did you mean 'every'\?\)"),
        (S3 + "max_request = 2", "did you mean 'max_requests'"),
        (S3 + "keep_last = 2", "tier 's3': unknown key 'keep_last'.*known are"),
        (S3 + "every = '2x'", "tier 's3': 'every' is '2x', which is not of type int"),
        (S3 + "every = true", "tier 's3': 'every' is True"),
        (S3 + "every = 0", "tier 's3': 'every' is 0, not at least 1"),
        (S3 + "every = 2", "tier 's3' is the first, so 'every' is 1"),
        (S3 + "max_requests = 0", "'max_requests' is 0, not at least 1"),
        (S3 + "retry_seconds = -1", "tier 's3': 'retry_seconds' is -1"),
        (S3 + "retry_seconds = nan", "tier 's3': 'retry_seconds' is nan"),
        (S3 + "secret_key = 'hidden'", "secret_key.*AWS_PROFILE"),
        (S3 + S3, "two tiers have the name 's3'"),
        (S3 + S3.replace('"s3"', '"b"'), "two tiers have the url 's3://b/p'"),
        (S3.replace("s3://b", "s3://u:hidden@b"), "tier 's3': the URL of s3://b/p holds"),
        (S3.replace('"s3"', '"a b"'), "tier name 'a b' is not legal"),
        ("[[tier]]\nurl = 's3://b'", "tier 1 has no 'name'"),
        ("[[tier]]\nname = 'x'", "tier 'x' has no 'url'"),
        ("[[tier]]\nname = 'x'\nurl = 3", "tier 'x' has no 'url' that is text"),
        ("[[tier]]\nname = 'x'\nurl = '/a'", "tier 'x': '/a' is not a URL"),
        ("[tier]\nname = 'x'", r"'tier' is not a list of tables \(write it as \[\[tier\]\]\)"),
        ("tier = [1]", "not a list of tables"),
        ("[[teir]]\nname = 'x'", r"tierstore\.toml: unknown key 'teir' \(did you mean 'tier'\?\)"),
        ("", r"tierstore\.toml: there is no tier"),
        ("[[tier]", r"tierstore\.toml is not TOML: .*line 1"),
        pytest.param("a = " + "[" * 9000, r"tierstore\.toml is not TOML", id="deep"),
        pytest.param("a = " + "9" * 9000, r"tierstore\.toml is not TOML", id="long"),
        pytest.param("#" * (1 << 20) + "x", r"has more than 1,048,576 bytes", id="large"),
    ],
)
def test_each_mistake_is_named(toml, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(toml(text))
    assert "hidden" not in str(caught.value)
    assert str(caught.value).count("tierstore.toml") == 1


@pytest.mark.parametrize(
    "text", ["a." * 20_000 + "a=1", "[" + "a." * 20_000 + "a]", ("a." * 199 + "a{}=1\n") * 2000]
)
def test_keys_of_very_many_parts_are_not_parsed(toml, text):
    """40 KB became 1.5 GB."""
    path = toml(text)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="very many parts: it is no configuration"):
            load_config(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.toml: there is no such file"):
        load_config(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match=r"is a folder.*write file:///"):
        load_config(tmp_path)


def test_a_mixture_is_refused(toml):
    with pytest.raises(ConfigError, match="not a mixture"):
        load_config(toml(S3), "s3://b/p")
    with pytest.raises(ConfigError, match="not a mixture"):
        load_config("s3://b/p", Config((TierConfig("a", "file:///a"),)))
