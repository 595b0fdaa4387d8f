"""A program that converts untrusted pickles to safetensors without running code from them.

It reads requests, one line of JSON each, and replies with bytes that are never a pickle. It imports nothing of
taskgraft, so that it starts as fast as torch does. Its memory, time and files are limited for each request.
"""

from __future__ import annotations

import _compat_pickle
import argparse
import datetime
import json
import os
import pickle
import re
import struct
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import save
from torch import Tensor

RULES = "5"  # part of the cache key: raise it when the same pickle would give other tensors or texts
OK, REFUSED = b"+", b"-"
LENGTH = struct.Struct("<Q")
MEMORY_FACTOR, MEMORY_SPARE = 6, 2**30  # bytes beyond a bare torch: a multiple of the file's size, and a constant
CPU_SECONDS, BYTES_PER_SECOND = 120, 10 * 2**20  # processor time, and one more second for so many bytes of the file
MAX_DEPTH = 4  # of entries within entries
MAX_TEXTS, MAX_CLASSES = 1000, 100_000
NOT_WEIGHTS = re.compile(
    "optim|scaler|sched|callback|loops|opt$|rng", re.IGNORECASE
)  # entries with tensors of their own
CLASS_NAMES = re.compile(
    "class_?names|classes|names|label_?names|labels|class_to_idx|class_to_index|id2label|idx_to_class|label2id|vocab",
    re.IGNORECASE,
)
MODULES = ("torch.nn.", "torchvision.models.", "timm.models.", "ultralytics.nn.", "transformers.models.")
# Packages whose classes and functions are never stood in for: Python's own, by their names today and in Python 2, where
# exploits are found, and those whose objects are networks.
KNOWN = {*sys.stdlib_module_names, *_compat_pickle.IMPORT_MAPPING, *(name.partition(".")[0] for name in MODULES)}


class Refused(Exception):
    """Why a file gave no tensors; completes a sentence that begins with its path."""


def join_path(*parts: str) -> str:
    """Stand in for the classes of pathlib, some of which exist on Windows alone."""
    return "/".join(map(str, parts)).replace("//", "/")


def plain_dict(*_: Any) -> dict[Any, Any]:
    """Stand in for defaultdict, without its factory."""
    return {}


def plain_list(items: Any = (), *_: Any) -> list[Any]:
    """Stand in for deque."""
    return list(items)


class StandIn(dict[Any, Any]):
    """Stands in for an object of a class that only another program has, such as its settings: the fields are kept.

    Nothing of that class is imported, so that none of its code runs.
    """

    def __new__(cls, *_: Any) -> StandIn:
        """Ignore what its class would have been created with."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Start without fields, which are set afterwards."""
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep the fields; those of __slots__ are the second of two dictionaries."""
        for fields in state if isinstance(state, tuple) else (state,):
            self.update(fields if isinstance(fields, dict) else {})


PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
# What training programs store beside weights and is data: nothing here does more than to build a value.
DATA: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (types.SimpleNamespace, "types.SimpleNamespace"),
    (plain_dict, "collections.defaultdict"),
    (plain_list, "collections.deque"),
    *((join_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in PATHS),
    *((value, f"builtins.{value.__name__}") for value in (frozenset, slice, range, list, dict, tuple)),
    *((value, f"builtins.{value.__name__}") for value in (bool, int, float, str, bytes)),
    *((getattr(datetime, name), f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta", "timezone")),
    (type(torch.__version__), "torch.torch_version.TorchVersion"),
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    *{type(np.dtype(code)) for code in (*np.typecodes["All"], "O", "S", "U", "M8", "m8")},
    *((np.dtype(code).type, f"numpy.{np.dtype(code).type.__name__}") for code in "?bBhHiIlLqQefdgFD"),
    *(
        (getattr(multiarray, name), f"{module}.{name}")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2
        for name in ("scalar", "_reconstruct")
    ),
]  # fmt: skip


def convert(path: Path) -> bytes:
    """Convert a pickle's tensors to safetensors, with short texts and lists of names in the metadata.

    The name of a tensor begins with the number of the entry that holds it, as in "0.conv1.weight".

    Args:
        path: a file written by torch.save.

    Raises:
        Refused: the file is damaged, needs code, or holds no tensors.
    """
    checkpoint = load_safely(path)
    entries = find_entries(checkpoint)
    tensors = {
        f"{number}.{name}": value.detach().clone().contiguous()
        for number, entry in enumerate(entries.values())
        for name, value in entry.items()
    }
    about = {"entries": list(entries), "texts": find_texts(checkpoint), "class_names": find_class_names(checkpoint)}
    return save(tensors, {key: json.dumps(value) for key, value in about.items()})


def load_safely(path: Path) -> dict[str, Any]:
    """Load the top level of a pickle by torch's restricted unpickler; raises Refused."""
    try:
        checkpoint = _load_with_stand_ins(path)
    except pickle.UnpicklingError as error:
        raise Refused(_describe_code(path, error)) from error
    except Exception as error:  # the reader raises anything on damaged files; none of it is a crash
        if "TorchScript" in str(error):
            raise Refused(
                "is a TorchScript archive, a program with its weights, and opening it would run code from the file; "
                "if you trust it, save its weights alone: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise Refused(f"is not a valid PyTorch checkpoint: {reason[:160]}; copy it again") from error
    if isinstance(checkpoint, list | tuple) and any(isinstance(value, Mapping) for value in checkpoint):
        checkpoint = dict(enumerate(checkpoint))  # such as (weights, epoch)
    if not isinstance(checkpoint, Mapping):
        raise Refused(f"contains a {type(checkpoint).__name__}, not named tensors; save model.state_dict()")
    return {str(key): value for key, value in checkpoint.items()}


def _load_with_stand_ins(path: Path) -> Any:
    """Load a pickle; where all that it needs are classes of other programs, these are stood in for."""

    def load(allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]]) -> Any:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)

    try:
        return load(DATA)
    except pickle.UnpicklingError:
        names = _list_unknown(path)
        if not names or any(name.partition(".")[0] in KNOWN for name in names):
            raise
        return load([*DATA, *((StandIn, name) for name in names)])


