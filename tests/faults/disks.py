"""Faults 3 to 5: the disk refuses, and what lies on it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import dying
from faults.trying import UNDER_WAY, Fault, Place, command, same_bits, stopped
from taskgraft import Callbacks


def full_log(place: Place) -> str:
    out = place.root / "both"
    told = command(place.words(out), place.root, lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2))
    assert (told.code, told.err) == (0, "")
    assert "model and report:" in told.out
    return f"a log on a full disk: {same_bits(out, place.calm)}"


def refusing(place: Place) -> str:
    """Each refusal at another moment of the run, and from then on."""
    happened = []
    for at, how in ((1, "failing"), (20, "read-only"), (40, "stale"), (60, "out of handles")):
        out = place.root / how
        code, said = dying.disturbed(out, at, how, lambda out=out: place.extend(out))
        assert code == dying.OTHER, f"{how} at {at}: it only seems to be done"
        assert said.startswith(("InputError: ", "SetupError: ")), f"{how} at {at}: {said}"
        assert os.strerror(dying.REFUSALS[how]) in said
        assert "with --resume" in said or "choose another OUT" in said
        place.extend(out, resume=True)
        same_bits(out, place.calm)
        happened.append(how)
    return f"{', '.join(happened)}: one line each, then --resume to the same bits"


def damaged(place: Place) -> str:
    begun = stopped(place, place.root / "begun")
    happened = []
    for name, part, said in (
        ("cut", "model.safetensors", "does not match"),
        ("flipped", "best.safetensors", "best.safetensors does not match"),
        ("empty", "memory.safetensors", "does not match"),
        ("missing", "manifest.json", "FileNotFoundError"),
        ("all", "optimizer.safetensors", "starting from the beginning"),
    ):
        out = place.root / name
        shutil.copytree(begun, out)
        newest = out / UNDER_WAY
        for checkpoint in (out / "state").glob("step-*") if name == "all" else [newest]:
            harm(checkpoint / part, name)
        told: list[str] = []
        place.extend(out, resume=True, callbacks=Callbacks(info=told.append))
        assert [line for line in told if said in line], (name, told)
        assert [line for line in told if line.startswith(f"checkpoint {newest.name} is damaged")]
        assert [line for line in told if line == "resuming at step 2"] or name == "all"
        same_bits(out, place.calm)
        happened.append(f"{part} {name}")
    return f"{', '.join(happened)}: told, then the one before, to the same bits"


def harm(file: Path, how: str) -> None:
    content = file.read_bytes()
    file.unlink()  # another name of the same file is left as it is
    if how != "missing":
        half = len(content) // 2
        kept = {"cut": content[:half], "empty": b""}.get(how)
        file.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :] if kept is None else kept)


def journal(place: Place) -> str:
    """A line in the middle of the search's journal is damaged; without the file, nothing is trained again."""
    out = place.root / "search"
    flags = [word for word in place.words(out)[5:] if word not in ("--method", "distill")]
    searched = ("--method", "distill(strength=[1, 2])", "--sampler", "grid")
    words = ("tune", place.alice, place.new, out, "--old-val", place.old, *flags[1:], *searched)
    assert command(words, place.root).code == 0
    found = json.loads((out / "search.json").read_text())
    file = out / "study.journal"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], lines[1][:-3], *lines[2:]]))
    told = command(words, place.root)
    assert told.code == 2
    assert "study.journal, line 2 is damaged; remove the file" in told.last
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-*")}
    file.unlink()
    assert command(words, place.root).code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-*")} == before
    again = json.loads((out / "search.json").read_text())
    assert [one["score"] for one in again["trials"]] == [one["score"] for one in found["trials"]]
    return "a damaged line is named; without the journal the trained trials are found again"


STATE, TOUCH, STUDY = (
    "tests/training/test_checkpoints.py",
    "tests/faults/test_every_touch.py",
    "tests/tuning/test_study.py",
)
TUNE = "tests/commands/test_tune.py"
FAULTS = [
    Fault(1, "kill -9 at every touch of a file, and at random moments", "--resume gives the same bits",
          tested=(f"{TOUCH}::test_killed_at_every_write",
                  "tests/faults/test_killing.py::test_random_kills_and_resume_are_bit_identical")),
    Fault(3, "the disk is full", "what was saved is whole, nothing half is left, one line; a log never ends a run",
          full_log, (f"{TOUCH}::test_disk_full_at_every_write",)),
    Fault(4, "the disk fails, is read-only or gone, or there are too many open files",
          "one line that says which, and --resume goes on", refusing),
    Fault(5, "the newest checkpoint is cut, flipped, empty or has no manifest", "the one before is taken, and told",
          damaged, (f"{STATE}::test_find_newest_skips_damaged_tensors",
                    f"{STATE}::test_find_newest_skips_damaged_manifest"),
          "there is no pointer to the newest that could lead nowhere: its name tells"),
    Fault(14, "two searches in one folder, a half-written or damaged journal, a killed worker or search",
          "the second is refused, a trial is done once and continues from its checkpoint, damage is named", journal,
          (f"{TUNE}::test_a_second_search_in_the_same_folder_is_refused",
           f"{TUNE}::test_a_search_that_was_killed_is_resumed_with_the_same_result",
           f"{TUNE}::test_a_killed_worker_is_replaced_and_the_result_is_the_same",
           f"{STUDY}::test_a_half_written_line_of_the_journal_is_cut")),
]  # fmt: skip
