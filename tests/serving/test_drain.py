"""The real command: it says where it listens, and on SIGTERM it answers what it has let in before it goes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx


def test_sigterm_loses_no_request(branched: Path, pictures: list[Path]) -> None:
    words = [sys.executable, "-m", "taskgraft.cli", "serve", str(branched), "--port", "0", "--workers", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        url = next(line.split()[1] for line in process.stderr if line.startswith("ready: "))
        body = pictures[0].read_bytes()
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as line:
            line.settimeout(30)
            head = (
                f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            line.sendall(head.encode() + body[:10])
            while "taskgraft_requests_total" not in httpx.get(f"{url}/metrics").text:
                pass
            process.send_signal(signal.SIGTERM)
            assert any("stopping: 1 request" in text for text in process.stderr)
            ready = httpx.get(f"{url}/v2/health/ready")
            assert (ready.status_code, ready.headers["Retry-After"]) == (503, "5")
            assert httpx.get(f"{url}/v2/health/live").status_code == 200
            late = httpx.post(f"{url}/predict", content=body)
            assert (late.status_code, list(late.json())) == (503, ["error"])
            line.sendall(body[10:])
            answer = b"".join(iter(lambda: line.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"paint"' in answer
        assert process.wait(30) == 0
        assert not [text for text in process.stderr if "Traceback" in text]
