"""A stranger's pickle -> tensors, without running its code. Also a program: it does so for another process.

As a program it reads requests, a line of JSON each, and answers with bytes that are no pickle. It needs nothing of
taskgraft, so that it starts as fast as torch does. Its memory, time and files are limited for each request.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

# where training programs put the weights, best first: an average of weights is what their authors evaluate
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
)
RULES = "1"  # raise it when the same pickle would give other tensors
GOOD, BAD = b"+", b"-"
LENGTH = struct.Struct("<Q")
TIMES, SPARE = 6, 2**30  # memory beside that of a bare torch: so many times the file's bytes, and so many more
SECONDS, SPEED = 120, 10 * 2**20  # of processor time, and bytes of the file for each further one


class Refused(Exception):
    """Why a file gave no tensors."""


def chosen(top: Mapping[str, Any], found: list[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's best container, or of its top level; tells `found` which container."""
    for name in CONTAINERS:
        inner = top.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            found.append(f"weights from its entry {name!r}")
            return {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    tensors = {str(key): value for key, value in top.items() if isinstance(value, Tensor)}
    if not tensors:
        entries = ", ".join(map(str, list(top)[:8]))[:250]
        raise Refused(f"holds no tensors, only the entries {entries}; save model.state_dict()")
    return tensors


def opened(path: Path) -> dict[str, Any]:
    """The top level of a pickle; raises Refused for one that is damaged, needs code, or holds something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            top = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        reason = refused[0] if refused else "it holds more than tensors"
        raise Refused(
            f"was not loaded: opening it would run code from the file ({reason[:160]}); "
            "where it was made, save only the weights: torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:  # the reader raises anything on damaged files; none of it is a crash
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"is no sound PyTorch checkpoint: {reason[:160]}; copy it again") from error
    if not isinstance(top, Mapping):
        raise Refused(f"holds a {type(top).__name__}, not named tensors; save model.state_dict()")
    return {str(key): value for key, value in top.items()}


def packed(path: Path) -> bytes:
    """A pickle's tensors as safetensors; its metadata say what was inferred and which texts stood beside them."""
    found: list[str] = []
    top = opened(path)
    tensors = {name: value.detach().clone().contiguous() for name, value in chosen(top, found).items()}
    beside = {key: value for key, value in top.items() if isinstance(value, str) and len(value) < 1024}
    return save(tensors, {"found": json.dumps(found), "rest": json.dumps(beside)})


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        path = Path(os.fsdecode(bytes.fromhex(json.loads(line)["path"])))
        try:
            _confine(path.stat().st_size)
            answer = GOOD + packed(path)
        except Refused as error:
            answer = BAD + str(error).encode("utf-8", "backslashreplace")
        except Exception as error:  # MemoryError, strange tensors: whatever it is, the other process must hear of it
            reason = (str(error).splitlines() or [""])[0]
            answer = (
                BAD + f"is no sound PyTorch checkpoint: {type(error).__name__} {reason[:160]}; copy it again".encode()
            )
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


def _confine(size: int) -> None:
    """Allow this process memory and time for a file of `size` bytes, no file and no core dump; where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    status = Path("/proc/self/statm")
    limits = {resource.RLIMIT_CPU: int(time_used()) + SECONDS + size // SPEED}
    if status.exists():
        limits[resource.RLIMIT_AS] = int(status.read_text().split()[0]) * resource.getpagesize() + TIMES * size + SPARE
    for kind, soft in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def time_used() -> float:
    """Seconds of processor time that this process has had."""
    spent = os.times()
    return spent.user + spent.system


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    _serve(sys.stdin.buffer, answers)
