"""Rows 19 to 30: a run, from its first line to its folder."""

from __future__ import annotations

import json
import re

from acceptance.behavior import Behavior, Workspace
from taskgraft import TrainingConfig
from taskgraft.config import options

FOLDER = {
    "config.json", "model.safetensors", "record.json", "metrics.jsonl", "predictions.npz", "report.html", "README.md",
    "run.json", "command.txt", "split.csv", "excluded.csv", "digests.json", "cards",
}  # fmt: skip


def check_defaults(workspace: Workspace) -> str:
    """PARENT, DATA, OUT and the task's name; every setting is told with its reason."""
    output = workspace.run(
        "extend",
        workspace.parent,
        workspace.images,
        workspace.tmp_path / "out",
        "--task",
        "paint",
        "--dry-run",
        "--precision",
        "fp32",
    )
    assert output.code == 0, output.stderr
    settings = dict(re.findall(r"^  (\w+) = \S+\s+(.+)$", output.stdout, re.M))
    assert settings.keys() == options(TrainingConfig).keys()
    assert settings["precision"] == "set explicitly"
    assert settings["lr"] == "default"
    assert output.stdout.startswith("method: branch\n")
    return f"{len(settings)} settings, each with its reason; method branch"


def check_dry_run(workspace: Workspace) -> str:
    before = sorted(workspace.tmp_path.rglob("*"))
    output = workspace.run(
        "extend",
        workspace.parent,
        workspace.images,
        workspace.tmp_path / "out",
        "--task",
        "paint",
        "--dry-run",
        "--precision",
        "fp32",
        "--old-val",
        workspace.old_images / "val",
    )
    new_files = [
        path
        for path in sorted(workspace.tmp_path.rglob("*"))
        if path not in before and path != workspace.tmp_path / "home"
    ]
    assert output.code == 0, output.stderr
    assert new_files == []
    for part in ("40 to train on, 24 to validate on, 24 of old", "frozen; the parent has", "MiB for weights",
                 "time: about", "model.safetensors", "nothing was written"):  # fmt: skip
        assert part in output.stdout
    refused = workspace.run(
        "extend",
        workspace.parent,
        workspace.images,
        workspace.out,
        "--task",
        "paint",
        "--dry-run",
        "--lr",
        "0.5",
        "--precision",
        "fp32",
    )
    assert refused.code == 2
    assert "already holds a run with other settings" in refused.last_line
    return next(line for line in output.stdout.splitlines() if line.startswith("time:"))


def check_progress_lines(workspace: Workspace) -> str:
    """The real run, whose stderr was no terminal."""
    output = workspace.output
    assert output.seconds_to_first_line < 60  # 15 where nobody else is at work; the tests share their machine
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", output.stderr + output.stdout)
    line = re.search(r"^step 20/20 .*$", output.stderr, re.M)
    assert line
    for part in ("loss ", "distill ", "shape ", "paint ", "shape agreement "):
        assert part in line[0]
    assert len(output.stderr.splitlines()) < 20
    return f"first word after {output.seconds_to_first_line:.1f} s; {line[0]}"


def check_repeated_command(workspace: Workspace) -> str:
    """The same command on the finished run, and with another rate."""
    before = {path: path.read_bytes() for path in workspace.out.rglob("*") if path.is_file()}
    repeated = workspace.run(*workspace.command)
    assert (repeated.code, "finished; nothing to do" in repeated.stderr) == (0, True)
    assert repeated.stdout == workspace.output.stdout
    refused = workspace.run(*workspace.command, "--lr", "0.5")
    assert refused.code == 2
    assert "config.lr was 0.01, is 0.5" in refused.last_line
    assert before == {path: path.read_bytes() for path in workspace.out.rglob("*") if path.is_file()}
    return refused.last_line[-90:]


def check_run_folder(workspace: Workspace) -> str:
    names = {path.name for path in workspace.out.iterdir()}
    assert names >= FOLDER, FOLDER - names
    record = json.loads((workspace.out / "record.json").read_text())
    assert {"torch", "timm", "python"} <= {name.lower() for name in record["versions"]}
    assert (workspace.out / "command.txt").read_text().startswith("taskgraft extend ")
    assert record["data"]["new"]["fingerprint"]
    assert "state" not in names
    return ", ".join(sorted(names))


