"""The table of bad inputs: each is made, given to the real commands and to the server, and must end as promised.

`pytest -s tests/bad_inputs` prints it: number, input, promise, what happened.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bad_inputs import folders, images, models, requests, settings, tables
from bad_inputs.case import TRAIN, Case, Output, Post, Workspace, assert_promise, files_in_home, run, snapshot
from servers import LIMITS, Running, running
from taskgraft.bundle import Bundle, write_bundle
from taskgraft.data import Preprocessing
from taskgraft.types import Task
from toys import parent, write_folder

CASES = [*images.CASES, *folders.CASES, *tables.CASES, *models.CASES, *settings.CASES, *requests.CASES]
PROCESS_EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
pytestmark = pytest.mark.usefixtures("no_charts")
OUTCOMES: dict[int, list[tuple[Case, str]]] = defaultdict(list)


@pytest.fixture(scope="module", autouse=True)
def print_table(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if pytestconfig.getoption("capture") == "no":
        for number in sorted(OUTCOMES):
            for case, outcome in OUTCOMES[number]:
                note = f" [{case.note}]" if case.note else ""
                print(f"\n{number:>2} | {case.name} | {case.promise}{note} | {outcome}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def images_of_two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "data", Task("paint", ("blue", "red")), 80, 1, size=16)


@pytest.fixture(scope="module")
def parent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights: unsure of everything, so that each pixel changes its predictions."""
    folder = tmp_path_factory.mktemp("parent") / "bundle"
    folder.mkdir()
    preprocessing = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    write_bundle(
        folder, Bundle(parent(), preprocessing, {}, "here", "0", "test_resnet", "fc"), method="train", parent={}
    )
    return folder


@pytest.fixture(scope="module")
def server(parent_bundle: Path) -> Iterator[Running]:
    with running(parent_bundle, replace(LIMITS, max_body=32, request_seconds=2)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def imported(
    images_of_two_classes: Path, parent_bundle: Path, server: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run the program once: what it imports is no row's work."""

    def note_process(event: str, args: tuple[object, ...]) -> None:
        if event in PROCESS_EVENTS:
            images.STARTED_PROCESSES.append(args)

    sys.addaudithook(note_process)
    root = tmp_path_factory.mktemp("imported")
    workspace = Workspace(root, images_of_two_classes, root / "out", parent_bundle)
    with pytest.MonkeyPatch.context() as patch:
        assert run(("train", workspace.data, workspace.out, *TRAIN), workspace, patch).code == 0
        assert run(("predict", workspace.out, workspace.data), workspace, patch).code == 0


@pytest.fixture
def workspace(images_of_two_classes: Path, parent_bundle: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(images_of_two_classes, tmp_path / "data")
    (tmp_path / "home" / "cwd").mkdir(parents=True)
    return Workspace(tmp_path, tmp_path / "data", tmp_path / "out", parent_bundle)


def test_numbers_are_complete() -> None:
    assert {case.number for case in CASES} == set(range(1, 57))


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number:02}-{case.name}")
def test_bad_input(case: Case, workspace: Workspace, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = case.prepare(workspace)
    parent, files = snapshot(workspace.parent, workspace.out), snapshot(workspace.tmp_path, workspace.out)
    outcomes = []
    for attempt in attempts:
        images.STARTED_PROCESSES.clear()
        output = send(attempt, server) if isinstance(attempt, Post) else run(attempt.args, workspace, monkeypatch)
        outcomes.append(assert_promise(case, attempt, output, workspace))
        assert snapshot(workspace.tmp_path, workspace.out) == files
        assert files_in_home(workspace) == []
        shutil.rmtree(workspace.out, ignore_errors=True)
    assert snapshot(workspace.parent, workspace.out) == parent
    assert server.client.get("/v2/health/ready").status_code == 200
    OUTCOMES[case.number].append((case, "; ".join(dict.fromkeys(outcomes))))


@pytest.mark.usefixtures("imported")
def test_in_a_new_process(workspace: Workspace) -> None:
    """A pickle that would run a command, given to the program as a user starts it."""
    models.malicious(workspace)
    args = [
        "predict",
        workspace.tmp_path / "zip.pth",
        workspace.data,
        *models.ARCH,
        "--labels",
        models.labels(workspace),
    ]
    command = [sys.executable, "-m", "taskgraft.cli", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=workspace.home)
    assert done.returncode == 2, done.stderr
    assert "would run code from the file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workspace.tmp_path / "trap").exists()
    assert files_in_home(workspace) == []


def send(request: Post, server: Running) -> Output:
    cpu, wall = time.process_time(), time.monotonic()
    if request.path.startswith("/"):
        response = server.client.post(request.path, content=request.body)
        code, text = response.status_code, response.text
    else:
        text = send_bytes(request.path.encode() + request.body, server.port).decode("latin-1")
        code = int(text.split(" ", 2)[1]) if text.startswith("HTTP/1.1 ") else 400  # cut off: refused as well
    return Output(code, text, "", time.process_time() - cpu, time.monotonic() - wall, 0)


def send_bytes(data: bytes, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # a response may come before all is sent
            connection.sendall(data)
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while part := connection.recv(65536):
                received += part
    return received
