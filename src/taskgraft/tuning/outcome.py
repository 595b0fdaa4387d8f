"""The outcome of a search: its result as a record, the selected models, and their bundles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.metrics import wilson_interval
from taskgraft.pipeline import fitting, measuring
from taskgraft.pipeline.opening import Opened
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.run import Extension, run
from taskgraft.results.record import versions
from taskgraft.results.search import Candidate, SearchResult, SelectedModel, TrialResult
from taskgraft.training import run_folder
from taskgraft.tuning import sampler, space
from taskgraft.tuning.coordinator import SearchPlan
from taskgraft.tuning.search_config import Limits
from taskgraft.tuning.study import StudyStore, rung_results
from taskgraft.tuning.trial import trial_folder
from taskgraft.types import Callbacks


@dataclass(frozen=True)
class Baseline:
    """How the parent performs before the extension, and on how many images candidates are measured.

    Attributes:
        accuracy: Mean accuracy on the old tasks; 1 where agreement replaces it.
        old_images: Number of images behind a candidate's old accuracy.
        new_images: Number of images behind its new accuracy.
    """

    accuracy: float
    old_images: int
    new_images: int


def measure_parent(opened: Opened) -> Baseline:
    """Summarize the parent's predictions on the validation images."""
    sets = opened.parent_predictions
    assert sets is not None
    measured = measuring.compute_accuracies(sets)
    old = {task.name: 1.0 for task in opened.parent.classifier.tasks} | measured
    new_images = len(sets["new"].ids)
    counts = [int((sets["old"].labels[task] >= 0).sum()) for task in measured]
    counts += [new_images] * (len(old) - len(measured))
    return Baseline(sum(old.values()) / len(old), min(counts), new_images)


def collect(
    plan: SearchPlan, store: StudyStore, opened: Opened, out: Path, limits: Limits, command: str, seconds: float
) -> SearchResult:
    """Collect all trials of a search and select models.

    Args:
        plan: The search.
        store: Its trials.
        opened: The extension, with the parent's predictions.
        out: Folder of the search.
        limits: Conditions of the selected models.
        command: The command or function that was called.
        seconds: How long this call took.

    Returns:
        The result; the selected models are not written yet.

    Raises:
        InputError: no trial is complete.
    """
    baseline, request = measure_parent(opened), opened.request
    trials = tuple(_summarize(plan, trial, trial_folder(out, trial.number)) for trial in store.trials())
    complete = [trial for trial in trials if trial.state == "complete"]
    candidates = [candidate for trial in complete for candidate in _candidates(trial, baseline)]
    if not candidates:
        raise InputError("the budget ended before any trial was complete; rerun with a longer --budget to continue")
    assert isinstance(request, Request)
    return SearchResult(
        command=command,
        title=f"{request.task} added to {Path(request.parent_name).name}",
        tasks=(*(task.name for task in opened.parent.classifier.tasks), request.task),
        proxy=not fitting.selection_tasks(opened),
        before=baseline.accuracy,
        sampler=plan.sampler,
        space=space.describe(plan.space),
        rungs=plan.rungs,
        trials=trials,
        frontier=tuple(pareto_front(candidates)),
        choices=tuple(select(candidates, baseline.accuracy, limits.max_forgetting, limits.min_new)),
        importance=sampler.compute_importance(plan.space, trials),
        cost={
            "trials": len(trials),
            "steps": sum(trial.reached for trial in trials),
            "steps without stopping": len(trials) * plan.space.config.steps,
            "seconds": sum(trial.seconds for trial in trials),
            "seconds saved by sharing": sum(sum(trial.saved.values()) for trial in trials),
            "this start": seconds,
        },
        versions=versions(),
    )


def _summarize(plan: SearchPlan, trial: FrozenTrial, folder: Path) -> TrialResult:
    results = rung_results(trial, plan.rungs)
    base = {"number": trial.number, "wave": plan.wave_of(trial.number), "params": trial.params}
    if not results:
        return TrialResult(state="open", **base)
    until, last = list(results.items())[-1]
    saved: dict[str, float] = {}
    for result in results.values():
        for name, seconds in result.saved.items():
            saved[name] = saved.get(name, 0.0) + seconds
    state = "failed" if last.reason is not None else "complete" if until == plan.rungs[-1] else "stopped"
    totals = {"seconds": sum(result.seconds for result in results.values()), "saved": saved}
    history = () if last.reason else (line for line in run_folder.read_metrics(folder) if line.step <= last.reached)
    return TrialResult(
        **{**last.model_dump(), **totals, **base},
        state=state,
        variant=composition.acting(notation.parse(last.method)),
        history=tuple(history),
    )


