"""Pickles are opened in a process of their own: a crash, a bomb or a trick ends there, and no pickle comes back."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from taskgraft.bundle import unpickle
from taskgraft.errors import CheckpointError
from taskgraft.models.tensor_cache import memoize_in
from taskgraft.results.files import digest
from taskgraft.types import Params

IDLE = 20.0  # seconds that the process waits for another pickle: it holds as much memory as a bare torch
ABOUT, OWN = "about", "own."  # names among the tensors that are kept: the texts, and a prefix of the file's own
_HELPERS: list[subprocess.Popen[bytes]] = []  # at most one; the next pickle need not wait for torch's import
_TIMERS: list[threading.Timer] = []
_ALONE = threading.Lock()


def read(path: Path, cache: Path | None = None) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A pickle's tensors by name, the texts beside them, and what was inferred.

    With a cache folder, a file of the same contents is not opened again. Raises TaskgraftError for what is damaged, needs
    code, holds no tensors, or ends the process that opens it.
    """
    if cache is None:
        return _opened(path)
    recall = memoize_in(cache / "recalled", "pickle", unpickle.RULES, torch.__version__, digest(path))

    def made() -> Params:
        tensors, *texts = _opened(path)
        told = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        return {ABOUT: told, **{f"{OWN}{name}": value for name, value in tensors.items()}}

    known = recall("tensors", made)
    rest, found = json.loads(known.pop(ABOUT).numpy().tobytes())
    return {name.removeprefix(OWN): value for name, value in known.items()}, rest, found


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What the other process makes of a pickle."""
    with _ALONE:
        for timer in _TIMERS:
            timer.cancel()
        answer = _ask(path)
        _TIMERS[:] = [threading.Timer(IDLE, _retire)]
        _TIMERS[0].daemon = True
        _TIMERS[0].start()
    if answer[:1] != unpickle.GOOD:
        raise CheckpointError(f"{path} {answer[1:].decode('utf-8', 'replace')}")
    blob = answer[1:]
    about = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    return load(blob), json.loads(about["rest"]), json.loads(about["found"])


def _ask(path: Path) -> bytes:
    helper = _HELPERS[0] if _HELPERS and _HELPERS[0].poll() is None else _start()
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        place = os.fsencode(path.absolute()).hex()
        helper.stdin.write(json.dumps({"path": place}).encode() + b"\n")
        helper.stdin.flush()
        head = helper.stdout.read(unpickle.LENGTH.size)
        if len(head) == unpickle.LENGTH.size:
            answer = helper.stdout.read(unpickle.LENGTH.unpack(head)[0])
            if len(answer) == unpickle.LENGTH.unpack(head)[0]:
                return answer
    except BrokenPipeError:
        pass
    _stop()
    return unpickle.BAD + b"is no sound PyTorch checkpoint: the process that opened it ended"


def _start() -> subprocess.Popen[bytes]:
    _stop()
    words = [sys.executable, "-P", "-W", "ignore", str(Path(unpickle.__file__))]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    atexit.unregister(_stop)
    atexit.register(_stop)
    helper = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet
    )
    _HELPERS.append(helper)
    return helper


def _retire() -> None:
    with _ALONE:
        _stop()


def _stop() -> None:
    """End the process, if there is one."""
    while _HELPERS:
        helper = _HELPERS.pop()
        helper.kill()
        helper.communicate()
