"""Every command that a page or a summary proposes is accepted by the real command line, however a run was started."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from made_up import made_up_comparison, made_up_record
from taskgraft import report
from taskgraft.config import TrainingConfig
from taskgraft.pipeline.request import Request
from taskgraft.report import commands
from taskgraft.results.record import Comparison, Interval, Record
from typed import bind, flags, places, understood, values

LOSSES = {
    "good": Interval(mean=0.0, low=-0.01, high=0.01, n=100),
    "mixed": Interval(mean=0.05, low=0.02, high=0.08, n=100),
    "poor": Interval(mean=0.4, low=0.3, high=0.5, n=100),
}
TYPED = {
    "plain": "taskgraft extend alice bob both --task colour",
    "trailing slashes": "taskgraft extend alice/ bob/ both/ --task colour",
    "into": "taskgraft extend alice bob both --into make --method branch",
    "track": "taskgraft extend alice bob both --task colour --track tensorboard",
    "config": "taskgraft extend alice bob both --config run.toml",
    "gpus": "taskgraft extend alice bob both --task colour --gpus 2 --max-restarts 1 --patience 60",
    "processes": "taskgraft extend alice bob both --task colour --processes=2",
    "resume": "taskgraft extend alice bob both --task colour --resume",
    "auto": "taskgraft extend alice bob both --task colour --method auto --budget 15m --max-forgetting 1% --jobs 2",
    "flags first": "taskgraft --debug extend --task colour --lr 0.01 alice bob --cache none both",
    "foreign parent": "taskgraft extend cars.pth bob both --task colour --arch resnet18 --labels l.txt "
    "--preprocessing '96 squash' --parent-task make --no-parent-check --old bob --old-val x --old-val y",
    "quotes": """taskgraft extend 'al ice' "bob's" 'bo"th out' --task 'car colour' --old-val 'my cars'""",
    "leading dash": "taskgraft extend --task colour -- alice bob -both",
    "Python": "taskgraft.extend(…)",
    "nothing": "",
    "not a command": 'taskgraft extend "alice',
}


@pytest.fixture(autouse=True)
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('task = "colour"\nmethod = "distill + wise"\nlr = 3e-4\n', encoding="utf-8")
    Path("compare.toml").write_text('task = "colour"\nseeds = 2\n', encoding="utf-8")


def commands_on(page: str) -> list[str]:
    blocks = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)
    texts = [html.unescape(re.sub(r"<[^>]+>", "", block)).strip() for block in blocks]
    return [text for text in texts if text.startswith("taskgraft ")]


def with_status(record: Record, status: str) -> Record:
    old, new = record.tasks
    unknown = {"parent": None, "child": None, "forgetting": None}
    old = old.model_copy(update=unknown if status == "unknown" else {"forgetting": LOSSES[status]})
    return record.model_copy(update={"tasks": (old, new)})


def reproduce(typed: str) -> str:
    """The reproduce_command that a run started by `typed` records."""
    if not typed.startswith("taskgraft ") or typed.count('"') == 1 or "-both" in typed:
        request = Request("alice", "bob/", "colour", "distill", TrainingConfig(lr=0.01), old_val="cars")
        return request.build_command(Path("both"))
    words = shlex.split(typed)
    given = values(bind(words[words.index("extend") :]))
    config = TrainingConfig(**{name: given[name] for name in asdict(TrainingConfig())})
    request = Request(
        given["parent"], given["data"], given["task"] or given["into"], "branch", config, given["old"],
        given["old_val"] or (), given["arch"], given["labels"], given["preprocessing"], given["parent_task"],
        bool(given["into"]), not given["no_parent_check"],
    )  # fmt: skip
    return request.build_command(given["out"])


@pytest.mark.parametrize("verb", commands.FLAGS)
def test_flags_match_the_command_line(verb: str) -> None:
    assert {name: name not in commands.SWITCHES for name in commands.FLAGS[verb]} == flags(verb)
    assert len(places(verb)) == len(commands.ARGUMENTS[verb])


@pytest.mark.parametrize("status", ["good", "mixed", "poor", "unknown"])
@pytest.mark.parametrize("start", TYPED)
def test_proposals_after_a_run(start: str, status: str) -> None:
    update = {"command": TYPED[start], "reproduce_command": reproduce(TYPED[start])}
    record = with_status(made_up_record(), status).model_copy(update=update)
    if start == "into":
        added = record.tasks[1].model_copy(update={"name": "make, added classes", "added_to": "make"})
        record = record.model_copy(update={"tasks": (record.tasks[0], added), "method": "branch"})
    summary = report.summarize_run(record)
    assert summary.status == status
    proposed = [summary.command, *(text for _, text in commands.list_follow_ups(record))]
    assert len(proposed) == 7
    for text in proposed:
        understood(text)
        assert "/-" not in text.replace(" ./-", " ")
        assert "--resume" not in text
    if start == "into" and status in ("mixed", "poor"):
        assert summary.command == "taskgraft extend alice bob both-distill --into make --method distill"
    if start == "config" and status in ("mixed", "poor"):
        assert "--task colour" in summary.command


@pytest.mark.parametrize("start", ["trailing slashes", "quotes"])
def test_commands_on_a_run_page(start: str) -> None:
    update = {"command": TYPED[start], "reproduce_command": reproduce(TYPED[start])}
    record = with_status(made_up_record(), "poor").model_copy(update={**update, "history": ()})
    shown = commands_on(report.render_run(record, {}))
    assert len(shown) >= 7
    for text in shown:
        understood(text)


def test_follow_ups_of_an_unknown_call_are_left_out() -> None:
    record = made_up_record().model_copy(update={"command": "taskgraft.extend(…)"})
    assert commands.list_follow_ups(record) == []


def test_proposals_keep_the_flags_that_apply() -> None:
    typed = TYPED["foreign parent"] + " --track wandb --gpus 2 --lr 0.01 --method ewc --resume"
    record = made_up_record().model_copy(update={"command": typed, "reproduce_command": reproduce(typed)})
    assert commands.compare_methods(record) == (
        "taskgraft compare cars.pth bob both-compared --task colour --old bob --old-val x --old-val y --arch resnet18 "
        "--labels l.txt --preprocessing '96 squash' --parent-task make --lr 0.01 --no-parent-check --seeds 3"
    )
    rerun = dict(commands.list_follow_ups(record))["Rerun into a new folder"]
    assert "--gpus 2" in rerun
    assert "--track wandb" in rerun
    assert "both-again" in rerun


@pytest.mark.parametrize("typed", ["taskgraft train cars/ alice/ --task make --keep ewc --resume", "taskgraft.train"])
def test_proposals_after_a_first_task(typed: str) -> None:
    record = made_up_record()
    task = record.tasks[0].model_copy(update={"new": True, "parent": None, "forgetting": None, "agreement": None})
    known = "taskgraft train cars alice --task make --keep ewc"
    update = {"command": typed, "reproduce_command": known, "tasks": (task,), "method": "train"}
    record = record.model_copy(update=update)
    proposed = [report.summarize_run(record).command, *(text for _, text in commands.list_follow_ups(record))]
    assert [understood(text) for text in proposed] == [
        "extend", "train", "evaluate", "report", "predict", "serve", "extend",
    ]  # fmt: skip
    assert proposed[0] == "taskgraft extend alice DATA alice-extended --task NAME"
    assert proposed[1] == "taskgraft train cars alice-again --task make --keep ewc"


COMPARED = {
    "plain": "taskgraft compare alice bob out --task colour --seeds 1",
    "trailing slash": "taskgraft compare alice bob 'my out/' --task colour --methods 'ewc; distill' --lrs 0.1,0.01",
    "config": "taskgraft compare alice bob out --config compare.toml",
    "demo": "taskgraft demo",
    "demo elsewhere": "taskgraft demo elsewhere/ --seeds=1",
    "Python": "taskgraft.compare",
}


@pytest.mark.parametrize("folders", [True, False], ids=["folders", "no folders"])
@pytest.mark.parametrize(("seeds", "with_old"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("start", COMPARED)
def test_proposals_after_a_comparison(start: str, seeds: int, with_old: bool, folders: bool) -> None:
    comparison = made_up_comparison(seeds, with_old=with_old).model_copy(update={"command": COMPARED[start]})
    variants = []
    for variant in comparison.variants if folders else ():
        names = tuple(f"{variant.label.lower()}/seed-{seed}" for seed in range(seeds))
        old_val = "cars" if with_old else ()
        request = Request("alice", "bob", "colour", variant.method, TrainingConfig(steps=600), old_val=old_val)
        records = tuple(
            record.model_copy(update={"reproduce_command": request.build_command(Path("my place") / name)})
            for record, name in zip(variant.records, names, strict=True)
        )
        variants.append(variant.model_copy(update={"folders": names, "records": records}))
    if folders:
        comparison = comparison.model_copy(update={"variants": tuple(variants)})
    command = report.summarize_comparison(comparison).command
    final = "predict" if folders else "extend"
    again = "demo" if "demo" in start and seeds == 1 else "compare"
    assert understood(command) == (final if (seeds, with_old) == (3, True) else again)
    if start == "Python" and folders and seeds == 1:
        assert command == (
            "taskgraft compare alice bob 'my place-3-seeds' --task colour --old-val cars --methods 'finetune; "
            "ewc(strength=30); distill(strength=1); distill(strength=1) + ewc(strength=30)' --lrs 0.001,0.0001 "
            "--steps 600 --optimizer sgd --seeds 3"
        )


def test_best_model_of_a_comparison() -> None:
    comparison = made_up_comparison()
    variants = tuple(variant.model_copy(update={"folders": ("best one/seed-0",)}) for variant in comparison.variants)
    summary = report.summarize_comparison(comparison.model_copy(update={"variants": variants}))
    assert summary.command == "taskgraft predict 'out/best one/seed-0' IMAGES"


def test_commands_on_a_comparison_page() -> None:
    comparison = made_up_comparison(1)
    update = {"command": COMPARED["plain"], "variants": comparison.variants[:1]}
    comparison = comparison.model_copy(update=update)
    shown = commands_on(report.render_comparison(comparison))
    assert [understood(text) for text in shown] == ["compare", "compare"]


@pytest.mark.parametrize("start", COMPARED)
def test_proposal_after_a_failed_comparison(start: str) -> None:
    failed = Comparison(command=COMPARED[start], title="x", variants=(), failures=(("ewc", "no memory"),))
    assert understood(report.summarize_comparison(failed).command) == "check"
