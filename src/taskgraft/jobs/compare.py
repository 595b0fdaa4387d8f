"""Many extensions of one parent on one data set: table, figures, report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taskgraft import methods, report
from taskgraft.jobs.extend import Extension, carry_out
from taskgraft.jobs.request import Request, command_line
from taskgraft.loop import folder
from taskgraft.problem import Problem
from taskgraft.record import Arrangement, Comparison, Record, write_text
from taskgraft.settings import Run
from taskgraft.types import PathLike, Watch, as_path


class Arm(NamedTuple):
    """One arrangement to try: a label, a method in the notation, and its settings."""

    label: str
    method: str
    run: Run


def arms(names: Sequence[str], rates: Sequence[float], run: Run) -> list[Arm]:
    """Every method at every rate, labelled as in the founding text: the lowest of several rates is "low rate"."""
    found = []
    for rate in rates or [run.rate]:
        low = len(set(rates)) > 1 and rate == min(rates)
        for name in names:
            text = methods.show(methods.parse(name))
            label = {"finetune": "baseline"}.get(text, text) + (" (low rate)" if low else "")
            found.append(Arm(label, text, replace(run, rate=rate)))
    return found


def compare(
    request: Request,
    arms: Sequence[Arm],
    out: PathLike,
    *,
    seeds: int = 3,
    separate: float = 4.0,
    cache: PathLike | None = None,
    command: str = "taskgraft.compare",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Comparison:
    """Extend with each arrangement and each seed; write comparison.json, table.md, figures and report.html.

    `separate` trains a model for the new task alone with that many times the steps (0 = none), for the gap to two
    separate models. A finished run is not repeated and an interrupted one goes on, so the same command can be
    given again. An arrangement that fails is reported with its reason, and the others go on.
    """
    out, cache = Path(out), as_path(cache)
    labels = [arm.label for arm in arms]
    if not arms:
        raise Problem("there is no arrangement to compare; name at least one method")
    if len(set(labels)) != len(labels):
        raise Problem(f"two of the arrangements {', '.join(labels)} are the same; give each once")
    folder.suited(out, request.sources())
    done: dict[str, list[tuple[Record, str]]] = {label: [] for label in labels}
    alone: list[float] = []
    failures: list[tuple[str, str]] = []
    single = _separate(request, arms, separate) if separate else None
    total = seeds * images_of([*arms, *([single] if single else [])])
    before, terse = 0, _terse(watch)
    for seed in range(request.run.seed, request.run.seed + seeds):
        for number, arm in enumerate(arms, start=1):
            watch.say(f"seed {seed}, arrangement {number} of {len(arms)}: {arm.label}")
            asked = replace(request, method=arm.method, run=replace(arm.run, seed=seed))
            found = _try(asked, out, arm.label, cache, _within(terse, arm, before, total), failures)
            before += images_of([arm])
            if found:
                done[arm.label].append((found.record, str(found.out.relative_to(out))))
        if single:
            watch.say(f"seed {seed}: {single.label}")
            asked = replace(request, method=single.method, run=replace(single.run, seed=seed), old_val=(), old=None)
            found = _try(asked, out, "separate", cache, _within(terse, single, before, total), failures)
            before += images_of([single])
            if found:
                alone.append(max(line.accuracy.get(request.task, 0.0) for line in found.record.history))
    comparison = Comparison(
        command=command,
        title=f"{request.task} added to {Path(request.parent).name}",
        arrangements=tuple(
            Arrangement(
                label=arm.label, method=arm.method, run=asdict(arm.run),
                records=tuple(_with_separate(record, alone) for record, _ in done[arm.label]),
                folders=tuple(place for _, place in done[arm.label]),
            )
            for arm in arms
        ),
        separate={request.task: tuple(alone)} if alone else {},
        failures=tuple(failures),
    )  # fmt: skip
    write_text(out / "comparison.json", comparison.model_dump_json(indent=1))
    publish(out, comparison)
    return comparison


def images_of(arms: Sequence[Arm]) -> int:
    """How many pictures these arrangements learn from, with one seed: what their time is about proportional to."""
    return sum(arm.run.steps * arm.run.batch for arm in arms)


def _separate(request: Request, arms: Sequence[Arm], times: float) -> Arm:
    """A model for the new task alone, at the highest rate that is compared."""
    rates = [arm.run.rate for arm in arms if arm.run.optimiser == request.run.optimiser]
    run = replace(request.run, softmax="per-task", schedule="cosine")
    run = replace(run, steps=round(times * run.steps), rate=max([request.run.rate, *rates]))
    return Arm(f"a model for {request.task} alone", "finetune", run)


def _within(watch: Watch, arm: Arm, before: int, total: int) -> Watch:
    """A watch for one run of many: its steps count as a part of the whole comparison."""

    def progress(what: str, done: int, of: int) -> None:
        if what == "training":
            watch.progress(arm.label, before + done * arm.run.batch, total)
        else:  # reading pictures, which may take long
            watch.progress(what, done, of)

    return watch._replace(progress=progress)


def publish(out: Path, comparison: Comparison) -> None:
    """Write table.md, the figures and report.html of a comparison."""
    write_text(out / "table.md", report.table_markdown(comparison))
    report.write_figures(comparison, out)
    write_text(out / "report.html", report.render_comparison(comparison))


def _terse(watch: Watch) -> Watch:
    """What runs say of their parent, once for all, and that they failed; their other lines would be too many."""
    told: set[str] = set()

    def say(line: str) -> None:
        if line.startswith("failed: ") or (line.startswith("parent: ") and line not in told):
            told.add(line)
            watch.say(line)

    return watch._replace(say=say)


def _try(
    request: Request, out: Path, label: str, cache: Path | None, watch: Watch, failures: list[tuple[str, str]]
) -> Extension | None:
    place = out / re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-") / f"seed-{request.run.seed}"
    command = command_line(request, place)
    try:
        return carry_out(request, place, cache=cache, resume=True, command=command, watch=watch)
    except Problem as problem:
        if problem.code != 4:  # bad input is the same for all: stop
            raise
        failures.append((f"{label}, seed {request.run.seed}", str(problem)))
        watch.say(f"failed: {problem}")
        return None


def _with_separate(record: Record, alone: Sequence[float]) -> Record:
    """The record with the accuracy of the separate models: the parent's for old tasks, `alone` for the new one."""
    if not alone:
        return record
    tasks = [
        task.model_copy(update={"separate": float(np.mean(alone)) if task.new else task.parent and task.parent.mean})
        for task in record.tasks
    ]
    return record.model_copy(update={"tasks": tuple(tasks)})
