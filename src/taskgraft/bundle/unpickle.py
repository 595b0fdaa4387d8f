"""A program that converts untrusted pickles to safetensors without running code from them.

It reads requests, one line of JSON each, and replies with bytes that are never a pickle. It imports nothing of
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

# entries that training programs store weights in, best first: averaged weights are what their authors evaluate
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
RULES = "2"  # part of the cache key: raise it when the same pickle would give other tensors or notes
OK, REFUSED = b"+", b"-"
LENGTH = struct.Struct("<Q")
MEMORY_FACTOR, MEMORY_SPARE = 6, 2**30  # bytes beyond a bare torch: a multiple of the file's size, and a constant
CPU_SECONDS, BYTES_PER_SECOND = 120, 10 * 2**20  # processor time, and one more second for so many bytes of the file


class Refused(Exception):
    """Why a file gave no tensors; completes a sentence that begins with its path."""


def convert(path: Path) -> bytes:
    """Convert a pickle's tensors to safetensors, with notes and short texts in the metadata.

    Args:
        path: a file written by torch.save.

    Raises:
        Refused: the file is damaged, needs code, or holds no tensors.
    """
    checkpoint = load_safely(path)
    tensors, notes = find_tensors(checkpoint)
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    texts = {key: value for key, value in checkpoint.items() if isinstance(value, str) and len(value) < 1024}
    return save(tensors, {"notes": json.dumps(notes), "texts": json.dumps(texts)})


def load_safely(path: Path) -> dict[str, Any]:
    """Load the top level of a pickle by torch's restricted unpickler; raises Refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        globals_ = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        reason = globals_[0] if globals_ else "it contains more than tensors"
        raise Refused(
            f"was not loaded because that would run code from the file ({reason[:160]}); "
            "where it was saved, save only the weights: torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:  # the reader raises anything on damaged files; none of it is a crash
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"is not a valid PyTorch checkpoint: {reason[:160]}; copy it again") from error
    if not isinstance(checkpoint, Mapping):
        raise Refused(f"contains a {type(checkpoint).__name__}, not named tensors; save model.state_dict()")
    return {str(key): value for key, value in checkpoint.items()}


def find_tensors(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a checkpoint's best container, or of its top level, and a note on which; raises Refused."""
    for name in CONTAINERS:
        entry = checkpoint.get(name)
        tensors = _select_tensors(entry) if isinstance(entry, Mapping) else {}
        if tensors:
            return tensors, [f"weights from its entry {name!r}"]
    tensors = _select_tensors(checkpoint)
    if not tensors:
        entries = ", ".join(map(str, list(checkpoint)[:8]))[:250]
        raise Refused(f"contains no tensors, only the entries {entries}; save model.state_dict()")
    return tensors, []


def _select_tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        path = Path(os.fsdecode(bytes.fromhex(json.loads(line)["path"])))
        try:
            limit_resources(path.stat().st_size)
            reply = OK + convert(path)
        except Refused as error:
            reply = REFUSED + str(error).encode("utf-8", "backslashreplace")
        except Exception as error:  # MemoryError, strange tensors: the other process waits for a reply
            reason = f"{type(error).__name__} {(str(error).splitlines() or [''])[0][:160]}"
            reply = REFUSED + f"is not a valid PyTorch checkpoint: {reason}; copy it again".encode()
        replies.write(LENGTH.pack(len(reply)) + reply)
        replies.flush()


def limit_resources(size: int) -> None:
    """Limit this process to the memory and time for a file of `size` bytes, no output file and no core dump.

    Does nothing on systems without such limits.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    status, used = Path("/proc/self/statm"), os.times()
    limits = {resource.RLIMIT_CPU: int(used.user + used.system) + CPU_SECONDS + size // BYTES_PER_SECOND}
    if status.exists():
        bare = int(status.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = bare + MEMORY_FACTOR * size + MEMORY_SPARE
    for kind, soft in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not a reply
    torch.set_num_threads(1)
    serve(sys.stdin.buffer, replies)
