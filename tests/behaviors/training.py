"""Rows 19 to 30: a run, from its first line to its folder."""

from __future__ import annotations

import json
import re

from behaviors.trying import Behavior, Place
from taskgraft import TrainingConfig
from taskgraft.config import options

FOLDER = {
    "config.json", "model.safetensors", "record.json", "metrics.jsonl", "predictions.npz", "report.html", "README.md",
    "run.json", "command.txt", "split.csv", "excluded.csv", "digests.json", "cards",
}  # fmt: skip


def three(place: Place) -> str:
    """PARENT, DATA, OUT and the task's name; every setting is told with its reason."""
    told = place.run("extend", place.alice, place.new, place.root / "out", "--task", "paint", "--dry-run",
                     "--precision", "fp32")  # fmt: skip
    assert told.code == 0, told.err
    settings = dict(re.findall(r"^  (\w+) = \S+\s+(.+)$", told.out, re.M))
    assert settings.keys() == options(TrainingConfig).keys()
    assert settings["precision"] == "set explicitly"
    assert settings["lr"] == "default"
    assert told.out.startswith("method: branch\n")
    return f"{len(settings)} settings, each with its reason; method branch"


def dry(place: Place) -> str:
    before = sorted(place.root.rglob("*"))
    told = place.run("extend", place.alice, place.new, place.root / "out", "--task", "paint", "--dry-run",
                     "--precision", "fp32", "--old-val", place.old / "val")  # fmt: skip
    left = [path for path in sorted(place.root.rglob("*")) if path not in before and path != place.root / "home"]
    assert told.code == 0, told.err
    assert left == []
    for part in ("40 to train on, 24 to validate on, 24 of old", "frozen; the parent has", "MiB for weights",
                 "time: about", "model.safetensors", "nothing was written"):  # fmt: skip
        assert part in told.out
    refused = place.run("extend", place.alice, place.new, place.both, "--task", "paint", "--dry-run", "--lr", "0.5",
                        "--precision", "fp32")  # fmt: skip
    assert refused.code == 2
    assert "already holds a run with other settings" in refused.last
    return next(line for line in told.out.splitlines() if line.startswith("time:"))


def told_on_the_way(place: Place) -> str:
    """The real run, whose stderr was no terminal."""
    told = place.told
    assert told.first < 60  # 15 where nobody else is at work; the tests share their machine
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", told.err + told.out)
    line = re.search(r"^step 20/20 .*$", told.err, re.M)
    assert line
    for part in ("loss ", "distill ", "shape ", "paint ", "shape agreement "):
        assert part in line[0]
    assert len(told.err.splitlines()) < 20
    return f"first word after {told.first:.1f} s; {line[0]}"


def again(place: Place) -> str:
    """The same command on the finished run, and with another rate."""
    before = {path: path.read_bytes() for path in place.both.rglob("*") if path.is_file()}
    same = place.run(*place.words)
    assert (same.code, "finished; nothing to do" in same.err) == (0, True)
    assert same.out == place.told.out
    other = place.run(*place.words, "--lr", "0.5")
    assert other.code == 2
    assert "config.lr was 0.01, is 0.5" in other.last
    assert before == {path: path.read_bytes() for path in place.both.rglob("*") if path.is_file()}
    return other.last[-90:]


def described(place: Place) -> str:
    names = {path.name for path in place.both.iterdir()}
    assert names >= FOLDER, FOLDER - names
    record = json.loads((place.both / "record.json").read_text())
    assert {"torch", "timm", "python"} <= {name.lower() for name in record["versions"]}
    assert (place.both / "command.txt").read_text().startswith("taskgraft extend ")
    assert record["data"]["new"]["fingerprint"]
    assert "state" not in names
    return ", ".join(sorted(names))


def chosen(place: Place) -> str:
    """The kept step is the first of those with the best mean accuracy, and the report says so in a line."""
    record = json.loads((place.both / "record.json").read_text())
    means = [(sum(line["accuracy"].values()) / 2, -line["step"]) for line in record["history"]
             if line.get("accuracy") and line["step"]]  # fmt: skip
    assert max(means) == (record["score"], -record["step"])
    page = (place.both / "report.html").read_text(encoding="utf-8")
    assert f"Score {100 * record['score']:.1f}: the mean" in page
    assert re.search(
        rf"the mean validation accuracy of all tasks at step {record['step']}, the\s+highest of all evaluated steps",
        page,
    )
    return f"Score {record['score']:.3f} at step {record['step']}"


def twice(place: Place) -> str:
    """The real run once more, in another process and another folder: the same bits."""
    words = [place.root / "both" if word == place.both else word for word in place.words]
    told = place.run(*words)
    assert told.code == 0, told.err
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (place.root / "both" / name).read_bytes() == (place.both / name).read_bytes()
    assert json.loads((place.both / "record.json").read_text())["seed"] == 0
    return "metrics.jsonl and model.safetensors are the same, byte for byte"


def documented(place: Place) -> str:
    """More steps are another run, and the message says what differs; to go on from a child, extend the child."""
    told = place.run(*place.words, "--steps", "40")
    assert told.code == 2
    assert "config.steps was 20, is 40" in told.last
    return told.last[-80:]


ROWS = [
    Behavior(19, "three arguments and a name are enough; every default with its reason", three,
              ("tests/methods/test_notation.py::test_alias",),
              "no presets: the default is what the evidence chose, --steps 300 is the fast one and --method auto the "
              "thorough one; lwf is a method of its own, lowlr is --lr, interp is wise"),
    Behavior(20, "--dry-run: settings, parameters, memory, time, files; touches nothing", dry),
    Behavior(21, "a first line within 15 s, loss terms, accuracies, drift of old tasks; plain lines elsewhere",
              told_on_the_way, (), "the rate stands in metrics.jsonl, images a second where the arithmetic is chosen"),
    Behavior(22, "one signal: saved, said how to go on, 130 or 143; a second changes nothing", None,
              ("tests/faults/test_signals.py::test_signal_loses_nothing",
               "tests/surface/test_errors.py::test_an_interruption_names_the_way_on"),
              "the way on is the same command with --resume, and is said so"),
    Behavior(23, "the same command again: finished says so, another setting is refused by name, nothing overwritten",
              again, ("tests/pipeline/test_extend.py::test_resume_after_kill_is_bit_identical",)),
    Behavior(24, "--resume goes on bit for bit; changed settings are listed", documented,
              ("tests/pipeline/test_extend.py::test_resume_after_kill_is_bit_identical",),
              "more steps are another run, since the rate's course depends on them; a child can be extended again"),
    Behavior(25, "out of memory: smaller pieces of the same batch, told, and on", None,
              ("tests/training/test_micro_batching.py::test_out_of_memory_doubles_micro_batches",)),
    Behavior(26, "a loss that is not finite stops before the update and names step, rate, images", None,
              ("tests/pipeline/test_extend.py::test_non_finite_loss_stops_before_update",),
              "no silent retry at a lower rate: it would be another run than the record says"),
    Behavior(27, "the kept step has the best combined score, defined in a line", chosen, (),
              "the last step's weights go once the run is done: the kept step is the model"),
    Behavior(28, "the run folder describes itself", described, (),
              "run.json, record.json, metrics.jsonl stand for config.yaml, env.json and log.txt"),
    Behavior(29, "same seed, same machine: the same files", twice),
    Behavior(30, "--gpus N gives the result of one", None,
              ("tests/distributed/test_equal.py::test_two_processes_equal_one",
               "tests/distributed/test_command.py::test_resume_with_another_world_size")),
]  # fmt: skip
