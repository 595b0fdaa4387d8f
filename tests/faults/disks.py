"""Faults 3 to 5: the disk refuses, and what lies on it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import forks
from faults import injection
from faults.scenario import STEP_4, Fault, Workspace, assert_same_bits, extend_until_killed
from forks import last_line, run_cli
from taskgraft import Callbacks


def log_on_full_disk(workspace: Workspace) -> str:
    out = workspace.tmp_path / "both"
    done = run_cli(*workspace.command(out), before=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2))
    assert (done.returncode, done.stderr) == (0, "")
    assert "model and report:" in done.stdout
    return f"a log on a full disk: {assert_same_bits(out, workspace.expected)}"


def disk_errors(workspace: Workspace) -> str:
    """Each refusal at another moment of the run, and from then on."""
    tried = []
    for at, kind in ((1, "failing"), (20, "read-only"), (40, "stale"), (60, "out of handles")):
        out = workspace.tmp_path / kind
        code, message = injection.run_with_fault(out, at, kind, lambda out=out: workspace.extend(out))
        assert code == forks.RAISED, f"{kind} at {at}: exit code {code}"
        assert message.startswith(("InputError: ", "SetupError: ")), f"{kind} at {at}: {message}"
        assert os.strerror(injection.ERRORS[kind]) in message
        assert "with --resume" in message or "choose another OUT" in message
        workspace.extend(out, resume=True)
        assert_same_bits(out, workspace.expected)
        tried.append(kind)
    return f"{', '.join(tried)}: one line each, then --resume to the same bits"


def damaged_checkpoints(workspace: Workspace) -> str:
    killed = extend_until_killed(workspace, workspace.tmp_path / "killed")
    tried = []
    for name, file, warning in (
        ("cut", "model.safetensors", "does not match"),
        ("flipped", "best.safetensors", "best.safetensors does not match"),
        ("empty", "memory.safetensors", "does not match"),
        ("missing", "manifest.json", "FileNotFoundError"),
        ("all", "optimizer.safetensors", "starting from the beginning"),
    ):
        out = workspace.tmp_path / name
        shutil.copytree(killed, out)
        newest = out / STEP_4
        for checkpoint in (out / "state").glob("step-*") if name == "all" else [newest]:
            damage(checkpoint / file, name)
        messages: list[str] = []
        workspace.extend(out, resume=True, callbacks=Callbacks(info=messages.append))
        assert [line for line in messages if warning in line], (name, messages)
        assert [line for line in messages if line.startswith(f"checkpoint {newest.name} is damaged")]
        assert [line for line in messages if line == "resuming at step 2"] or name == "all"
        assert_same_bits(out, workspace.expected)
        tried.append(f"{file} {name}")
    return f"{', '.join(tried)}: told, then the one before, to the same bits"


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    file.unlink()  # another name of the same file is left as it is
    if kind != "missing":
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        file.write_bytes({"cut": content[:half], "empty": b""}.get(kind, flipped))


def damaged_journal(workspace: Workspace) -> str:
    """A line in the middle of the search's journal is damaged; without the file, nothing is trained again."""
    out = workspace.tmp_path / "search"
    command = workspace.command(out, "--sampler", "grid", method="distill(strength=[1, 2])")
    command[0] = "tune"
    run_cli(*command, check=True)
    first = json.loads((out / "search.json").read_text())
    file = out / "study.journal"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], lines[1][:-3], *lines[2:]]))
    done = run_cli(*command)
    assert done.returncode == 2
    assert "study.journal, line 2 is damaged; remove the file" in last_line(done)
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-*")}
    file.unlink()
    run_cli(*command, check=True)
    assert {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-*")} == before
    again = json.loads((out / "search.json").read_text())
    assert [trial["score"] for trial in again["trials"]] == [trial["score"] for trial in first["trials"]]
    return "a damaged line is named; without the journal the trained trials are found again"


STATE, WRITES, STUDY = (
    "tests/training/test_checkpoints.py",
    "tests/faults/test_every_write.py",
    "tests/tuning/test_study.py",
)
TUNE = "tests/commands/test_tune.py"
FAULTS = [
    Fault(1, "kill -9 at every write to a file, and at random moments", "--resume gives the same bits",
          tests=(f"{WRITES}::test_killed_at_every_write",
                  "tests/faults/test_killing.py::test_random_kills_and_resume_are_bit_identical")),
    Fault(3, "the disk is full", "what was saved is whole, nothing half is left, one line; a log never ends a run",
          log_on_full_disk, (f"{WRITES}::test_disk_full_at_every_write",)),
    Fault(4, "the disk fails, is read-only or gone, or there are too many open files",
          "one line that says which, and --resume continues", disk_errors),
    Fault(5, "the newest checkpoint is cut, flipped, empty or has no manifest", "the one before is taken, and told",
          damaged_checkpoints, (f"{STATE}::test_find_newest_skips_damaged_tensors",
                    f"{STATE}::test_find_newest_skips_damaged_manifest"),
          "there is no pointer to the newest that could lead nowhere: its name tells"),
    Fault(14, "two searches in one folder, a half-written or damaged journal, a killed worker or search",
          "the second is refused, a trial is done once and continues from its checkpoint, damage is named",
          damaged_journal,
          (f"{TUNE}::test_a_second_search_in_the_same_folder_is_refused",
           f"{TUNE}::test_a_search_that_was_killed_is_resumed_with_the_same_result",
           f"{TUNE}::test_a_killed_worker_is_replaced_and_the_result_is_the_same",
           f"{STUDY}::test_a_half_written_line_of_the_journal_is_cut")),
]  # fmt: skip