def check_selected_step(workspace: Workspace) -> str:
    """The kept step is the first of those with the best mean accuracy, and the report says so in a line."""
    record = json.loads((workspace.out / "record.json").read_text())
    means = [(sum(line["accuracy"].values()) / 2, -line["step"]) for line in record["history"]
             if line.get("accuracy") and line["step"]]  # fmt: skip
    assert max(means) == (record["score"], -record["step"])
    page = (workspace.out / "report.html").read_text(encoding="utf-8")
    assert f"Score {100 * record['score']:.1f}: the mean" in page
    assert re.search(
        rf"the mean validation accuracy of all tasks at step {record['step']}, the\s+highest of all evaluated steps",
        page,
    )
    return f"Score {record['score']:.3f} at step {record['step']}"


def check_reproducibility(workspace: Workspace) -> str:
    """The real run once more, in another process and another folder: the same bits."""
    words = [workspace.tmp_path / "both" if word == workspace.out else word for word in workspace.command]
    output = workspace.run(*words)
    assert output.code == 0, output.stderr
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (workspace.tmp_path / "both" / name).read_bytes() == (workspace.out / name).read_bytes()
    assert json.loads((workspace.out / "record.json").read_text())["seed"] == 0
    return "metrics.jsonl and model.safetensors are the same, byte for byte"


def check_changed_settings(workspace: Workspace) -> str:
    """More steps are another run, and the message says what differs; to go on from a child, extend the child."""
    output = workspace.run(*workspace.command, "--steps", "40")
    assert output.code == 2
    assert "config.steps was 20, is 40" in output.last_line
    return output.last_line[-80:]


BEHAVIORS = [
    Behavior(
        19,
        "three arguments and a name are enough; every default with its reason",
        check_defaults,
        ("tests/methods/test_notation.py::test_alias",),
        "no presets: the default is what the evidence chose, --steps 300 is the fast one and --method auto the "
        "thorough one; lwf is a method of its own, lowlr is --lr, interp is wise",
    ),
    Behavior(20, "--dry-run: settings, parameters, memory, time, files; touches nothing", check_dry_run),
    Behavior(
        21,
        "a first line within 15 s, loss terms, accuracies, drift of old tasks; plain lines elsewhere",
        check_progress_lines,
        (),
        "the rate stands in metrics.jsonl, images a second where the arithmetic is chosen",
    ),
    Behavior(
        22,
        "one signal: saved, said how to go on, 130 or 143; a second changes nothing",
        None,
        (
            "tests/faults/test_signals.py::test_signal_loses_nothing",
            "tests/surface/test_errors.py::test_an_interruption_names_the_way_on",
        ),
        "the way on is the same command with --resume, and is said so",
    ),
    Behavior(
        23,
        "the same command again: finished says so, another setting is refused by name, nothing overwritten",
        check_repeated_command,
        ("tests/pipeline/test_extend.py::test_resume_after_kill_is_bit_identical",),
    ),
    Behavior(
        24,
        "--resume goes on bit for bit; changed settings are listed",
        check_changed_settings,
        ("tests/pipeline/test_extend.py::test_resume_after_kill_is_bit_identical",),
        "more steps are another run, since the rate's course depends on them; a child can be extended again",
    ),
    Behavior(
        25,
        "out of memory: smaller pieces of the same batch, told, and on",
        None,
        ("tests/training/test_micro_batching.py::test_out_of_memory_doubles_micro_batches",),
    ),
    Behavior(
        26,
        "a loss that is not finite stops before the update and names step, rate, images",
        None,
        ("tests/pipeline/test_extend.py::test_non_finite_loss_stops_before_update",),
        "no silent retry at a lower rate: it would be another run than the record says",
    ),
    Behavior(
        27,
        "the kept step has the best combined score, defined in a line",
        check_selected_step,
        (),
        "the last step's weights go once the run is done: the kept step is the model",
    ),
    Behavior(
        28,
        "the run folder describes itself",
        check_run_folder,
        (),
        "run.json, record.json, metrics.jsonl stand for config.yaml, env.json and log.txt",
    ),
    Behavior(29, "same seed, same machine: the same files", check_reproducibility),
    Behavior(
        30,
        "--gpus N gives the result of one",
        None,
        (
            "tests/distributed/test_equal.py::test_two_processes_equal_one",
            "tests/distributed/test_command.py::test_resume_with_another_world_size",
        ),
    ),
]
