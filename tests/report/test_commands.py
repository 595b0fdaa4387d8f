"""Every command that a page or a verdict proposes is taken by the real command line, whatever state a run is in."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from made_up import made_up_comparison, made_up_record, made_up_sets
from taskgraft import report
from taskgraft.config import TrainingConfig
from taskgraft.pipeline.request import Request, command_line
from taskgraft.report import commands, verdict
from taskgraft.results.record import Comparison, Interval, Record
from typed import COMMANDS, flags, understood

POOR = Interval(mean=0.4, low=0.3, high=0.5, n=100)
MIXED = Interval(mean=0.05, low=0.02, high=0.08, n=100)
NONE = Interval(mean=0.0, low=-0.01, high=0.01, n=100)
LOSSES = {"good": NONE, "mixed": MIXED, "poor": POOR}
# How a run may have been started, with a TOML file of flags where one is named.
TYPED = {
    "plain": "taskgraft extend alice bob both --task colour",
    "a slash behind OUT": "taskgraft extend alice/ bob/ both/ --task colour",
    "into": "taskgraft extend alice bob both --into make --method branch",
    "track": "taskgraft extend alice bob both --task colour --track tensorboard",
    "config": "taskgraft extend alice bob both --config run.toml",
    "gpus": "taskgraft extend alice bob both --task colour --gpus 2 --max-restarts 1 --patience 60",
    "processes": "taskgraft extend alice bob both --task colour --processes=2",
    "resume": "taskgraft extend alice bob both --task colour --resume",
    "auto": "taskgraft extend alice bob both --task colour --method auto --budget 15m --max-forgetting 1% --jobs 2",
    "flags before": "taskgraft --debug extend --task colour --lr 0.01 alice bob --cache none both",
    "foreign": "taskgraft extend cars.pth bob both --task colour --arch resnet18 --labels l.txt --preprocessing '96 squash' "
    "--parent-task make --no-parent-check --old bob --old-val x --old-val y",
    "names with signs": """taskgraft extend 'al ice' "bob's" 'bo"th out' --task 'car colour' --old-val 'my cars'""",
    "a dash": "taskgraft extend --task colour -- alice bob -both",
    "Python": "taskgraft.extend(…)",
    "nothing": "",
    "no command line": 'taskgraft extend "alice',
}
FENCED = re.compile(r"<pre[^>]*>(.*?)</pre>", re.S)


@pytest.fixture(autouse=True)
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('task = "colour"\nmethod = "distill + wise"\nrate = 3e-4\n', encoding="utf-8")


def shown(page: str) -> Iterator[str]:
    """The commands on a page; what stands for a value or was run from Python is none."""
    for found in FENCED.findall(page):
        text = html.unescape(re.sub(r"<[^>]+>", "", found)).strip()
        if text.startswith("taskgraft "):
            yield text


def in_state(record: Record, status: str) -> Record:
    """A made-up record whose verdict is of this status."""
    old, new = record.tasks
    if status == "unknown":
        old = old.model_copy(update={"parent": None, "child": None, "forgetting": None})
    else:
        old = old.model_copy(update={"forgetting": LOSSES[status]})
    return record.model_copy(update={"tasks": (old, new)})


def asked_by(line: str) -> str:
    """The whole command that the record of a run holds beside the one that was typed."""
    if not line.startswith("taskgraft ") or line.count('"') == 1 or "-both" in line:
        return command_line(
            Request("alice", "bob/", "colour", "distill", TrainingConfig(lr=0.01), old_val="cars"), Path("both")
        )
    words = shlex.split(line)
    with COMMANDS["extend"].make_context("extend", words[words.index("extend") + 1 :]) as given:
        own = given.params
    config = TrainingConfig(**{name: own[name] for name in asdict(TrainingConfig()) if own[name] is not None})
    request = Request(
        own["parent"], own["data"], own["task"] or own["into"], "branch", config, own["old"], own["old_val"] or (),
        own["arch"], own["labels"], own["wanted"], own["parent_task"], bool(own["into"]), not own["no_parent_check"],
    )  # fmt: skip
    return command_line(request, own["out"])


@pytest.mark.parametrize("verb", commands.FLAGS)
def test_the_flags_are_those_of_the_command_line(verb: str) -> None:
    assert commands.FLAGS[verb] == flags(verb)
    places = [param.name for param in COMMANDS[verb].params if param.param_type_name == "argument"]
    assert len(places) == len(commands.PLACES[verb])


@pytest.mark.parametrize("older", [False, True], ids=["asked", "older record"])
@pytest.mark.parametrize("status", ["good", "mixed", "poor", "unknown"])
@pytest.mark.parametrize("start", TYPED)
def test_what_follows_a_run(start: str, status: str, older: bool) -> None:
    record = in_state(made_up_record(), status)
    own = {"command": TYPED[start], "reproduce_command": "" if older else asked_by(TYPED[start])}
    record = record.model_copy(update=own)
    if start == "into":
        added = record.tasks[1].model_copy(update={"name": "make, added classes", "of": "make"})
        record = record.model_copy(update={"tasks": (record.tasks[0], added), "method": "branch"})
    judged = verdict.judge(record)
    assert judged.status == status
    proposed = [judged.command, *(line for _, line in commands.following(record))]
    assert len(proposed) == 7 or (older and start in ("Python", "nothing", "no command line"))
    for line in proposed:
        understood(line)
        assert "/-" not in line.replace(" ./-", " ")
        assert "--resume" not in line
    if start == "into" and status in ("mixed", "poor"):
        assert judged.command == "taskgraft extend alice bob both-distill --into make --method distill"
    if start == "config" and status in ("mixed", "poor"):
        assert "--task colour" in judged.command


@pytest.mark.parametrize("start", ["a slash behind OUT", "track", "gpus", "names with signs", "Python"])
def test_what_the_pages_of_a_run_show(start: str) -> None:
    own = {"command": TYPED[start], "reproduce_command": asked_by(TYPED[start])}
    record = in_state(made_up_record(), "poor").model_copy(update=own)
    found = list(shown(report.render_run(record, made_up_sets())))
    assert len(found) >= 7
    for line in found:
        understood(line)
    understood(report.verdict_run(record)[4].partition(": ")[2])


def test_a_proposal_keeps_what_the_next_command_knows() -> None:
    typed = TYPED["foreign"] + " --track wandb --gpus 2 --lr 0.01 --method ewc --resume"
    record = made_up_record().model_copy(update={"command": typed, "reproduce_command": asked_by(typed)})
    line = commands.compared(record)
    assert line == (
        "taskgraft compare cars.pth bob both-compared --task colour --old bob --old-val x --old-val y --arch resnet18 "
        "--labels l.txt --preprocessing '96 squash' --parent-task make --lr 0.01 --no-parent-check --seeds 3"
    )
    again = dict(commands.following(record))["Once more, into another folder:"]
    assert "--gpus 2" in again
    assert "--track wandb" in again
    assert "both-again" in again


@pytest.mark.parametrize("typed", ["taskgraft train cars/ alice/ --task make --keep ewc --resume", "taskgraft.train"])
def test_what_follows_a_first_task(typed: str) -> None:
    made = made_up_record()
    first = made.tasks[0].model_copy(update={"new": True, "parent": None, "forgetting": None, "agreement": None})
    asked = "taskgraft train cars alice --task make --keep ewc"
    record = made.model_copy(
        update={"command": typed, "reproduce_command": asked, "tasks": (first,), "method": "train"}
    )
    assert verdict.judge(record).command == "taskgraft extend alice DATA alice-extended --task NAME"
    found = [verdict.judge(record).command, *(line for _, line in commands.following(record))]
    assert [understood(line) for line in found] == [
        "extend", "train", "evaluate", "report", "predict", "serve", "extend",
    ]  # fmt: skip
    assert found[1] == "taskgraft train cars alice-again --task make --keep ewc"


COMPARED = {
    "plain": "taskgraft compare alice bob out --task colour --seeds 1",
    "a slash": "taskgraft compare alice bob 'my out/' --task colour --methods 'ewc; distill' --rates 0.1,0.01",
    "config": "taskgraft compare alice bob out --config compare.toml",
    "demo": "taskgraft demo",
    "demo elsewhere": "taskgraft demo elsewhere/ --seeds=1",
    "Python": "taskgraft.compare",
}


@pytest.mark.parametrize("folders", [True, False], ids=["folders", "no folders"])
@pytest.mark.parametrize(("seeds", "with_old"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("start", COMPARED)
def test_what_follows_a_comparison(start: str, seeds: int, with_old: bool, folders: bool) -> None:
    Path("compare.toml").write_text('task = "colour"\nseeds = 2\n', encoding="utf-8")
    made = made_up_comparison(seeds, with_old=with_old).model_copy(update={"command": COMPARED[start]})
    kept = []
    for one in made.variants if folders else ():
        places = tuple(f"{one.label.lower()}/seed-{seed}" for seed in range(seeds))
        request = Request(
            "alice", "bob", "colour", one.method, TrainingConfig(steps=600), old_val="cars" if with_old else ()
        )
        records = tuple(
            record.model_copy(update={"reproduce_command": command_line(request, Path("own place") / place)})
            for record, place in zip(one.records, places, strict=True)
        )
        kept.append(one.model_copy(update={"folders": places, "records": records}))
    made = made.model_copy(update={"arrangements": tuple(kept)}) if folders else made
    judged = verdict.judge_comparison(made)
    verb = understood(judged.command)
    expected = "predict" if folders else "extend"
    assert verb == (
        expected if (seeds, with_old) == (3, True) else "demo" if "demo" in start and seeds == 1 else "compare"
    )
    for line in shown(report.render_comparison(made)):
        understood(line)
    if start == "Python" and folders and seeds == 1:
        assert judged.command == (
            "taskgraft compare alice bob 'own place-3-seeds' --task colour --old-val cars --methods 'finetune; "
            "ewc(strength=30); distill(strength=1); distill(strength=1) + ewc(strength=30)' --rates 0.001,0.0001 "
            "--steps 600 --optimizer sgd --seeds 3"
        )


@pytest.mark.parametrize("start", COMPARED)
def test_what_follows_a_comparison_without_a_result(start: str) -> None:
    Path("compare.toml").write_text('task = "colour"\n', encoding="utf-8")
    nothing = Comparison(command=COMPARED[start], title="x", variants=(), failures=(("ewc", "no memory"),))
    assert understood(verdict.judge_comparison(nothing).command) == "check"
