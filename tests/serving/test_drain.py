"""The real command: on SIGTERM it reports not ready, and answers what it has accepted before it exits."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest


@pytest.mark.slow
def test_sigterm_loses_no_request(branched: Path, image: bytes) -> None:
    command = [sys.executable, "-m", "taskgraft.cli", "serve", str(branched), "--port", "0", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        url = next(line.split()[1] for line in process.stderr if line.startswith("ready: "))
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.settimeout(30)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\nConnection: close"
            connection.sendall(head.encode() + b"\r\n\r\n" + image[:10])
            while "taskgraft_requests_total" not in httpx.get(f"{url}/metrics").text:
                pass
            process.send_signal(signal.SIGTERM)
            assert any("stopping after 1 request" in line for line in process.stderr)
            ready = httpx.get(f"{url}/v2/health/ready")
            assert (ready.status_code, ready.headers["Retry-After"]) == (503, "5")
            assert httpx.get(f"{url}/v2/health/live").status_code == 200
            late = httpx.post(f"{url}/predict", content=image)
            assert (late.status_code, list(late.json())) == (503, ["error"])
            connection.sendall(image[10:])
            response = b"".join(iter(lambda: connection.recv(65536), b""))
            assert response.startswith(b"HTTP/1.1 200 ")
            assert b'"paint"' in response
        assert process.wait(30) == 0
        assert not [line for line in process.stderr if "Traceback" in line]
