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

from behaviors.trying import FEW, Behavior, Place
from taskgraft import TrainingConfig
from taskgraft.cli.flags import DATA, HARDWARE, METHOD, MODEL, OUTPUT, TRAINING
from taskgraft.commands import demo
from taskgraft.commands.train import train
from taskgraft.pipeline.request import Request
from taskgraft.synthetic import write_cars
from toys import NEW, OLD, folder_of
from typed import COMMANDS, arguments_of

START = 0.5  # seconds of the processor


def fast(place: Place) -> str:
    """`--version` and `--help` in processes of their own, the best of three: others may be using the machine."""
    found = []
    for flag in ("--version", "--help"):
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "taskgraft.cli", flag], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        found.append(min(taken))
    assert max(found) < START, found
    return f"{found[0]:.2f} s and {found[1]:.2f} s of the processor"


def helped(place: Place) -> str:
    panels = {group for argument in arguments_of("extend") if isinstance(group := argument.parameter.group, tuple)}
    assert panels >= {(panel,) for panel in (DATA, METHOD, TRAINING, MODEL, HARDWARE, OUTPUT)}
    for name, command in COMMANDS.items():
        assert command.help
        assert str(command.help_epilogue).startswith(f"Example: taskgraft {name}")
    return f"{len(COMMANDS)} commands, each with purpose, example and every flag explained"


def demonstrated(place: Place) -> str:
    """The whole demo, its images fewer and its runs shorter."""

    def drawn(folder: Path, **given: Any) -> Path:
        return write_cars(folder, **{**given, "train": 2, "val": 1, "size": 32})

    def trained(*given: Any, config: TrainingConfig, **more: Any) -> Any:
        return train(*given, config=replace(config, steps=2, precision="fp32"), model="test_resnet", **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "write_cars", drawn)
        patch.setattr(demo, "train", trained)
        for name in ("REFERENCE_CONFIG", "DEFAULT_CONFIG"):
            patch.setattr(demo, name, replace(getattr(demo, name), steps=2, eval_every=1))
        short = [variant._replace(config=replace(variant.config, steps=2, eval_every=1)) for variant in demo.VARIANTS]
        patch.setattr(demo, "VARIANTS", short)
        patch.setattr(demo, "Request", partial(Request, check_parent=False))  # two steps make a parent that guesses
        told = place.run("demo", "demo-run", "--cache", "none")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    report, following = lines[-2:]
    assert Path(report.removeprefix("report: ")).is_file()
    figures = [Path(line.removeprefix("figure: ")) for line in lines if line.startswith("figure: ")]
    assert [path.name for path in figures if path.is_file()] == ["figure1.png", "figure2.png", "figure3.png"]
    assert sum(line.startswith("| ") for line in lines) == 1 + len(short), "a row for each arrangement"
    assert 10 <= len(told.err.splitlines()) <= 16, "a dozen plain lines where there is no terminal"
    next_ = shlex.split(following.removeprefix("next, try the model: "))
    done = place.run(*next_[1:])  # the command runs as it stands
    assert done.code == 0, done.err
    assert (place.root / "home" / "answers.csv").is_file()  # where the command was run
    return following


