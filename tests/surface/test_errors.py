"""Bad input through the real command line: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from PIL import Image

from taskgraft.bundle import Bundle, write_bundle
from taskgraft.cli import main
from taskgraft.data import Preprocessing
from toys import NEW, OLD, parent, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")

SMALL = ["--steps", "1", "--head-steps", "0", "--batch-size", "4", "--precision", "fp32", "--cache", "none"]


class Workspace(NamedTuple):
    """A parent, images of a new task, and where the child would go."""

    root: Path
    parent: Path
    data: Path
    out: Path


class Output(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: list[str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("errors")
    preprocessing = Preprocessing(32, "squash", 0.875, "bilinear")
    (root / "parent").mkdir()
    bundle = Bundle(parent(), preprocessing, {}, "here", "0", "test_resnet", "fc")
    write_bundle(root / "parent", bundle, method="train", parent={"source": "nowhere"})
    write_folder(root / "data", NEW, 24, 1, size=16)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), root / "x.pth")
    (root / "labels.txt").write_text("\n".join(OLD.classes))
    return Workspace(root, root / "parent", root / "data", root / "out")


@pytest.fixture
def workspace(shared: Workspace, tmp_path: Path) -> Workspace:
    return shared._replace(root=tmp_path, out=tmp_path / "out")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> Output:
        monkeypatch.setattr(sys, "argv", ["taskgraft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Output(end.value.code, captured.out, captured.err.splitlines())

    return run


def assert_refused(output: Output, *parts: str) -> None:
    assert output.code == 2
    assert output.out == ""
    assert not [line for line in output.err if "Traceback" in line]
    problems = [line for line in output.err if not line.startswith(("parent: ", "preprocessing "))]  # inferred settings
    assert len(problems) == 1, output.err
    assert problems[0] == output.err[-1]
    assert problems[0].startswith("taskgraft: ")
    for part in parts:
        assert part in problems[0]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def extend(workspace: Workspace, *flags: object) -> list[object]:
    return ["extend", workspace.parent, workspace.data, workspace.out, "--task", "paint", *SMALL, *flags]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--method", "distill(strength=-1)"], ["distill(strength=-1): must be at least 0"]),
        (["--method", "ewc(strength=-0.5)"], ["must be at least 0"]),
        (["--method", "distill(temperature=0)"], ["temperature=0): must be above 0"]),
        (["--method", "distill(temperature=-3)"], ["must be above 0"]),
        (["--method", "destill"], ["did you mean 'distill'"]),
        (["--lr", "0"], ["lr 0.0: must be above 0"]),
        (["--lr", "-0.1"], ["must be above 0"]),
        (["--lr", "nan"], ["lr nan: give a number such as 0.001"]),
        (["--steps", "0"], ["steps 0: must be at least 1"]),
        (["--batch-size", "0"], ["batch_size 0: must be at least 1"]),
        (["--precision", "fp8"], ['invalid value "fp8" for --precision. Choose from: "auto", "fp32"']),
        (["--augment", "mixup"], ['invalid value "mixup" for --augment. Choose from: "none", "shift"']),
        (["--softmax", "both"], ['invalid value "both" for --softmax. Choose from: "per-task", "joint"']),
        (["--seed", "-1"], ["seed -1: must be at least 0"]),
        (["--preprocessing", "96 squish"], ["'squish' is not understood", "squash, center"]),
        (["--preprocessing", "mean=1,2"], ["is not three numbers"]),
        (["--task", "shape"], ["already has a task 'shape' (tasks: shape)", "--task"]),
        (["--task", "../paint"], ["task name '../paint' is not allowed: use up to 64 letters"]),
        (["--old-val", "/nowhere/at/all"], ["/nowhere/at/all does not exist"]),
        (["--old", "/nowhere/at/all"], ["/nowhere/at/all does not exist"]),
    ],
)
def test_a_bad_setting(workspace: Workspace, command, flags: list[str], parts: list[str]) -> None:
    assert_refused(command(*extend(workspace, *flags)), *parts)
    assert not workspace.out.exists()


def test_a_missing_folder(workspace: Workspace, command) -> None:
    gone = workspace._replace(data=workspace.root / "gone")
    assert_refused(command(*extend(gone)), f"{gone.data} does not exist", "one sub-folder per class")
    assert_refused(command("train", gone.data, workspace.out), "does not exist")
    assert_refused(command("check", gone.data), "does not exist")
    assert_refused(command("evaluate", workspace.parent, gone.data, "--cache", "none"), "does not exist")
    assert not workspace.out.exists()


def test_a_missing_parent(workspace: Workspace, command) -> None:
    assert_refused(
        command(*extend(workspace._replace(parent=workspace.root / "gone"))), "is not a file, folder or timm model"
    )
    assert_refused(command(*extend(workspace._replace(parent=workspace.root / "gone.pth"))), "does not exist")
    assert not workspace.out.exists()


def test_one_class_only(workspace: Workspace, command) -> None:
    for value in range(6):
        (workspace.root / "one" / "red").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (value, 0, 0)).save(workspace.root / "one" / "red" / f"{value}.png")
    assert_refused(
        command(*extend(workspace._replace(data=workspace.root / "one"))), "1 class (red), but a classifier needs two"
    )
    assert not workspace.out.exists()


def test_unreadable_pictures(workspace: Workspace, command) -> None:
    data = write_folder(workspace.root / "data", NEW, 24, 1, size=16)
    for image in sorted(data.rglob("*.png"))[:2]:
        image.write_bytes(image.read_bytes()[:40])
    assert_refused(
        command(*extend(workspace._replace(data=data))),
        "2 of 24 images cannot be used", "'blue/", "fix or remove them", "at most 5%",
    )  # fmt: skip
    assert not workspace.out.exists()


def test_a_checkpoint_of_another_architecture(workspace: Workspace, shared: Workspace, command) -> None:
    file = workspace._replace(parent=shared.root / "x.pth")
    output = command(*extend(file, "--arch", "test_vit", "--labels", shared.root / "labels.txt"))
    assert_refused(output, "is not a test_vit", "tensors differ, first", "give the right --arch")
    assert_refused(
        command(*extend(file, "--arch", "resnet_18", "--labels", shared.root / "labels.txt")), "did you mean 'resnet"
    )
    assert_refused(command(*extend(file, "--labels", shared.root / "labels.txt")), "give --arch, a timm model")
    assert not workspace.out.exists()


def test_a_label_file_of_the_wrong_length(workspace: Workspace, shared: Workspace, command) -> None:
    (workspace.root / "labels.txt").write_text("a\nb\n")
    file = workspace._replace(parent=shared.root / "x.pth")
    output = command(*extend(file, "--arch", "test_resnet", "--labels", workspace.root / "labels.txt"))
    assert_refused(output, "has 3 classes, but there are 2 class names")
    assert_refused(command(*extend(file, "--arch", "test_resnet")), "give --labels, a file with one name per line")
    assert not workspace.out.exists()


def test_an_output_folder_with_foreign_files(workspace: Workspace, command) -> None:
    workspace.out.mkdir()
    (workspace.out / "thesis.tex").write_text("mine")
    assert_refused(command(*extend(workspace)), "already holds other files (thesis.tex)")
    assert_refused(
        command("train", workspace.data, workspace.out, "--model", "test_resnet", *SMALL), "already holds other files"
    )
    assert list(contents(workspace.out)) == ["thesis.tex"]


def test_an_output_folder_that_is_a_file(workspace: Workspace, command) -> None:
    workspace.out.write_text("mine")
    assert_refused(command(*extend(workspace)), "choose another OUT")
    assert workspace.out.read_text() == "mine"


def test_an_output_folder_with_another_run(workspace: Workspace, command) -> None:
    assert command(*extend(workspace, "--method", "finetune")).code == 0
    before = contents(workspace.out)
    output = command(*extend(workspace, "--method", "ewc", "--lr", "0.5"))
    assert_refused(
        output,
        "already holds a run with other settings",
        "method was 'finetune', is 'ewc'",
        "config.lr was 0.001, is 0.5",
        "another OUT",
    )
    assert contents(workspace.out) == before
    again = command(*extend(workspace, "--method", "finetune"))
    assert again.code == 0  # the same command finds its work done
    assert any("finished; nothing to do" in line for line in again.err)
    assert contents(workspace.out) == before
    assert_refused(
        command(*extend(workspace._replace(parent=workspace.out, out=workspace.root / "third"))),
        "already has a task 'paint'",
    )


def test_a_bad_table_is_refused_with_its_line(workspace: Workspace, command) -> None:
    table = workspace.root / "t.csv"
    table.write_text("path,paint\na.png,red\n../b.png,blue\n")
    assert_refused(
        command(*extend(workspace._replace(data=table))), f"{table} line 3: '../b.png' is outside the table's folder"
    )
    assert not workspace.out.exists()


@pytest.mark.parametrize("name", ["a lot of nothing", "model"])
def test_a_report_of_nothing(workspace: Workspace, command, name: str) -> None:
    assert_refused(command("report", workspace.root / name), "contains no finished run, comparison or search")


def test_wrong_rates_and_configurations(workspace: Workspace, command) -> None:
    arguments = ["compare", *extend(workspace)[1:]]
    assert_refused(command(*arguments, "--lrs", "0.1;0.2"), "--lrs '0.1;0.2': give numbers separated by commas")
    assert_refused(command(*arguments, "--methods", "ewc; destill"), "did you mean 'distill'")
    assert_refused(command(*arguments, "--methods", " ; "), "name at least one method")
    assert_refused(
        command(*arguments, "--methods", "ewc; ewc"), "two of the configurations ewc, ewc are the same; give each once"
    )
    assert not workspace.out.exists()


def test_an_unexpected_error_is_one_line_too(workspace: Workspace, command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the moon")

    monkeypatch.setattr("taskgraft.commands.check.check", broken)
    output = command("check", workspace.data)
    assert output.code == 1
    assert output.err == ["taskgraft: RuntimeError: the moon (taskgraft --debug shows the traceback)"]
    monkeypatch.setattr(sys, "argv", ["taskgraft", "--debug", "check", str(workspace.data)])
    with pytest.raises(RuntimeError, match="the moon"):
        main()


def test_an_interruption_names_the_way_on(workspace: Workspace, command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskgraft.commands.check.check", stopped)
    output = command("check", workspace.data)
    assert output.code == 130
    assert output.err == ["taskgraft: stopped; nothing was saved"]
