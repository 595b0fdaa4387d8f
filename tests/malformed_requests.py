"""Requests that are wrong in every field, byte by byte, and what each may be answered with.

The tests send each of them once; `benchmarks/abuse.py` sends them among good ones for minutes.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

CONNECTION_CLOSED = 0  # the connection is closed without an answer
FORM_TYPE = "multipart/form-data; boundary=x"
CANARY = "canary-7b31"  # stands in bodies, names and headers: no log line may hold it
CANARY_BYTES = CANARY.encode()


class Malformed(NamedTuple):
    """Bytes to send, what may be answered, and whether an answer may take as long as a body may."""

    sent: bytes
    statuses: tuple[int, ...]
    slow: bool = False


def make_requests(model: str, size: int) -> dict[str, Malformed]:
    """Every kind by name, for a model of this name that takes images of `size` pixels."""
    return {**_json(model, size), **_binary(model, size), **_images(), **_forms(), **_framing(), **_headers(model)}


def png_header(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that claims to be of this size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    request_head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", request_head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def post_request(path: str, body: bytes, *headers: str) -> bytes:
    """A request with a true length."""
    return request_head("POST", path, *headers, f"Content-Length: {len(body)}") + body


def request_head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _json(model: str, size: int) -> dict[str, Malformed]:
    count = size * size * 3
    blank: dict[str, Any] = {"name": "image", "shape": [1, size, size, 3], "datatype": "UINT8", "data": [0] * count}

    def tensor_request(changes: Mapping[str, Any], **more: Any) -> bytes:
        return json.dumps({"inputs": [{**blank, **changes}], **more}).encode()

    texts = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}
    url = base64.b64encode(b"http://169.254.169.254/" + CANARY_BYTES).decode()
    bodies: dict[str, tuple[bytes, tuple[int, ...]]] = {
        "invalid JSON": (b"{" + CANARY_BYTES, (400,)),
        "JSON array": (b"[1, 2]", (400,)),
        "deeply nested JSON": (b"[" * 100_000, (400,)),
        "invalid UTF-8": (b'{"id": "\xff\xfe"}', (400,)),
        "lone surrogate": (b'{"id": "\\ud800", "inputs": []}', (400,)),
        "negative shape": (tensor_request({"shape": [-1, size, size, 3]}), (400,)),
        "shape overflow": (tensor_request({"shape": [2**62] * 4}), (400,)),
        "shape with 4,000 digits": (tensor_request({"shape": [10**4000, size, size, 3]}), (400, 422)),
        "wrong shape": (tensor_request({"shape": [1, 3, size, size]}), (400,)),
        "too many images": (tensor_request({"shape": [100_000, size, size, 3]}), (422,)),
        "too few values": (tensor_request({"data": [0] * (count - 1)}), (400,)),
        "wrong datatype": (tensor_request({"datatype": "FP32"}), (400,)),
        "wrong input name": (tensor_request({"name": CANARY}), (400,)),
        "values above 255": (tensor_request({"data": [256] * count}), (400,)),
        "fractional values": (tensor_request({"data": [0.5] * count}), (400,)),
        "strings as values": (tensor_request({"data": ["0"] * count}), (400,)),
        "long string among values": (tensor_request({"data": ["A" * 200_000] + [0] * (count - 1)}), (400,)),
        "NaN value": (tensor_request({}).replace(b"[0, 0", b"[NaN, 0"), (400,)),
        "ragged lists": (tensor_request({"data": [[0], [0, 1]]}), (400,)),
        "thousand outputs": (tensor_request({}, outputs=[{"name": f"label_{CANARY}"}] * 1000), (400,)),
        "unknown output": (tensor_request({}, outputs=[{"name": CANARY}]), (400,)),
        "no inputs": (b'{"inputs": []}', (400,)),
        "URL as image": (json.dumps({"inputs": [{**texts, "data": [url]}]}).encode(), (422,)),
        "invalid base64": (json.dumps({"inputs": [{**texts, "data": ["file:///etc/passwd"]}]}).encode(), (400,)),
        "200,000 elements": (json.dumps({"inputs": [{**texts, "data": [""] * 200_000}]}).encode(), (400,)),
    }
    path = f"/v2/models/{model}/infer"
    return {name: Malformed(post_request(path, body), statuses) for name, (body, statuses) in bodies.items()}


def _binary(model: str, size: int) -> dict[str, Malformed]:
    count, path, named = size * size * 3, f"/v2/models/{model}/infer", "Inference-Header-Content-Length"

    def binary_request(blob: bytes, binary_size: int, length: str | None = None, **changes: Any) -> bytes:
        tensor = {"name": "image", "shape": [1, size, size, 3], "datatype": "UINT8", **changes}
        text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": binary_size}}]}).encode()
        return post_request(path, text + blob, f"{named}: {len(text) if length is None else length}")

    encoded = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}
    requests = {
        "too few bytes": binary_request(bytes(count - 1), count - 1),
        "too many bytes": binary_request(bytes(count + 1), count),
        "wrong binary size": binary_request(bytes(count), count + 1),
        "negative binary size": binary_request(bytes(count), -1),
        "JSON length beyond the body": binary_request(bytes(count), count, "99999999999"),
        "JSON length too short": binary_request(bytes(count), count, "7"),
        "negative JSON length": binary_request(bytes(count), count, "-1"),
        "JSON length not a number": binary_request(bytes(count), count, f"1e3 {CANARY}"),
        "JSON length with 5,000 digits": binary_request(bytes(count), count, "9" * 5000),
        "element longer than its tensor": binary_request(b"\xff\xff\xff\xffabc", 7, **encoded),
        "element without a length": binary_request(b"\x01", 1, **encoded),
        "more elements than declared": binary_request(bytes(400_000), 400_000, **encoded),
    }
    return {name: Malformed(request, (400,)) for name, request in requests.items()}


def _images() -> dict[str, Malformed]:
    def tiff(width: int, height: int) -> bytes:
        tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 9)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)

    bodies = {
        "plain text": CANARY_BYTES,
        "HTML page": b"<html><script>alert(1)</script>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "PNG with 900 million pixels": png_header(30_000, 30_000),
        "TIFF with 3,600 million pixels": tiff(60_000, 60_000),
        "damaged image": png_header(100, 100, CANARY_BYTES),
        "one pixel": png_header(1, 1),
        "extreme aspect ratio": png_header(4, 4000),
    }
    result = {name: Malformed(post_request("/predict", body), (422,)) for name, body in bodies.items()}
    bomb = gzip.compress(bytes(60 * 2**20))
    return result | {
        "empty body": Malformed(post_request("/predict", b""), (400,)),
        "gzip bomb": Malformed(post_request("/predict", bomb, "Content-Encoding: gzip"), (413,)),
        "gzip header without gzip": Malformed(post_request("/predict", CANARY_BYTES, "Content-Encoding: gzip"), (400,)),
        "unsupported content encoding": Malformed(
            post_request("/predict", CANARY_BYTES, "Content-Encoding: br"), (415,)
        ),
        "gzip twice": Malformed(post_request("/predict", CANARY_BYTES, "Content-Encoding: gzip, gzip"), (415,)),
        "query not a number": Malformed(post_request(f"/predict?top={CANARY}", b"x"), (422,)),
        "query with 5,000 digits": Malformed(post_request("/predict?top=" + "9" * 5000, b"x"), (422,)),
    }


def _forms() -> dict[str, Malformed]:
    def part(name: str, filename: str = "", body: bytes = CANARY_BYTES) -> bytes:
        text = f'--x\r\nContent-Disposition: form-data; name="{name}"'
        text += f'; filename="{filename}"' if filename else ""
        return text.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body + b"\r\n"

    names = (
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "\x1b[31mred",
        "C:\\windows\\x",
        "\u202egpj.exe",
        "\udcff",
    )
    many = b"".join(part(f"f{number}") for number in range(10_000)) + b"--x--"
    bodies = {
        "form truncated in a header": (part("f", "a.png")[:30], FORM_TYPE),
        "form truncated in a file": (part("f", "a.png"), FORM_TYPE),
        "form without an end": (part("f", "a.png") * 3, FORM_TYPE),
        "form without a boundary": (part("f", "a.png"), "multipart/form-data"),
        "form with a long boundary": (part("f", "a.png"), "multipart/form-data; boundary=" + "x" * 5000),
        "form with 10,000 fields": (many, FORM_TYPE),
        "form without a file": (part("f") + b"--x--", FORM_TYPE),
        "form without a name": (b"--x\r\nX: y\r\n\r\n1\r\n--x--", FORM_TYPE),
        "form without parts": (b"x" * 100, FORM_TYPE),
        "form with a long header": (b"--x\r\nX: " + b"y" * 50_000 + b"\r\n\r\n1\r\n--x--", FORM_TYPE),
        "form in a codec that raises": (part("f", "a.png") + b"--x--", FORM_TYPE + "; charset=undefined"),
        **{f"file name {name!a}": (part("f", name) + b"--x--", FORM_TYPE) for name in names},
        **{
            f"form in {codec}": (part("f", "a\\ud800+2AA-.png") + b"--x--", f"{FORM_TYPE}; charset={codec}")
            for codec in ("unicode_escape", "utf-7", "hex", "punycode", "idna", CANARY)
        },
    }
    return {
        name: Malformed(post_request("/predict", body, f"Content-Type: {kind}"), (400, 422))
        for name, (body, kind) in bodies.items()
    }


def _framing() -> dict[str, Malformed]:
    """Whatever can be wrong about where a request ends; what follows it may be answered as a request of its own."""

    def framed(*headers: str, body: bytes = b"") -> bytes:
        return request_head("POST", "/predict", *headers) + body

    chunked = "Transfer-Encoding: chunked"
    cut = {
        "negative length": framed("Content-Length: -1"),
        "signed length": framed("Content-Length: +5", body=b"hello"),
        "hexadecimal length": framed("Content-Length: 0x5", body=b"hello"),
        "length overflow": framed("Content-Length: " + "9" * 4000),
        "two lengths": framed("Content-Length: 1", "Content-Length: 2", body=b"xx"),
        "two lengths in one header": framed("Content-Length: 1, 2", body=b"xx"),
        "unknown transfer coding": framed("Transfer-Encoding: xchunked", body=CANARY_BYTES),
        "gzip before chunked": framed("Transfer-Encoding: gzip, chunked", body=CANARY_BYTES),
        "two transfer codings": framed(chunked, "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
        "transfer coding after a tab": framed("Transfer-Encoding:\tchunked\x0b", body=CANARY_BYTES),
        "space before the colon": framed("Content-Length : 5", body=b"hello"),
        "folded header": framed("X: a\r\n b: c", "Content-Length : 0"),
        "header without a colon": framed(CANARY),
        "NUL byte": framed("X: a\0b"),
        "header of 1 MiB": framed("X: " + "a" * 2**20),
        "10,000 headers": framed(*(f"X{number}: 1" for number in range(10_000))),
        "long URL": request_head("GET", "/" + "a" * 2**20),
        "no Host": b"GET /v2 HTTP/1.1\r\n\r\n",
        "two Hosts": request_head("GET", "/v2", "Host: evil.example"),
        "HTTP/0.9": b"GET /v2\r\n\r\n",
        "TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "random bytes": CANARY_BYTES + bytes(range(256)) * 8 + b"\r\n\r\n",
        "invalid chunk size": framed(chunked, body=b"zz\r\nabc\r\n0\r\n\r\n" + CANARY_BYTES),
        "negative chunk size": framed(chunked, body=b"-1\r\n" + CANARY_BYTES),
        "chunk size with 30 digits": framed(chunked, body=b"f" * 30 + b"\r\n" + CANARY_BYTES),
        "chunk longer than its size": framed(chunked, body=b"3\r\nabcdef" + CANARY_BYTES + b"\r\n0\r\n\r\n"),
        "long chunk extension": framed(chunked, body=b"3;" + b"a" * 2**20 + b"\r\nabc\r\n0\r\n\r\n"),
    }
    result = {name: Malformed(request, (400, CONNECTION_CLOSED)) for name, request in cut.items()}
    result["HTTP/2 preface"] = Malformed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 403))
    both = framed("Content-Length: 4", chunked, body=b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    result["length and chunked"] = Malformed(both, (400,))
    short = framed("Content-Length: 1", body=b"x" + b"GARBAGE " + CANARY_BYTES + b"\r\n\r\n")
    result["length too short"] = Malformed(short, (422,))
    result["length too long"] = Malformed(
        framed("Content-Length: 1000", body=CANARY_BYTES), (408, CONNECTION_CLOSED), slow=True
    )
    result["chunks without an end"] = Malformed(
        framed(chunked, body=b"3\r\nabc\r\n"), (408, CONNECTION_CLOSED), slow=True
    )
    result["length of 1 TiB"] = Malformed(framed(f"Content-Length: {2**40}", body=CANARY_BYTES), (413,))
    result["Expect: 100-continue with 1 TiB"] = Malformed(
        framed("Expect: 100-continue", f"Content-Length: {2**40}"), (413,)
    )
    return result


def _headers(model: str) -> dict[str, Malformed]:
    def get(path: str, *headers: str, method: str = "GET") -> bytes:
        return request_head(method, path, *headers, "Content-Length: 0")

    return {
        "malformed Origin": Malformed(get("/v2", "Origin: http://["), (403,)),
        "Origin with an invalid port": Malformed(get("/v2", "Origin: http://localhost:99999999"), (403,)),
        "foreign Origin": Malformed(get("/v2", "Origin: http://evil.example"), (403,)),
        "foreign Host": Malformed(b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", (403,)),
        "malformed Host": Malformed(b"GET /v2 HTTP/1.1\r\nHost: [::1\r\n\r\n", (403,)),
        "absolute URL": Malformed(get("http://evil.example/v2"), (404,)),
        "OPTIONS *": Malformed(get("*", method="OPTIONS"), (404, 405)),
        "unknown method": Malformed(get("/predict", method="BREW"), (405,)),
        "CONNECT": Malformed(get("evil.example:443", method="CONNECT"), (400, 404, 405)),
        "encoded path traversal": Malformed(get("/page/..%2f..%2f..%2fetc%2fpasswd"), (404,)),
        "path traversal": Malformed(get("/page/../../etc/passwd"), (404,)),
        "undecodable path": Malformed(get("/page/%ff%fe%00"), (404,)),
        "unknown model": Malformed(get(f"/v2/models/{CANARY}"), (404,)),
        "long model name": Malformed(get("/v2/models/" + "a" * 5000), (404, 422)),
        "unknown version": Malformed(get(f"/v2/models/{model}/versions/9"), (404,)),
        "protocol upgrade": Malformed(get("/v2/models/x", "Connection: Upgrade", "Upgrade: websocket"), (404,)),
        "model unload": Malformed(get(f"/v2/repository/models/{model}/unload", method="POST"), (404,)),
    }
