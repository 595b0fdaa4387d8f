"""Search strengths, rates and methods: trials, frontier, choices, and the chosen models as bundles."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from taskgraft import report
from taskgraft.jobs import fitting, outcome, tracking, work, workers
from taskgraft.jobs.fitting import Opened
from taskgraft.jobs.outlook import seconds_a_step
from taskgraft.jobs.request import Request
from taskgraft.jobs.work import Search
from taskgraft.loop import folder, precision, steps
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.record import write_json, write_text
from taskgraft.search import halving, sampling, space
from taskgraft.search.queue import pieces
from taskgraft.search.result import Found
from taskgraft.search.space import Space
from taskgraft.search.wish import Crew, Wish, checked
from taskgraft.settings import Run
from taskgraft.types import PathLike, Sources, Watch, as_path

OWN = {"study.journal", "settled.json", "trials", "shared", "choices", "search.json", "table.md",
       "report.html"}  # fmt: skip
SLACK = 1.5  # methods cost more than fine-tuning, and workers get into each other's way


def tune(
    request: Request,
    searched: Space,
    out: PathLike,
    *,
    wish: Wish = Wish(),  # noqa: B008 - immutable
    crew: Crew = Crew(),  # noqa: B008 - immutable
    cache: PathLike | None = None,
    command: str = "taskgraft.tune",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Found:
    """Try arrangements of an extension and choose; writes search.json, report.html and a bundle for each choice.

    A finished trial is not repeated and an unfinished one goes on from its checkpoint, so the same command can be given
    again. Raises Problem for bad input, and where the budget ended before a trial was complete.
    """
    begun, out, cache = time.monotonic(), Path(out), as_path(cache)
    folder.suited(out, request.sources())
    limits = checked(wish, crew)
    sampling.check(wish.sampler)
    tracking.check(wish.track)
    _sized(searched, wish)
    notation, run = space.applied(searched, space.grid(searched, 1)[0])
    opened = fitting.open_all(replace(request, method=notation, run=run), cache, watch)
    opened = fitting.ask_parent(opened, watch, cache=cache)
    _examine(out)
    settled = _settled(out, opened, searched.run, wish, crew, limits.budget, cache)
    search = _search(opened.request, searched, wish, settled, out, cache)
    settings = fitting.settings_of(opened)
    marks = {key: settings[key] for key in ("task", "parent", "preprocess", "data")}
    queue = work.queue_of(search, marks)
    spent = sum(piece.result["seconds"] for piece in pieces(queue) if piece.result) / max(1, crew.jobs)
    deadline = None if limits.budget is None else begun + max(0.0, limits.budget - spent)
    workers.run(search._replace(deadline=deadline), marks, opened, crew, watch)
    with FileLock(out / ".finishing"):  # several machines may have searched together
        found = outcome.gather(search, queue, opened, limits, command, time.monotonic() - begun)
        chosen = outcome.hand_all_over(found, search, opened, cache, watch)
        found = found.model_copy(update={"choices": chosen})
        write_text(out / "search.json", found.model_dump_json(indent=1))
        report.write_search(found, out)
    return found


def _sized(searched: Space, wish: Wish) -> None:
    if wish.sampler != "grid":
        return
    cells = len(space.grid(searched, wish.points))
    if cells > wish.max_trials:
        sizes = " × ".join(str(len(space.values(extent, wish.points))) for extent in searched.open.values())
        raise Problem(
            f"the grid has {cells} cells ({sizes}), more than --max-trials {wish.max_trials}; "
            "fix some settings, list fewer values, or give --sampler tpe"
        )


def _examine(out: Path) -> None:
    """Make OUT, or see that it holds a search; raises Problem for anything else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"{out} cannot be made: {error.strerror}; choose another OUT") from error
    strange = sorted(item.name for item in out.iterdir() if item.name not in OWN and not item.name.startswith("."))
    if strange:
        raise Problem(f"{out} already holds other files ({', '.join(strange[:3])}); choose an empty or new OUT")


def _settled(
    out: Path, opened: Opened, run: Run, wish: Wish, crew: Crew, budget: float | None, cache: Path | None
) -> dict[str, Any]:
    """What is decided by a clock, once for the whole search: the arithmetic, and how many trials a budget allows."""
    stored = out / "settled.json"
    with FileLock(out / ".settling"):
        if stored.exists():
            return json.loads(stored.read_text(encoding="utf-8"))
        assert opened.found.new.train is not None
        sources = Sources(opened.found.new.train, opened.found.old, run.views, run.augment, run.seed)
        run, reason = precision.choose(opened.child, sources, run, cache)
        wave = wish.wave
        if budget is not None and wish.sampler != "grid":
            state = steps.prepare(opened.child, Method(), sources, run)
            seconds = seconds_a_step(state, opened, sources, run) * SLACK / crew.jobs
            rungs = halving.rungs(run.steps, run.eval_every, _halving(wish))
            wave = halving.fitting(budget / seconds, wish.wave, rungs)
        settled = {"precision": run.precision, "reason": reason, "wave": wave}
        write_json(stored, settled)
    return settled


def _halving(wish: Wish) -> bool:
    return wish.prune == "yes" or (wish.prune == "auto" and wish.sampler != "grid")


def _search(
    request: Request, searched: Space, wish: Wish, settled: dict[str, Any], out: Path, cache: Path | None
) -> Search:
    own = searched._replace(run=replace(searched.run, precision=settled["precision"]))
    steps = own.run.steps
    rungs = halving.rungs(steps, own.run.eval_every, _halving(wish) and "steps" not in own.open)
    request = replace(request, run=replace(request.run, precision=settled["precision"]))
    return Search(
        request, own, wish.sampler, wish.points, wish.trials, settled["wave"], rungs, out, wish.storage, wish.study,
        cache, not wish.no_share, wish.track,
    )  # fmt: skip
