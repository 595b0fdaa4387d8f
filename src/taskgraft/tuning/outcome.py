"""What came of a search: all trials as one record, the choices, and the chosen models as bundles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.metrics import wilson_interval
from taskgraft.pipeline import fitting
from taskgraft.pipeline.extend import Extension, carry_out
from taskgraft.pipeline.fitting import Opened
from taskgraft.pipeline.request import Request, command_line
from taskgraft.results.record import StepMetrics, versions
from taskgraft.results.search import Candidate, SearchResult, SelectedModel, TrialResult
from taskgraft.tuning import sampler, space, trial, worker
from taskgraft.tuning.queue import Piece, Queue, finished, pieces
from taskgraft.tuning.search_config import Limits
from taskgraft.tuning.selection import choices, frontier
from taskgraft.tuning.worker import Search
from taskgraft.types import Callbacks


def gather(search: Search, queue: Queue, opened: Opened, limits: Limits, command: str, seconds: float) -> SearchResult:
    """Everything that a search found.

    Raises TaskgraftError where no trial is complete.
    """
    known, before = pieces(queue), opened.before
    assert before is not None
    tried = tuple(_tried(search, known, wave, place) for wave, place in sorted({(p.wave, p.place) for p in known}))
    kept, old, new = trial.standing(opened, before)
    candidates = [c for one in tried if one.state == "complete" for c in _candidates(one, old, new)]
    if not candidates:
        raise InputError(
            "the budget ended before any trial was complete; the same command with a longer --budget goes on"
        )
    named = choices(candidates, kept, limits.max_forgetting, limits.min_new)
    request = opened.request
    saved = sum(sum(one.saved.values()) for one in tried)
    steps = sum(one.reached for one in tried)
    return SearchResult(
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
        choices=tuple(SelectedModel(goal=c.goal, rule=c.rule, candidate=c.candidate) for c in named),
        importance=sampler.importance(finished(queue, len(known))),
        cost={
            "trials": len(tried), "steps": steps, "steps without stopping": len(tried) * search.space.config.steps,
            "seconds": sum(one.seconds for one in tried), "seconds saved by sharing": saved, "this start": seconds,
        },
        versions=versions(),
    )  # fmt: skip


def _tried(search: Search, known: Sequence[Piece], wave: int, place: int) -> TrialResult:
    own = [piece for piece in known if (piece.wave, piece.place) == (wave, place)]
    done = sorted(((piece.until, piece.result) for piece in own if piece.result), key=lambda pair: pair[0])
    number = worker.number_of(search, own[0])
    if not done:
        return TrialResult(number=number, wave=wave, params=own[0].params, state="open")
    until, last = done[-1]
    saved: dict[str, float] = {}
    for _, result in done:
        for name, seconds in result["saved"].items():
            saved[name] = saved.get(name, 0.0) + seconds
    whole = {key: value for key, value in last.items() if key not in ("seconds", "saved", "history")}
    state = "failed" if last["reason"] is not None else "complete" if until == search.rungs[-1] else "stopped"
    return TrialResult(
        number=number, wave=wave, params=own[0].params, state=state, saved=saved,
        variant=composition.acting(notation.parse(last["method"])),
        seconds=sum(result["seconds"] for _, result in done),
        history=tuple(StepMetrics(**line) for line in last.get("history", ())), **whole,
    )  # fmt: skip


def _candidates(one: TrialResult, old: int, new: int) -> list[Candidate]:
    """A trial as it is, or at each weight of its interpolation path."""
    lr = one.config["lr"]
    if not one.path:
        assert one.old is not None
        assert one.new is not None
        values = {"old": wilson_interval(one.old, old), "new": wilson_interval(one.new, new)}
        return [Candidate(trial=one.number, method=one.method, lr=lr, **values)]
    found, plans = [], composition.interpolations(notation.parse(one.method))
    for point in one.path:
        plan = plans[point["weight"]]
        values = {"old": wilson_interval(point["old"], old), "new": wilson_interval(point["new"], new)}
        found.append(Candidate(trial=one.number, method=notation.show(plan), lr=lr, **values))
    return found


def hand_all_over(
    found: SearchResult, search: Search, opened: Opened, cache: Path | None, callbacks: Callbacks
) -> tuple[SelectedModel, ...]:
    """Each choice as a bundle; what two choices share is written once."""
    done: dict[tuple[int, str], SelectedModel] = {}
    handed = []
    for choice in found.choices:
        one = choice.candidate
        if one is None:
            handed.append(choice)
            continue
        key = one.trial, one.method
        if key not in done:
            place = search.out / "choices" / choice.goal
            callbacks.info(f"{choice.rule}: trial {one.trial}, {one.method}; writing {place}")
            extension = hand_over(found, search, opened, one, place, cache, callbacks)
            test = extension.record.tasks[-1].test
            done[key] = choice.model_copy(update={
                "folder": str(place), "test": test,
                "command": command_line(extension_request(found, opened, one), Path(f"{search.out}-{choice.goal}")),
                "optimism": one.new.mean - test.mean if test else None,
            })  # fmt: skip
        handed.append(done[key].model_copy(update={"goal": choice.goal, "rule": choice.rule}))
    return tuple(handed)


def hand_over(
    found: SearchResult,
    search: Search,
    opened: Opened,
    one: Candidate,
    place: Path,
    cache: Path | None,
    callbacks: Callbacks,
) -> Extension:
    """Finish a trial's run in a folder of its own: nothing is trained again."""
    request = extension_request(found, opened, one)
    source = worker.folder_of(search, one.trial)
    if _other(place, request):
        shutil.rmtree(place)  # an earlier choice of a search that went on; its trial is kept
    if not (place / "run.json").exists() and not (place / "state").exists():
        place.mkdir(parents=True, exist_ok=True)
        for name in ("state", "metrics.jsonl"):
            copied(source / name, place / name)
    quiet = callbacks._replace(info=lambda line: None)
    return carry_out(request, place, cache=cache, resume=True, command=command_line(request, place), callbacks=quiet)


def _other(place: Path, request: Request) -> bool:
    """Whether the folder holds what another trial was made into."""
    file = place / "run.json"
    if not file.exists():
        return place.exists()  # a copy that was stopped half-way
    stored = json.loads(file.read_text(encoding="utf-8"))["settings"]
    return (stored["method"], stored["config"]) != (request.method, json.loads(json.dumps(asdict(request.config))))


def extension_request(found: SearchResult, opened: Opened, one: Candidate) -> Request:
    """The extension that a candidate stands for."""
    tried = next(trial for trial in found.trials if trial.number == one.trial)
    return replace(opened.request, method=one.method, config=TrainingConfig(**tried.config))


def copied(source: Path, place: Path) -> None:
    """Copy aside, then rename: a half copy must not look like a whole one."""
    aside = place.with_name(f".{place.name}.part")
    copy: Callable[..., Any] = shutil.copytree if source.is_dir() else shutil.copy2
    if aside.is_dir():
        shutil.rmtree(aside)
    copy(source, aside)
    aside.rename(place)
