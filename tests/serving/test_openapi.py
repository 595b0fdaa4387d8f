"""The OpenAPI document is true: requests made from it are answered as it says, and never with 500."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import Running

pytest.importorskip("schemathesis")


def test_schemathesis_finds_nothing(server: Running, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [sys.executable, "-m", "schemathesis.cli", "config", f"{server.url}/openapi.json", "--checks", checks]
    words += ["--max-examples", "15", "--seed", "1", "--no-color", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"(\d+) generated", done.stdout)
    assert server.client.get("/v2/health/ready").status_code == 200
