"""The table of bad inputs: each is made, given to the real commands and to the server, and must end as promised.

`pytest -s tests/bad_inputs` prints it: number, input, promise, what happened.
"""

from __future__ import annotations

import contextlib
import os
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

from bad_inputs import folders, models, others, pictures, tables, web
from bad_inputs.trying import TRAIN, Case, Place, Post, Told, judge, left_at_home, run, snapshot
from servers import LIMITS, Running, running
from taskgraft.bundle import Bundle, write_bundle
from taskgraft.data import Preprocessing
from taskgraft.types import Task
from toys import folder_of, parent

CASES = [*pictures.CASES, *folders.CASES, *tables.CASES, *models.CASES, *others.CASES, *web.CASES]
WATCHED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
HAPPENED: dict[int, list[tuple[Case, str]]] = defaultdict(list)


@pytest.fixture(scope="module", autouse=True)
def printed(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    if pytestconfig.getoption("capture") == "no" and capture:
        for number in sorted(HAPPENED):
            for case, text in HAPPENED[number]:
                changed = f" [promise changed: {case.changed}]" if case.changed else ""
                print(f"\n{number:>2} | {case.what} | {case.promise}{changed} | {text}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("good") / "data", Task("paint", ("blue", "red")), 80, 1, size=16)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as it comes from its first weights: unsure of everything, so that each pixel shows in its answers."""
    folder = tmp_path_factory.mktemp("parent") / "bundle"
    folder.mkdir()
    preprocessing = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    write_bundle(
        folder, Bundle(parent(), preprocessing, {}, "here", "0", "test_resnet", "fc"), method="train", parent={}
    )
    return folder


@pytest.fixture(scope="module")
def server(shared: Path) -> Iterator[Running]:
    with running(shared, replace(LIMITS, max_body=32, request_seconds=2)) as found:
        yield found


@pytest.fixture(scope="module")
def warm(good: Path, shared: Path, server: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start the program once: what it imports is no row's work."""
    sys.addaudithook(lambda event, given: pictures.STARTED.append(given) if event in WATCHED else None)
    root = tmp_path_factory.mktemp("warm")
    place = Place(root, good, root / "out", shared)
    with pytest.MonkeyPatch.context() as patch:
        assert run(("train", good, root / "out", *TRAIN), place, patch).code == 0
        assert run(("predict", root / "out", good), place, patch).code == 0


@pytest.fixture
def place(good: Path, shared: Path, tmp_path: Path) -> Place:
    shutil.copytree(good, tmp_path / "data")
    (tmp_path / "home" / "here").mkdir(parents=True)
    return Place(tmp_path, tmp_path / "data", tmp_path / "out", shared)


def test_every_number_has_its_row() -> None:
    assert {case.number for case in CASES} == set(range(1, 57))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number:02}-{case.what}")
def test_a_bad_input(case: Case, place: Place, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = case.make(place)
    kept, before, said = snapshot(place.parent, place.out), snapshot(place.root, place.out), []
    for tried in tries:
        pictures.STARTED.clear()
        told = posted(tried, server) if isinstance(tried, Post) else run(tried.words, place, monkeypatch)
        said.append(judge(case, tried, told, place))
        assert snapshot(place.root, place.out) == before
        assert left_at_home(place) == []
        shutil.rmtree(place.out, ignore_errors=True)
    assert snapshot(place.parent, place.out) == kept
    assert server.client.get("/v2/health/ready").status_code == 200
    HAPPENED[case.number].append((case, "; ".join(dict.fromkeys(said))))


@pytest.mark.usefixtures("warm")
def test_in_a_process_of_its_own(place: Place) -> None:
    """Two rows as a user would start them: a pipe among the images, and a pickle that would run a command."""
    os.mkfifo(place.data / "blue" / "pipe.jpg")
    models.malicious(place)
    flags = (*models.ARCH, "--labels", models.labels(place))
    home = place.root / "home"
    for words, code, said in (
        (("check", place.data), 0, "blue/pipe.jpg: not a regular file"),
        (("predict", place.root / "zip.pth", place.data, *flags), 2, "would run code from the file"),
    ):
        command = [sys.executable, "-m", "taskgraft.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=home)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (place.root / "trap").exists()
    assert left_at_home(place) == []


def posted(tried: Post, server: Running) -> Told:
    start, clock = time.process_time(), time.monotonic()
    if tried.path.startswith("/"):
        answer = server.client.post(tried.path, content=tried.body)
        return Told(answer.status_code, answer.text, "", time.process_time() - start, time.monotonic() - clock, 0)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as line:
        line.settimeout(10)
        found = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # an answer may come before all is sent
            line.sendall(tried.path.encode() + tried.body)
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while part := line.recv(65536):
                found += part
    status = int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/1.1 ") else 400  # cut off: turned away as well
    return Told(status, found.decode("latin-1"), "", time.process_time() - start, time.monotonic() - clock, 0)
