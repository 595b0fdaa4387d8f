"""Bad inputs 55 and 56: requests. The long lists are in `tests/serving`; here each kind is sent once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from bad_inputs.case import Case, Command, Post, Workspace
from bad_inputs.folders import case

INFER = "/v2/models/both/infer"
BLANK = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8"}
BYTES = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}


def tensor_body(**changes: object) -> bytes:
    return json.dumps({"inputs": [{**BLANK, "data": [0] * 3072, **changes}]}).encode()


def image_from(address: str) -> bytes:
    return json.dumps({"inputs": [{**BYTES, "data": [address]}]}).encode()


def raw_request(head: str, body: bytes = b"", start: str = "POST /predict") -> Post:
    """A request byte by byte, which must get a 4xx."""
    return Post(
        f"{start} HTTP/1.1\r\n{head}\r\n\r\n",
        body,
        tuple(range(400, 432)),
        excludes=("Traceback", str(Path(__file__).parents[2])),
    )


def local_request(head: str, body: bytes = b"", start: str = "POST /predict") -> Post:
    return raw_request(f"Host: localhost\r\nConnection: close\r\n{head}".rstrip(), body, start)


def requests(workspace: Workspace) -> Sequence[Command | Post]:
    bodies = [
        b"",
        b"{",
        b"[]",
        tensor_body(shape=[-1, 32, 32, 3]),
        tensor_body(shape=[0, 32, 32, 3]),
        tensor_body(shape=[2**62] * 4),
        tensor_body(shape=[2, 32, 32, 3]),
        tensor_body(datatype="FP32"),
        tensor_body(name="x"),
        tensor_body(data=[0.5] * 3072),
        tensor_body().replace(b"[0, 0", b"[NaN, 0"),
        b"[" * 100_000,
    ]
    framing = "Inference-Header-Content-Length: "
    many = b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % n for n in range(10_000))
    bomb = gzip.compress(bytes(60 * 2**20))
    return [
        *(Post(INFER, body, (400, 422), ('"error"',)) for body in bodies),
        Post("/v2/models/other/infer", tensor_body(), (404,), ('"error"',)),
        Post("/v2/models/both/versions/9/infer", tensor_body(), (404,), ('"error"',)),
        Post("/v2", b"", (405,), ('"error"',)),
        *(
            local_request(f"{framing}{size}\r\nContent-Length: 8192", bytes(8192), f"POST {INFER}")
            for size in ("-1", "0", "99999999", "9" * 400, "1e3")
        ),
        local_request("Content-Length: -1"),
        local_request("Content-Length: 1\r\nContent-Length: 2", b"x"),
        local_request("Content-Length: 4\r\nTransfer-Encoding: chunked", b"zzzz"),
        local_request("Transfer-Encoding: chunked", b"ffffffffffffffffff\r\n"),
        local_request("Content-Encoding: gzip\r\nContent-Length: " + str(len(bomb)), bomb),
        local_request(f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(many)}", many),
        local_request("X: " + "a" * 2**20),
        local_request("", start="GET /page/..%2f..%2fetc%2fpasswd"),
        local_request("", start="GET /page/../../../etc/passwd"),
        local_request("", start="DELETE /v2/models/both"),
    ]


def foreign_origins(workspace: Workspace) -> Sequence[Command | Post]:
    addresses = ("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "/etc/passwd", "\\\\host\\share")
    return [
        *(Post(INFER, image_from(address), (400, 422), ('"error"',), ("root:",)) for address in addresses),
        *(Post("/predict", address.encode(), (422,), ("not a usable image",)) for address in addresses),
        raw_request("Host: evil.example\r\nConnection: close", start="GET /v2"),
        raw_request("Host: localhost\r\nOrigin: http://evil.example\r\nConnection: close", start="GET /v2"),
        raw_request("Host: localhost\r\nHost: evil.example\r\nConnection: close", start="GET /v2"),
        Command(("serve", workspace.parent, "--host", "0.0.0.0", "--trial"), (2,), ("--token",)),
        Command(("serve", workspace.parent, "--token", "short", "--trial"), (2,), ("at least 8 printable",)),
        Command(("predict", workspace.parent, "http://169.254.169.254/x.jpg"), (2,), ("does not exist",)),
        Command(("check", "file:///etc"), (2,), ("does not exist",)),
    ]


CASES: list[Case] = [
    case(
        55,
        "requests: JSON, shapes, types, framing, lengths, chunks, bombs, parts, headers, paths",
        "4xx with an error, the server ready",
        requests,
    ),
    case(
        56,
        "addresses and files as images, foreign Host and Origin, no or a short token",
        "refused, nothing is fetched",
        foreign_origins,
    ),
]
