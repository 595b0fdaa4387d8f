"""`tune`: search for hyperparameters and methods, and write the Pareto front, a report and the selected models."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskgraft import report
from taskgraft.commands.dry_run import measure_step_seconds
from taskgraft.data import decode
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.protocol import Method
from taskgraft.pipeline import tracking
from taskgraft.pipeline.opening import Opened, change_method, open_request
from taskgraft.pipeline.parent_check import check_parent
from taskgraft.pipeline.request import Request
from taskgraft.report import formatting as fmt
from taskgraft.results.files import write_json, write_text
from taskgraft.results.search import SearchResult
from taskgraft.training import loop, precision, run_folder
from taskgraft.training.compilation import choose_compilation
from taskgraft.tuning import halving, outcome, sampler, space
from taskgraft.tuning.coordinator import Coordinator, SearchPlan
from taskgraft.tuning.executor import open_executor
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig, validate
from taskgraft.tuning.space import Space
from taskgraft.tuning.study import StudyStore, open_storage, rung_results
from taskgraft.tuning.trial import Context
from taskgraft.types import Callbacks, PathLike, TrainingData, as_path

FILES = {"study.journal", "settled.json", "trials", "shared", "choices", "search.json", "table.md",
         "report.html"}  # fmt: skip
OVERHEAD = 1.5  # methods cost more than plain fine-tuning, and workers slow each other down


def tune(
    request: Request,
    searched: Space,
    out: PathLike,
    *,
    search_config: SearchConfig = SearchConfig(),  # noqa: B008 - immutable
    worker_config: WorkerConfig = WorkerConfig(),  # noqa: B008 - immutable
    cache: PathLike | None = None,
    command: str = "taskgraft.tune",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> SearchResult:
    """Search for the hyperparameters of an extension.

    Writes search.json, table.md, report.html and the bundles of the selected models. The same call again resumes the
    search: finished trials are not repeated, and unfinished ones continue from their last checkpoints.

    Args:
        request: The extension; its method and training settings are replaced by those of `searched`.
        searched: Search space, as `tuning.space.parse` reads it.
        out: Folder of the search.
        search_config: Sampler, number of trials, budget and conditions of the selected models.
        worker_config: Where and by how many workers trials are trained; the result does not depend on it.
        cache: Cache of decoded pixels; None = in memory only.
        command: The command or function that was called, for the report.
        callbacks: Progress callbacks.

    Returns:
        All trials, the Pareto front and the selected models.

    Raises:
        TaskgraftError: the input is wrong, another process is writing OUT, or the budget ended before any trial was
            complete.
    """
    start, out, cache = time.monotonic(), Path(out), as_path(cache)
    request.require_paths("tune")
    run_folder.check_location(out, request.list_sources(), request.list_models())
    limits = validate(search_config, worker_config)
    sampler.check_sampler(search_config.sampler)
    tracking.check(search_config.track)
    _check_grid(searched, search_config)
    if "epochs" in searched.dimensions:
        raise InputError("--space epochs: trials are compared by their steps; list values of steps instead")
    method, config = space.apply(searched, space.grid(searched, 1)[0])
    if request.unlabeled:  # opened with a method that can use them, wherever there is one
        methods = [method, *(space.apply(searched, point)[0] for point in space.grid(searched, 2))]
        method = next((name for name in methods if composition.has_teacher(notation.parse(name))), method)
    opened = open_request(replace(request, method=method, config=config), cache, callbacks)
    if epochs := opened.describe_epochs():  # rungs are steps
        searched = searched._replace(config=replace(searched.config, steps=opened.config.steps, epochs=0.0))
        opened = change_method(opened, opened.method, replace(config, steps=opened.config.steps, epochs=0.0))
        callbacks.info(f"every trial trains for {fmt.pluralize(searched.config.steps, 'step')}: {epochs}")
    opened = check_parent(opened, cache, callbacks)
    _check_folder(out)
    with run_folder.lock(out):
        storage = open_storage(search_config.storage, out)
        settled = _settle(out, opened, searched, search_config, worker_config, limits.budget, cache)
        plan = _plan(searched, search_config, settled)
        opened = change_method(opened, opened.method, replace(opened.request.config, **_timed(settled)))
        assert isinstance(opened.request, Request)
        store = StudyStore(
            storage, search_config.study or out.resolve().name, _identity(plan, opened, search_config, out)
        )
        shared, threads = not search_config.no_share, decode.chosen_workers()
        context = Context(opened.request, out, cache, shared, search_config.track, threads)
        with open_executor(context, opened, worker_config, callbacks) as executor:
            spent = _seconds_spent(store, plan) / executor.workers
            deadline = None if limits.budget is None else start + max(0.0, limits.budget - spent)
            Coordinator(plan, store, executor, callbacks).run(deadline)
        result = outcome.collect(plan, store, opened, out, limits, command, time.monotonic() - start)
        selected = outcome.write_selected(result, opened, out, cache, callbacks)
        result = result.model_copy(update={"choices": selected})
        write_text(out / "search.json", result.model_dump_json(indent=1))
        report.write_search_report(result, out)
    return result


def _check_grid(searched: Space, search_config: SearchConfig) -> None:
    if search_config.sampler != "grid":
        return
    points = len(space.grid(searched, search_config.points))
    if points > search_config.max_trials:
        dimensions = searched.dimensions.values()
        sizes = " × ".join(str(len(space.grid_values(dim, search_config.points))) for dim in dimensions)
        raise InputError(
            f"the grid has {points} points ({sizes}), more than --max-trials {search_config.max_trials}; "
            "fix some settings, list fewer values, or use --sampler tpe"
        )


def _check_folder(out: Path) -> None:
    """Raise InputError if OUT holds anything but a search."""
    try:
        names = sorted(item.name for item in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise InputError(f"{out} cannot be read: {error.strerror}; choose another OUT") from error
    other = [name for name in names if name not in FILES and not name.startswith(".")]
    if other:
        raise InputError(f"{out} already holds other files ({', '.join(other[:3])}); choose an empty or new OUT")


def _settle(
    out: Path,
    opened: Opened,
    searched: Space,
    search_config: SearchConfig,
    worker_config: WorkerConfig,
    budget: float | None,
    cache: Path | None,
) -> dict[str, Any]:
    """Decide once per search what depends on timing: precision, compilation, and the wave size that a budget allows."""
    file = out / "settled.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    assert opened.images.new.train is not None
    config = searched.config
    sources = TrainingData(opened.images.new.train, opened.images.old, config.views, config.augment, config.seed)
    config, reason = precision.choose_precision(opened.child, sources, config, cache)
    config, compiled = choose_compilation(opened.child, sources, config)
    wave = search_config.wave
    if budget is not None and search_config.sampler != "grid":
        state = loop.prepare(opened.child, Method(), sources, config)
        seconds = measure_step_seconds(state, opened, sources, config) * OVERHEAD / worker_config.jobs
        rungs = halving.rung_steps(config.steps, config.eval_every, _prunes(search_config))
        wave = halving.largest_wave(budget / seconds, search_config.wave, rungs)
    settled = {
        "precision": config.precision, "reason": reason, "compile": config.compile, "compile_reason": compiled,
        "wave": wave,
    }  # fmt: skip
    write_json(file, settled)
    return settled


def _timed(settled: dict[str, Any]) -> dict[str, Any]:
    """The training settings that timing decided."""
    return {name: settled[name] for name in ("precision", "compile") if name in settled}


def _prunes(search_config: SearchConfig) -> bool:
    return search_config.prune == "yes" or (search_config.prune == "auto" and search_config.sampler != "grid")


def _plan(searched: Space, search_config: SearchConfig, settled: dict[str, Any]) -> SearchPlan:
    searched = searched._replace(config=replace(searched.config, **_timed(settled)))
    prune = _prunes(search_config) and "steps" not in searched.dimensions
    rungs = halving.rung_steps(searched.config.steps, searched.config.eval_every, prune)
    return SearchPlan(
        searched, search_config.sampler, search_config.points, search_config.trials, settled["wave"], rungs
    )


def _identity(plan: SearchPlan, opened: Opened, search_config: SearchConfig, out: Path) -> dict[str, Any]:
    """What must be equal for a search to be resumed."""
    settings = opened.list_settings()
    data = {key: settings[key] for key in ("task", "parent", "preprocessing", "data")}
    folder = {"out": str(out.resolve())} if search_config.storage else {}  # a journal lies in OUT and moves with it
    return {**plan.identity(), **data, **folder}


def _seconds_spent(store: StudyStore, plan: SearchPlan) -> float:
    """Return how long earlier calls have trained, over all workers."""
    return sum(result.seconds for trial in store.trials() for result in rung_results(trial, plan.rungs).values())
