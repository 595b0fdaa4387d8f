"""What a run or a comparison comes to: numbers per configuration, and five lines for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isnan
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
        lines = (self.result, self.judgement, self.cost, self.baseline, f"{self.next_step}: {self.command}")
        return ["".join(char if char.isprintable() else " " for char in line) for line in lines]


# ---- a run -----------------------------------------------------------------------------------------------------


def old_tasks(record: Record) -> tuple[TaskResult, ...]:
    """Return the tasks that the parent had."""
    return tuple(task for task in record.tasks if not task.new)


def new_tasks(record: Record) -> tuple[TaskResult, ...]:
    """Return the tasks learned in this run, usually one."""
    return tuple(task for task in record.tasks if task.new)


def old_name(record: Record) -> str:
    """Return the name of the old task, or how many there are."""
    names = [task.name for task in old_tasks(record)]
    return names[0] if len(names) == 1 else f"{len(names)} old tasks"


def new_name(record: Record) -> str:
    """Return the names of the new tasks."""
    return ", ".join(task.name for task in new_tasks(record))


def accuracy_of(task: TaskResult, record: Record) -> float | None:
    """Return a task's final accuracy in [0, 1]; where that was not measured, the one logged at the selected step."""
    if task.child is not None:
        return task.child.mean
    logged = [line.accuracy.get(task.name) for line in record.history if line.step == record.step]
    return next((value for value in logged if value is not None), None)


def loss_of(task: TaskResult) -> float:
    """Return the accuracy that a task lost; 0 where that is unknown."""
    return task.forgetting.mean if task.forgetting else 0.0


def is_at_chance(task: TaskResult) -> bool:
    """Return whether a task's accuracy is indistinguishable from guessing one of its classes."""
    return task.child is not None and task.child.low <= 1 / len(task.classes)


def total_seconds(record: Record) -> float:
    """Return the wall time of a run."""
    return record.seconds.get("total", sum(record.seconds.values()))


def added_parameters(record: Record) -> int | None:
    """Return how many parameters the child has more than its parent; None where that is unknown."""
    counts = record.parameters
    if "added" in counts:
        return counts["added"]
    return counts["child"] - counts["parent"] if {"child", "parent"} <= set(counts) else None


def single_task_accuracy(record: Record) -> float | None:
    """Return the accuracy of a model trained for the new task alone, where there is one."""
    return _mean(task.separate for task in new_tasks(record))


def gap_to_separate(record: Record, single_task: float | None) -> float | None:
    """Return the mean accuracy of two separate models, the parent and a single-task one, minus the Score."""
    parents = [_mean_of(task.parent) for task in old_tasks(record)]
    known = [value for value in parents if value is not None]
    if record.score is None or single_task is None or not known or len(known) < len(parents):
        return None
    return metrics.gap(record.score, {str(i): value for i, value in enumerate([*known, single_task])})


def describe_flops(record: Record) -> str:
    """Describe the cost of inference where it is at least 10 % above the parent's, else ""."""
    ratio = _ratio(record.flops) or 1.0
    return f"inference needs {ratio:.2g}x the FLOPs" if ratio > 1.1 else ""


def summarize_run(record: Record) -> Summary:
    """Summarize a run: accuracies, what they mean, cost, comparison with separate models, what to do next."""
    status = _judge(record)
    next_step, command = _next_step(record, status)
    return Summary(
        status, _result(record), _judgement(record), _cost(record), describe_baseline(record), next_step, command
    )


def _judge(record: Record) -> Status:
    if any(is_at_chance(task) for task in new_tasks(record)):
        return "poor"
    losses = [task.forgetting for task in old_tasks(record)]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return "unknown"
    if any(loss.mean > LARGE_LOSS for loss in known):
        return "poor"
    return "mixed" if any(loss.mean > SMALL_LOSS and loss.low > 0 for loss in known) else "good"


