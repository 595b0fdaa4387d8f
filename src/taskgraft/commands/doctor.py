"""Whether this machine can run taskgraft: versions, torch with torchvision, GPU, disk, extras. Writes nothing.

Neither torch nor torchvision is imported here: a pair that does not match can end the process that imports it.
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

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    **presets.EXTRAS,
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "parquet": ("pyarrow",),
    "ray": ("optuna", "psycopg", "ray"),
    "serve": ("fastapi", "starlette", "uvicorn", "h11", "python_multipart", "prometheus_client"),
    "sign": ("cryptography",),
    "track": ("accelerate", "tensorboard"),
    "tune": ("optuna", "psycopg"),
    "video": ("av",),
}  # extra -> what is imported; a test compares it with pyproject.toml
MIB, GIB = 2**20, 2**30
MIN_DISK, LOW_DISK = 1 * GIB, 5 * GIB  # too little for a run, and what a few runs fill
LARGE_CACHE = 50 * GIB
MIN_SHARED_MEMORY = 64 * MIB  # what containers get by default; processes that exchange tensors need more
IMPORT_TIMEOUT = 300  # seconds to import torch from a cold disk
REINSTALL_TORCH = "pip install --force-reinstall torch torchvision  (together, as standard wheels)"

# Each stage is reported before it begins, so that a crash can be attributed.
IMPORTS = """
import json
def report(**facts): print(json.dumps(facts), flush=True)
report(stage="torch")
import torch
report(stage="gpu", torch=torch.__version__, cuda=torch.version.cuda or torch.version.hip)
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
report(stage="torchvision", gpus=[[gpu.name, gpu.total_memory] for gpu in gpus])
import torchvision
report(stage="timm", torchvision=torchvision.__version__)
import timm
report(stage="done", timm=timm.__version__)
"""


class Finding(NamedTuple):
    """The result of one check, and what to do about a warning or an error."""

    name: str
    value: str
    status: Literal["ok", "warning", "error"] = "ok"
    remedy: str = ""


def doctor() -> tuple[Finding, ...]:
    """Check everything; takes as long as importing torch does."""
    import platformdirs

    cache, cwd, shared_memory = platformdirs.user_cache_path("taskgraft"), Path.cwd(), Path("/dev/shm")
    parent = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return (
        check_python(sys.version_info[:3]),
        *(check_package(name, minimum, _version(name)) for name, minimum in _requirements().items()),
        *check_imports(*_import_in_process(), has_driver=shutil.which("nvidia-smi") is not None),
        Finding("CPU cores", f"{len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()}"),
        check_cache(cache, os.access(parent, os.W_OK)),
        check_cache_size(cache, _folder_size(cache)),
        check_disk("disk space of the cache", cache, shutil.disk_usage(parent).free),
        check_disk("disk space of this folder", cwd, shutil.disk_usage(cwd).free),
        *([check_shared_memory(shutil.disk_usage(shared_memory).total)] if shared_memory.is_dir() else []),
        *(check_extra(extra, modules, _version) for extra, modules in EXTRAS.items()),
        *check_ffmpeg(_read_ffmpeg_versions()),
    )


def check_python(version: Sequence[int]) -> Finding:
    """Check the version of Python."""
    value = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if tuple(version) >= (3, 11):
        return Finding("Python", value)
    return Finding("Python", value, "error", "taskgraft needs Python 3.11 or newer")


def check_package(name: str, minimum: str, version: str | None) -> Finding:
    """Check the version of a required package."""
    if version is None:
        return Finding(name, "not installed", "error", f"pip install '{name}>={minimum}'")
    if _parse_version(version) < _parse_version(minimum):
        return Finding(name, version, "error", f"{minimum} or newer: pip install -U '{name}>={minimum}'")
    return Finding(name, version)


def check_imports(facts: Mapping[str, Any], exit_code: int, stderr: str, *, has_driver: bool) -> tuple[Finding, ...]:
    """Check that torch, torchvision and timm import together, and the GPU; `has_driver`: NVIDIA's is installed."""
    last_line = stderr.strip().splitlines()[-1] if stderr.strip() else f"it ended with code {exit_code}"
    stage = facts.get("stage", "torch")
    gpu = (_check_gpu(facts, has_driver),) if "gpus" in facts else ()
    if exit_code == 0 and stage == "done":
        return (Finding("torch, torchvision and timm", "import and match"), *gpu)
    if stage == "torchvision":
        problem = f"torch {facts.get('torch')} and the installed torchvision do not match: {last_line}"
        return (Finding("torch and torchvision", problem[:300], "error", REINSTALL_TORCH), *gpu)
    name, remedy = {
        "gpu": ("GPU detection", "update the GPU driver, or hide the GPU with CUDA_VISIBLE_DEVICES="),
        "timm": ("timm", "pip install --force-reinstall timm"),
    }.get(stage, (stage, REINSTALL_TORCH))
    return (Finding(name, f"does not work: {last_line}"[:300], "error", remedy), *gpu)


