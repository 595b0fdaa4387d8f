"""What a run or a comparison comes to: numbers per configuration, and five lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isnan
from statistics import median
from typing import Literal, NamedTuple

from taskgraft import metrics
from taskgraft.methods.presets import alternative, is_baseline
from taskgraft.report import commands
from taskgraft.report import formatting as fmt
from taskgraft.results.record import Comparison, Interval, Record, TaskResult, VariantResult

Status = Literal["good", "mixed", "poor", "unknown"]

MIN_SEEDS = 3  # below that a t-interval over seeds says next to nothing
SMALL_LOSS = 0.02  # of accuracy, which most users accept
LARGE_LOSS = 0.10  # from which another method is called for
MAX_NAMED = 3  # tasks named in a line


class Summary(NamedTuple):
    """Five lines on a run or a comparison: `next_step` says what `command` is for; the status colors the page."""

    status: Status
    result: str
    judgement: str
    cost: str
    baseline: str
    next_step: str
    command: str

    def to_lines(self) -> list[str]:
        """Return the five lines for the terminal, without control characters."""
        lines = (self.result, self.judgement, self.cost, self.baseline, f"next, {self.next_step}: {self.command}")
        return ["".join(char if char.isprintable() else " " for char in line) for line in lines]


# ---- a run -----------------------------------------------------------------------------------------------------


def old_tasks(record: Record) -> tuple[TaskResult, ...]:
    """Return the tasks that the parent had."""
    return tuple(task for task in record.tasks if not task.new)


def new_task(record: Record) -> TaskResult:
    """Return the task learned in this run; of a merge, where all tasks are old, the last one."""
    return record.tasks[-1]


def learned_name(record: Record) -> str:
    """Return what a run learned: the name of its new task, or those of all where models were merged."""
    new = new_task(record)
    return new.name if new.new else " and ".join(task.name for task in record.tasks)


def is_taught(record: Record) -> bool:
    """Return whether the parent already had all tasks, so that the run was a compression or a merge."""
    new = new_task(record)
    return not new.new or (new.parent is not None and not new.refreshes)


def old_name(record: Record) -> str:
    """Return the name of the old task, or how many there are."""
    names = [task.name for task in old_tasks(record)]
    return names[0] if len(names) == 1 else f"{len(names)} old tasks"


def loss_of(task: TaskResult) -> float:
    """Return the accuracy that a task lost; 0 where that is unknown."""
    return task.forgetting.mean if task.forgetting else 0.0


def is_at_chance(task: TaskResult) -> bool:
    """Return whether a task's accuracy is indistinguishable from always predicting its most frequent class."""
    return task.child is not None and task.child.low <= _chance_of(task)


def _chance_of(task: TaskResult) -> float:
    return 1 / max(2, len(task.classes)) if task.chance is None else task.chance


def describe_balance(task: TaskResult) -> str:
    """Describe what accuracy hides of a task: balanced accuracy where classes are uneven, classes never predicted."""
    texts = []
    if task.balanced is not None:
        texts.append(f"balanced accuracy {fmt.percent(task.balanced)}")
    if task.never_predicted:
        more = f" and {len(task.never_predicted) - MAX_NAMED} more" if len(task.never_predicted) > MAX_NAMED else ""
        texts.append(f"never predicted: {', '.join(task.never_predicted[:MAX_NAMED])}{more}")
    return "; ".join(texts)


def describe_flops(record: Record) -> str:
    """Describe the cost of inference where it differs from the parent's by more than 10 %, else ""."""
    ratio = _ratio(record.flops) or 1.0
    return f"inference needs {ratio:.2g}x the FLOPs" if abs(ratio - 1) > 0.1 else ""


def summarize_run(record: Record) -> Summary:
    """Summarize a run: accuracies, what they mean, cost, comparison with separate models, what to do next."""
    status = _judge(record)
    return Summary(
        status,
        _describe_result(record),
        _describe_judgement(record),
        _describe_cost(record),
        _describe_baseline(record),
        *_propose_next(record, status),
    )


def _compared_tasks(record: Record) -> list[TaskResult]:
    """The tasks that the parent has too: the old ones, and in a compression the new one."""
    new = new_task(record)
    return [*old_tasks(record), *([new] if new.new and new.parent else [])]