def _result(record: Record) -> str:
    known = sorted((task for task in old_tasks(record) if task.child is not None), key=loss_of, reverse=True)
    unknown = [task.name for task in old_tasks(record) if task.child is None]
    parts = []
    for task in known[:MAX_NAMED]:
        after = fmt.percent(_mean_of(task.child))
        if task.parent is None or task.forgetting is None:
            parts.append(f"{task.name} {after}")
        else:
            change = fmt.change(task.forgetting).replace(" (", ", 95 % CI ")
            parts.append(f"{task.name} {fmt.percent(task.parent.mean)} → {after} ({change}")
    if len(known) > MAX_NAMED:
        parts.append(f"{fmt.pluralize(len(known) - MAX_NAMED, 'other old task')} lost less")
    parts += [f"{task.name} {fmt.percent(accuracy_of(task, record))}" for task in new_tasks(record)]
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        parts.append(f"{', '.join(unknown[:MAX_NAMED])}{more} not measured (no old validation images)")
    parts.append("no Score" if record.score is None else f"Score {fmt.percent(record.score)} at step {record.step}")
    return "; ".join(parts)


def _judgement(record: Record) -> str:
    old = old_tasks(record)
    at_chance = [task.name for task in new_tasks(record) if is_at_chance(task)]
    if at_chance:
        return f"{', '.join(at_chance)} not learned: accuracy is indistinguishable from chance"
    if not old:
        return "learned: " + "; ".join(f"{task.name} {fmt.estimate(task.child)}" for task in record.tasks)
    if any(task.forgetting is None for task in old):
        return _judge_by_agreement([task for task in old if task.forgetting is None])
    worst = max(old, key=loss_of)
    lost = worst.forgetting
    if lost is None:
        return "forgetting was not measured"
    images = fmt.pluralize(lost.n, "image")
    if all(task.identical for task in old):
        return f"no forgetting: predictions on the old tasks are bit-identical to the parent's ({images})"
    if lost.low > 0:
        return f"significant forgetting: {worst.name} lost {fmt.percent(lost.mean)} points"
    if lost.high < 0:
        return f"no forgetting: {worst.name} gained {fmt.percent(-lost.mean)} points"
    return (
        f"no significant forgetting on {worst.name} (95 % CI rules out a loss of more than "
        f"{fmt.percent(lost.high)} points; {images})"
    )


def _judge_by_agreement(tasks: Sequence[TaskResult]) -> str:
    unknown = "forgetting unknown: measuring it needs old validation images (--old-val DIR)"
    if all(task.identical for task in tasks):
        return f"{unknown}; predictions on the new images are bit-identical to the parent's"
    known = [(task.agreement.mean, task.name) for task in tasks if task.agreement is not None]
    if not known:
        return unknown
    agreement, name = min(known)
    return f"{unknown}; agreement with the parent on {name} is {fmt.percent(agreement)} %, which is only a proxy"


def _cost(record: Record) -> str:
    text = f"cost: {fmt.duration(total_seconds(record))}"
    added, parent = added_parameters(record), record.parameters.get("parent")
    if added is None:
        return text
    if parent == 0:
        return f"{text}, {fmt.pluralize(added, 'parameter')}"
    fraction = f" ({fmt.fraction(added, parent)} of the parent's)" if parent else ""
    flops = describe_flops(record)
    return f"{text}, {fmt.pluralize(added, 'parameter')} added{fraction}{flops and f'; {flops}'}"


def describe_baseline(record: Record) -> str:
    """Compare a run with two separate models in one line."""
    single_task = single_task_accuracy(record)
    if not old_tasks(record):
        return "first task of this model, so there was nothing to forget"
    if single_task is None:
        return "no single-task baseline was trained"
    text = f"a single-task model reaches {fmt.percent(single_task)} % on {new_name(record)}"
    if len(new_tasks(record)) == 1:
        text += f", this model {fmt.percent(accuracy_of(new_tasks(record)[0], record))} %"
    gap = gap_to_separate(record, single_task)
    return text if gap is None else f"{text}; {_describe_gap(gap)}"


def _describe_gap(gap: float) -> str:
    if fmt.percent(gap) in ("0.0", "-0.0"):
        return "one model matches two separate models"
    return f"one model is {fmt.percent(abs(gap))} points {'below' if gap > 0 else 'above'} two separate models"


def _next_step(record: Record, status: Status) -> tuple[str, str]:
    if status == "unknown":
        return "next, measure the old tasks", commands.measure_old_tasks(record)
    if not old_tasks(record):
        return "next, add another task", commands.extend_further(record)
    if status == "good":
        return "next, use the model", commands.use_model(record)
    if any(task.added_to for task in new_tasks(record)):  # `compare` cannot add classes to an old task
        return "next, try another method", commands.try_method(record, alternative(record.method))
    return "next, compare methods", commands.compare_methods(record)


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


