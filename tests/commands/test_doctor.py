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
WHOLE = {"at": "end", "torch": "2.14.1", "cuda": "13.0", "gpus": [], "torchvision": "0.29.1", "timm": "1.0"}


def only(findings: tuple[Finding, ...]) -> Finding:
    (found,) = findings
    return found


def test_the_pair_that_does_not_fit_is_named_with_the_remedy() -> None:
    facts = {"at": "torchvision", "torch": "2.13.0+cpu", "cuda": None, "gpus": []}
    found, gpu = doctor.networks(facts, 1, MISFIT, driver=False)
    assert found.state == "blocks"
    assert "torch 2.13.0+cpu and the installed torchvision do not match" in found.value
    assert "operator torchvision::nms does not exist" in found.value
    assert "pip install --force-reinstall torch torchvision" in found.remedy
    assert gpu.state == "good"


@pytest.mark.parametrize(
    ("at", "code", "said", "remedy"),
    [
        ("torch", 1, "ImportError: libtorch", "torch torchvision"),
        ("torchvision", -6, "", "torch torchvision"),
        ("timm", 1, "ModuleNotFoundError: No module named 'timm'", "timm"),
        ("gpu", 1, "RuntimeError: CUDA", "driver"),
    ],
)
def test_what_does_not_import_blocks(at: str, code: int, said: str, remedy: str) -> None:
    found = doctor.networks({"at": at, "torch": "2.14.1"}, code, said, driver=False)[0]
    assert found.state == "blocks"
    assert remedy in found.remedy
    assert (said or f"ended with code {code}") in found.value


def test_gpus() -> None:
    gpus = {**WHOLE, "gpus": [["A100", 40 * GIB], ["A100", 40 * GIB]]}
    assert doctor.networks(gpus, 0, "", driver=True)[1] == Finding("GPU", "A100, 40 GiB; A100, 40 GiB")
    assert doctor.networks(WHOLE, 0, "", driver=False)[1].state == "good"
    assert "driver is probably too old" in doctor.networks(WHOLE, 0, "", driver=True)[1].remedy
    without = doctor.networks({**WHOLE, "cuda": None}, 0, "", driver=True)[1]
    assert (without.state, "without CUDA" in without.value) == ("note", True)


def test_versions() -> None:
    have = {"numpy": "1.26.4", "torch": "2.14.1+cu130"}
    found = doctor.required({"numpy": "2.0", "torch": "2.10", "timm": "1.0.20"}, have.get)
    assert [one.state for one in found] == ["blocks", "good", "blocks"]
    assert found[0].remedy == "2.0 or newer: pip install -U 'numpy>=2.0'"
    assert found[2].remedy == "pip install 'timm>=1.0.20'"
    assert doctor.python((3, 11, 0)).state == "good"
    assert doctor.python((3, 10, 9)).state == "blocks"


@pytest.mark.parametrize(("free", "state"), [(0.5, "blocks"), (2, "note"), (50, "good")])
def test_disk(free: float, state: str) -> None:
    assert doctor.disk("disk", Path("/x"), int(free * GIB)).state == state


def test_a_large_cache_is_a_note_that_says_how_to_empty_it() -> None:
    assert doctor.held("cache", Path("/x"), 3 * GIB) == Finding("cache", "3.0 GiB")
    much = doctor.held("cache", Path("/x"), 60 * GIB)
    assert (much.state, "delete /x" in much.remedy) == ("note", True)


def test_places() -> None:
    assert doctor.writable("cache", Path("/x"), True).state == "good"
    assert doctor.writable("cache", Path("/x"), False).state == "blocks"
    assert doctor.shared_memory(64 * 2**20).state == "note"
    assert doctor.shared_memory(2**30).state == "good"


def test_video() -> None:
    assert doctor.video(None) == ()
    assert only(doctor.video({"libavcodec": (62, 11, 100)})).value == "libavcodec 62.11.100, inside PyAV"
    assert only(doctor.video("PyAV does not load: ImportError")).state == "note"


def test_extras_are_those_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setitem(doctor.EXTRAS, "video", ("no_such_module",))
    found = {one.name: one for one in doctor.extras(lambda name: "1")}
    assert found["extra video"] == Finding(
        "extra video", "missing no_such_module", "note", "pip install 'taskgraft[video]'"
    )
    assert found["extra lora"].state == "good"


def test_a_torchvision_that_does_not_import(tmp_path: Path) -> None:
    """The real command beside a torchvision that fails as the broken pair does; the help's example runs it as it is."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = subprocess.run(
        [sys.executable, "-m", "taskgraft.cli", "doctor", "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "fake")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found["blocked"]
    assert {"Python", "torch", "GPU", "cache", "extra serve", "FFmpeg"} <= {one["name"] for one in found["findings"]}
    assert any("torchvision::nms" in one["value"] and one["remedy"] for one in found["findings"])
