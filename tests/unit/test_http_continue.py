"""A server that says "100 Continue" unasked, as HDFS datanodes do, still gets the whole body."""

from __future__ import annotations

import socket

from tests.loopback import answer, read_head, serving
from tierstore.http import Transport

BODY = bytes(8 << 20)


def test_an_unasked_continue_is_no_answer():
    got = []

    def serve(sock: socket.socket) -> None:
        _, _, body = read_head(sock).partition(b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = len(body)
        while received < len(BODY):
            received += len(sock.recv(1 << 16)) or len(BODY)
        got.append(received)
        sock.sendall(answer(b"", "201 Created"))

    transport = Transport(pool_size=1)
    with serving(serve) as url:
        response = transport.request("PUT", f"{url}/x", headers={}, body=BODY)
        transport.close()
    assert (response.status, got) == (201, [len(BODY)])
