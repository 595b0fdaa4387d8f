"""Faults 16 to 19: the hub, the machine, HOME, and images that break a decoder."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dying
from faults.trying import Fault, Place, command, same_bits

HUB = "test_resnet.r160_in1k"  # a small model that timm fetches


@contextmanager
def hub(answer: str) -> Iterator[str]:
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


def unreachable(place: Place) -> str:
    from huggingface_hub import constants

    happened = []
    for answer in ("nobody", "404", "cut", "wrong"):
        with hub(answer) as url:
            at = "http://127.0.0.1:1" if answer == "nobody" else url

            def there(at: str = at, answer: str = answer) -> None:
                time.sleep = lambda seconds: None  # between its own new attempts
                constants.ENDPOINT = at
                constants.HUGGINGFACE_CO_URL_TEMPLATE = at + "/{repo_id}/resolve/{revision}/{filename}"
                constants.HF_HUB_CACHE = str(place.root / answer)

            out = place.root / "both"
            words = ("extend", HUB, place.new, out, *place.words(out)[6:])
            told = command(words, place.root, there)
        assert told.code == 3, told.err
        assert f"cannot download the weights of {HUB!r}" in told.last
        assert "local-dir:FOLDER" in told.last
        assert "Traceback" not in told.err
        assert not out.exists()
        happened.append(answer)
    return f"{', '.join(happened)}: one line, exit 3, and how to do without"


def homeless(place: Place) -> str:
    out = place.root / "both"

    def nowhere() -> None:
        os.environ.update(HOME="/proc/nowhere", TMPDIR="/proc/nowhere", LANG="C", TERM="dumb")
        os.environ.pop("XDG_CACHE_HOME", None)
        tempfile.tempdir = None

    told = command(place.words(out)[:-2], place.root, nowhere)
    assert told.code == 3
    assert "the cache /proc/nowhere/.cache/taskgraft cannot be written" in told.last
    assert "--cache none" in told.last
    assert not out.exists()
    told = command(place.words(out), place.root, nowhere)
    assert told.code == 0, told.err
    return f"a cache that cannot be is one line, exit 3; with --cache none {same_bits(out, place.calm)}"


def one_core(place: Place) -> str:
    out = place.root / "both"

    def alone() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.cpu_count = lambda: 1
        place.extend(out)

    code, said = dying.end(dying.begin(alone))
    assert code == 0, said
    return f"in a fork, on one core: {same_bits(out, place.calm)}"


SIGNALS, TUNE, SERVING = "tests/faults/test_signals.py", "tests/commands/test_tune.py", "tests/serving/test_limits.py"
FAULTS = [
    Fault(16, "the hub cannot be reached, has no such model, breaks off or sends something else",
          "one line, exit 3, with how to do without it", unreachable,
          changed="bits that changed in a whole file are not noticed: the record keeps the digest of what was used"),
    Fault(17, "a decoder crashes or raises",
          "what raises is left out by name; a server's decoder is a process of its own, and is replaced",
          tested=("tests/bad_inputs/test_bad_inputs.py::test_a_bad_input",
                  f"{SERVING}::test_dead_worker_is_replaced"),
          changed="one's own images are decoded in threads: a decoder that kills its process ends the command"),
    Fault(18, "no HOME, no temporary folder, LANG=C, TERM=dumb, 20 columns", "no traceback, the same bits", homeless,
          (f"{SIGNALS}::test_signal_loses_nothing",)),
    Fault(19, "forked or spawned, no workers, one core, no GPU", "the same bits", one_core,
          (f"{TUNE}::test_a_killed_worker_is_replaced_and_the_result_is_the_same",),
          "on Apple's GPUs nothing was tried"),
]  # fmt: skip
