"""What came of a search: all trials as one record, the choices, and the chosen models as bundles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from taskgraft import methods
from taskgraft.jobs import fitting, trials, work
from taskgraft.jobs.extend import Extension, carry_out
from taskgraft.jobs.fitting import Opened
from taskgraft.jobs.request import Request, command_line
from taskgraft.jobs.work import Search
from taskgraft.methods.wise import Wise
from taskgraft.problem import Problem
from taskgraft.record import Line, versions
from taskgraft.search import sampling, space
from taskgraft.search.choices import Candidate, choices, frontier, wilson
from taskgraft.search.queue import Piece, Queue, finished, pieces
from taskgraft.search.result import Chosen, Found, Tried
from taskgraft.search.wish import Limits
from taskgraft.settings import Run
from taskgraft.types import Watch


def gather(search: Search, queue: Queue, opened: Opened, limits: Limits, command: str, seconds: float) -> Found:
    """Everything that a search found.

    Raises Problem where no trial is complete.
    """
    known, before = pieces(queue), opened.before
    assert before is not None
    tried = tuple(_tried(search, known, wave, place) for wave, place in sorted({(p.wave, p.place) for p in known}))
    kept, old, new = trials.standing(opened, before)
    candidates = [c for one in tried if one.state == "complete" for c in _candidates(one, old, new)]
    if not candidates:
        raise Problem("the budget ended before any trial was complete; the same command with a longer --budget goes on")
    named = choices(candidates, kept, limits.max_forgetting, limits.min_new)
    request = opened.request
    saved = sum(sum(one.saved.values()) for one in tried)
    steps = sum(one.reached for one in tried)
    return Found(
        command=command,
        title=f"{request.task} added to {Path(request.parent).name}",
        tasks=(*(task.name for task in opened.parent.classifier.tasks), request.task),
        proxy=len(fitting.chosen_by(opened, before)) == 0,
        before=kept,
        sampler=search.sampler,
        space=space.show(search.space),
        rungs=search.rungs,
        trials=tried,
        frontier=tuple(frontier(candidates)),
        choices=tuple(Chosen(goal=c.goal, rule=c.rule, candidate=c.candidate) for c in named),
        importance=sampling.importance(finished(queue, len(known))),
        cost={
            "trials": len(tried), "steps": steps, "steps without stopping": len(tried) * search.space.run.steps,
            "seconds": sum(one.seconds for one in tried), "seconds saved by sharing": saved, "this start": seconds,
        },
        versions=versions(),
    )  # fmt: skip


def _tried(search: Search, known: Sequence[Piece], wave: int, place: int) -> Tried:
    own = [piece for piece in known if (piece.wave, piece.place) == (wave, place)]
    done = sorted(((piece.until, piece.result) for piece in own if piece.result), key=lambda pair: pair[0])
    number = work.number_of(search, own[0])
    if not done:
        return Tried(number=number, wave=wave, params=own[0].params, state="open")
    until, last = done[-1]
    saved: dict[str, float] = {}
    for _, result in done:
        for name, seconds in result["saved"].items():
            saved[name] = saved.get(name, 0.0) + seconds
    whole = {key: value for key, value in last.items() if key not in ("seconds", "saved", "history")}
    state = "failed" if last["reason"] is not None else "complete" if until == search.rungs[-1] else "stopped"
    return Tried(
        number=number, wave=wave, params=own[0].params, state=state, saved=saved, arrangement=_acting(last["method"]),
        seconds=sum(result["seconds"] for _, result in done),
        history=tuple(Line(**line) for line in last.get("history", ())), **whole,
    )  # fmt: skip


def _acting(notation: str) -> str:
    """The methods that act: with strength 0 one does nothing, and with all at 0 there is plain fine-tuning."""
    plan = methods.parse(notation)
    names = [name for name, own in plan.items() if getattr(own, "strength", 1.0) and name != "finetune"]
    return " + ".join(names) or "baseline"


def _candidates(one: Tried, old: int, new: int) -> list[Candidate]:
    """A trial as it is, or at each weight of wise's path."""
    rate = one.run["rate"]
    if not one.path:
        assert one.old is not None
        assert one.new is not None
        values = {"old": wilson(one.old, old), "new": wilson(one.new, new)}
        return [Candidate(trial=one.number, method=one.method, rate=rate, **values)]
    found = []
    for point in one.path:
        plan = methods.parse(one.method)
        plan["wise"] = Wise(point["weight"])
        values = {"old": wilson(point["old"], old), "new": wilson(point["new"], new)}
        found.append(Candidate(trial=one.number, method=methods.show(plan), rate=rate, **values))
    return found


def hand_all_over(found: Found, search: Search, opened: Opened, cache: Path | None, watch: Watch) -> tuple[Chosen, ...]:
    """Each choice as a bundle; what two choices share is written once."""
    done: dict[tuple[int, str], Chosen] = {}
    handed = []
    for choice in found.choices:
        one = choice.candidate
        if one is None:
            handed.append(choice)
            continue
        key = one.trial, one.method
        if key not in done:
            place = search.out / "choices" / choice.goal
            watch.say(f"{choice.rule}: trial {one.trial}, {one.method}; writing {place}")
            extension = hand_over(found, search, opened, one, place, cache, watch)
            test = extension.record.tasks[-1].test
            done[key] = choice.model_copy(update={
                "folder": str(place), "test": test,
                "command": command_line(extension_request(found, opened, one), Path(f"{search.out}-{choice.goal}")),
                "optimism": one.new.mean - test.mean if test else None,
            })  # fmt: skip
        handed.append(done[key].model_copy(update={"goal": choice.goal, "rule": choice.rule}))
    return tuple(handed)


def hand_over(
    found: Found, search: Search, opened: Opened, one: Candidate, place: Path, cache: Path | None, watch: Watch
) -> Extension:
    """Finish a trial's run in a folder of its own: nothing is trained again."""
    request = extension_request(found, opened, one)
    source = work.folder_of(search, one.trial)
    if _other(place, request):
        shutil.rmtree(place)  # an earlier choice of a search that went on; its trial is kept
    if not (place / "run.json").exists() and not (place / "state").exists():
        place.mkdir(parents=True, exist_ok=True)
        for name in ("state", "metrics.jsonl"):
            copied(source / name, place / name)
    quiet = watch._replace(say=lambda line: None)
    return carry_out(request, place, cache=cache, resume=True, command=command_line(request, place), watch=quiet)


def _other(place: Path, request: Request) -> bool:
    """Whether the folder holds what another trial was made into."""
    file = place / "run.json"
    if not file.exists():
        return place.exists()  # a copy that was stopped half-way
    stored = json.loads(file.read_text(encoding="utf-8"))["settings"]
    return (stored["method"], stored["run"]) != (request.method, json.loads(json.dumps(asdict(request.run))))


def extension_request(found: Found, opened: Opened, one: Candidate) -> Request:
    """The extension that a candidate stands for."""
    tried = next(trial for trial in found.trials if trial.number == one.trial)
    return replace(opened.request, method=one.method, run=Run(**tried.run))


def copied(source: Path, place: Path) -> None:
    """Copy aside, then rename: a half copy must not look like a whole one."""
    aside = place.with_name(f".{place.name}.part")
    copy: Callable[..., Any] = shutil.copytree if source.is_dir() else shutil.copy2
    if aside.is_dir():
        shutil.rmtree(aside)
    copy(source, aside)
    aside.rename(place)