def _list_unknown(path: Path) -> set[str]:
    """List the classes and functions that a pickle needs beside data; none for old formats and damaged files."""
    try:
        with torch.serialization.safe_globals(DATA):
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # the reader raises anything on damaged files
        return set()


def _describe_code(path: Path, error: pickle.UnpicklingError) -> str:
    """Say which classes or functions a pickle needs, and how the weights get out of it."""
    found = sorted({*re.findall(r"GLOBAL ([\w.]+)", str(error)), *_list_unknown(path)})
    if not found:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        return f"is not a valid PyTorch checkpoint: {reason[:160]}; copy it again, or save only model.state_dict()"
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    names = ", ".join(name[:80] for name in found[:4]) + more
    load = f"torch.load({path.name!r}, weights_only=False)"
    if any(name.startswith(MODULES) for name in found):
        return (
            f"holds a whole pickled nn.Module, and reading it would run code from the file ({names}); where its code "
            f"is installed and you trust it, save its weights: model = {load}, or the entry of it that is the model; "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    return (
        f"was not loaded because that would run code from the file ({names}); if you trust it, save only the weights: "
        f"torch.save({load}['state_dict'], 'weights.pth'), or where it was saved, torch.save(model.state_dict(), …)"
    )


def _walk(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every entry that has named values, with its path such as 'ema.module', outer ones first; each once."""
    queue: list[tuple[str, Any, int]] = [("", checkpoint, 0)]
    seen: set[int] = set()
    for path, entry, depth in queue:
        values = vars(entry) if isinstance(entry, argparse.Namespace | types.SimpleNamespace) else entry
        if not isinstance(values, Mapping) or id(values) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(values))
        yield path, values
        queue += [
            (f"{path}.{key}".removeprefix("."), value, depth + 1)
            for key, value in values.items()
            if isinstance(key, str) and not isinstance(value, Tensor) and not NOT_WEIGHTS.search(key)
        ]


def find_entries(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of every entry by its path, that of the top level being ""; raises Refused.

    What belongs to an optimizer or a scheduler is left out. Arrays of NumPy and sparse tensors become tensors.
    """
    entries: dict[str, dict[str, Tensor]] = {}
    for path, values in _walk(checkpoint):
        tensors = {str(key): tensor for key, value in values.items() if (tensor := _as_tensor(value)) is not None}
        unusable = [(key, reason) for key, value in tensors.items() if (reason := _is_unusable(value))]
        if unusable:
            name, reason = unusable[0]
            more = f" and {len(unusable) - 1} more" if len(unusable) > 1 else ""
            raise Refused(reason.format(name=f"{name!r}{more}"))
        if tensors:
            entries[path] = tensors
    if not entries:
        names = ", ".join(map(str, list(checkpoint)[:8]))[:250]
        raise Refused(f"contains no tensors, only the entries {names}; save model.state_dict()")
    return entries


def _as_tensor(value: object) -> Tensor | None:
    """Return a tensor, a sparse one as a dense one, or an array of numbers; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
        return torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        return None
    return value if value.layout == torch.strided or value.device.type != "cpu" else value.to_dense()


def _is_unusable(value: Tensor) -> str:
    """Return why a tensor cannot be weights, with a place for its name; "" where it can."""
    if value.is_quantized:
        return "holds quantized weights ({name}), which cannot be trained; give the model from before its quantization"
    if value.device.type != "cpu":
        return "holds tensors without values ({name}), as of a model on the device 'meta'; save the loaded model"
    return ""


def find_texts(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return the short texts of all entries by their paths, such as 'args.model'."""
    found = {
        f"{path}.{key}".removeprefix("."): str(value)
        for path, values in _walk(checkpoint)
        for key, value in values.items()
        if isinstance(value, str) and len(value) < 1024
    }
    return dict(list(found.items())[:MAX_TEXTS])


def find_class_names(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be class names, lists and dictionaries by their paths, such as 'class_to_idx'."""
    found: dict[str, Any] = {}
    for path, values in _walk(checkpoint):
        for key, value in values.items():
            if not CLASS_NAMES.fullmatch(str(key)) or not isinstance(value, list | tuple | Mapping | np.ndarray):
                continue
            plain = value.tolist() if isinstance(value, np.ndarray) else value
            pairs = list(plain.items()) if isinstance(plain, Mapping) else list(enumerate(plain))
            items = [item for pair in pairs for item in pair]
            if 0 < len(pairs) <= MAX_CLASSES and all(isinstance(item, str | int | np.integer) for item in items):
                pairs = [(_plain(key), _plain(value)) for key, value in pairs]
                found[f"{path}.{key}".removeprefix(".")] = (
                    dict(pairs) if isinstance(plain, Mapping) else [value for _, value in pairs]
                )
    return found


def _plain(value: Any) -> str | int:
    return str(value) if isinstance(value, str) else int(value)


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