def _judge(record: Record) -> Status:
    losses = [task.forgetting for task in _compared_tasks(record)]
    if is_at_chance(new_task(record)) or any(loss.mean > LARGE_LOSS for loss in losses if loss):
        return "poor"
    if None in losses:
        return "unknown"
    new = new_task(record)
    if new.refreshes and new.forgetting and new.forgetting.high >= 0:
        return "mixed"
    return "mixed" if any(loss.mean > SMALL_LOSS and loss.low > 0 for loss in losses if loss) else "good"


def _describe_result(record: Record) -> str:
    measured = sorted((task for task in old_tasks(record) if task.child), key=loss_of, reverse=True)
    unknown = [task for task in old_tasks(record) if not task.child]
    texts = []
    texts += [_describe_change(task) for task in measured[:MAX_NAMED]]
    if len(measured) > MAX_NAMED:
        texts.append(f"{fmt.pluralize(len(measured) - MAX_NAMED, 'other old task')} lost less")
    new = new_task(record)
    if new.new:
        text = _describe_change(new) if new.parent else f"{new.name} {_percent(new.child)}"
        balance = describe_balance(new)
        texts.append(f"{text} ({balance})" if balance else text)
    if unknown:
        texts.append(f"{_name_some(unknown)} not measured (no old validation images)")
    texts.append("no Score" if record.score is None else f"Score {fmt.percent(record.score)} at step {record.step}")
    return "; ".join(texts)


def _name_some(tasks: Sequence[TaskResult]) -> str:
    more = f" and {len(tasks) - MAX_NAMED} more" if len(tasks) > MAX_NAMED else ""
    return ", ".join(task.name for task in tasks[:MAX_NAMED]) + more


def _describe_change(task: TaskResult) -> str:
    change = fmt.change(task.forgetting).replace(" (", ", 95 % CI ")
    return f"{task.name} {_percent(task.parent)} → {_percent(task.child)} ({change}"


def _percent(accuracy: Interval | None) -> str:
    return fmt.percent(accuracy and accuracy.mean)


def _describe_judgement(record: Record) -> str:
    old, new = _compared_tasks(record), new_task(record)
    if is_at_chance(new):
        return f"{new.name} not learned: accuracy is indistinguishable from {_describe_chance(new)}"
    if not old:
        return f"learned: {new.name} {fmt.estimate(new.child)}"
    if new.refreshes:
        old = list(old_tasks(record))
    unknown = [task for task in old if task.forgetting is None]
    agreement = [_describe_agreement(unknown, "--old-val" if new.new else "--val")] if unknown else []
    measured = [_describe_loss([task for task in old if task.forgetting])] if len(unknown) < len(old) else []
    return "; ".join(measured + agreement + ([_describe_gain(new)] if new.refreshes else []))


def _describe_gain(new: TaskResult) -> str:
    """What a refresh changed on the new images."""
    loss = new.forgetting
    assert loss is not None
    if loss.high < 0:
        return f"the new images gained {fmt.percent(-loss.mean)} points"
    return "the new images lost accuracy" if loss.low > 0 else "no significant gain on the new images"


def _describe_loss(old: Sequence[TaskResult]) -> str:
    worst = max(old, key=loss_of)
    loss = worst.forgetting
    assert loss is not None
    images = fmt.pluralize(loss.n, "image")
    if all(task.identical for task in old):
        return f"no forgetting: predictions on the old tasks are bit-identical to the parent's ({images})"
    if loss.low > 0:
        return f"significant forgetting: {worst.name} lost {fmt.percent(loss.mean)} points"
    if loss.high < 0:
        return f"no forgetting: {worst.name} gained {fmt.percent(-loss.mean)} points"
    return (
        f"no significant forgetting on {worst.name} (95 % CI rules out a loss of more than "
        f"{fmt.percent(loss.high)} points; {images})"
    )


def _describe_chance(task: TaskResult) -> str:
    """What a task that is not learned is no better than: the most frequent class, or any where all are as frequent."""
    chance = _chance_of(task)
    if not task.majority or chance <= 1 / max(2, len(task.classes)) + 0.005:
        return "chance"
    return f"always predicting {task.majority!r} ({fmt.percent(chance)} %)"


def _describe_agreement(tasks: Sequence[TaskResult], flag: str) -> str:
    text = f"forgetting of {_name_some(tasks)} unknown: measuring it needs old validation images ({flag} DIR)"
    if all(task.identical for task in tasks):
        return f"{text}; predictions on the new images are bit-identical to the parent's"
    agreements = [(task.agreement.mean, task.name) for task in tasks if task.agreement]
    if not agreements:
        return f"{text}; the new images say nothing about it"
    agreement, name = min(agreements)
    return f"{text}; agreement with the parent on {name} is {fmt.percent(agreement)} %, which is only a proxy"


