"""Search strengths, rates and methods: trials, frontier, choices, and the chosen models as bundles."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from taskgraft import report
from taskgraft.commands.dry_run import seconds_a_step
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method
from taskgraft.pipeline import fitting, tracking
from taskgraft.pipeline.fitting import Opened
from taskgraft.pipeline.request import Request
from taskgraft.results.files import write_json, write_text
from taskgraft.results.search import SearchResult
from taskgraft.training import loop, precision, run_folder
from taskgraft.tuning import executor, halving, outcome, sampler, space, worker
from taskgraft.tuning.queue import pieces
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig, checked
from taskgraft.tuning.space import Space
from taskgraft.tuning.worker import Search
from taskgraft.types import Callbacks, PathLike, TrainingData, as_path

OWN = {"study.journal", "settled.json", "trials", "shared", "choices", "search.json", "table.md",
       "report.html"}  # fmt: skip
SLACK = 1.5  # methods cost more than fine-tuning, and workers get into each other's way


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
    """Try arrangements of an extension and choose; writes search.json, report.html and a bundle for each choice.

    A finished trial is not repeated and an unfinished one goes on from its checkpoint, so the same command can be given
    again. Raises TaskgraftError for bad input, and where the budget ended before a trial was complete.
    """
    begun, out, cache = time.monotonic(), Path(out), as_path(cache)
    run_folder.suited(out, request.sources())
    limits = checked(search_config, worker_config)
    sampler.check(search_config.sampler)
    tracking.check(search_config.track)
    _sized(searched, search_config)
    notation, config = space.applied(searched, space.grid(searched, 1)[0])
    opened = fitting.open_all(replace(request, method=notation, config=config), cache, callbacks)
    opened = fitting.ask_parent(opened, callbacks, cache=cache)
    _examine(out)
    settled = _settled(out, opened, searched.config, search_config, worker_config, limits.budget, cache)
    search = _search(opened.request, searched, search_config, settled, out, cache)
    settings = fitting.settings_of(opened)
    marks = {key: settings[key] for key in ("task", "parent", "preprocessing", "data")}
    queue = worker.queue_of(search, marks)
    spent = sum(piece.result["seconds"] for piece in pieces(queue) if piece.result) / max(1, worker_config.jobs)
    deadline = None if limits.budget is None else begun + max(0.0, limits.budget - spent)
    executor.run(search._replace(deadline=deadline), marks, opened, worker_config, callbacks)
    with FileLock(out / ".finishing"):  # several machines may have searched together
        found = outcome.gather(search, queue, opened, limits, command, time.monotonic() - begun)
        chosen = outcome.hand_all_over(found, search, opened, cache, callbacks)
        found = found.model_copy(update={"choices": chosen})
        write_text(out / "search.json", found.model_dump_json(indent=1))
        report.write_search_report(found, out)
    return found


def _sized(searched: Space, search_config: SearchConfig) -> None:
    if search_config.sampler != "grid":
        return
    cells = len(space.grid(searched, search_config.points))
    if cells > search_config.max_trials:
        sizes = " × ".join(str(len(space.values(extent, search_config.points))) for extent in searched.open.values())
        raise InputError(
            f"the grid has {cells} cells ({sizes}), more than --max-trials {search_config.max_trials}; "
            "fix some settings, list fewer values, or give --sampler tpe"
        )


def _examine(out: Path) -> None:
    """Make OUT, or see that it holds a search; raises TaskgraftError for anything else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}; choose another OUT") from error
    strange = sorted(item.name for item in out.iterdir() if item.name not in OWN and not item.name.startswith("."))
    if strange:
        raise InputError(f"{out} already holds other files ({', '.join(strange[:3])}); choose an empty or new OUT")


def _settled(
    out: Path,
    opened: Opened,
    config: TrainingConfig,
    search_config: SearchConfig,
    worker_config: WorkerConfig,
    budget: float | None,
    cache: Path | None,
) -> dict[str, Any]:
    """What is decided by a clock, once for the whole search: the arithmetic, and how many trials a budget allows."""
    stored = out / "settled.json"
    with FileLock(out / ".settling"):
        if stored.exists():
            return json.loads(stored.read_text(encoding="utf-8"))
        assert opened.found.new.train is not None
        sources = TrainingData(opened.found.new.train, opened.found.old, config.views, config.augment, config.seed)
        config, reason = precision.choose(opened.child, sources, config, cache)
        wave = search_config.wave
        if budget is not None and search_config.sampler != "grid":
            state = loop.prepare(opened.child, Method(), sources, config)
            seconds = seconds_a_step(state, opened, sources, config) * SLACK / worker_config.jobs
            rungs = halving.rungs(config.steps, config.eval_every, _halving(search_config))
            wave = halving.fitting(budget / seconds, search_config.wave, rungs)
        settled = {"precision": config.precision, "reason": reason, "wave": wave}
        write_json(stored, settled)
    return settled


def _halving(search_config: SearchConfig) -> bool:
    return search_config.prune == "yes" or (search_config.prune == "auto" and search_config.sampler != "grid")


def _search(
    request: Request,
    searched: Space,
    search_config: SearchConfig,
    settled: dict[str, Any],
    out: Path,
    cache: Path | None,
) -> Search:
    own = searched._replace(config=replace(searched.config, precision=settled["precision"]))
    steps = own.config.steps
    rungs = halving.rungs(steps, own.config.eval_every, _halving(search_config) and "steps" not in own.open)
    request = replace(request, config=replace(request.config, precision=settled["precision"]))
    return Search(
        request, own, search_config.sampler, search_config.points, search_config.trials, settled["wave"], rungs, out, search_config.storage, search_config.study,
        cache, not search_config.no_share, search_config.track,
    )  # fmt: skip
