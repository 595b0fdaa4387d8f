"""Rows 1 to 18: the first minute, images, checkpoints."""

from __future__ import annotations

import hashlib
import json
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from acceptance.behavior import FEW_STEPS, Behavior, Workspace
from cli_parsing import COMMANDS, arguments_of
from taskgraft import TrainingConfig
from taskgraft.cli.flags import DATA, HARDWARE, METHOD, MODEL, OUTPUT, TRAINING
from taskgraft.commands import demo
from taskgraft.commands.train import train
from taskgraft.pipeline.request import Request
from taskgraft.synthetic import write_cars
from toys import NEW, OLD, write_folder

MAX_START_SECONDS = 0.5  # seconds of the processor


def check_start_time(workspace: Workspace) -> str:
    """`--version` and `--help` in processes of their own, the best of three: others may be using the machine."""
    result = []
    for flag in ("--version", "--help"):
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "taskgraft.cli", flag], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        result.append(min(seconds))
    assert max(result) < MAX_START_SECONDS, result
    return f"{result[0]:.2f} s and {result[1]:.2f} s of the processor"


def check_help(workspace: Workspace) -> str:
    panels = {group for argument in arguments_of("extend") if isinstance(group := argument.parameter.group, tuple)}
    assert panels >= {(panel,) for panel in (DATA, METHOD, TRAINING, MODEL, HARDWARE, OUTPUT)}
    for name, command in COMMANDS.items():
        assert command.help
        assert str(command.help_epilogue).startswith(f"Example: taskgraft {name}")
    return f"{len(COMMANDS)} commands, each with purpose, example and every flag explained"


def check_demo(workspace: Workspace) -> str:
    """The whole demo, its images fewer and its runs shorter."""

    def draw_few_cars(folder: Path, **arguments: Any) -> Path:
        return write_cars(folder, **{**arguments, "train": 2, "val": 1, "size": 32})

    def train_briefly(*arguments: Any, config: TrainingConfig, **more: Any) -> Any:
        return train(*arguments, config=replace(config, steps=2, precision="fp32"), model="test_resnet", **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "write_cars", draw_few_cars)
        patch.setattr(demo, "train", train_briefly)
        for name in ("REFERENCE_CONFIG", "DEFAULT_CONFIG"):
            patch.setattr(demo, name, replace(getattr(demo, name), steps=2, eval_every=1))
        short = [variant._replace(config=replace(variant.config, steps=2, eval_every=1)) for variant in demo.VARIANTS]
        patch.setattr(demo, "VARIANTS", short)
        patch.setattr(demo, "Request", partial(Request, check_parent=False))  # two steps make a parent that guesses
        output = workspace.run("demo", "demo-run", "--cache", "none")
    assert output.code == 0, output.stderr
    lines = output.stdout.splitlines()
    report, next_line = lines[-2:]
    assert Path(report.removeprefix("report: ")).is_file()
    figures = [Path(line.removeprefix("figure: ")) for line in lines if line.startswith("figure: ")]
    assert [path.name for path in figures if path.is_file()] == ["figure1.png", "figure2.png", "figure3.png"]
    assert sum(line.startswith("| ") for line in lines) == 1 + len(short), "a row for each configuration"
    assert 18 <= len(output.stderr.splitlines()) <= 26, "two dozen plain lines where there is no terminal"
    next_ = shlex.split(next_line.removeprefix("next, try the model: "))
    done = workspace.run(*next_[1:])  # the command runs as it stands
    assert done.code == 0, done.stderr
    assert (workspace.tmp_path / "home" / "answers.csv").is_file()  # where the command was run
    return next_line