def _describe_cost(record: Record) -> str:
    added, parent = record.parameters["added"], record.parameters["parent"]
    text = f"cost: {fmt.duration(record.seconds['total'])}{_describe_stop(record)}"
    text += f", {fmt.pluralize(abs(added), 'parameter')}"
    if not parent:
        return text
    flops, change = describe_flops(record), "fewer" if added < 0 else "added"
    text += f" {change} ({fmt.fraction(abs(added), parent)} of the parent's){flops and f'; {flops}'}"
    return text if record.one_backbone else f"{text}; one plain backbone instead: taskgraft compress"


def _describe_stop(record: Record) -> str:
    """Where a run stopped early, with a leading space."""
    last, steps = record.history[-1].step if record.history else 0, record.config.get("steps", 0)
    stopped = record.config.get("patience") and last < steps
    return f" (stopped early at step {last:,} of {steps:,})" if stopped else ""


def _describe_baseline(record: Record) -> str:
    new = new_task(record)
    if record.baselines:
        name, values = max(record.baselines.items(), key=lambda item: sum(item[1].values()))
        return f"merging the weights alone, without images: {_join_values(values)} (the best: {name})"
    if not old_tasks(record):
        return "first task of this model, so there was nothing to forget"
    if new.separate is None:
        return "no single-task baseline was trained"
    text = (
        f"a single-task model reaches {fmt.percent(new.separate)} % on {new.name}, this model {_percent(new.child)} %"
    )
    gap = _gap_to_separate(record, new.separate)
    return text if gap is None else f"{text}; {_describe_gap(gap)}"


def _join_values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {fmt.percent(value)} %" for task, value in values.items())


def _gap_to_separate(record: Record, single_task: float | None) -> float | None:
    """The mean accuracy of two separate models, the parent and a single-task one, minus the Score."""
    if record.score is None or single_task is None:
        return None
    separate = {task.name: task.parent.mean for task in old_tasks(record) if task.parent}
    return metrics.gap(record.score, {**separate, new_task(record).name: single_task})


def _describe_gap(gap: float) -> str:
    if fmt.percent(gap) == "0.0":
        return "one model matches two separate models"
    return f"one model is {fmt.percent(abs(gap))} points {'below' if gap > 0 else 'above'} two separate models"


def _propose_next(record: Record, status: Status) -> tuple[str, str]:
    if status == "unknown":
        return "measure the old tasks", commands.measure_old_tasks(record)
    if not old_tasks(record):
        return "add another task", commands.extend_further(record)
    if status == "good":
        return "use the model", commands.use_model(record)
    if new_task(record).refreshes:
        loses = any(loss_of(task) > SMALL_LOSS for task in old_tasks(record))
        if loses:
            return "lose less, at a lower rate", commands.refresh_gently(record)
        return "teach it longer", commands.teach_longer(record)
    if is_taught(record):  # which `compare` does not repeat
        return "teach it longer", commands.teach_longer(record)
    if new_task(record).added_to:  # `compare` cannot add classes to an old task
        return "try another method", commands.try_method(record, alternative(record.method))
    loses = any(loss_of(task) > SMALL_LOSS for task in old_tasks(record))
    if loses and record.one_backbone and record.config.get("softmax", "per-task") == "per-task":
        return "keep one backbone and lose less", commands.extend_on_one_backbone(record)
    return "compare methods", commands.compare_methods(record)


# ---- a comparison ----------------------------------------------------------------------------------------------


class SeedMean(NamedTuple):
    """Mean over seeds in [0, 1], half-width of its 95 % t-interval (NaN for one seed), number of seeds."""

    mean: float
    half_width: float
    seeds: int

    def __str__(self) -> str:
        """The mean with its interval in percent: "80.7 ± 0.6"."""
        suffix = "(1 seed)" if isnan(self.half_width) else f"± {fmt.percent(self.half_width)}"
        return f"{fmt.percent(self.mean)} {suffix}"


