"""What a comparison comes to: a row of numbers for each configuration, and five lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isnan
from statistics import median
from typing import Literal, NamedTuple

from taskgraft import metrics
from taskgraft.methods.presets import is_baseline
from taskgraft.report import commands
from taskgraft.report import formatting as fmt
from taskgraft.report.run_summary import (
    MAX_NAMED,
    Status,
    Summary,
    describe_gap,
    gap_to_separate,
    new_task,
    old_tasks,
    ratio_to_parent,
)
from taskgraft.results.record import Comparison, Record, VariantResult

MIN_SEEDS = 3  # below that a t-interval over seeds says next to nothing


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
        gap=_over_seeds(map(gap_to_separate, records, single_task)),
        agreement=_over_seeds(_mean_over_old_tasks(record, "agreement") for record in records),
        seconds=sum(record.seconds["total"] for record in records),
        added=records[0].parameters["added"] if records else None,
        parameter_ratio=ratio_to_parent(records[0].parameters) if records else None,
        flops_ratio=ratio_to_parent(records[0].flops) if records else None,
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
        separate = f"{describe_gap(best.gap.mean)}{spread}"
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
