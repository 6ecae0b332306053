"""Closing a client of S3 waits for nobody who looks for credentials."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.patience import PATIENCE
from tierstore_s3.client import S3Client
from tierstore_s3.options import S3Options


@pytest.mark.parametrize("when", ["first", "renewed"])
def test_closing_does_not_wait_for_credentials(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    looking, gate = threading.Event(), threading.Event()
    client = S3Client("bucket", S3Options(endpoint_url="http://127.0.0.1:9", region="us-east-1"))
    used = client._current() if when == "renewed" else None
    look = client._log_in

    def slow() -> Any:
        looking.set()
        gate.wait(PATIENCE)
        return look()

    monkeypatch.setattr(client, "_log_in", slow)
    work = (lambda: client._renew(used)) if used else client._current
    threads = [threading.Thread(target=work), threading.Thread(target=client.close)]
    threads[0].start()
    assert looking.wait(PATIENCE)
    threads[1].start()
    threads[1].join(PATIENCE / 20)
    closed = not threads[1].is_alive()
    gate.set()
    for thread in threads:
        thread.join()
    assert closed
    client.close()
    assert client._login is None
