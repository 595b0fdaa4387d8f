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
    return {**_json(model, size), **_binary(model, size), **_pictures(), **_forms(), **_framing(), **_headers(model)}


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

    def asked(changes: Mapping[str, Any], **more: Any) -> bytes:
        return json.dumps({"inputs": [{**blank, **changes}], **more}).encode()

    texts = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}
    url = base64.b64encode(b"http://169.254.169.254/" + CANARY_BYTES).decode()
    bodies: dict[str, tuple[bytes, tuple[int, ...]]] = {
        "no JSON": (b"{" + CANARY_BYTES, (400,)),
        "JSON of another kind": (b"[1, 2]", (400,)),
        "JSON a thousand deep": (b"[" * 100_000, (400,)),
        "no UTF-8": (b'{"id": "\xff\xfe"}', (400,)),
        "half a surrogate": (b'{"id": "\\ud800", "inputs": []}', (400,)),
        "a negative shape": (asked({"shape": [-1, size, size, 3]}), (400,)),
        "a shape beyond all numbers": (asked({"shape": [2**62] * 4}), (400,)),
        "a shape of 4,000 digits": (asked({"shape": [10**4000, size, size, 3]}), (400, 422)),
        "another shape": (asked({"shape": [1, 3, size, size]}), (400,)),
        "too many images": (asked({"shape": [100_000, size, size, 3]}), (422,)),
        "too few values": (asked({"data": [0] * (count - 1)}), (400,)),
        "another type": (asked({"datatype": "FP32"}), (400,)),
        "another name": (asked({"name": CANARY}), (400,)),
        "values that are no bytes": (asked({"data": [256] * count}), (400,)),
        "fractions": (asked({"data": [0.5] * count}), (400,)),
        "no numbers": (asked({"data": ["0"] * count}), (400,)),
        "a long text among numbers": (asked({"data": ["A" * 200_000] + [0] * (count - 1)}), (400,)),
        "no number at all": (asked({}).replace(b"[0, 0", b"[NaN, 0"), (400,)),
        "lists of different lengths": (asked({"data": [[0], [0, 1]]}), (400,)),
        "an output a thousand times": (asked({}, outputs=[{"name": f"label_{CANARY}"}] * 1000), (400,)),
        "an output that is unknown": (asked({}, outputs=[{"name": CANARY}]), (400,)),
        "no input": (b'{"inputs": []}', (400,)),
        "an address for an image": (json.dumps({"inputs": [{**texts, "data": [url]}]}).encode(), (422,)),
        "no base64": (json.dumps({"inputs": [{**texts, "data": ["file:///etc/passwd"]}]}).encode(), (400,)),
        "a million elements": (json.dumps({"inputs": [{**texts, "data": [""] * 200_000}]}).encode(), (400,)),
    }
    path = f"/v2/models/{model}/infer"
    return {name: Malformed(post_request(path, body), statuses) for name, (body, statuses) in bodies.items()}


def _binary(model: str, size: int) -> dict[str, Malformed]:
    count, path, named = size * size * 3, f"/v2/models/{model}/infer", "Inference-Header-Content-Length"

    def sent(blob: bytes, said: int, length: str | None = None, **changes: Any) -> bytes:
        given = {"name": "image", "shape": [1, size, size, 3], "datatype": "UINT8", **changes}
        text = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": said}}]}).encode()
        return post_request(path, text + blob, f"{named}: {len(text) if length is None else length}")

    encoded = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}
    kinds = {
        "bytes that are too few": sent(bytes(count - 1), count - 1),
        "bytes that are too many": sent(bytes(count + 1), count),
        "a size that lies": sent(bytes(count), count + 1),
        "a size below zero": sent(bytes(count), -1),
        "JSON longer than the body": sent(bytes(count), count, "99999999999"),
        "JSON shorter than it is": sent(bytes(count), count, "7"),
        "JSON of a length below zero": sent(bytes(count), count, "-1"),
        "JSON of a length that is no number": sent(bytes(count), count, f"1e3 {CANARY}"),
        "JSON of a length of 5,000 digits": sent(bytes(count), count, "9" * 5000),
        "an element longer than its tensor": sent(b"\xff\xff\xff\xffabc", 7, **encoded),
        "an element without a length": sent(b"\x01", 1, **encoded),
        "more elements than asked for": sent(bytes(400_000), 400_000, **encoded),
    }
    return {name: Malformed(sent, (400,)) for name, sent in kinds.items()}


