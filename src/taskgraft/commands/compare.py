"""`taskgraft compare`: several methods from one parent on one data set, as a table, figures and a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft import report
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError, TrainingError
from taskgraft.methods import composition, notation, presets
from taskgraft.methods.protocol import MethodLike
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.run import Extension, run
from taskgraft.report import formatting as fmt
from taskgraft.report.commands import build_compare_command
from taskgraft.results.files import write_text
from taskgraft.results.record import Comparison, Record, VariantResult
from taskgraft.training import run_folder
from taskgraft.types import Callbacks, PathLike, as_path

EPOCH = 1000  # images of an epoch, for the share of a run in the progress of all
SEPARATE = 4.0  # steps of the single-task model as a multiple of a variant's


class Variant(NamedTuple):
    """A configuration to compare: a label, a method in its notation, and training settings."""

    label: str
    method: str
    config: TrainingConfig

    @property
    def images(self) -> int:
        """How many images a run with one seed trains on, which its time is roughly proportional to.

        With epochs it is a number that is proportional to them: the images are counted once they are opened.
        """
        if self.config.epochs:
            return max(1, round(self.config.epochs * EPOCH))
        return self.config.steps * self.config.batch_size


def variants(methods: Sequence[MethodLike], lrs: Sequence[float], config: TrainingConfig) -> list[Variant]:
    """Combine methods and learning rates.

    Args:
        methods: Methods in their notation or as objects.
        lrs: Learning rates; none = that of `config`.
        config: Training settings.

    Returns:
        Every method at every learning rate; the lowest of several is labeled "low rate".
    """
    result = []
    for lr in lrs or [config.lr]:
        low = len(set(lrs)) > 1 and lr == min(lrs)
        for method in methods:
            text = notation.show(notation.parse(method))
            label = presets.label(text) + (" (low rate)" if low else "")
            result.append(Variant(label, text, replace(config, lr=lr)))
    return result


def compare(
    request: Request,
    variants: Sequence[Variant],
    out: PathLike,
    *,
    seeds: int = 3,
    separate: float = SEPARATE,
    cache: PathLike | None = None,
    command: str = "taskgraft.compare",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Comparison:
    """Extend with each configuration and each seed; write comparison.json, table.md, figures and report.html.

    Finished runs are read and interrupted ones resumed, so that the same command can be given again. A configuration
    whose training fails is reported with the reason, and the others go on.

    Args:
        request: The extension, whose method and settings the variants replace.
        variants: Configurations.
        out: Folder to write.
        seeds: Number of runs of each configuration.
        separate: Also train a model for the new task alone with so many times the steps (0 = none), for the gap to two
            separate models.
        cache: Folder of decoded pixels and features; None = in memory only.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks; progress is in images trained on.

    Returns:
        Settings and results of all runs.

    Raises:
        TaskgraftError: Bad input.
    """
    out, labels = Path(out), [variant.label for variant in variants]
    request.require_paths("compare")
    if not variants:
        raise InputError("nothing to compare; name at least one method")
    if len(set(labels)) != len(labels):
        raise InputError(f"two of the configurations {', '.join(labels)} are the same; give each once")
    if request.unlabeled and not any(composition.has_teacher(notation.parse(v.method)) for v in variants):
        raise InputError("--unlabeled: none of the methods has a teacher; add distill to one, or leave --unlabeled out")
    run_folder.check_location(out, request.list_sources(), request.list_models())
    single = _build_single_task(request, variants, separate) if separate else None
    total = seeds * sum(variant.images for variant in [*variants, *([single] if single else [])])
    runs = _Runs(request, out, as_path(cache), callbacks, total)
    finished: dict[str, list[Extension]] = {label: [] for label in labels}
    single_task: list[float] = []
    for seed in range(request.config.seed, request.config.seed + seeds):
        for number, variant in enumerate(variants, start=1):
            callbacks.info(f"seed {seed}, configuration {number} of {len(variants)}: {variant.label}")
            if extension := runs.run(variant, seed, variant.label):
                finished[variant.label].append(extension)
        if single:
            callbacks.info(f"seed {seed}: {single.label}")
            if extension := runs.run(single, seed, "separate", with_old=False):
                single_task.append(max(line.accuracy.get(request.task, 0.0) for line in extension.record.history))
    results = tuple(
        VariantResult(
            label=variant.label,
            method=variant.method,
            config=asdict(variant.config),
            records=tuple(_add_single_task(extension.record, single_task) for extension in finished[variant.label]),
            folders=tuple(str(extension.out.relative_to(out)) for extension in finished[variant.label]),
        )
        for variant in variants
    )
    flags = [("--seeds", str(seeds)), *([("--separate", f"{separate:g}")] if separate != SEPARATE else [])]
    comparison = Comparison(
        command=command,
        title=f"{request.task} added to {Path(request.parent_name).name}",
        variants=results,
        separate={request.task: tuple(single_task)} if single_task else {},
        failures=tuple(runs.failures),
        reproduce_command=build_compare_command(request.build_command(out), results, *flags),
    )
    write_text(out / "comparison.json", comparison.model_dump_json(indent=1))
    report.write_comparison_report(comparison, out)
    return comparison


class _Runs:
    """The runs of a comparison one after another, with one progress bar for all, and those that failed."""

    def __init__(self, request: Request, out: Path, cache: Path | None, callbacks: Callbacks, total: int) -> None:
        self.request, self.out, self.cache, self.callbacks, self.total = request, out, cache, callbacks, total
        self.failures: list[tuple[str, str]] = []
        self._images = 0  # of the runs before
        self._reported: set[str] = set()

    def run(self, variant: Variant, seed: int, label: str, *, with_old: bool = True) -> Extension | None:
        """Run one configuration with one seed; None where training fails."""
        request = replace(self.request, method=variant.method, config=replace(variant.config, seed=seed))
        request = request if with_old else replace(request, old=None, old_val=())
        if not composition.has_teacher(notation.parse(variant.method)):
            request = replace(request, unlabeled=())
        folder = self.out / re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-") / f"seed-{seed}"
        callbacks = self.callbacks._replace(info=self._info, progress=self._count_images(variant))
        try:
            command = request.build_command(folder)
            extension = run(request, folder, cache=self.cache, resume=True, command=command, callbacks=callbacks)
            self.callbacks.info(f"  {_describe(extension.record)}")
            return extension
        except TrainingError as error:  # any other error is the same for all
            self.failures.append((f"{label}, seed {seed}", str(error)))
            self.callbacks.info(f"failed: {error}")
            return None
        finally:
            self._images += variant.images

    def _info(self, line: str) -> None:
        """Pass on what runs say of their parent, once; their other lines would be too many."""
        if line.startswith("parent: ") and line not in self._reported:
            self._reported.add(line)
            self.callbacks.info(line)

    def _count_images(self, variant: Variant):
        def progress(what: str, done: int, total: int) -> None:
            if what == "training":
                images = self._images + done * variant.images // total
                self.callbacks.progress(variant.label, images, self.total)
            else:  # reading images, which may take long
                self.callbacks.progress(what, done, total)

        return progress


def _describe(record: Record) -> str:
    """What a run reached, in a line."""
    texts = [f"{task.name} {fmt.estimate(task.child)}" for task in record.tasks if task.child]
    if record.score is not None:
        texts.append(f"Score {fmt.percent(record.score)}")
    return f"{'; '.join(texts)}; {fmt.duration(record.seconds['total'])}"


def _build_single_task(request: Request, variants: Sequence[Variant], times: float) -> Variant:
    """A model for the new task alone, at the highest learning rate that is compared."""
    lrs = [variant.config.lr for variant in variants if variant.config.optimizer == request.config.optimizer]
    config = replace(
        request.config,
        softmax="per-task",
        schedule="cosine",
        **_multiply_length(request.config, times),
        lr=max([request.config.lr, *lrs]),
    )
    return Variant(f"a model for {request.task} alone", presets.BASELINE, config)


def _multiply_length(config: TrainingConfig, times: float) -> dict[str, Any]:
    return {"epochs": times * config.epochs} if config.epochs else {"steps": round(times * config.steps)}


def _add_single_task(record: Record, single_task: Sequence[float]) -> Record:
    """The record with the accuracy of separate models: the parent's for old tasks, `single_task` for the new one."""
    if not single_task:
        return record
    mean = float(np.mean(single_task))
    tasks = [
        task.model_copy(update={"separate": mean if task.new else task.parent and task.parent.mean})
        for task in record.tasks
    ]
    return record.model_copy(update={"tasks": tuple(tasks)})