def _check_gpu(facts: Mapping[str, Any], has_driver: bool) -> Finding:
    if facts["gpus"]:
        return Finding("GPU", "; ".join(f"{name}, {memory / GIB:.0f} GiB" for name, memory in facts["gpus"]))
    if not has_driver:
        return Finding("GPU", "none; running on CPU")
    if facts.get("cuda") is None:
        return Finding("GPU", "present, but this torch is built without CUDA", "warning", REINSTALL_TORCH)
    remedy = f"the driver is probably too old for CUDA {facts['cuda']}: update it, or install an older torch"
    return Finding("GPU", "driver present, but torch finds no GPU", "warning", remedy)


def check_cache(folder: Path, writable: bool) -> Finding:
    """Check that the cache can be written."""
    if writable:
        return Finding("cache", f"{folder} is writable")
    remedy = "give --cache FOLDER or --cache none, or fix its permissions"
    return Finding("cache", f"{folder} is not writable", "error", remedy)


def check_cache_size(folder: Path, size: int) -> Finding:
    """Check the size of the cache in bytes; only users know which data sets they still need, so it is never pruned."""
    value = f"{size / GIB:.1f} GiB"
    if size < LARGE_CACHE:
        return Finding("cache size", value)
    remedy = f"delete {folder} when no run is active; images are decoded again when needed"
    return Finding("cache size", value, "warning", remedy)


def check_disk(name: str, folder: Path, free: int) -> Finding:
    """Check the free bytes of a disk."""
    value = f"{free / GIB:.1f} GiB free at {folder}"
    if free < MIN_DISK:
        return Finding(name, value, "error", "free at least 1 GiB for models, checkpoints and reports")
    return Finding(name, value, "warning", "a few runs may fill the disk") if free < LOW_DISK else Finding(name, value)


def check_shared_memory(size: int) -> Finding:
    """Check the bytes of memory that processes can share."""
    value = f"{size / MIB:,.0f} MiB"
    if size > MIN_SHARED_MEMORY:
        return Finding("shared memory", value)
    return Finding("shared memory", value, "warning", "multi-process runs need more; in containers: --shm-size=1g")


def check_extra(extra: str, modules: Sequence[str], version: Callable[[str], str | None]) -> Finding:
    """Check that the packages of an extra are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"pip install 'taskgraft[{extra}]'"
        return Finding(f"extra {extra}", f"missing {', '.join(missing)}", "warning", remedy)
    versions = [f"{name} {version(name)}" for name in modules if version(name)]
    return Finding(f"extra {extra}", ", ".join(versions) or "installed")


def check_ffmpeg(versions: Mapping[str, Sequence[int]] | str | None) -> tuple[Finding, ...]:
    """Check FFmpeg inside PyAV: versions of its libraries, why it does not load, or None without PyAV."""
    if versions is None:
        return ()
    if isinstance(versions, str):
        return (Finding("FFmpeg", versions, "warning", "pip install --force-reinstall 'taskgraft[video]'"),)
    codec = ".".join(map(str, versions.get("libavcodec", ())))
    return (Finding("FFmpeg", f"libavcodec {codec}, inside PyAV"),)


def _import_in_process() -> tuple[dict[str, Any], int, str]:
    """Run `IMPORTS` in another process: what it reported, its exit code and stderr."""
    command = [sys.executable, "-P", "-c", IMPORTS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return {}, 1, f"importing torch took more than {IMPORT_TIMEOUT} s"
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"stage"'):
            facts |= json.loads(line)
    return facts, done.returncode, done.stderr


def _requirements() -> dict[str, str]:
    """The required packages and their minimum versions: from the metadata, else from the source tree."""
    try:
        lines = importlib.metadata.requires("taskgraft") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
            lines = tomllib.loads(text)["project"]["dependencies"]
    matches = [re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)", line) for line in lines if "extra ==" not in line]
    return {match[1]: match[2] for match in matches if match}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None


def _parse_version(version: str) -> tuple[int, ...]:
    """2.10.0+cpu -> (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _read_ffmpeg_versions() -> Mapping[str, Sequence[int]] | str | None:
    if importlib.util.find_spec("av") is None:
        return None
    try:
        import av
    except Exception as error:  # a library that does not load raises anything
        return f"PyAV does not load: {type(error).__name__}: {error}"[:300]
    return av.library_versions


def _folder_size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it may be deleted meanwhile
                total += os.lstat(os.path.join(root, name)).st_size
    return total
