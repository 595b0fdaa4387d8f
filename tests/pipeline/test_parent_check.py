"""A parent that guesses on its own validation images stops an extension before anything is written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import taskgraft
from taskgraft import Callbacks, Request, TaskgraftError, TrainingConfig
from taskgraft.cli import main
from taskgraft.commands.auto import auto
from taskgraft.commands.compare import compare, variants
from taskgraft.tuning import space
from toys import OLD

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_charts")]
RUN = TrainingConfig(steps=2, batch_size=4, head_steps=0, precision="fp32")
FEW = ["--steps", "2", "--batch-size", "4", "--head-steps", "0", "--precision", "fp32", "--cache", "none"]


@pytest.fixture(scope="module")
def mixed_up(alice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A file of alice's weights with its class names in another order, as the flags of a command."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copy(alice / "model.safetensors", root / "cars.safetensors")
    (root / "labels.txt").write_text("\n".join([*OLD.classes[1:], OLD.classes[0]]), encoding="utf-8")
    flags = [
        "--arch",
        "test_resnet",
        "--labels",
        str(root / "labels.txt"),
        "--preprocessing",
        "32 squash bilinear half",
    ]
    return [str(root / "cars.safetensors"), *flags]


def request_of(mixed_up: list[str], new: Path, old: Path, **more: Any) -> Request:
    parent, _, arch, _, labels, _, preprocessing = mixed_up
    return Request(
        parent, new, "paint", config=RUN, old_val=old, arch=arch, labels=labels, preprocessing=preprocessing, **more
    )


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["taskgraft", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(str(end.value.code)), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "words", [["extend"], ["extend", "--dry-run"], ["extend", "--method", "auto"], ["compare"], ["tune"]], ids=" ".join
)
def test_guessing_parent_is_refused(
    words: list[str], mixed_up: list[str], new_folder: Path, old_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parent, *flags = mixed_up
    verb, *more = words
    given = [verb, parent, new_folder, tmp_path / "out", "--task", "paint", *flags, "--old-val", old_folder]
    code, lines = said(monkeypatch, capsys, *given, *FEW, *more)
    assert code == 2
    assert [line for line in lines if line.startswith("parent: preprocessing '32 squash bilinear half' (")]
    message = lines[-1]
    for part in (
        "taskgraft: the parent classifies 0.0% of 24 validation images of cars correctly",
        "always predicting the most frequent class 33.3%",
        "('32 squash bilinear half', from --preprocessing)",
        "--labels",
        "--old-val",
        "--no-parent-check",
        "check_parent=False",
    ):
        assert part in message, message
    assert not (tmp_path / "out" / "run.json").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_parent_check_flag(
    mixed_up: list[str], new_folder: Path, old_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parent, *flags = mixed_up
    given = ["extend", parent, new_folder, tmp_path / "out", "--task", "paint", *flags, "--old-val", old_folder]
    code, lines = said(monkeypatch, capsys, *given, *FEW, "--no-parent-check")
    assert code == 0
    assert "parent: cars 0.0% on 24 validation images" in lines
    assert taskgraft.load(tmp_path / "out").record.reproduce_command.endswith(" --no-parent-check")


def test_check_parent_from_python(mixed_up: list[str], new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    options = request_of(mixed_up, new_folder, old_folder)
    with pytest.raises(TaskgraftError, match=r"always predicting the most frequent class 33\.3%") as stopped:
        taskgraft.extend(
            options.parent,
            new_folder,
            tmp_path / "out",
            task="paint",
            config=RUN,
            old_val=old_folder,
            arch=options.arch,
            labels=options.labels,
            preprocessing=options.preprocessing,
        )
    assert stopped.value.exit_code == 2
    with pytest.raises(TaskgraftError, match="most frequent class"):
        auto(options, tmp_path / "auto")
    result = compare(
        request_of(mixed_up, new_folder, old_folder, check_parent=False), variants(["finetune"], [], RUN),
        tmp_path / "table", seeds=1, separate=0,
    )  # fmt: skip
    assert result.variants[0].records[0].reproduce_command.endswith(" --no-parent-check")
    searched = space.parse("distill(strength=[0.1, 10])", "", RUN)
    search_config = taskgraft.SearchConfig(sampler="grid")
    with pytest.raises(TaskgraftError, match="most frequent class"):
        taskgraft.tune(options, searched, tmp_path / "search", search_config=search_config)
    options = request_of(mixed_up, new_folder, old_folder, check_parent=False)
    assert taskgraft.tune(options, searched, tmp_path / "search", search_config=search_config).choices
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "auto").exists()


def test_good_parent_is_reported(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    callbacks = Callbacks(info=lines.append)
    taskgraft.extend(
        alice, new_folder, tmp_path / "out", task="paint", config=RUN, old_val=old_folder, callbacks=callbacks
    )
    (images,) = [line for line in lines if line.startswith("parent: preprocessing '32 squash bilinear half'")]
    assert images.endswith(f"from {alice / 'config.json'}; change it with --preprocessing")
    (measured,) = [line for line in lines if "validation images" in line]
    assert measured.startswith("parent: shape ")
    assert lines.index(measured) < min(place for place, line in enumerate(lines) if line.startswith("step "))


def test_compare_reports_parent_once(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    request = Request(alice, new_folder, "paint", config=RUN, old_val=old_folder)
    chosen = variants(["finetune", "distill"], [], RUN)
    compare(request, chosen, tmp_path / "table", seeds=1, separate=0, callbacks=Callbacks(info=lines.append))
    assert len([line for line in lines if line.startswith("parent: preprocessing ")]) == 1
    assert len([line for line in lines if line.startswith("parent: shape ")]) == 1
    assert not [line for line in lines if line.startswith("step ")]
    results = [line for line in lines if line.startswith("  shape ")]
    assert len(results) == 2, "what each run reached is said while the others go on"
    assert all("; paint " in line and "; Score " in line for line in results)


def test_few_images_only_warn(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    for name in OLD.classes[:2]:
        (tmp_path / "two" / name).mkdir(parents=True)
        first = sorted((old_folder / "val" / name).iterdir())[0]
        shutil.copy(first, tmp_path / "two" / name)
    lines: list[str] = []
    callbacks = Callbacks(info=lines.append)
    taskgraft.extend(
        alice, new_folder, tmp_path / "out", task="paint", config=RUN, old_val=tmp_path / "two", callbacks=callbacks
    )
    assert "parent: shape 100.0% on 2 validation images" in lines
    warning = "parent: not significantly better than always predicting the most frequent class (50.0%)"
    assert f"{warning}; use more validation images" in lines


def test_single_class_is_compared_with_uniform_guessing(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(old_folder / "val" / OLD.classes[0], tmp_path / "one" / OLD.classes[0])
    lines: list[str] = []
    callbacks = Callbacks(info=lines.append)
    taskgraft.extend(
        alice, new_folder, tmp_path / "out", task="paint", config=RUN, old_val=tmp_path / "one", callbacks=callbacks
    )
    assert "parent: shape 100.0% on 8 validation images" in lines
    assert not [line for line in lines if "guessing" in line]


def test_resume_skips_parent_check(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent was looked at when it began; a rule that has changed since does not end it."""
    from taskgraft.pipeline import parent_check

    class Stop(Exception):
        pass

    def stop(line: object) -> None:
        raise Stop

    given = {"task": "paint", "config": RUN, "old_val": old_folder}
    with pytest.raises(Stop):
        taskgraft.extend(alice, new_folder, tmp_path / "out", callbacks=Callbacks(on_metrics=stop), **given)
    monkeypatch.setattr(parent_check, "chance_accuracy", lambda labels, classes: 2.0)
    with pytest.raises(TaskgraftError, match="most frequent class"):
        taskgraft.extend(alice, new_folder, tmp_path / "other", **given)
    assert taskgraft.extend(alice, new_folder, tmp_path / "out", resume=True, **given).record.step