def offline(place: Place) -> str:
    """No connection is possible: everything runs but what is on the hub, and that says what to give instead."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refused)
        patch.setattr(socket.socket, "connect", refused)
        assert place.run("check", place.new).code == 0
        assert place.run("evaluate", place.alice, place.old, "--cache", "none").code == 0
        begun = time.monotonic()
        told = place.run("evaluate", "hf-hub:nobody/nothing", place.old)
        taken = time.monotonic() - begun
    assert told.code == 3
    assert told.err.count("\n") == 1
    assert taken < 10
    assert "local-dir:FOLDER" in told.last
    return told.last


def quiet(place: Place) -> str:
    """All that the real run left below its HOME."""
    left = sorted({path.relative_to(place.home).parts[0] for path in place.home.rglob("*") if path.is_file()})
    assert set(left) <= {"matplotlib", "taskgraft"}, left  # the former: its list of fonts, for the charts of reports
    return "HOME holds the cache and matplotlib's list of fonts"


def looked_at(place: Place) -> str:
    told = place.run("check", place.new, "--json")
    found = json.loads(told.out)
    assert told.code == 0
    assert {"classes", "images", "unreadable", "duplicates", "imbalance", "sizes", "problems"} <= found.keys()
    data = Path(shutil.copytree(place.new, place.root / "data"))
    shutil.copy(next((data / "train" / "red").iterdir()), data / "val" / "blue" / "again.png")
    wanting = place.run("check", data)
    missing = place.run("check", place.root / "nowhere")
    assert (wanting.code, missing.code) == (1, 2)
    return wanting.out.splitlines()[-1]


def layouts(place: Place) -> str:
    flat = folder_of(place.root / "flat", NEW, 16, 1)
    valid = place.root / "named"
    folder_of(valid / "train", NEW, 16, 1)
    folder_of(valid / "validation", NEW, 8, 2)
    table = place.root / "table.csv"
    rows = [f"{path.relative_to(place.root)},{path.parent.name}" for path in sorted(flat.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows]))
    kinds = {}
    for data in (flat, valid, table):
        told = place.run("check", data, "--json")
        assert told.code == 0, told
        kinds[data.name] = json.loads(told.out)["layout"]
    assert len(set(kinds.values())) == 3
    return "; ".join(f"{name}: {kind}" for name, kind in kinds.items())


def split(place: Place) -> str:
    data = folder_of(place.root / "flat", NEW, 40, 1)
    texts = []
    for name in ("one", "two"):
        words = ("--model", "test_resnet", "--preprocessing", "32 squash bilinear half", *FEW)
        told = place.run("train", data, place.root / name, *words)
        assert told.code == 0, told.err
        texts.append((place.root / name / "split.csv").read_text())
    assert texts[0] == texts[1]
    held = texts[0].count(",val")
    assert held == 8
    return f"{held} of 40 held out, the same ones twice, listed in split.csv"


def named(place: Place) -> str:
    data = Path(shutil.copytree(place.new, place.root / "data"))
    (data / "val" / "red").rename(data / "val" / "Red ")
    told = place.extend(data=data)
    assert told.code == 2, told
    assert "'Red '" in told.last, told
    assert "did you mean 'red'" in told.last, told
    near = place.run("check", data)
    assert near.code == 1
    shapes = folder_of(place.root / "shapes", OLD._replace(classes=("round", "sqare", "thin")), 12, 1)
    against = place.run("check", shapes, "--against", place.alice)
    assert "square" in against.out
    return told.last


def bad_pictures(place: Place) -> str:
    data = Path(shutil.copytree(place.new, place.root / "data"))
    pictures = sorted((data / "train").rglob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:50])
    told = place.extend("--method", "finetune", data=data)
    assert told.code == 0, told.err
    excluded = (place.root / "out" / "excluded.csv").read_text()
    assert pictures[0].name in excluded
    for picture in pictures[1:5]:
        picture.write_bytes(b"no image")
    shutil.rmtree(place.root / "out")
    many = place.extend(data=data)
    assert many.code == 2
    assert "at most 5%" in many.last
    return f"1 bad: {excluded.splitlines()[1]}; 5 bad: exit 2"


def untouched(place: Place) -> str:
    data = Path(shutil.copytree(place.new, place.root / "data"))

    def state() -> dict[str, tuple[str, int, float]]:
        files = [path for path in sorted(data.rglob("*")) if path.is_file()]
        return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode, path.stat().st_mtime)
                for path in files}  # fmt: skip

    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    try:
        for told in (place.run("check", data), place.extend(data=data), place.run("predict", place.plain, data)):
            assert told.code == 0, told.err
        assert state() == before
    finally:
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return f"{len(before)} read-only images, checked, learnt from, predicted: same bytes, rights and times"


def leaks(place: Place) -> str:
    data = Path(shutil.copytree(place.new, place.root / "data"))
    one = sorted((data / "val" / "red").iterdir())[0]
    shutil.copy(one, data / "train" / "red" / "leak.png")
    told = place.run("check", data, "--drop-leaks", "--write-manifest", place.root / "clean.csv", "--json")
    assert told.code == 1
    assert len(json.loads(told.out)["leaks"]) == 1
    rows = (place.root / "clean.csv").read_text().splitlines()
    assert len(rows) == 1 + 40 + 24
    assert not [row for row in rows if "leak.png" in row]
    again = place.run("check", place.root / "clean.csv", "--json")
    assert (again.code, json.loads(again.out)["leaks"]) == (0, [])
    return "1 leak told; the table without it has none"


def opened(place: Place) -> str:
    """A file that names its architecture inside a container with a prefix, and a safetensors file that says nothing."""
    net = timm.create_model("test_resnet", num_classes=3)
    labels = place.root / "labels.txt"
    labels.write_text("\n".join(OLD.classes))
    inner = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": inner, "arch": "test_resnet"}, place.root / "a.pth.tar")
    save_file(net.state_dict(), place.root / "b.safetensors")
    shared = (
        place.new,
        place.root / "out",
        "--task",
        "paint",
        *FEW,
        "--labels",
        labels,
        "--preprocessing",
        "32 squash",
    )
    one = place.run("extend", place.root / "a.pth.tar", *shared, "--dry-run")
    two = place.run("extend", place.root / "b.safetensors", *shared, "--arch", "test_resnet", "--dry-run")
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert "architecture test_resnet from its entry 'arch'" in one.err
    assert "prefix 'module.' removed from the names" in one.err
    assert "tensors match" in two.err
    start = ("--weights", place.root / "a.pth.tar", "--preprocessing", "32 squash", *FEW)
    begun = place.run("train", place.new, place.root / "first", *start)
    assert begun.code == 0, begun.err
    return " | ".join(line for line in one.err.splitlines() if line.startswith("parent: "))


def mismatched(place: Place) -> str:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), place.root / "b.safetensors")
    (place.root / "labels.txt").write_text("\n".join(OLD.classes))
    told = place.run("evaluate", place.root / "b.safetensors", place.old, "--arch", "test_vit",
                     "--labels", place.root / "labels.txt")  # fmt: skip
    assert told.code == 2
    assert "tensors differ, first" in told.last
    assert told.last.count("in test_vit)") == 5
    assert "give the right --arch" in told.last
    return told.last[:160]


def nameless(place: Place) -> str:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), place.root / "b.safetensors")
    told = place.run("evaluate", place.root / "b.safetensors", place.old, "--arch", "test_resnet")
    assert told.code == 2
    assert "has no class names; give --labels, a file with one name per line in index order" in told.last
    return told.last


def measured_first(place: Place) -> str:
    """A parent that guesses: its accuracy is told before training, which does not begin; with a flag a note warns."""
    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), place.root / "b.safetensors")
    (place.root / "labels.txt").write_text("\n".join(OLD.classes))
    given = ("extend", place.root / "b.safetensors", place.new, place.root / "out", "--task", "paint", *FEW,
             "--arch", "test_resnet", "--labels", place.root / "labels.txt", "--preprocessing", "32 squash",
             "--old-val", place.old / "val", "--parent-task", "shape")  # fmt: skip
    stopped = place.run(*given)
    assert stopped.code == 2
    assert "classifies 0.0% of 24 validation images of shape correctly" in stopped.last
    assert "always predicting the most frequent class 33.3%" in stopped.last
    assert not (place.root / "out").exists()
    told = place.run(*given, "--no-parent-check")
    assert told.code == 0, told.err
    line = next(line for line in told.err.splitlines() if "validation images" in line)
    notes = json.loads((place.root / "out" / "record.json").read_text())["notes"]
    warned = [note for note in notes if "near chance" in note]
    assert len(warned) == 1
    assert told.err.index(line) < told.err.index("step 1/2")
    return f"{line}; {stopped.last}; note: {warned[0]}"


ROWS = [
    Behavior(1, "--version and --help answer in half a second, without torch", fast,
              ("tests/surface/test_help.py::test_help_imports_nothing_heavy",), "Python from 3.11 on (DESIGN)"),
    Behavior(2, "every command's help has purpose, example, defaults, units, groups", helped,
              ("tests/surface/test_examples.py::test_the_example_runs",)),
    Behavior(3, "doctor finds the broken pair of torch and torchvision; --json; exit 1", None,
              ("tests/commands/test_doctor.py::test_a_torchvision_that_does_not_import",)),
    Behavior(4, "demo runs the whole program offline and names report and next command", demonstrated, (),
              "minutes on two cores, not under two: it trains a parent and seven arrangements"),
    Behavior(5, "works without a network; a name on the hub then fails at once and says what to give", offline),
    Behavior(6, "no telemetry; nothing is written outside the run folder and the cache", quiet,
              ("tests/bad_inputs/test_bad_inputs.py::test_a_bad_input",)),
    Behavior(7, "check validates without training: table, splits, damage, doubles; exit 0, 1 or 2; --json", looked_at),
    Behavior(8, "folder, train/val layouts, tables, shards are told apart and named", layouts,
              ("tests/data/test_tar_shards.py::test_archives_give_the_same_images_as_folders", 
               "tests/data/test_layouts.py::test_a_tab_separated_table_and_a_folder_with_metadata"),
              "archives are tar shards; compressed ones are refused"),
    Behavior(9, "no validation split: one by content, kept as a file, found again", split),
    Behavior(10, "labels go by name in every split; a near miss is an error that says what was meant", named),
    Behavior(11, "a bad image is left out with a reason; more than 5 % stop", bad_pictures),
    Behavior(12, "images are never changed", untouched),
    Behavior(13, "doubles between train and val are told with paths; --drop-leaks mends", leaks),
    Behavior(14, "many kinds of checkpoint; what was inferred is printed", opened,
              ("tests/bundle/test_weights.py::test_containers_are_searched",
               "tests/bundle/test_loaders.py::test_timm_folder"),
              "torchvision's weights where timm has the same network; transformers' folders from Python: "
              "recipes/hugging_face.py"),
    Behavior(15, "a mismatch names the first five tensors with both shapes", mismatched),
    Behavior(16, "a pickle that needs code is refused by the name of the code", None,
              ("tests/bundle/test_weights.py::test_code_in_a_pickle_is_named_and_not_run",)),
    Behavior(17, "missing class names are asked for, never invented", nameless, (),
              "train --weights needs none: it throws the head away"),
    Behavior(18, "old images measure the parent before training; near chance is a warning", measured_first, (),
              "a parent that guesses stops the command; with --no-parent-check it is a warning"),
]  # fmt: skip