def check_offline(workspace: Workspace) -> str:
    """No connection is possible: everything runs but what is on the hub, and that says what to give instead."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refused)
        patch.setattr(socket.socket, "connect", refused)
        assert workspace.run("check", workspace.images).code == 0
        assert workspace.run("evaluate", workspace.parent, workspace.old_images, "--cache", "none").code == 0
        start = time.monotonic()
        output = workspace.run("evaluate", "hf-hub:nobody/nothing", workspace.old_images)
        seconds = time.monotonic() - start
    assert output.code == 3
    assert output.stderr.count("\n") == 1
    assert seconds < 10
    assert "local-dir:FOLDER" in output.last_line
    return output.last_line


def check_home(workspace: Workspace) -> str:
    """All that the real run left below its HOME."""
    left = sorted({path.relative_to(workspace.home).parts[0] for path in workspace.home.rglob("*") if path.is_file()})
    assert set(left) <= {"matplotlib", "taskgraft"}, left  # the former: its list of fonts, for the charts of reports
    return "HOME holds the cache and matplotlib's list of fonts"


def check_check(workspace: Workspace) -> str:
    output = workspace.run("check", workspace.images, "--json")
    result = json.loads(output.stdout)
    assert output.code == 0
    assert {"classes", "images", "unreadable", "duplicates", "imbalance", "sizes", "problems"} <= result.keys()
    data = Path(shutil.copytree(workspace.images, workspace.tmp_path / "data"))
    shutil.copy(next((data / "train" / "red").iterdir()), data / "val" / "blue" / "again.png")
    with_duplicate = workspace.run("check", data)
    missing = workspace.run("check", workspace.tmp_path / "nowhere")
    assert (with_duplicate.code, missing.code) == (1, 2)
    return with_duplicate.stdout.splitlines()[-1]


def check_layouts(workspace: Workspace) -> str:
    flat = write_folder(workspace.tmp_path / "flat", NEW, 16, 1)
    valid = workspace.tmp_path / "named"
    write_folder(valid / "train", NEW, 16, 1)
    write_folder(valid / "validation", NEW, 8, 2)
    table = workspace.tmp_path / "table.csv"
    rows = [f"{path.relative_to(workspace.tmp_path)},{path.parent.name}" for path in sorted(flat.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows]))
    kinds = {}
    for data in (flat, valid, table):
        output = workspace.run("check", data, "--json")
        assert output.code == 0, output
        kinds[data.name] = json.loads(output.stdout)["layout"]
    assert len(set(kinds.values())) == 3
    return "; ".join(f"{name}: {kind}" for name, kind in kinds.items())


def check_split(workspace: Workspace) -> str:
    data = write_folder(workspace.tmp_path / "flat", NEW, 40, 1)
    texts = []
    for name in ("one", "two"):
        words = ("--model", "test_resnet", "--preprocessing", "32 squash bilinear half", *FEW_STEPS)
        output = workspace.run("train", data, workspace.tmp_path / name, *words)
        assert output.code == 0, output.stderr
        texts.append((workspace.tmp_path / name / "split.csv").read_text())
    assert texts[0] == texts[1]
    validation_count = texts[0].count(",val")
    assert validation_count == 8
    return f"{validation_count} of 40 held out, the same ones twice, listed in split.csv"


def check_class_names(workspace: Workspace) -> str:
    data = Path(shutil.copytree(workspace.images, workspace.tmp_path / "data"))
    (data / "val" / "red").rename(data / "val" / "Red ")
    output = workspace.extend(data=data)
    assert output.code == 2, output
    assert "'Red '" in output.last_line, output
    assert "did you mean 'red'" in output.last_line, output
    output_of_check = workspace.run("check", data)
    assert output_of_check.code == 1
    shapes = write_folder(workspace.tmp_path / "shapes", OLD._replace(classes=("round", "sqare", "thin")), 12, 1)
    against = workspace.run("check", shapes, "--against", workspace.parent)
    assert "square" in against.stdout
    return output.last_line


def check_unreadable_images(workspace: Workspace) -> str:
    data = Path(shutil.copytree(workspace.images, workspace.tmp_path / "data"))
    images = sorted((data / "train").rglob("*.png"))
    images[0].write_bytes(images[0].read_bytes()[:50])
    output = workspace.extend("--method", "finetune", data=data)
    assert output.code == 0, output.stderr
    excluded = (workspace.tmp_path / "out" / "excluded.csv").read_text()
    assert images[0].name in excluded
    for image in images[1:5]:
        image.write_bytes(b"no image")
    shutil.rmtree(workspace.tmp_path / "out")
    many_unreadable = workspace.extend(data=data)
    assert many_unreadable.code == 2
    assert "at most 5%" in many_unreadable.last_line
    return f"1 bad: {excluded.splitlines()[1]}; 5 bad: exit 2"


def check_images_unchanged(workspace: Workspace) -> str:
    data = Path(shutil.copytree(workspace.images, workspace.tmp_path / "data"))

    def state() -> dict[str, tuple[str, int, float]]:
        files = [path for path in sorted(data.rglob("*")) if path.is_file()]
        return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode, path.stat().st_mtime)
                for path in files}  # fmt: skip

    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    try:
        for output in (
            workspace.run("check", data),
            workspace.extend(data=data),
            workspace.run("predict", workspace.child, data),
        ):
            assert output.code == 0, output.stderr
        assert state() == before
    finally:
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return f"{len(before)} read-only images, checked, learnt from, predicted: same bytes, rights and times"


def check_leaks(workspace: Workspace) -> str:
    data = Path(shutil.copytree(workspace.images, workspace.tmp_path / "data"))
    first = sorted((data / "val" / "red").iterdir())[0]
    shutil.copy(first, data / "train" / "red" / "leak.png")
    output = workspace.run(
        "check", data, "--drop-leaks", "--write-manifest", workspace.tmp_path / "clean.csv", "--json"
    )
    assert output.code == 1
    assert len(json.loads(output.stdout)["leaks"]) == 1
    rows = (workspace.tmp_path / "clean.csv").read_text().splitlines()
    assert len(rows) == 1 + 40 + 24
    assert not [row for row in rows if "leak.png" in row]
    again = workspace.run("check", workspace.tmp_path / "clean.csv", "--json")
    assert (again.code, json.loads(again.stdout)["leaks"]) == (0, [])
    return "1 leak told; the table without it has none"


def check_checkpoint_formats(workspace: Workspace) -> str:
    """A file that names its architecture inside a container with a prefix, and a safetensors file that says nothing."""
    net = timm.create_model("test_resnet", num_classes=3)
    labels = workspace.tmp_path / "labels.txt"
    labels.write_text("\n".join(OLD.classes))
    inner = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": inner, "arch": "test_resnet"}, workspace.tmp_path / "a.pth.tar")
    save_file(net.state_dict(), workspace.tmp_path / "b.safetensors")
    arguments = (
        workspace.images,
        workspace.tmp_path / "out",
        "--task",
        "paint",
        *FEW_STEPS,
        "--labels",
        labels,
        "--preprocessing",
        "32 squash",
    )
    first = workspace.run("extend", workspace.tmp_path / "a.pth.tar", *arguments, "--dry-run")
    second = workspace.run(
        "extend", workspace.tmp_path / "b.safetensors", *arguments, "--arch", "test_resnet", "--dry-run"
    )
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert "architecture test_resnet from its entry 'arch'" in first.stderr
    assert "prefix 'module.' removed from the names" in first.stderr
    assert "tensors match" in second.stderr
    arguments = ("--weights", workspace.tmp_path / "a.pth.tar", "--preprocessing", "32 squash", *FEW_STEPS)
    output = workspace.run("train", workspace.images, workspace.tmp_path / "first", *arguments)
    assert output.code == 0, output.stderr
    return " | ".join(line for line in first.stderr.splitlines() if line.startswith("parent: "))


def check_mismatch(workspace: Workspace) -> str:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), workspace.tmp_path / "b.safetensors")
    (workspace.tmp_path / "labels.txt").write_text("\n".join(OLD.classes))
    output = workspace.run("evaluate", workspace.tmp_path / "b.safetensors", workspace.old_images, "--arch", "test_vit",
                     "--labels", workspace.tmp_path / "labels.txt")  # fmt: skip
    assert output.code == 2
    assert "tensors differ, first" in output.last_line
    assert output.last_line.count("in test_vit)") == 5
    assert "give the right --arch" in output.last_line
    return output.last_line[:160]


def check_missing_class_names(workspace: Workspace) -> str:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), workspace.tmp_path / "b.safetensors")
    output = workspace.run(
        "evaluate", workspace.tmp_path / "b.safetensors", workspace.old_images, "--arch", "test_resnet"
    )
    assert output.code == 2
    assert "has no class names; give --labels, a file with one name per line in index order" in output.last_line
    return output.last_line


def check_parent_accuracy(workspace: Workspace) -> str:
    """A parent that guesses: its accuracy is told before training, which does not begin; with a flag a note warns."""
    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), workspace.tmp_path / "b.safetensors")
    (workspace.tmp_path / "labels.txt").write_text("\n".join(OLD.classes))
    arguments = (
        "extend",
        workspace.tmp_path / "b.safetensors",
        workspace.images,
        workspace.tmp_path / "out",
        "--task",
        "paint",
        *FEW_STEPS,
        "--arch",
        "test_resnet",
        "--labels",
        workspace.tmp_path / "labels.txt",
        "--preprocessing",
        "32 squash",
        "--old-val",
        workspace.old_images / "val",
        "--parent-task",
        "shape",
    )
    stopped = workspace.run(*arguments)
    assert stopped.code == 2
    assert "classifies 0.0% of 24 validation images of shape correctly" in stopped.last_line
    assert "always predicting the most frequent class 33.3%" in stopped.last_line
    assert not (workspace.tmp_path / "out").exists()
    output = workspace.run(*arguments, "--no-parent-check")
    assert output.code == 0, output.stderr
    line = next(line for line in output.stderr.splitlines() if "validation images" in line)
    notes = json.loads((workspace.tmp_path / "out" / "record.json").read_text())["notes"]
    warned = [note for note in notes if "near chance" in note]
    assert len(warned) == 1
    assert output.stderr.index(line) < output.stderr.index("step 1/2")
    return f"{line}; {stopped.last_line}; note: {warned[0]}"


BEHAVIORS = [
    Behavior(
        1,
        "--version and --help answer in half a second, without torch",
        check_start_time,
        ("tests/surface/test_help.py::test_help_imports_nothing_heavy",),
        "Python from 3.11 on (DESIGN)",
    ),
    Behavior(
        2,
        "every command's help has purpose, example, defaults, units, groups",
        check_help,
        ("tests/surface/test_examples.py::test_the_example_runs",),
    ),
    Behavior(
        3,
        "doctor finds the broken pair of torch and torchvision; --json; exit 1",
        None,
        ("tests/commands/test_doctor.py::test_a_torchvision_that_does_not_import",),
    ),
    Behavior(
        4,
        "demo runs the whole program offline and names report and next command",
        check_demo,
        (),
        "minutes on two cores, not under two: it trains a parent and seven configurations",
    ),
    Behavior(5, "works without a network; a name on the hub then fails at once and says what to give", check_offline),
    Behavior(
        6,
        "no telemetry; nothing is written outside the run folder and the cache",
        check_home,
        ("tests/bad_inputs/test_bad_inputs.py::test_bad_input",),
    ),
    Behavior(
        7, "check validates without training: table, splits, damage, doubles; exit 0, 1 or 2; --json", check_check
    ),
    Behavior(
        8,
        "folder, train/val layouts, tables, shards are told apart and named",
        check_layouts,
        (
            "tests/data/test_tar_shards.py::test_archives_give_the_same_images_as_folders",
            "tests/data/test_layouts.py::test_a_tab_separated_table_and_a_folder_with_metadata",
        ),
        "archives are tar shards; compressed ones are refused",
    ),
    Behavior(9, "no validation split: one by content, kept as a file, found again", check_split),
    Behavior(
        10, "labels go by name in every split; a near miss is an error that says what was meant", check_class_names
    ),
    Behavior(11, "a bad image is left out with a reason; more than 5 % stop", check_unreadable_images),
    Behavior(12, "images are never changed", check_images_unchanged),
    Behavior(13, "doubles between train and val are told with paths; --drop-leaks mends", check_leaks),
    Behavior(
        14,
        "many kinds of checkpoint; what was inferred is printed",
        check_checkpoint_formats,
        (
            "tests/bundle/test_matching.py::test_entries_are_searched",
            "tests/bundle/test_loaders.py::test_timm_folder",
        ),
        "torchvision's and transformers' networks that timm has too; others by recipes/any_transformers_model.py",
    ),
    Behavior(15, "a mismatch names the first five tensors with both shapes", check_mismatch),
    Behavior(
        16,
        "a pickle that needs code is refused by the name of the code",
        None,
        ("tests/bundle/test_weights.py::test_code_in_a_pickle_is_named_and_not_run",),
    ),
    Behavior(
        17,
        "missing class names are asked for, never invented",
        check_missing_class_names,
        (),
        "train --weights needs none: it throws the head away",
    ),
    Behavior(
        18,
        "old images measure the parent before training; near chance is a warning",
        check_parent_accuracy,
        (),
        "a parent that guesses stops the command; with --no-parent-check it is a warning",
    ),
]
