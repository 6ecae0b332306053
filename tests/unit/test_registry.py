"""URLs to backends: schemes, options, and no secrets in URLs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata
from types import SimpleNamespace
from typing import Literal

import pytest

from tierstore import registry
from tierstore.errors import ConfigError


@dataclass(frozen=True)
class Options:
    region: str | None = None
    part_size: int = 4
    timeout: float = 1.5
    verify: bool = True
    style: Literal["path", "virtual"] | None = None


@registry.declares(Options)
def open_fake(url: str, options: Options):
    return url, options


def open_plain(url: str, options):
    return url, options


def open_needy(url: str, options):
    raise ModuleNotFoundError("No module named 'boto3'", name="boto3")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    entries = {
        "fake": SimpleNamespace(load=lambda: open_fake),
        "plain": SimpleNamespace(load=lambda: open_plain),
        "s3": SimpleNamespace(load=lambda: open_needy),
        "gone": metadata.EntryPoint("gone", "no_such_module_here:open", registry.GROUP),
    }
    monkeypatch.setattr(registry, "_entries", lambda: entries)


def test_options_come_from_the_url_and_from_beside_it():
    url, options = registry.open_backend("fake://h/p/?part_size=8&verify=false", {"region": "x"})
    assert url == "fake://h/p"
    assert options == Options("x", 8, 1.5, False)


def test_a_factory_that_declares_nothing_gets_the_mapping():
    assert registry.open_backend("plain://h?a=1", {"b": 2}) == ("plain://h", {"a": "1", "b": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regoin": "x"}, r"fake://h: unknown key 'regoin' \(did you mean 'region'\?\)"),
        ({"zzzz": 1}, "known are part_size, region, style, timeout, verify"),
        ({"part_size": "8 MB"}, "'part_size' is '8 MB', which is not of type int"),
        ({"part_size": True}, "'part_size' is True, which is not of type int"),
        ({"part_size": 1.5}, "not of type int"),
        ({"region": 3}, "'region' is 3, which is not of type str"),
        ({"style": "pat"}, "'style' is 'pat', which is not one of 'path', 'virtual'"),
        ({"verify": "maybe"}, "not of type bool"),
        ({"timeout": "nan"}, "'timeout' is 'nan', which is not a finite number"),
        ({"timeout": float("inf")}, "not a finite number"),
        ({"timeout": 10**400}, "not a finite number"),
        ({"timeout": True}, "not a finite number"),
        ({"secret_access_key": "hidden"}, "secret.*AWS_PROFILE"),
    ],
)
def test_a_wrong_option_is_named(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        registry.open_backend("fake://h", given)
    assert "hidden" not in str(caught.value)


def test_numbers_convert_only_where_nothing_is_lost():
    options = registry.parse_options(Options, {"timeout": 2}, where="here")
    assert options.timeout == 2.0
    assert type(options.timeout) is float


def test_none_and_literals_are_values():
    options = registry.parse_options(Options, {"region": None, "style": "path"}, where="here")
    assert options == Options(style="path")


def test_an_option_in_the_url_and_beside_it_is_ambiguous():
    with pytest.raises(ConfigError, match="'region' is given both"):
        registry.open_backend("fake://h?region=a", {"region": "b"})


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hidden@bucket/p",
        "s3://hidden@bucket/p",
        "s3://b/p?aws_secret_access_key=hidden",
        "s3://b/p?X-Amz-Signature=hidden",
        "s3://b/p?session_token=hidden",
        "hdfs://h/p?token=hidden",
        "s3://b/p?access_key=hidden",
        "s3://b/p?access_key=hidden?",
        "s3://b/p?access_key=hidden?region=x",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="credentials come from the environment") as caught:
        registry.open_backend(url)
    assert "hidden" not in str(caught.value)


def test_the_name_of_a_file_with_a_secret_is_none():
    address = registry.parse_url("hdfs://h/p?token_file=/run/token")
    assert address.query == {"token_file": "/run/token"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nvme/tierstore", "'/nvme/tierstore' is not a URL"),
        ("user:hidden@host", "'host' is not a URL"),
        ("://x", "has no scheme"),
        ("file:///p#q", "%23"),
        ("s3://b/p?x", r"s3://b/p is malformed.*one more '\?' behind it"),
        ("s3://b/p?x?y", r"s3://b/p\?x is malformed"),
        ("s3://b/p\nq", "control character"),
        ("s3://[::1/p", "malformed"),
        ("s3://b/p?region=a&region=b", "twice"),
    ],
)
def test_a_malformed_url_is_explained(url, message):
    with pytest.raises(ConfigError, match=message):
        registry.parse_url(url)


def test_a_url_is_taken_apart():
    address = registry.parse_url("S3://Bucket/a b/c/?endpoint_url=http://127.0.0.1:9000")
    assert (address.scheme, address.host, address.path) == ("s3", "Bucket", "/a b/c")
    assert (address.url, address.slash) == ("s3://Bucket/a b/c", True)
    assert address.query == {"endpoint_url": "http://127.0.0.1:9000"}
    assert registry.parse_url("file:///nvme/t").path == "/nvme/t"


@pytest.mark.parametrize(
    "name", ["50%41", "50%", "a+b", "a b", "ü", "a#b", "a?b=c", "%", "?", "a&b"]
)
def test_a_path_is_what_it_reads(name):
    for folder, key in (("s3://b", name), ("hdfs://h:1/p", name), ("memory://m", name)):
        url = registry.join_url(folder, key)
        assert url == f"{folder}/{name}" + "?" * ("?" in name)
        address = registry.parse_url(registry.add_options(url, "region=x"))
        assert address == replace(registry.parse_url(url), query={"region": "x"})
        assert address.path.rpartition("/")[2] == name
        assert address.url == url
        assert registry.split_url(url) == (folder, name)


def test_below_a_folder_with_a_question_mark():
    url = registry.join_url("s3://b/a?b?", "c")
    assert url == "s3://b/a?b/c?"
    assert registry.split_url(url) == ("s3://b/a?b?", "c")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("50%41", "50A"),
        ("50%2541", "50%41"),
        ("a%3Fb", "a?b"),
        ("a%23b", "a#b"),
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("%C3%BC", "ü"),
        ("ü", "ü"),
        ("50%", "50%"),
        ("%FF", "\udcff"),
    ],
)
def test_file_urls_are_percent_encoded(written, meant):
    assert registry.parse_url(f"file:///d/{written}").path == f"/d/{meant}"
    url = registry.join_url("file:///d", meant)
    assert registry.parse_url(url).path == f"/d/{meant}"
    assert registry.split_url(url) == ("file:///d", meant)


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"fkae://.*did you mean 'fake'"):
        registry.open_backend("fkae://h")
    with pytest.raises(ConfigError, match="known are fake, gone, plain, s3"):
        registry.open_backend("webdav://h")


def test_a_missing_package_names_the_extra_to_install():
    with pytest.raises(ConfigError, match=r"needs boto3.*pip install 'tierstore\[s3\]'"):
        registry.open_backend("s3://b/p")
    with pytest.raises(ConfigError, match=r"needs no_such_module_here.*'tierstore'"):
        registry.open_backend("gone://b/p")