class Row(NamedTuple):
    """One configuration over its seeds; None where nothing could be measured."""

    label: str
    method: str
    seeds: int
    score: SeedMean | None
    old: SeedMean | None  # mean over the old tasks
    new: SeedMean | None
    forgetting: SeedMean | None  # parent - child
    gap: SeedMean | None  # two separate models - this one
    agreement: SeedMean | None
    seconds: float  # of all its runs
    added: int | None  # parameters
    parameter_ratio: float | None  # child / parent
    flops_ratio: float | None  # of one image, child / parent
    latency: float | None  # seconds of one forward pass on one image, the median over runs

    @property
    def rank(self) -> float:
        """What rows are ordered by: the Score, else the mean of agreement (a proxy) and new-task accuracy."""
        if self.score is not None:
            return self.score.mean
        if self.agreement is None or self.new is None:
            return -inf
        return (self.agreement.mean + self.new.mean) / 2 - 1  # below any Score


def build_rows(comparison: Comparison) -> tuple[Row, ...]:
    """Build a row for each configuration, in their order."""
    return tuple(_build_row(comparison, variant) for variant in comparison.variants)


def put_baseline_first(comparison: Comparison) -> Comparison:
    """Return the comparison with the strongest plain fine-tuning first: what the other configurations must beat."""
    rows = build_rows(comparison)
    baselines = [i for i, row in enumerate(rows) if is_baseline(row.method)]
    if not baselines:
        return comparison
    first = max(baselines, key=lambda i: rows[i].rank)
    variants = comparison.variants
    return comparison.model_copy(update={"variants": (variants[first], *variants[:first], *variants[first + 1 :])})


def find_target(comparison: Comparison) -> tuple[float, float] | None:
    """Return the accuracies of two separate models: the parent's on old tasks, a single-task model's on the new one."""
    records = [record for variant in comparison.variants for record in variant.records]
    old = _over_seeds(_mean_over_old_tasks(record, "parent") for record in records)
    trained = [values for record in records[:1] for values in comparison.separate.get(new_task(record).name, ())]
    new = _over_seeds(trained or [new_task(record).separate for record in records])
    return (old.mean, new.mean) if old and new else None


def find_best(rows: Sequence[Row]) -> int | None:
    """Return the index of the best row, the first among equals; None where none can be ranked."""
    ranks = [row.rank for row in rows]
    highest = max(ranks, default=-inf)
    return ranks.index(highest) if highest > -inf else None


def _build_row(comparison: Comparison, variant: VariantResult) -> Row:
    records = variant.records
    single_task = _single_task_accuracies(comparison, variant)
    return Row(
        label=variant.label,
        method=variant.method,
        seeds=len(records),
        score=_over_seeds(record.score for record in records),
        old=_over_seeds(_mean_over_old_tasks(record, "child") for record in records),
        new=_over_seeds(task.child and task.child.mean for task in map(new_task, records)),
        forgetting=_over_seeds(_mean_over_old_tasks(record, "forgetting") for record in records),
        gap=_over_seeds(map(_gap_to_separate, records, single_task)),
        agreement=_over_seeds(_mean_over_old_tasks(record, "agreement") for record in records),
        seconds=sum(record.seconds["total"] for record in records),
        added=records[0].parameters["added"] if records else None,
        parameter_ratio=_ratio(records[0].parameters) if records else None,
        flops_ratio=_ratio(records[0].flops) if records else None,
        latency=median_latency(records, "child"),
    )


def median_latency(records: Sequence[Record], model: Literal["child", "parent"]) -> float | None:
    """Return the median over runs of the seconds that one forward pass takes; None where no run measured it."""
    measured = [record.latency[model] for record in records if model in record.latency]
    return median(measured) if measured else None


def _single_task_accuracies(comparison: Comparison, variant: VariantResult) -> Sequence[float | None]:
    """Of the single-task model of each record's seed where there are as many, else the mean over seeds."""
    records = variant.records
    values = comparison.separate.get(new_task(records[0]).name, ()) if records else ()
    if not values:
        return [new_task(record).separate for record in records]
    return values if len(values) == len(records) else [sum(values) / len(values)] * len(records)


def _mean_over_old_tasks(record: Record, field: str) -> float | None:
    """None where one value is missing or there are none: a mean over fewer tasks would mislead."""
    values = [getattr(task, field) for task in old_tasks(record)]
    return sum(value.mean for value in values) / len(values) if values and None not in values else None


def _ratio(counts: dict[str, int]) -> float | None:
    return counts["child"] / counts["parent"] if counts.get("parent") else None


def _over_seeds(values: Iterable[float | None]) -> SeedMean | None:
    measured = [value for value in values if value is not None]
    return SeedMean(*metrics.t_interval(measured), len(measured)) if measured else None


