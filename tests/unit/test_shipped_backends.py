"""The backends that are shipped are found by their URLs, with the options they declare."""

from __future__ import annotations

import pytest

from tierstore import registry
from tierstore.backend import Backend
from tierstore.config import load_config
from tierstore.errors import ConfigError
from tierstore.wrappers import open_tier


def test_local_and_memory_open_from_urls(tmp_path, no_leaks):
    for url in (f"file://{tmp_path}/t", "memory://shipped"):
        backend = registry.open_backend(url)
        assert isinstance(backend, Backend)
        backend.create("a/b", b"12")
        buffer = bytearray(2)
        backend.read_into("a/b", 0, memoryview(buffer))
        assert bytes(buffer) == b"12"
        backend.close()


def test_s3_opens_from_the_url_of_a_server(s3_bucket, no_leaks):
    tier = load_config(s3_bucket.server.url(s3_bucket.name, "p")).tiers[0]
    backend = open_tier(tier)
    backend.create("a/b", b"12")
    backend.close()
    assert s3_bucket.read("p/a/b") == b"12"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://b/p?regoin=eu", r"s3://b/p: unknown key 'regoin' \(did you mean 'region'\?\)"),
        ("s3://b/p?part_size=x", "'part_size' is 'x', which is not of type int"),
        ("file:///a?max_request=2", "did you mean 'max_requests'"),
        ("memory://a?nonsense=2", "unknown key 'nonsense'"),
    ],
)
def test_a_misspelt_option_is_named_when_the_configuration_is_read(url, message):
    with pytest.raises(ConfigError, match=message):
        load_config(url)