def _pictures() -> dict[str, Malformed]:
    def tiff(width: int, height: int) -> bytes:
        tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 9)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)

    bodies = {
        "a text": CANARY_BYTES,
        "a page": b"<html><script>alert(1)</script>",
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "a bomb of 900 million pixels": png_header(30_000, 30_000),
        "a bomb in a TIFF": tiff(60_000, 60_000),
        "an image that is damaged": png_header(100, 100, CANARY_BYTES),
        "an image of one pixel": png_header(1, 1),
        "an image as thin as a hair": png_header(4, 4000),
    }
    found = {name: Malformed(post_request("/predict", body), (422,)) for name, body in bodies.items()}
    bomb = gzip.compress(bytes(60 * 2**20))
    return found | {
        "a body that is empty": Malformed(post_request("/predict", b""), (400,)),
        "a bomb that is packed": Malformed(post_request("/predict", bomb, "Content-Encoding: gzip"), (413,)),
        "packed, it says": Malformed(post_request("/predict", CANARY_BYTES, "Content-Encoding: gzip"), (400,)),
        "packed in an unknown way": Malformed(post_request("/predict", CANARY_BYTES, "Content-Encoding: br"), (415,)),
        "packed twice": Malformed(post_request("/predict", CANARY_BYTES, "Content-Encoding: gzip, gzip"), (415,)),
        "a number that is none": Malformed(post_request(f"/predict?top={CANARY}", b"x"), (422,)),
        "a number of 5,000 digits": Malformed(post_request("/predict?top=" + "9" * 5000, b"x"), (422,)),
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
        "a form cut in a header": (part("f", "a.png")[:30], FORM_TYPE),
        "a form cut in a file": (part("f", "a.png"), FORM_TYPE),
        "a form without an end": (part("f", "a.png") * 3, FORM_TYPE),
        "a form without a boundary": (part("f", "a.png"), "multipart/form-data"),
        "a form with an endless boundary": (part("f", "a.png"), "multipart/form-data; boundary=" + "x" * 5000),
        "a form with ten thousand fields": (many, FORM_TYPE),
        "a form without a file": (part("f") + b"--x--", FORM_TYPE),
        "a form without a name": (b"--x\r\nX: y\r\n\r\n1\r\n--x--", FORM_TYPE),
        "a form that is none": (b"x" * 100, FORM_TYPE),
        "a form with a long header": (b"--x\r\nX: " + b"y" * 50_000 + b"\r\n\r\n1\r\n--x--", FORM_TYPE),
        "a form in a codec that raises": (part("f", "a.png") + b"--x--", FORM_TYPE + "; charset=undefined"),
        **{f"a file called {name!a}": (part("f", name) + b"--x--", FORM_TYPE) for name in names},
        **{
            f"a form in {codec}": (part("f", "a\\ud800+2AA-.png") + b"--x--", f"{FORM_TYPE}; charset={codec}")
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
        "a length below zero": framed("Content-Length: -1"),
        "a length with a sign": framed("Content-Length: +5", body=b"hello"),
        "a length of another base": framed("Content-Length: 0x5", body=b"hello"),
        "a length beyond all numbers": framed("Content-Length: " + "9" * 4000),
        "two lengths": framed("Content-Length: 1", "Content-Length: 2", body=b"xx"),
        "two lengths in one": framed("Content-Length: 1, 2", body=b"xx"),
        "an unknown coding": framed("Transfer-Encoding: xchunked", body=CANARY_BYTES),
        "a coding before chunks": framed("Transfer-Encoding: gzip, chunked", body=CANARY_BYTES),
        "two codings": framed(chunked, "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
        "a coding hidden by a tab": framed("Transfer-Encoding:\tchunked\x0b", body=CANARY_BYTES),
        "a space before the colon": framed("Content-Length : 5", body=b"hello"),
        "a folded header": framed("X: a\r\n b: c", "Content-Length : 0"),
        "a header without a colon": framed(CANARY),
        "a zero byte": framed("X: a\0b"),
        "a header of a megabyte": framed("X: " + "a" * 2**20),
        "ten thousand headers": framed(*(f"X{number}: 1" for number in range(10_000))),
        "a long address": request_head("GET", "/" + "a" * 2**20),
        "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
        "two hosts": request_head("GET", "/v2", "Host: evil.example"),
        "an old protocol": b"GET /v2\r\n\r\n",
        "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "noise": CANARY_BYTES + bytes(range(256)) * 8 + b"\r\n\r\n",
        "a chunk of no length": framed(chunked, body=b"zz\r\nabc\r\n0\r\n\r\n" + CANARY_BYTES),
        "a chunk below zero": framed(chunked, body=b"-1\r\n" + CANARY_BYTES),
        "a chunk of 20 digits": framed(chunked, body=b"f" * 30 + b"\r\n" + CANARY_BYTES),
        "a chunk longer than it says": framed(chunked, body=b"3\r\nabcdef" + CANARY_BYTES + b"\r\n0\r\n\r\n"),
        "a chunk with endless words": framed(chunked, body=b"3;" + b"a" * 2**20 + b"\r\nabc\r\n0\r\n\r\n"),
    }
    found = {name: Malformed(sent, (400, CONNECTION_CLOSED)) for name, sent in cut.items()}
    found["a new protocol"] = Malformed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 403))
    both = framed("Content-Length: 4", chunked, body=b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found["a length and chunks"] = Malformed(both, (400,))
    short = framed("Content-Length: 1", body=b"x" + b"GARBAGE " + CANARY_BYTES + b"\r\n\r\n")
    found["a length that is too short"] = Malformed(short, (422,))
    found["a length that is too long"] = Malformed(
        framed("Content-Length: 1000", body=CANARY_BYTES), (408, CONNECTION_CLOSED), slow=True
    )
    found["chunks without an end"] = Malformed(
        framed(chunked, body=b"3\r\nabc\r\n"), (408, CONNECTION_CLOSED), slow=True
    )
    found["a length of a terabyte"] = Malformed(framed(f"Content-Length: {2**40}", body=CANARY_BYTES), (413,))
    found["waiting to be told to go on"] = Malformed(framed("Expect: 100-continue", f"Content-Length: {2**40}"), (413,))
    return found


def _headers(model: str) -> dict[str, Malformed]:
    def get(path: str, *headers: str, method: str = "GET") -> bytes:
        return request_head(method, path, *headers, "Content-Length: 0")

    return {
        "an origin that cannot be read": Malformed(get("/v2", "Origin: http://["), (403,)),
        "an origin with a strange port": Malformed(get("/v2", "Origin: http://localhost:99999999"), (403,)),
        "another origin": Malformed(get("/v2", "Origin: http://evil.example"), (403,)),
        "another host": Malformed(b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", (403,)),
        "a host that cannot be read": Malformed(b"GET /v2 HTTP/1.1\r\nHost: [::1\r\n\r\n", (403,)),
        "an address with a scheme": Malformed(get("http://evil.example/v2"), (404,)),
        "an address of a star": Malformed(get("*", method="OPTIONS"), (404, 405)),
        "a method that is unknown": Malformed(get("/predict", method="BREW"), (405,)),
        "a method for proxies": Malformed(get("evil.example:443", method="CONNECT"), (400, 404, 405)),
        "a path that climbs": Malformed(get("/page/..%2f..%2f..%2fetc%2fpasswd"), (404,)),
        "a path that climbs in the open": Malformed(get("/page/../../etc/passwd"), (404,)),
        "a path of no text": Malformed(get("/page/%ff%fe%00"), (404,)),
        "another model": Malformed(get(f"/v2/models/{CANARY}"), (404,)),
        "a model of a long name": Malformed(get("/v2/models/" + "a" * 5000), (404, 422)),
        "another version": Malformed(get(f"/v2/models/{model}/versions/9"), (404,)),
        "a change of the protocol": Malformed(get("/v2/models/x", "Connection: Upgrade", "Upgrade: websocket"), (404,)),
        "a model to be unloaded": Malformed(get(f"/v2/repository/models/{model}/unload", method="POST"), (404,)),
    }
