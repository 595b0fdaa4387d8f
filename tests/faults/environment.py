"""Faults 16 to 19: the hub, the machine, HOME, and images that break a decoder."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forks
from faults.scenario import Fault, Workspace, assert_same_bits
from forks import last_line, run_cli

HUB = "test_resnet.r160_in1k"  # a small model that timm fetches


@contextmanager
def fake_hub(answer: str) -> Iterator[str]:
    """A model hub that has nothing ("404"), breaks off ("cut"), or sends what is no model ("wrong")."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.head(1000)

        def do_GET(self) -> None:
            self.head(1000)
            if answer != "404":
                self.wfile.write(b"x" * (1000 if answer == "wrong" else 10))

        def head(self, length: int) -> None:
            self.send_response(404 if answer == "404" else 200)
            self.send_header("ETag", '"of-this-file"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(0 if answer == "404" else length))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unreachable_hub(workspace: Workspace) -> str:
    from huggingface_hub import constants

    tried = []
    for answer in ("nobody", "404", "cut", "wrong"):
        with fake_hub(answer) as url:
            endpoint = "http://127.0.0.1:1" if answer == "nobody" else url

            def use_fake_hub(endpoint: str = endpoint, answer: str = answer) -> None:
                time.sleep = lambda seconds: None  # between its own new attempts
                constants.ENDPOINT = endpoint
                constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
                constants.HF_HUB_CACHE = str(workspace.tmp_path / answer)

            out = workspace.tmp_path / "both"
            extend, _, *words = workspace.command(out)
            words = [word for word in words if word not in ("--old-val", workspace.old_images)]
            done = run_cli(extend, HUB, *words, before=use_fake_hub)
        assert done.returncode == 3, done.stderr
        assert f"cannot download the weights of {HUB!r}" in last_line(done)
        assert "local-dir:FOLDER" in last_line(done)
        assert "Traceback" not in done.stderr
        assert not out.exists()
        tried.append(answer)
    return f"{', '.join(tried)}: one line, exit 3, and how to do without"


def no_home(workspace: Workspace) -> str:
    out = workspace.tmp_path / "both"

    def remove_home() -> None:
        os.environ.update(HOME="/proc/nowhere", TMPDIR="/proc/nowhere", LANG="C", TERM="dumb")
        os.environ.pop("XDG_CACHE_HOME", None)
        tempfile.tempdir = None

    done = run_cli(*workspace.command(out)[:-2], before=remove_home)
    assert done.returncode == 3
    assert "the cache /proc/nowhere/.cache/taskgraft cannot be written" in last_line(done)
    assert "--cache none" in last_line(done)
    assert not out.exists()
    run_cli(*workspace.command(out), before=remove_home, check=True)
    return f"a cache that cannot be is one line, exit 3; with --cache none {assert_same_bits(out, workspace.expected)}"


def one_core(workspace: Workspace) -> str:
    out = workspace.tmp_path / "both"

    def extend_on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.cpu_count = lambda: 1
        workspace.extend(out)

    forks.run(extend_on_one_core)
    return f"in a fork, on one core: {assert_same_bits(out, workspace.expected)}"


SIGNALS, TUNE, SERVING = "tests/faults/test_signals.py", "tests/commands/test_tune.py", "tests/serving/test_limits.py"
FAULTS = [
    Fault(16, "the hub cannot be reached, has no such model, breaks off or sends something else",
          "one line, exit 3, with how to do without it", unreachable_hub,
          note="bits that changed in a whole file are not noticed: the record keeps the digest of what was used"),
    Fault(17, "a decoder crashes or raises",
          "what raises is left out by name; a server's decoder is a process of its own, and is replaced",
          tests=("tests/bad_inputs/test_bad_inputs.py::test_bad_input",
                  f"{SERVING}::test_dead_worker_is_replaced"),
          note="one's own images are decoded in threads: a decoder that kills its process ends the command"),
    Fault(18, "no HOME, no temporary folder, LANG=C, TERM=dumb, 20 columns", "no traceback, the same bits", no_home,
          (f"{SIGNALS}::test_signal_loses_nothing",)),
    Fault(19, "forked or spawned, no workers, one core, no GPU", "the same bits", one_core,
          (f"{TUNE}::test_a_killed_worker_is_replaced_and_the_result_is_the_same",),
          "on Apple's GPUs nothing was tried"),
]  # fmt: skip