def _candidates(trial: TrialResult, baseline: Baseline) -> list[Candidate]:
    """Return a trial as it is, or at each weight of its interpolation path."""

    def candidate(method: str, old: float, new: float) -> Candidate:
        intervals = {"old": wilson_interval(old, baseline.old_images), "new": wilson_interval(new, baseline.new_images)}
        return Candidate(trial=trial.number, method=method, lr=trial.config["lr"], **intervals)

    if not trial.path:
        assert trial.old is not None
        assert trial.new is not None
        return [candidate(trial.method, trial.old, trial.new)]
    plans = composition.interpolations(notation.parse(trial.method))
    return [candidate(notation.show(plans[point["weight"]]), point["old"], point["new"]) for point in trial.path]


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other one dominates, by ascending new accuracy; of equal ones the first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.new.mean, -c.old.mean, c.trial)):
        if not front or candidate.old.mean > front[-1].old.mean:
            front.append(candidate)
    return front[::-1]


def select(
    candidates: Sequence[Candidate], before: float, max_forgetting: float, min_new: float
) -> list[SelectedModel]:
    """Select the models that a search offers; of equal candidates the earliest trial.

    Args:
        candidates: All candidates.
        before: The parent's accuracy on the old tasks.
        max_forgetting: Most forgetting, in [0, 1], of the model with the best new accuracy.
        min_new: Least new accuracy, in [0, 1], of the model with the best old accuracy.
    """
    retaining = [c for c in candidates if before - c.old.mean <= max_forgetting + 1e-9]
    capable = [c for c in candidates if c.new.mean >= min_new - 1e-9]
    best = _best(candidates, lambda c: c.score)
    new = _best(retaining, lambda c: c.new.mean)
    old = _best(capable, lambda c: c.old.mean)
    return [
        SelectedModel(goal="score", rule="best Score", candidate=best),
        SelectedModel(
            goal="new", rule=f"best new accuracy with at most {max_forgetting:.1%} forgetting", candidate=new
        ),
        SelectedModel(goal="old", rule=f"least forgetting with at least {min_new:.0%} new accuracy", candidate=old),
    ]


def _best(candidates: Sequence[Candidate], value: Callable[[Candidate], float]) -> Candidate | None:
    return max(candidates, key=lambda c: (value(c), c.score, -c.trial), default=None)


def write_selected(
    result: SearchResult, opened: Opened, out: Path, cache: Path | None, callbacks: Callbacks
) -> tuple[SelectedModel, ...]:
    """Write the bundle of each selected model below OUT/choices; one that is selected twice is written once.

    Returns:
        The selected models with their folders, commands and test accuracy.
    """
    written: dict[tuple[int, str], SelectedModel] = {}
    models = []
    for model in result.choices:
        candidate = model.candidate
        if candidate is None:
            models.append(model)
            continue
        key = candidate.trial, candidate.method
        if key not in written:
            folder = out / "choices" / model.goal
            callbacks.info(f"{model.rule}: trial {candidate.trial}, {candidate.method}; writing {folder}")
            config = TrainingConfig(**result.trials[candidate.trial].config)
            assert isinstance(opened.request, Request)
            request = replace(opened.request, method=candidate.method, config=config)
            extension = _complete_run(request, trial_folder(out, candidate.trial), folder, cache, callbacks)
            test = extension.record.tasks[-1].test
            written[key] = model.model_copy(update={
                "folder": str(folder), "test": test,
                "command": request.build_command(Path(f"{out}-{model.goal}")),
                "optimism": candidate.new.mean - test.mean if test else None,
            })  # fmt: skip
        models.append(written[key].model_copy(update={"goal": model.goal, "rule": model.rule}))
    return tuple(models)


def _complete_run(request: Request, trial: Path, folder: Path, cache: Path | None, callbacks: Callbacks) -> Extension:
    """Complete a trial's run in a folder of its own; nothing is trained again."""
    if _is_other_run(folder, request):
        shutil.rmtree(folder)  # selected earlier, before the search was resumed; its trial is kept
    if not (folder / "run.json").exists() and not (folder / "state").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", "metrics.jsonl"):
            copy_atomically(trial / name, folder / name)
    quiet = callbacks._replace(info=lambda line: None)
    command = request.build_command(folder)
    return run(request, folder, cache=cache, resume=True, command=command, callbacks=quiet)


def _is_other_run(folder: Path, request: Request) -> bool:
    if not (folder / "run.json").exists():
        return folder.exists()  # copying was interrupted
    settings = run_folder.read(folder)["settings"]
    return (settings["method"], settings["config"]) != (request.method, json.loads(json.dumps(asdict(request.config))))


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file or folder under another name, then rename it, so that `target` is complete or absent."""
    partial = target.with_name(f".{target.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    copy: Callable[..., Any] = shutil.copytree if source.is_dir() else shutil.copy2
    copy(source, partial)
    partial.rename(target)
