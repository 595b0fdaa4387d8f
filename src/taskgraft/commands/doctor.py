"""Whether this machine can run taskgraft: versions, the pair torch and torchvision, GPU, disk, extras. Writes nothing.

Each probe gives plain facts; what they mean is decided by functions that need nothing but those. Neither torch nor
torchvision is imported here: a pair that does not fit can end the process that tries.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from taskgraft.methods import presets

State = Literal["good", "note", "blocks"]

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    **presets.EXTRAS,
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "parquet": ("pyarrow",),
    "ray": ("optuna", "psycopg", "ray"),
    "serve": ("fastapi", "starlette", "uvicorn", "h11", "python_multipart", "prometheus_client"),
    "track": ("accelerate", "tensorboard"),
    "tune": ("optuna", "psycopg"),
    "video": ("av",),
}  # extra -> what is imported; a test compares it with pyproject.toml
GIB = 2**30
LITTLE, LOW = 1 * GIB, 5 * GIB  # free disk that is not enough for a run, and that a few runs fill
MUCH = 50 * GIB  # of decoded pixels, from which a word is worth it
SHARED = 64 * 2**20  # what containers get by default; processes that exchange tensors need more
PATIENCE = 300  # seconds for the import of torch from a cold disk
PAIR = "pip install --force-reinstall torch torchvision  (together, as standard wheels)"

# Each stage is told before the next begins, so that the place of a crash is known too.
PROBE = """
import json
def tell(**facts): print(json.dumps(facts), flush=True)
tell(at="torch")
import torch
tell(at="gpu", torch=torch.__version__, cuda=torch.version.cuda or torch.version.hip)
found = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if found else []
tell(at="torchvision", gpus=[[gpu.name, gpu.total_memory] for gpu in gpus])
import torchvision
tell(at="timm", torchvision=torchvision.__version__)
import timm
tell(at="end", timm=timm.__version__)
"""


class Finding(NamedTuple):
    """One thing that was looked at; `remedy` is what to do about a note or about what blocks."""

    name: str
    value: str
    state: State = "good"
    remedy: str = ""


def doctor() -> tuple[Finding, ...]:
    """Look at everything; takes as long as importing torch does."""
    import platformdirs

    cache = platformdirs.user_cache_path("taskgraft")
    return (
        python(sys.version_info[:3]),
        *required(_requirements(), _version),
        *networks(*_probe(), driver=shutil.which("nvidia-smi") is not None),
        Finding("CPU cores", f"{len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()}"),
        writable("cache", cache, os.access(_existing(cache), os.W_OK)),
        held("cache size", cache, _bytes(cache)),
        disk("disk space of the cache", cache, shutil.disk_usage(_existing(cache)).free),
        disk("disk space of this folder", Path.cwd(), shutil.disk_usage(Path.cwd()).free),
        *(shared_memory(shutil.disk_usage(place).total) for place in ("/dev/shm",) if Path(place).is_dir()),
        *extras(_version),
        *video(_av()),
    )


def python(version: Sequence[int]) -> Finding:
    """The version of Python."""
    shown = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if tuple(version) >= (3, 11):
        return Finding("Python", shown)
    return Finding("Python", shown, "blocks", "taskgraft needs Python 3.11 or newer")


def required(least: Mapping[str, str], version: Callable[[str], str | None]) -> tuple[Finding, ...]:
    """What taskgraft cannot do without: each package with its least version."""
    found = []
    for name, bound in least.items():
        have = version(name)
        if have is None:
            found.append(Finding(name, "not installed", "blocks", f"pip install '{name}>={bound}'"))
        elif _numbers(have) < _numbers(bound):
            found.append(Finding(name, have, "blocks", f"{bound} or newer: pip install -U '{name}>={bound}'"))
        else:
            found.append(Finding(name, have))
    return tuple(found)


def networks(facts: Mapping[str, Any], code: int, said: str, *, driver: bool) -> tuple[Finding, ...]:
    """torch, torchvision and timm as they import together, and the GPU; `driver` = this machine has NVIDIA's."""
    last = said.strip().splitlines()[-1] if said.strip() else f"it ended with code {code}"
    at = facts.get("at", "torch")
    if code == 0 and at == "end":
        return (Finding("torch, torchvision and timm", "import and match"), _gpu(facts, driver))
    gpu = (_gpu(facts, driver),) if "gpus" in facts else ()
    if at == "torchvision":
        have = f"torch {facts.get('torch')} and the installed torchvision do not match: {last}"
        return (Finding("torch and torchvision", have[:300], "blocks", PAIR), *gpu)
    name = "GPU detection" if at == "gpu" else str(at)
    remedy = "update the GPU driver, or hide the GPU with CUDA_VISIBLE_DEVICES=" if at == "gpu" else PAIR
    remedy = "pip install --force-reinstall timm" if at == "timm" else remedy
    return (Finding(name, f"does not work: {last}"[:300], "blocks", remedy), *gpu)


