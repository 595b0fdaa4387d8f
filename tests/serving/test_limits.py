"""What a server turns away, how fast, and that it stays ready."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import signal
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from servers import LIMITS, Running, running
from taskgraft.data.decode import decode_bytes
from taskgraft.errors import TaskgraftError
from taskgraft.serving import decoding, server
from taskgraft.serving.limits import Limits, checked

TOKEN = "correct-horse"


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that claims to be of this size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(answer: httpx.Response, status: int, part: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert part in answer.json()["error"]


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (png(30_000, 30_000), "pixels"),
        (png(1001, 1000), "more than 1000000 pixels"),
        (png(100, 100), "damaged"),
        (png(1, 1), "smaller than"),
        (b"<svg/>", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "known format"),
        (b"<script>alert(1)</script>", "known format"),
    ],
    ids=range(7),
)
def test_a_bad_picture_costs_nothing(server: Running, picture: bytes, part: str) -> None:
    server.client.post("/predict", content=b"x")  # the worker is there
    start = time.perf_counter()
    refused(server.client.post("/predict", content=picture), 422, part)
    assert time.perf_counter() - start < 1  # 0.1 s on an idle machine; tests share theirs


def test_predict(server: Running, pictures: list[Path]) -> None:
    raw = server.client.post("/predict", content=pictures[0].read_bytes(), params={"top": 2}).json()
    (found,) = raw["images"]
    assert list(found["tasks"]) == ["shape", "paint"]
    for task in found["tasks"].values():
        assert task["label"] == task["top"][0]["label"]
        assert task["probability"] == task["top"][0]["probability"] >= task["top"][1]["probability"]
        assert len(task["top"]) == 2
    assert raw["model"] == "both"
    assert 0 < raw["seconds"] < 20
    files = [("file", (file.name, file.read_bytes(), "image/png")) for file in pictures[:3]]
    form = server.client.post("/predict", files=files, data={"note": "x"}, params={"top": 2}).json()
    assert [picture["name"] for picture in form["images"]] == [file.name for file in pictures[:3]]
    for name, task in form["images"][0]["tasks"].items():
        assert task["label"] == found["tasks"][name]["label"]
        assert task["probability"] == pytest.approx(found["tasks"][name]["probability"], abs=1e-5)


def test_predict_refuses(server: Running, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    refused(server.client.post("/predict"), 400, "empty")
    refused(server.client.post("/predict", content=good, params={"top": 0}), 422, "top")
    refused(server.client.post("/predict", content=good, headers={"Content-Encoding": "br"}), 415)
    refused(server.client.post("/predict", content=b"x" * (2 * 2**20 + 1)), 413, "2 MiB")
    refused(
        server.client.post("/predict", content=gzip.compress(bytes(50 * 2**20)), headers={"Content-Encoding": "gzip"}),
        413,
    )
    refused(server.client.post("/predict", content=b"no gzip", headers={"Content-Encoding": "gzip"}), 400)
    many = [("file", (str(number), b"x", "image/png")) for number in range(1000)]
    refused(server.client.post("/predict", files=many), 400, "Too many files")
    refused(
        server.client.post("/predict", data={str(n): "x" for n in range(999)}, files={"f": b""}), 400, "Too many fields"
    )
    two = [("file", ("a", good, "image/png")), ("file", ("b", b"x", "image/png"))]
    refused(server.client.post("/predict", files=two), 422, "image 2 of 2")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(server.client.post("/predict", content=b"--x\r\nbad", headers=form), 400)
    refused(server.client.post("/predict", content=b"--x--", headers={"Content-Type": "multipart/form-data"}), 400)
    refused(server.client.post("/predict", content=b"--x--", headers=form), 400, "no file")
    refused(server.client.put("/predict", content=good), 405)
    refused(server.client.get("/page/..%2f..%2fpyproject.toml"), 404)
    refused(server.client.get("/page/page.py"), 404)
    assert server.client.get("/v2/health/ready").status_code == 200


def chunks(size: int):
    for _ in range(size):
        yield bytes(2**16)


def test_an_endless_body_is_cut_off(server: Running) -> None:
    with contextlib.suppress(httpx.WriteError):  # it may be closed while the body is still being sent
        refused(server.client.post("/predict", content=chunks(10_000)), 413)
    assert server.client.get("/v2/health/ready").status_code == 200


def test_a_lying_length_waits_no_longer_than_allowed(branched: Path) -> None:
    with running(branched, replace(LIMITS, request_seconds=0.5)) as found:
        with socket.create_connection(("127.0.0.1", int(found.url.rsplit(":", 1)[1]))) as line:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            line.settimeout(10)
            assert b" 408 " in line.recv(4096)
        assert found.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    "head", [b"Content-Length: -1", b"Content-Length: 1\r\nContent-Length: 2", b"X: " + b"a" * 2**20]
)
def test_broken_framing(server: Running, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as line:
        try:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
            assert b" 400 " in line.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert server.client.get("/v2/health/ready").status_code == 200


def test_a_full_queue_says_so_at_once_and_loses_nobody(branched: Path, pictures: list[Path]) -> None:
    with running(branched, replace(LIMITS, max_batch=2, max_queue=4)) as found:
        quick = found.service.waiting.run
        object.__setattr__(found.service.waiting, "config", lambda pixels: (time.sleep(0.2), quick(pixels))[1])
        body = pictures[0].read_bytes()

        def ask(_: int) -> tuple[int, float, str | None]:
            start = time.perf_counter()
            answer = httpx.post(f"{found.url}/predict", content=body, timeout=30)
            return answer.status_code, time.perf_counter() - start, answer.headers.get("Retry-After")

        with ThreadPoolExecutor(24) as many:
            answers = list(many.map(ask, range(24)))
        assert {status for status, _, _ in answers} == {200, 429}
        assert sum(status == 200 for status, _, _ in answers) >= 4
        assert all(retry == "1" for status, _, retry in answers if status == 429)
        assert found.service.waiting.load["images"] == found.service.state["requests"] == 0
        text = found.client.get("/metrics").text
        assert 'taskgraft_rejected_total{reason="429"}' in text
        assert 'taskgraft_batch_images_bucket{le="1.0"}' in text
        assert ask(0)[0] == 200


def test_what_comes_together_is_answered_together(server: Running, pictures: list[Path]) -> None:
    def sum_of_batches() -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("taskgraft_batch_images_count")).split()[1])

    before = sum_of_batches()
    array = np.zeros((4, 32, 32, 3), np.uint8)
    body = {"inputs": [{"name": "image", "shape": [4, 32, 32, 3], "datatype": "UINT8", "data": array.ravel().tolist()}]}
    assert server.client.post("/v2/models/both/infer", json=body).status_code == 200
    assert sum_of_batches() == before + 1


def test_a_worker_that_dies_is_replaced(branched: Path, pictures: list[Path]) -> None:
    with running(branched, replace(LIMITS, decode_seconds=1)) as found:
        body = pictures[0].read_bytes()
        pool = found.service.decoders
        for number, reason in (
            (signal.SIGKILL, "decoding this image failed"),
            (signal.SIGSTOP, "took more than 1 s"),
        ):
            worker = pool.idle._queue[0]  # pyright: ignore[reportAttributeAccessIssue]
            assert worker.process.pid
            os.kill(worker.process.pid, number)
            refused(found.client.post("/predict", content=body), 422, reason)
            assert found.client.post("/predict", content=body).status_code == 200
        assert pool.replaced == [2]
        assert "taskgraft_replaced_workers 2.0" in found.client.get("/metrics").text


def test_a_token_is_asked_for(branched: Path, pictures: list[Path]) -> None:
    with running(branched, token=TOKEN) as found:
        for path in ("/v2", "/v2/models/both", "/about", "/metrics", "/openapi.json", "/nowhere"):
            refused(found.client.get(path), 401, "Bearer")
            assert found.client.get(path).headers["WWW-Authenticate"] == "Bearer"
        refused(found.client.post("/predict", content=b"x"), 401)
        for wrong in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
            refused(found.client.get("/about", headers={b"Authorization": wrong.encode("latin-1")}), 401)
        for path in ("/", "/page/page.js", "/page/page.css", "/v2/health/live", "/v2/health/ready"):
            assert found.client.get(path).status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}"}
        body = pictures[0].read_bytes()
        assert found.client.post("/predict", content=body, headers=right).status_code == 200
        document = found.client.get("/openapi.json", headers=right).json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"token": []}]
        assert "security" not in document["paths"]["/v2/health/live"]["get"]


def test_foreign_pages_and_names_are_turned_away(server: Running) -> None:
    refused(server.client.get("/v2", headers={"Host": "evil.example"}), 403)
    refused(server.client.get("/v2", headers={"Origin": "http://evil.example"}), 403)
    refused(server.client.get("/v2", headers={"Origin": "null"}), 403)
    assert server.client.get("/v2", headers={"Origin": server.url}).status_code == 200
    for name in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert server.client.get("/v2", headers={"Host": name}).status_code == 200
    answer = server.client.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_an_error_inside_tells_nothing(branched: Path, pictures: list[Path]) -> None:
    def broken(pixels):
        raise RuntimeError("/secret/path")

    with running(branched) as found:
        object.__setattr__(found.service.waiting, "config", broken)
        refused(found.client.post("/predict", content=pictures[0].read_bytes()), 500, "internal error")
        assert "secret" not in found.client.post("/predict", content=pictures[0].read_bytes()).text
        assert found.client.get("/v2/health/ready").status_code == 200


def test_nothing_tells_where_the_model_lies(server: Running, branched: Path) -> None:
    for path in ("/about", "/v2/models/both", "/openapi.json"):
        assert str(branched.parent) not in server.client.get(path).text
    about = server.client.get("/about").json()
    assert [task["name"] for task in about["tasks"]] == ["shape", "paint"]
    assert about["lineage"][-1]["learnt"] == "paint"
    assert about["results"][0]["forgetting"]["mean"] == 0


def test_onnx_runtime_answers_alike(branched: Path, server: Running, pictures: list[Path]) -> None:
    body = pictures[0].read_bytes()
    with running(branched, backend="onnx") as found:
        one, two = (client.post("/predict", content=body).json() for client in (found.client, server.client))
    for task, answer in one["images"][0]["tasks"].items():
        assert answer["probability"] == pytest.approx(two["images"][0]["tasks"][task]["probability"], abs=1e-5)


def test_who_may_be_reached() -> None:
    assert server.admit("127.0.0.1", None, insecure=False)
    assert server.admit("localhost", None, insecure=False)
    assert server.admit("127.8.8.8", None, insecure=False)
    assert not server.admit("0.0.0.0", TOKEN, insecure=False)
    assert not server.admit("0.0.0.0", None, insecure=True)
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(TaskgraftError, match="--token"):
            server.admit(host, None, insecure=False)
    for token in ("short", "with a space", "ünïcödé-token", "new\nline-token"):
        with pytest.raises(TaskgraftError, match="give 8 or more printable"):
            server.admit("127.0.0.1", token, insecure=False)


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        (Limits(max_batch=0), "--max-batch 0: must be at least 1"),
        (Limits(max_delay=float("nan")), "--max-delay nan"),
        (Limits(max_queue=8, max_batch=9), "--max-queue 8 is below --max-batch 9"),
        (Limits(max_pixels=0), "--max-pixels 0: must be above 0"),
        (Limits(workers=0), "--workers 0"),
    ],
)
def test_limits_that_make_no_sense(limits: Limits, part: str) -> None:
    with pytest.raises(TaskgraftError) as told:
        checked(limits)
    assert part in str(told.value)


def test_a_taken_port_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(TaskgraftError, match="cannot be opened"):
        server.listen("127.0.0.1", door.getsockname()[1])


def test_small_answers_are_sent_at_once() -> None:
    with server.listen("127.0.0.1", 0) as door, socket.create_connection(door.getsockname()) as client:
        accepted, _ = door.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getpeername() == door.getsockname()


def test_pictures_are_decoded_by_the_same_rules(server: Running) -> None:
    pool = server.service.decoders
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    Image.effect_noise((40, 20), 90).convert("RGBA").save(file, "PNG", exif=turned)

    async def ask():
        found = decoding.start(pool.wanted, pool.limits)
        try:
            return await decoding.decoded(found, file.getvalue())
        finally:
            decoding.stop(found)

    np.testing.assert_array_equal(asyncio.run(ask()), decode_bytes(file.getvalue(), pool.wanted).pixels)
