"""Requests that are wrong in every field, each sent to the real program; and what its log says of them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import malformed
from malformed import CANARY, CUT, FORM, Malformed, head, post, requests
from servers import Running
from taskgraft.serving import batching, service
from taskgraft.serving.limits import Limits, Refusal

SECONDS = 1.0  # of a body, in these tests
KINDS = requests("both", 32)
TOKEN = f"token-{CANARY}"
READY = head("GET", "/v2/health/ready")


class Program(NamedTuple):
    url: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def program(branched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """`taskgraft serve` with small limits; what it says goes to a file."""
    log = tmp_path_factory.mktemp("log") / "log.txt"
    words = [sys.executable, "-m", "taskgraft.cli", "serve", str(branched), "--port", "0", "--name", "both"]
    words += ["--workers", "1", "--max-body", "2", "--max-pixels", "1", "--request-seconds", str(SECONDS)]
    with log.open("wb") as file, subprocess.Popen(words, stderr=file, cwd=log.parent) as process:
        while b"ready: " not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        url = log.read_text().split("ready: ")[1].split()[0]
        yield Program(url, int(url.rsplit(":", 1)[1]), log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def told(port: int, sent: bytes, seconds: float = 10) -> bytes:
    """The first answer to some bytes, as far as it comes; nothing for a connection that is only closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(seconds)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # an answer may come before all is sent
            line.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n\r\n" not in found or len(found.partition(b"\r\n\r\n")[2]) < _length(found):
                part = line.recv(65_536)
                if not part:
                    break
                found += part
    return found


def _length(answer: bytes) -> int:
    said = answer.lower().partition(b"content-length: ")[2]
    return int(said.split(b"\r\n")[0]) if said else 2**30


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else CUT


@pytest.mark.parametrize("name", KINDS)
def test_a_malformed_request_is_turned_away(program: Program, name: str) -> None:
    kind = KINDS[name]
    start = time.monotonic()
    answer = told(program.port, kind.sent)
    assert status(answer) in kind.statuses, answer[:2000]
    assert time.monotonic() - start < (SECONDS if kind.slow else 0) + 5
    assert b"Traceback" not in answer
    assert str(Path(__file__).parents[2]).encode() not in answer
    assert status(told(program.port, READY)) == 200


def test_the_log_quotes_nobody(program: Program, pictures: list[Path]) -> None:
    """No token, no name, no byte of an image: not when all is well, and not when a request is broken."""
    body = pictures[0].read_bytes()
    secret = ("Authorization: Bearer " + TOKEN, f"Cookie: {CANARY}", f"User-Agent: {CANARY}")
    assert status(told(program.port, post(f"/predict?top=1&x={CANARY}", body, *secret))) == 200
    for kind in KINDS.values():
        if not kind.slow:
            told(program.port, kind.sent)
    cut = post("/predict", body)[:-20]  # a client that goes in the middle of an image
    with socket.create_connection(("127.0.0.1", program.port)) as line:
        line.sendall(cut)
    with socket.create_connection(("127.0.0.1", program.port)) as line:  # broken while its body is waited for
        line.sendall(head("POST", "/predict", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        time.sleep(0.3)
        line.sendall(malformed.MARK + b"\r\n" + malformed.MARK)
        assert status(line.recv(65_536)) == 400
    garbage = head("POST", "/nowhere", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n"
    with socket.create_connection(("127.0.0.1", program.port)) as line:  # broken once it has its answer
        line.sendall(garbage)
        line.recv(65_536)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            line.sendall(malformed.MARK * 100 + b"\r\n")
            line.recv(65_536)
    assert status(told(program.port, READY)) == 200
    said = program.log.read_bytes()
    assert b"ready: " in said
    assert malformed.MARK not in said
    assert b"Traceback" not in said
    assert b"failed" not in said
    assert said.count(b"\n") < 20


def test_an_error_in_the_log_is_clean(server: Running, pictures: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    def broken(pixels):
        raise RuntimeError("out of memory\n\x1b[31m" + "x" * 1000)

    good = server.service.waiting.run
    try:
        object.__setattr__(server.service.waiting, "config", broken)
        assert server.client.post("/predict", content=pictures[0].read_bytes()).status_code == 500
        end = time.monotonic() + 10
        while "in broken" not in caplog.text and time.monotonic() < end:  # the answer goes out first
            time.sleep(0.01)
    finally:
        object.__setattr__(server.service.waiting, "config", good)
    assert "RuntimeError 'out of memory\\n\\x1b[31mxxx" in caplog.text
    assert "in broken" in caplog.text
    assert "\x1b" not in caplog.text
    assert "x" * 200 not in caplog.text


def test_no_picture_touches_the_disk(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form of two megabytes, where the folder for temporary files is gone."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    files = {"file": ("a.png", b"x" * (2 * 2**20 - 1000), "image/png")}
    answer = server.client.post("/predict", files=files)
    assert answer.status_code == 422, answer.text


def test_a_strange_name_comes_back_as_text(server: Running, pictures: list[Path]) -> None:
    body = pictures[0].read_bytes()
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a\\ud800.png"\r\n\r\n' + body + b"\r\n--x--"
    answer = server.client.post("/predict", content=part, headers={"Content-Type": f"{FORM}; charset=unicode_escape"})
    assert answer.json()["images"][0]["name"] == "a?.png"


def test_bodies_are_held_up_to_a_limit(server: Running, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    body = pictures[0].read_bytes()
    monkeypatch.setattr(service, "BODIES", 0)
    answer = server.client.post("/predict", content=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    monkeypatch.undo()
    assert server.client.post("/predict", content=body).status_code == 200
    assert server.service.state["bytes"] == 0


def test_slow_clients_do_not_keep_others_out(server: Running, pictures: list[Path]) -> None:
    port, body = int(server.url.rsplit(":", 1)[1]), pictures[0].read_bytes()
    with contextlib.ExitStack() as lines:
        for _ in range(100):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(head("POST", "/predict", "Content-Length: 1000000") + b"x")
        while server.service.state["requests"] < 100:
            time.sleep(0.01)
        assert server.client.post("/predict", content=body).status_code == 200
        assert server.service.state["bytes"] == 100


def test_who_would_wait_too_long_is_told_at_once() -> None:
    limits = Limits(max_batch=4, max_queue=100, wait_seconds=1)
    pace = {"seconds": 0.3, "since": 0.0}
    waiting = batching.Batcher(lambda pixels: {}, limits, None, None, {"images": 3}, pace, lambda size: None)  # pyright: ignore
    batching.check(waiting, 4)
    waiting.load["images"] = 4
    with pytest.raises(Refusal, match="too many images") as told:
        batching.check(waiting, 1)
    assert (told.value.status, told.value.retry) == (429, 1)
    waiting.load["images"] = 0
    waiting.pace["seconds"] = 1000.0
    with batching.admitted(waiting, 4):  # whoever finds nobody before him is let in, and the pace is measured anew
        pass
    assert waiting.pace["seconds"] < 900


def test_every_kind_is_of_its_own() -> None:
    assert len(KINDS) > 100
    assert len({kind.sent for kind in KINDS.values()}) == len(KINDS)
    assert all(isinstance(kind, Malformed) and 500 not in kind.statuses for kind in KINDS.values())