def _gpu(facts: Mapping[str, Any], driver: bool) -> Finding:
    gpus = facts.get("gpus") or []
    if gpus:
        return Finding("GPU", "; ".join(f"{name}, {memory / GIB:.0f} GiB" for name, memory in gpus))
    if not driver:
        return Finding("GPU", "none; running on CPU")
    if facts.get("cuda") is None:
        return Finding("GPU", "present, but this torch is built without CUDA", "note", PAIR)
    remedy = f"the driver is probably too old for CUDA {facts['cuda']}: update it, or install an older torch"
    return Finding("GPU", "driver present, but torch finds no GPU", "note", remedy)


def writable(name: str, place: Path, can: bool) -> Finding:
    """Whether a folder can be written, or made."""
    if can:
        return Finding(name, f"{place} is writable")
    return Finding(
        name, f"{place} is not writable", "blocks", "give --cache FOLDER or --cache none, or fix its permissions"
    )


def held(name: str, place: Path, size: int) -> Finding:
    """Bytes of decoded pixels: nothing takes them away, since nobody but the user knows which sets are done with."""
    shown = f"{size / GIB:.1f} GiB"
    if size < MUCH:
        return Finding(name, shown)
    return Finding(name, shown, "note", f"delete {place} when no run is active; images are decoded again when needed")


def disk(name: str, place: Path, free: int) -> Finding:
    """Free bytes where something is written."""
    shown = f"{free / GIB:.1f} GiB free at {place}"
    if free < LITTLE:
        return Finding(name, shown, "blocks", "free at least 1 GiB for models, checkpoints and reports")
    return Finding(name, shown, "note", "a few runs may fill the disk") if free < LOW else Finding(name, shown)


def shared_memory(size: int) -> Finding:
    """The size of the memory that processes share, in bytes."""
    shown = f"{size / 2**20:,.0f} MiB"
    if size > SHARED:
        return Finding("shared memory", shown)
    return Finding("shared memory", shown, "note", "multi-process runs need more; in containers: --shm-size=1g")


def extras(version: Callable[[str], str | None]) -> tuple[Finding, ...]:
    """Each extra: there, or what to install."""
    found = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            remedy = f"pip install 'taskgraft[{extra}]'"
            found.append(Finding(f"extra {extra}", f"missing {', '.join(missing)}", "note", remedy))
        else:
            known = [f"{name} {version(name)}" for name in modules if version(name)]
            found.append(Finding(f"extra {extra}", ", ".join(known) or "installed"))
    return tuple(found)


def video(libraries: Mapping[str, Sequence[int]] | str | None) -> tuple[Finding, ...]:
    """FFmpeg inside PyAV: its libraries' versions, why it cannot be loaded, or None where PyAV is missing."""
    if libraries is None:
        return ()
    if isinstance(libraries, str):
        return (Finding("FFmpeg", libraries, "note", "pip install --force-reinstall 'taskgraft[video]'"),)
    codec = ".".join(map(str, libraries.get("libavcodec", ())))
    return (Finding("FFmpeg", f"libavcodec {codec}, inside PyAV"),)


def _probe() -> tuple[dict[str, Any], int, str]:
    """Import the networks' libraries in a process of their own: facts, exit code, what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {}, 1, f"importing torch took more than {PATIENCE} s"
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"at"'):
            facts |= json.loads(line)
    return facts, done.returncode, done.stderr


def _requirements() -> dict[str, str]:
    """The packages that taskgraft requires, with their least versions; no extras.

    Its metadata tells them, or its pyproject.toml where it runs from a source tree that is not installed.
    """
    try:
        lines = importlib.metadata.requires("taskgraft") or []
    except importlib.metadata.PackageNotFoundError:
        lines = _declared(Path(__file__).parents[3] / "pyproject.toml")
    matches = [re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)", line) for line in lines if "extra ==" not in line]
    return {match[1]: match[2] for match in matches if match}


def _declared(file: Path) -> list[str]:
    """What a pyproject.toml requires; nothing where only the package was copied."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    except (OSError, ValueError, KeyError):
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None


def _av() -> Mapping[str, Sequence[int]] | str | None:
    if importlib.util.find_spec("av") is None:
        return None
    try:
        import av
    except Exception as error:  # a library that does not load raises anything
        return f"PyAV does not load: {type(error).__name__}: {error}"[:300]
    return av.library_versions


def _existing(place: Path) -> Path:
    """A folder, or what is there of the way to it."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _bytes(folder: Path) -> int:
    """What the files below a folder take, 0 where there is none; those that go meanwhile count nothing."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: 2.10.0+cpu -> (2, 10, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