def find_best(rows: Iterable[Row]) -> int | None:
    """Return the index of the best row, the first among equals; None where none can be ranked."""
    ranks = [row.rank for row in rows]
    top = max(ranks, default=-inf)
    return ranks.index(top) if top > -inf else None


def _build_row(comparison: Comparison, variant: VariantResult) -> Row:
    records = variant.records

    def over_tasks(tasks: Callable[[Record], Sequence[TaskResult]], field: str) -> SeedMean | None:
        return _over_seeds(_mean(_mean_of(getattr(task, field)) for task in tasks(record)) for record in records)

    def accuracy(tasks: Callable[[Record], Sequence[TaskResult]]) -> SeedMean | None:
        return _over_seeds(_mean(accuracy_of(task, record) for task in tasks(record)) for record in records)

    return Row(
        label=variant.label,
        method=variant.method,
        seeds=len(records),
        score=_over_seeds(record.score for record in records),
        old=accuracy(old_tasks),
        new=accuracy(new_tasks),
        forgetting=over_tasks(old_tasks, "forgetting"),
        gap=_over_seeds(
            gap_to_separate(record, _single_task_accuracy(comparison, variant, i)) for i, record in enumerate(records)
        ),
        agreement=over_tasks(old_tasks, "agreement"),
        seconds=sum(map(total_seconds, records)),
        added=added_parameters(records[0]) if records else None,
        parameter_ratio=_ratio(records[0].parameters) if records else None,
        flops_ratio=_ratio(records[0].flops) if records else None,
    )


def _single_task_accuracy(comparison: Comparison, variant: VariantResult, i: int) -> float | None:
    """Of the single-task model of the same seed where there are as many, else the mean over seeds."""
    record = variant.records[i]
    values = [value for task in new_tasks(record) for value in comparison.separate.get(task.name, ())]
    if not values:
        return single_task_accuracy(record)
    return values[i] if len(values) == len(variant.records) else sum(values) / len(values)


def _ratio(counts: Mapping[str, int]) -> float | None:
    return counts["child"] / counts["parent"] if counts.get("parent") and "child" in counts else None


