"""Many extensions of one parent on one data set: table, figures, report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taskgraft import report
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError, TaskgraftError, TrainingError
from taskgraft.methods import notation, presets
from taskgraft.pipeline.extend import Extension, carry_out
from taskgraft.pipeline.request import Request, command_line
from taskgraft.results.files import write_text
from taskgraft.results.record import Comparison, Record, VariantResult
from taskgraft.training import run_folder
from taskgraft.types import Callbacks, PathLike, as_path


class Variant(NamedTuple):
    """One arrangement to try: a label, a method in the notation, and its settings."""

    label: str
    method: str
    config: TrainingConfig


def variants(names: Sequence[str], lrs: Sequence[float], config: TrainingConfig) -> list[Variant]:
    """Every method at every rate, labeled as in the founding text: the lowest of several rates is "low rate"."""
    found = []
    for lr in lrs or [config.lr]:
        low = len(set(lrs)) > 1 and lr == min(lrs)
        for name in names:
            text = notation.show(notation.parse(name))
            label = presets.label(text) + (" (low rate)" if low else "")
            found.append(Variant(label, text, replace(config, lr=lr)))
    return found


def compare(
    request: Request,
    variants: Sequence[Variant],
    out: PathLike,
    *,
    seeds: int = 3,
    separate: float = 4.0,
    cache: PathLike | None = None,
    command: str = "taskgraft.compare",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Comparison:
    """Extend with each arrangement and each seed; write comparison.json, table.md, figures and report.html.

    `separate` trains a model for the new task alone with that many times the steps (0 = none), for the gap to two
    separate models. A finished run is not repeated and an interrupted one goes on, so the same command can be
    given again. An arrangement that fails is reported with its reason, and the others go on.
    """
    out, cache = Path(out), as_path(cache)
    labels = [variant.label for variant in variants]
    if not variants:
        raise InputError("there is no arrangement to compare; name at least one method")
    if len(set(labels)) != len(labels):
        raise InputError(f"two of the arrangements {', '.join(labels)} are the same; give each once")
    run_folder.suited(out, request.sources())
    done: dict[str, list[tuple[Record, str]]] = {label: [] for label in labels}
    alone: list[float] = []
    failures: list[tuple[str, str]] = []
    single = _separate(request, variants, separate) if separate else None
    total = seeds * images_of([*variants, *([single] if single else [])])
    before, terse = 0, _terse(callbacks)
    for seed in range(request.config.seed, request.config.seed + seeds):
        for number, variant in enumerate(variants, start=1):
            callbacks.info(f"seed {seed}, arrangement {number} of {len(variants)}: {variant.label}")
            asked = replace(request, method=variant.method, config=replace(variant.config, seed=seed))
            found = _try(asked, out, variant.label, cache, _within(terse, variant, before, total), failures)
            before += images_of([variant])
            if found:
                done[variant.label].append((found.record, str(found.out.relative_to(out))))
        if single:
            callbacks.info(f"seed {seed}: {single.label}")
            asked = replace(
                request, method=single.method, config=replace(single.config, seed=seed), old_val=(), old=None
            )
            found = _try(asked, out, "separate", cache, _within(terse, single, before, total), failures)
            before += images_of([single])
            if found:
                alone.append(max(line.accuracy.get(request.task, 0.0) for line in found.record.history))
    comparison = Comparison(
        command=command,
        title=f"{request.task} added to {Path(request.parent).name}",
        variants=tuple(
            VariantResult(
                label=variant.label, method=variant.method, config=asdict(variant.config),
                records=tuple(_with_separate(record, alone) for record, _ in done[variant.label]),
                folders=tuple(place for _, place in done[variant.label]),
            )
            for variant in variants
        ),
        separate={request.task: tuple(alone)} if alone else {},
        failures=tuple(failures),
    )  # fmt: skip
    write_text(out / "comparison.json", comparison.model_dump_json(indent=1))
    publish(out, comparison)
    return comparison


def images_of(variants: Sequence[Variant]) -> int:
    """How many images these arrangements learn from, with one seed: what their time is about proportional to."""
    return sum(variant.config.steps * variant.config.batch_size for variant in variants)


def _separate(request: Request, variants: Sequence[Variant], times: float) -> Variant:
    """A model for the new task alone, at the highest rate that is compared."""
    lrs = [variant.config.lr for variant in variants if variant.config.optimizer == request.config.optimizer]
    config = replace(request.config, softmax="per-task", schedule="cosine")
    config = replace(config, steps=round(times * config.steps), lr=max([request.config.lr, *lrs]))
    return Variant(f"a model for {request.task} alone", presets.BASELINE, config)


def _within(callbacks: Callbacks, variant: Variant, before: int, total: int) -> Callbacks:
    """A watch for one run of many: its steps count as a part of the whole comparison."""

    def progress(what: str, done: int, of: int) -> None:
        if what == "training":
            callbacks.progress(variant.label, before + done * variant.config.batch_size, total)
        else:  # reading images, which may take long
            callbacks.progress(what, done, of)

    return callbacks._replace(progress=progress)


def publish(out: Path, comparison: Comparison) -> None:
    """Write table.md, the figures and report.html of a comparison."""
    write_text(out / "table.md", report.format_comparison_table(comparison))
    report.write_figures(comparison, out)
    write_text(out / "report.html", report.render_comparison(comparison))


def _terse(callbacks: Callbacks) -> Callbacks:
    """What runs say of their parent, once for all, and that they failed; their other lines would be too many."""
    told: set[str] = set()

    def say(line: str) -> None:
        if line.startswith("failed: ") or (line.startswith("parent: ") and line not in told):
            told.add(line)
            callbacks.info(line)

    return callbacks._replace(info=say)


def _try(
    request: Request, out: Path, label: str, cache: Path | None, callbacks: Callbacks, failures: list[tuple[str, str]]
) -> Extension | None:
    place = out / re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-") / f"seed-{request.config.seed}"
    command = command_line(request, place)
    try:
        return carry_out(request, place, cache=cache, resume=True, command=command, callbacks=callbacks)
    except TaskgraftError as error:
        if not isinstance(error, TrainingError):  # bad input is the same for all: stop
            raise
        failures.append((f"{label}, seed {request.config.seed}", str(error)))
        callbacks.info(f"failed: {error}")
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
