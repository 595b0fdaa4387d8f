"""Every command that a page or a summary proposes is accepted by the real command line, however a run was started."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cli_parsing import parse, parse_line, values_of
from fake_results import fake_comparison, fake_record
from taskgraft import report
from taskgraft.config import TrainingConfig
from taskgraft.pipeline.request import CompressionRequest, MergeRequest, RefreshRequest, Request
from taskgraft.report import commands
from taskgraft.results.record import Comparison, Interval, Record

LOSSES = {
    "good": Interval(mean=0.0, low=-0.01, high=0.01, n=100),
    "mixed": Interval(mean=0.05, low=0.02, high=0.08, n=100),
    "poor": Interval(mean=0.4, low=0.3, high=0.5, n=100),
}
STARTED = {
    "plain": "taskgraft extend alice bob both --task colour",
    "trailing slashes": "taskgraft extend alice/ bob/ both/ --task colour",
    "into": "taskgraft extend alice bob both --into make --method branch",
    "config": "taskgraft extend alice bob both --config run.toml",
    "foreign parent": "taskgraft extend cars.pth bob both --task colour --arch resnet18 --labels l.txt "
    "--preprocessing '96 squash' --parent-task make --no-parent-check --old bob --old-val x --old-val y",
    "quotes": """taskgraft extend 'al ice' "bob's" 'bo"th out' --task 'car colour' --old-val 'my cars'""",
    "leading dash": "taskgraft extend --task colour -- alice bob -both",
    "unknown": "",
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


def build_request(command: str) -> tuple[Request, Path]:
    """The request and the folder that the command line makes of a command."""
    given = values_of(parse(shlex.split(command)[1:]))
    config = TrainingConfig(**{name: given[name] for name in asdict(TrainingConfig())})
    request = Request(
        given["parent"], given["data"], given["task"] or given["into"], "branch", config, given["old"],
        given["old_val"] or (), given["arch"], given["labels"], given["preprocessing"], given["parent_task"],
        bool(given.get("into")), not given["no_parent_check"],
    )  # fmt: skip
    return request, given["out"]


def reproduce(command: str) -> str:
    """The reproduce_command that a run started by `command` records."""
    if not command:
        return ""
    request, out = build_request(command)
    return request.build_command(out)


@pytest.mark.parametrize("status", ["good", "mixed", "poor", "unknown"])
@pytest.mark.parametrize("start", STARTED)
def test_proposals_after_a_run(start: str, status: str) -> None:
    update = {"reproduce_command": reproduce(STARTED[start])}
    record = with_status(fake_record(), status).model_copy(update=update)
    if start == "into":
        added = record.tasks[1].model_copy(update={"name": "make, added classes", "added_to": "make"})
        record = record.model_copy(update={"tasks": (record.tasks[0], added), "method": "branch"})
    summary = report.summarize_run(record)
    assert summary.status == status
    proposed = [summary.command, *(text for _, text in commands.list_follow_ups(record))]
    assert len(proposed) == (7 if STARTED[start] else 1)
    for text in proposed:
        parse_line(text)
        assert "/-" not in text.replace(" ./-", " ")
    if start == "into" and status in ("mixed", "poor"):
        assert summary.command == "taskgraft extend alice bob both-distill --into make --method distill"
    if start == "config" and status in ("mixed", "poor"):
        assert "--task colour" in summary.command
    if STARTED[start] and start != "into" and status in ("mixed", "poor"):  # one backbone that forgot
        assert summary.command.endswith("--one-backbone")
        assert "--method" not in summary.command


FOREIGN: dict[str, Any] = {
    "arch": "resnet18", "labels": "my labels.txt", "preprocessing": "96 squash", "check_parent": False,
}  # fmt: skip
REQUESTS = {
    "unlabeled": Request("al ice", "bob's", "car colour", "distill", old_val="my cars", unlabeled="day 'one'"),
    "joint, stopped early": Request(
        "a", "b", "colour", "ewc(strength=30) + distill", TrainingConfig(softmax="joint", patience=3, seed=2)
    ),
    "into": Request("a", "b", "car colour", into=True, old_val=["v", "w"], **FOREIGN),
    "refresh": RefreshRequest("al ice", "bob's", "car colour", old_val="my cars", unlabeled="day 'one'"),
    "refresh of a weights file": RefreshRequest("cars.pth", "-b", "colour", "lwf", parent_task="colour", **FOREIGN),
    "compress": CompressionRequest("al ice", "bob's", "car colour", old_val="my cars", student="resnet18", **FOREIGN),
    "merge": MergeRequest("al ice", "-b", ["day 'one'", "c"], "make", ancestor="alice", old_val="my cars", **FOREIGN),
}


@pytest.mark.parametrize("state", ["good", "mixed", "poor", "unknown", "not learned", "one backbone"])
@pytest.mark.parametrize("start", REQUESTS)
def test_every_state_of_every_run_proposes_commands_that_parse(start: str, state: str) -> None:
    request = REQUESTS[start]
    record = with_status(fake_record(), state if state in (*LOSSES, "unknown") else "good")
    old, new = record.tasks
    if start == "into":
        new = new.model_copy(update={"name": "make, added classes", "added_to": "make"})
    if isinstance(request, RefreshRequest | CompressionRequest):  # the parent knows the task
        new = new.model_copy(update={"parent": new.child, "forgetting": old.forgetting or LOSSES["good"]})
    if isinstance(request, RefreshRequest):
        new = new.model_copy(update={"name": "make, new images", "refreshes": "make"})
    if isinstance(request, MergeRequest):
        new = new.model_copy(update={"new": False, "parent": new.child, "forgetting": old.forgetting})
    if state == "not learned":
        new = new.model_copy(update={"child": Interval(mean=0.1, low=0.0, high=0.2, n=20)})
    command = request.build_command(Path("my 'out'"))
    record = record.model_copy(
        update={
            "tasks": (old, new), "reproduce_command": command, "method": request.method,
            "one_backbone": state != "one backbone" or isinstance(request, MergeRequest),
        }
    )  # fmt: skip
    proposed = [command, report.summarize_run(record).command, *(text for _, text in commands.list_follow_ups(record))]
    assert len(proposed) >= 8
    assert parse_line(proposed[0]) == shlex.split(command)[1]
    for text in proposed:
        parse_line(text)


@pytest.mark.parametrize("start", ["trailing slashes", "quotes"])
def test_commands_on_a_run_page(start: str) -> None:
    update = {"reproduce_command": reproduce(STARTED[start])}
    record = with_status(fake_record(), "poor").model_copy(update={**update, "history": ()})
    shown = commands_on(report.render_run(record, {}))
    assert len(shown) >= 7
    for text in shown:
        parse_line(text)


@pytest.mark.parametrize("command", ["", "taskgraft.extend(…)", 'taskgraft extend "alice', "taskgraft extend alice"])
def test_follow_ups_of_an_unknown_call_are_left_out(command: str) -> None:
    record = fake_record().model_copy(update={"reproduce_command": command})
    assert commands.list_follow_ups(record) == []


def test_proposals_keep_the_flags_that_apply() -> None:
    command = reproduce(STARTED["foreign parent"] + " --lr 0.01")
    record = fake_record().model_copy(update={"reproduce_command": command})
    assert commands.compare_methods(record) == (
        "taskgraft compare cars.pth bob both-compared --task colour --old bob --old-val x --old-val y --arch resnet18 "
        "--labels l.txt --preprocessing '96 squash' --parent-task make --lr 0.01 --no-parent-check --seeds 3"
    )


def test_proposals_after_a_first_task() -> None:
    record = fake_record()
    task = record.tasks[0].model_copy(update={"new": True, "parent": None, "forgetting": None, "agreement": None})
    update = {"reproduce_command": "taskgraft train cars alice --task make --keep ewc", "tasks": (task,)}
    record = record.model_copy(update=update)
    proposed = [report.summarize_run(record).command, *(text for _, text in commands.list_follow_ups(record))]
    assert [parse_line(text) for text in proposed] == [
        "extend", "train", "evaluate", "report", "predict", "serve", "extend",
    ]  # fmt: skip
    assert proposed[0] == "taskgraft extend alice DATA alice-extended --task NAME"
    assert proposed[1] == "taskgraft train cars alice-again --task make --keep ewc"


COMPARED = {
    "plain": "taskgraft compare alice bob out --task colour --old-val cars",
    "trailing slash": "taskgraft compare alice bob 'my out/' --task colour --lr 0.1",
    "config": "taskgraft compare alice bob out --config compare.toml",
    "unknown": "",
}


def compared(start: str, seeds: int = 3, *, with_old: bool = True, folders: bool = True) -> Comparison:
    comparison = fake_comparison(seeds, with_old=with_old)
    variants = tuple(
        variant.model_copy(update={"folders": tuple(f"{variant.label.lower()}/seed-{i}" for i in range(seeds))})
        for variant in comparison.variants
    )
    command = ""
    if COMPARED[start]:
        request, out = build_request(COMPARED[start])
        command = commands.build_compare_command(request.build_command(out), variants, ("--seeds", str(seeds)))
        parse_line(command)
    return comparison.model_copy(
        update={"variants": variants if folders else comparison.variants, "reproduce_command": command}
    )


@pytest.mark.parametrize("folders", [True, False], ids=["folders", "no folders"])
@pytest.mark.parametrize(("seeds", "with_old"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("start", COMPARED)
def test_proposals_after_a_comparison(start: str, seeds: int, with_old: bool, folders: bool) -> None:
    command = report.summarize_comparison(compared(start, seeds, with_old=with_old, folders=folders)).command
    assert parse_line(command) == ("predict" if (seeds, with_old) == (3, True) else "compare")
    if start == "plain" and seeds == 1:
        assert command == (
            "taskgraft compare alice bob out --task colour --old-val cars --methods 'finetune; ewc(strength=30); "
            "distill(strength=1); distill(strength=1) + ewc(strength=30)' --steps 600 --optimizer sgd "
            "--lrs 0.001,0.0001 --seeds 3"
        )


@pytest.mark.parametrize(
    "command_line", ["taskgraft demo", "taskgraft demo elsewhere/ --seeds=1", "taskgraft demo --seeds 1"]
)
def test_more_seeds_of_the_demo(command_line: str) -> None:
    command = commands.run_more_seeds(fake_comparison(1).model_copy(update={"command": command_line}))
    assert parse_line(command) == "demo"
    assert command.endswith("--seeds 3")


def test_best_model_of_a_comparison() -> None:
    command = report.summarize_comparison(compared("trailing slash")).command
    assert command == "taskgraft predict 'my out/distillation and ewc/seed-0' IMAGES"


def test_commands_on_a_comparison_page() -> None:
    comparison = fake_comparison(1)
    comparison = comparison.model_copy(update={"variants": comparison.variants[:1]})
    shown = commands_on(report.render_comparison(comparison))
    assert [parse_line(text) for text in shown] == ["compare", "compare"]


@pytest.mark.parametrize("start", COMPARED)
def test_proposal_after_a_failed_comparison(start: str) -> None:
    failed = compared(start).model_copy(update={"variants": (), "failures": (("ewc", "no memory"),)})
    assert parse_line(report.summarize_comparison(failed).command) == "check"