def find_differing_settings(variants: Sequence[VariantResult]) -> dict[str, list[str]]:
    """Return the resolved settings in which configurations differ, each with its values in their order."""
    configs = [resolve_settings(variant) for variant in variants]
    names = dict.fromkeys(name for config in configs for name in config if name != "seed")
    values = {name: [config.get(name, fmt.MISSING) for config in configs] for name in names}
    return {name: column for name, column in values.items() if len(set(column)) > 1}


def resolve_settings(variant: VariantResult) -> dict[str, str]:
    """Return the settings that the runs of a configuration used, as text: with what "auto" and epochs came to."""
    runs = [dict(fmt.flatten(record.config)) for record in variant.records] or [dict(fmt.flatten(variant.config))]
    names = dict.fromkeys(name for run in runs for name in run if name != "seed")
    return {name: " or ".join(dict.fromkeys(run.get(name, fmt.MISSING) for run in runs)) for name in names}


def summarize_comparison(comparison: Comparison) -> Summary:
    """Summarize a comparison: the best configuration, the baseline, cost, separate models, what to do next."""
    rows = build_rows(comparison)
    winner = find_best(rows)
    seconds, runs = sum(row.seconds for row in rows), sum(row.seeds for row in rows)
    cost = f"cost: {fmt.duration(seconds)}; {fmt.pluralize(runs, 'run')}"
    separate = "no comparison with two separate models"
    if winner is None:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in comparison.failures[:MAX_NAMED])
        judgement = f"failed: {reasons}" if reasons else "nothing failed, but nothing was measured"
        result = "no configuration gave a result that can be ranked"
        return Summary("poor", result, judgement, cost, separate, "check the data", commands.check_data(comparison))
    best = rows[winner]
    cost += f"; the best adds {fmt.pluralize(best.added, 'parameter')}" if best.added is not None else ""
    if comparison.failures:
        cost += f"; {fmt.pluralize(len(comparison.failures), 'configuration')} failed"
    if best.gap is not None:
        spread = "" if isnan(best.gap.half_width) else f" (± {fmt.percent(best.gap.half_width)})"
        separate = f"{_describe_gap(best.gap.mean)}{spread}"
    status: Status
    if any(0 < row.seeds < MIN_SEEDS for row in rows):
        status, next_step = "mixed", "run three seeds, the minimum for a comparison"
        command = commands.run_more_seeds(comparison)
    elif best.score is None:
        status, next_step = "unknown", "measure the old tasks"
        command = commands.compare_with_old_images(comparison)
    else:
        status, next_step = "good", "use the best model"
        command = commands.use_best_model(comparison, comparison.variants[winner])
    judgement = _compare_with_baseline(comparison, rows, winner)
    return Summary(status, _describe_best(best), judgement, cost, separate, next_step, command)


def _describe_best(best: Row) -> str:
    seeds, new = fmt.pluralize(best.seeds, "seed"), _without_seeds(best.new)
    if best.score is None:
        return (
            f"best by a proxy: {best.label}: agreement with the parent {_without_seeds(best.agreement)}, new task "
            f"{new} over {seeds}; old-task accuracy is unknown without old validation images (--old-val DIR)"
        )
    return (
        f"best: {best.label}: Score {_without_seeds(best.score)} over {seeds} "
        f"(old tasks {_without_seeds(best.old)}, new task {new})"
    )


def _without_seeds(mean: SeedMean | None) -> str:
    """A mean in a line that gives the number of seeds anyway."""
    return str(mean or fmt.MISSING).removesuffix(" (1 seed)")


def _compare_with_baseline(comparison: Comparison, rows: Sequence[Row], winner: int) -> str:
    """The best against the best plain fine-tuning, preferably under the same settings."""
    best = rows[winner]
    if best.score is None:
        return "ranked by agreement with the parent, a proxy: measure old-task accuracy before relying on it"
    configs = [{k: v for k, v in variant.config.items() if k != "seed"} for variant in comparison.variants]
    others = [i for i, row in enumerate(rows) if is_baseline(row.method) and row.score and i != winner]
    if not others:
        return "no other configuration is plain fine-tuning with a Score"
    baseline = max(others, key=lambda i: (rows[i].rank, configs[i] == configs[winner]))
    row, settings = rows[baseline], "same" if configs[baseline] == configs[winner] else "other"
    return (
        f"best fine-tuning baseline ({row.label}, {settings} settings): Score {_without_seeds(row.score)} "
        f"({fmt.delta(row.rank - best.score.mean)})"
    )
