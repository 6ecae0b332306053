"""S3 over TLS through a proxy that opens tunnels: bytes and the control plane alike."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import pytest

from tests.conftest import Bucket
from tests.forwarding import forwarding, relay
from tests.loopback import serving
from tierstore.blocks import crc32c
from tierstore.testing.contract_base import read
from tierstore_s3 import S3Options, open_s3

pytestmark = [pytest.mark.minio, pytest.mark.usefixtures("minio_bucket", "no_leaks")]
PART = 8 << 20
DATA = bytes(range(256)) * (2 * PART // 256) + b"the rest"


@pytest.mark.parametrize("over_tls", [False, True], ids=["proxy", "proxy over TLS"])
def test_all_goes_through_the_tunnel(
    minio_bucket: Bucket, certificate: Any, monkeypatch: pytest.MonkeyPatch, *, over_tls: bool
) -> None:
    host, _, port = minio_bucket.server.address.rpartition(":")

    def terminate(sock: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as server:
            relay(sock, server)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(serving(terminate, context))
        proxy = stack.enter_context(forwarding(context if over_tls else None))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.delenv("https_proxy", raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        options = S3Options(part_size=PART, ca_bundle=str(certificate.cert))
        backend = stack.enter_context(
            contextlib.closing(open_s3(f"s3://{minio_bucket.name}/t", options))
        )
        upload = backend.upload("large")
        for at in range(0, len(DATA), PART):
            upload.write(at, DATA[at : at + PART], crc32c(DATA[at : at + PART]))
        info = upload.commit(crc32c=crc32c(DATA))
        assert (info.size, info.crc32c) == (len(DATA), crc32c(DATA))
        assert minio_bucket.read("t/large") == DATA
        assert read(backend, "large", 5, PART + 9) == DATA[5 : PART + 14]
        backend.create("small", b"x")
        assert [each.key for each in backend.list("")] == ["large", "small"]
        backend.delete(["large", "small"])
        assert not list(backend.list(""))
        assert {head.split(b" ")[0] for head in proxy.heads} == {b"CONNECT"}