def _mean_of(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one value is missing or there are none: a mean over fewer tasks would mislead."""
    everything = list(values)
    known = [value for value in everything if value is not None]
    return sum(known) / len(known) if known and len(known) == len(everything) else None


def _over_seeds(values: Iterable[float | None]) -> SeedMean | None:
    known = [value for value in values if value is not None]
    return SeedMean(*metrics.t_interval(known), len(known)) if known else None


def find_differing_settings(variants: Sequence[VariantResult]) -> dict[str, list[str]]:
    """Return the settings in which configurations differ, each with its values in their order."""
    configs = [dict(fmt.flatten(variant.config)) for variant in variants]
    names = dict.fromkeys(name for config in configs for name in config if name != "seed")
    values = {name: [config.get(name, fmt.MISSING) for config in configs] for name in names}
    return {name: column for name, column in values.items() if len(set(column)) > 1}


def summarize_comparison(comparison: Comparison) -> Summary:
    """Summarize a comparison: the best configuration, the baseline, cost, separate models, what to do next."""
    rows = build_rows(comparison)
    winner = find_best(rows)
    cost = f"cost: {fmt.duration(sum(row.seconds for row in rows))}; {fmt.pluralize(sum(row.seeds for row in rows), 'run')}"
    failed = len(comparison.failures)
    if winner is None:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in comparison.failures[:MAX_NAMED])
        return Summary(
            "poor",
            "no configuration gave a result that can be ranked",
            f"failed: {reasons}" if reasons else "nothing failed, but nothing was measured",
            cost,
            "no comparison with two separate models",
            "next, check the data",
            commands.check_data(comparison),
        )
    best = rows[winner]
    cost += f"; the best adds {fmt.pluralize(best.added, 'parameter')}" if best.added is not None else ""
    cost += f"; {fmt.pluralize(failed, 'configuration')} failed" if failed else ""
    separate = "no comparison with two separate models"
    if best.gap is not None:
        spread = "" if isnan(best.gap.half_width) else f" (± {fmt.percent(best.gap.half_width)})"
        separate = f"{_describe_gap(best.gap.mean)}{spread}"
    few_seeds = any(0 < row.seeds < MIN_SEEDS for row in rows)
    status: Status = "mixed" if few_seeds else "unknown" if best.score is None else "good"
    next_step = _next_after_comparison(comparison, winner, best, few_seeds)
    return Summary(
        status, _describe_best(best), _compare_with_baseline(comparison, rows, winner), cost, separate, *next_step
    )


def _next_after_comparison(comparison: Comparison, winner: int, best: Row, few_seeds: bool) -> tuple[str, str]:
    if few_seeds:
        return "next, run three seeds, the minimum for a comparison", commands.run_more_seeds(comparison)
    if best.score is None:
        return "next, measure the old tasks", commands.compare_with_old_images(comparison)
    return "next, use the best model", commands.use_best_model(comparison, comparison.variants[winner])


def _describe_best(best: Row) -> str:
    seeds, new = fmt.pluralize(best.seeds, "seed"), _short(best.new)
    if best.score is None:
        return (
            f"best by a proxy: {best.label}: agreement with the parent {_short(best.agreement)}, new task {new} over "
            f"{seeds}; old-task accuracy is unknown without old validation images (--old-val DIR)"
        )
    return f"best: {best.label}: Score {_short(best.score)} over {seeds} (old tasks {_short(best.old)}, new task {new})"


def _short(mean: SeedMean | None) -> str:
    """A mean in a line that gives the number of seeds anyway."""
    return _text(mean).removesuffix(" (1 seed)")


def _text(mean: SeedMean | None) -> str:
    return fmt.MISSING if mean is None else str(mean)


def _compare_with_baseline(comparison: Comparison, rows: Sequence[Row], winner: int) -> str:
    """The best against the best plain fine-tuning, preferably under the same settings."""
    best = rows[winner]
    if best.score is None:
        return "ranked by agreement with the parent, a proxy: measure old-task accuracy before relying on it"
    configs = [{k: v for k, v in variant.config.items() if k != "seed"} for variant in comparison.variants]
    others = [i for i, row in enumerate(rows) if is_baseline(row.method) and row.score is not None and i != winner]
    if not others:
        return "no other configuration is plain fine-tuning with a Score"
    baseline = max(others, key=lambda i: (rows[i].rank, configs[i] == configs[winner]))
    settings = "same" if configs[baseline] == configs[winner] else "other"
    row = rows[baseline]
    return (
        f"best fine-tuning baseline ({row.label}, {settings} settings): Score {_short(row.score)} "
        f"({fmt.delta(row.rank - best.score.mean)})"
    )


TABLE_HEAD = (
    "Score (%)", "Old tasks (%)", "New task (%)", "Forgetting (points)", "Below two separate models (points)",
    "Agreement (%)", "Parameters", "FLOPs",
)  # fmt: skip


def table_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row in the order of TABLE_HEAD."""
    means = (row.score, row.old, row.new, row.forgetting, row.gap, row.agreement)
    ratios = (fmt.MISSING if ratio is None else f"{ratio:.2f}x" for ratio in (row.parameter_ratio, row.flops_ratio))
    return (*map(_text, means), *ratios)


def list_remarks(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """List what a reader must know to read the table correctly."""
    seeds = [row.seeds for row in rows if row.seeds]
    remarks = ["± is the 95 % t-interval of the mean over seeds."]
    if any(number < MIN_SEEDS for number in seeds):
        remarks = [
            f"Only {fmt.pluralize(min(seeds), 'seed')}: a comparison needs at least three; differences may be chance."
        ]
    if any(row.seeds and row.score is None for row in rows):
        remarks.append(
            "Old-task accuracy is unknown without old validation images (--old-val DIR), so there is no Score. "
            "Agreement with the parent is only a proxy for it."
        )
    differing = find_differing_settings(comparison.variants)
    if set(differing) - {"lr"}:
        values = "; ".join(f"{name} ({', '.join(dict.fromkeys(column))})" for name, column in differing.items())
        remarks.append(f"The configurations differ in more than the method: {values}.")
    if all(row.gap is None for row in rows):
        remarks.append("No single-task baseline was trained.")
    return remarks
