"""What `doctor` makes of findings that are given, and one look at this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from taskgraft.commands import doctor
from taskgraft.commands.doctor import GIB, Finding

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MISFIT = "Traceback\nRuntimeError: operator torchvision::nms does not exist\n"
WHOLE = {"stage": "done", "torch": "2.14.1", "cuda": "13.0", "gpus": [], "torchvision": "0.29.1", "timm": "1.0"}


def only(findings: tuple[Finding, ...]) -> Finding:
    (result,) = findings
    return result


def test_the_pair_that_does_not_fit_is_named_with_the_remedy() -> None:
    facts = {"stage": "torchvision", "torch": "2.13.0+cpu", "cuda": None, "gpus": []}
    result, gpu = doctor.check_imports(facts, 1, MISFIT, has_driver=False)
    assert result.status == "error"
    assert "torch 2.13.0+cpu and the installed torchvision do not match" in result.value
    assert "operator torchvision::nms does not exist" in result.value
    assert "pip install --force-reinstall torch torchvision" in result.remedy
    assert gpu.status == "ok"


@pytest.mark.parametrize(
    ("stage", "code", "stderr", "remedy"),
    [
        ("torch", 1, "ImportError: libtorch", "torch torchvision"),
        ("torchvision", -6, "", "torch torchvision"),
        ("timm", 1, "ModuleNotFoundError: No module named 'timm'", "timm"),
        ("gpu", 1, "RuntimeError: CUDA", "driver"),
    ],
)
def test_what_does_not_import_is_an_error(stage: str, code: int, stderr: str, remedy: str) -> None:
    result = doctor.check_imports({"stage": stage, "torch": "2.14.1"}, code, stderr, has_driver=False)[0]
    assert result.status == "error"
    assert remedy in result.remedy
    assert (stderr or f"ended with code {code}") in result.value


def test_gpus() -> None:
    gpus = {**WHOLE, "gpus": [["A100", 40 * GIB], ["A100", 40 * GIB]]}
    assert doctor.check_imports(gpus, 0, "", has_driver=True)[1] == Finding("GPU", "A100, 40 GiB; A100, 40 GiB")
    assert doctor.check_imports(WHOLE, 0, "", has_driver=False)[1].status == "ok"
    assert "driver is probably too old" in doctor.check_imports(WHOLE, 0, "", has_driver=True)[1].remedy
    without = doctor.check_imports({**WHOLE, "cuda": None}, 0, "", has_driver=True)[1]
    assert (without.status, "without CUDA" in without.value) == ("warning", True)


def test_versions() -> None:
    old = doctor.check_package("numpy", "2.0", "1.26.4")
    assert (old.status, old.remedy) == ("error", "2.0 or newer: pip install -U 'numpy>=2.0'")
    assert doctor.check_package("torch", "2.10", "2.14.1+cu130").status == "ok"
    missing = doctor.check_package("timm", "1.0.20", None)
    assert (missing.status, missing.remedy) == ("error", "pip install 'timm>=1.0.20'")
    assert doctor.check_python((3, 11, 0)).status == "ok"
    assert doctor.check_python((3, 10, 9)).status == "error"


@pytest.mark.parametrize(("free", "state"), [(0.5, "error"), (2, "warning"), (50, "ok")])
def test_disk(free: float, state: str) -> None:
    assert doctor.check_disk("disk", Path("/x"), int(free * GIB)).status == state


def test_a_large_cache_is_a_warning_that_says_how_to_empty_it() -> None:
    assert doctor.check_cache_size(Path("/x"), 3 * GIB) == Finding("cache size", "3.0 GiB")
    much = doctor.check_cache_size(Path("/x"), 60 * GIB)
    assert (much.status, "delete /x" in much.remedy) == ("warning", True)


def test_places() -> None:
    assert doctor.check_cache(Path("/x"), True).status == "ok"
    assert doctor.check_cache(Path("/x"), False).status == "error"
    assert doctor.check_shared_memory(64 * 2**20).status == "warning"
    assert doctor.check_shared_memory(2**30).status == "ok"


def test_video() -> None:
    assert doctor.check_ffmpeg(None) == ()
    assert only(doctor.check_ffmpeg({"libavcodec": (62, 11, 100)})).value == "libavcodec 62.11.100, inside PyAV"
    assert only(doctor.check_ffmpeg("PyAV does not load: ImportError")).status == "warning"


def test_extras_are_those_of_the_project() -> None:
    expected = {}
    for extra, lines in PYPROJECT["optional-dependencies"].items():
        flat = [line for line in lines if not line.startswith("taskgraft[")]
        inner = [part for line in lines for part in re.findall(r"^taskgraft\[([^\]]*)\]", line)]
        flat += [
            line for part in inner for name in part.split(",") for line in PYPROJECT["optional-dependencies"][name]
        ]
        expected[extra] = {re.split(r"[\[><=]", line)[0].replace("-", "_") for line in flat}
    for extra in ("docs", "test", "coverage", "lint", "fuzz", "sbom", "dev"):
        del expected[extra]  # for those who change taskgraft, not for those who use it
    assert {extra: set(modules) for extra, modules in doctor.EXTRAS.items()} == expected


def test_a_missing_extra_is_a_warning_with_the_command() -> None:
    missing = doctor.check_extra("video", ["no_such_module"], lambda name: "1")
    assert missing == Finding("extra video", "missing no_such_module", "warning", "pip install 'taskgraft[video]'")
    assert doctor.check_extra("tune", ["json"], lambda name: "1").value == "json 1"


def test_a_torchvision_that_does_not_import(tmp_path: Path) -> None:
    """The real command beside a torchvision that fails as the broken pair does; the help's example runs it as it is."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = subprocess.run(
        [sys.executable, "-m", "taskgraft.cli", "doctor", "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads(done.stdout)
    assert result["failed"]
    assert {"Python", "torch", "GPU", "cache", "extra serve", "FFmpeg"} <= {one["name"] for one in result["findings"]}
    assert any("torchvision::nms" in one["value"] and one["remedy"] for one in result["findings"])
