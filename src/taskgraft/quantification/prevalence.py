"""From logits, resampling units and a task card to class prevalences with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft import seeding
from taskgraft.metrics import predicted_classes, probabilities
from taskgraft.quantification import bootstrap
from taskgraft.quantification import task_card as cards
from taskgraft.quantification.estimators import (
    estimate_adjusted,
    estimate_emq,
    estimate_joint_adjusted,
    estimate_joint_emq,
)
from taskgraft.quantification.task_card import CardData, OODCheck, check_ood
from taskgraft.results.predictions import Predictions

Floats = NDArray[np.float64]
Estimator = Literal["auto", "emq", "pacc", "naive"]

REPLICATES = 400  # a limit then moves by about a tenth of the interval's width from seed to seed
PAIR_REPLICATES = 100
FEW_CLASSES = 4  # beyond the first: with so many, EMQ counts three times as much as PACC
MIN_UNITS = 20
MIN_PER_CLASS = 5  # images of the sample, below which most classes have wide intervals


class ClassPrevalence(BaseModel):
    """The prevalence of a class (or of a pair, joined by " × ") in [0, 1]: counted, and corrected with 95 % limits."""

    model_config = ConfigDict(frozen=True)
    name: str
    naive: float
    prevalence: float
    low: float
    high: float


class TaskPrevalence(BaseModel):
    """The class prevalences of one task."""

    model_config = ConfigDict(frozen=True)
    task: str
    estimator: str
    classes: tuple[ClassPrevalence, ...]
    images: int
    units: int
    unit: str  # what was resampled: "image", "track", "clip", "block of 10 s"
    effective_size: float  # so many independent images would vary as much
    ood: OODCheck
    notes: tuple[str, ...] = ()


class JointPrevalence(BaseModel):
    """The prevalences of pairs of classes of two tasks; pairs with a prevalence of 0 are left out."""

    model_config = ConfigDict(frozen=True)
    tasks: tuple[str, str]
    estimator: str
    pairs: tuple[ClassPrevalence, ...]
    notes: tuple[str, ...] = ()


class Distribution(BaseModel):
    """The result of `distribution`, as its JSON has it."""

    model_config = ConfigDict(frozen=True)
    format: int = 1
    model: str
    sources: tuple[str, ...]
    tasks: tuple[TaskPrevalence, ...]
    pairs: tuple[JointPrevalence, ...] = ()
    images: int
    unreadable: int = 0
    notes: tuple[str, ...] = ()


class Sample(NamedTuple):
    """Predictions of a model on the images whose class prevalences are estimated.

    `predictions` without labels; `unit` [N] numbers what is resampled from 0, `kind` says what it is ("image",
    "track", "clip", "block of 10 s"); `weights` [N] sum to 1.
    """

    predictions: Predictions
    unit: NDArray[np.int64]
    weights: Floats
    kind: str


class _Inputs(NamedTuple):
    """A task's part of a sample, as an estimator takes it; `estimator` is the one that the card allows."""

    card: CardData | None
    posteriors: Floats  # [N, K]
    predicted: Floats  # [N, K + 1], one-hot; the last column is lost to another task
    estimator: str
    correction: float  # how much of the correction is applied, from 0 to 1: less than 1 only by "auto"
    notes: tuple[str, ...]


def estimate_prevalence(
    sample: Sample, task: str, card: Mapping[str, Any] | None, estimator: Estimator = "auto"
) -> TaskPrevalence:
    """Estimate the class prevalences of one task, counted and corrected, with 95 % intervals.

    The interval resamples units, adds the uncertainty of the card, which was measured on few images, and what "auto"
    leaves uncorrected of the counts' bias.

    Args:
        sample: the predictions.
        task: its name.
        card: its task card; without one the counts stand uncorrected.
        estimator: "emq" (expectation maximization), "pacc" (adjusted counts), "naive", or "auto": a mean of the first
            two where the counts differ from the card's by more than chance, and the counts where they do not.
    """
    inputs = _prepare(sample, task, card, estimator)
    rng = seeding.generator(0, "distribution", task)
    weights, scale = sample.weights[None], bootstrap.deviation_scale(sample.unit)
    naive = (weights @ inputs.predicted)[0, :-1]
    correction = _estimate(inputs, slice(None), weights, None)[0] - naive
    prevalence = naive + inputs.correction * correction
    draws, naive_replicates = [], []
    for draw in bootstrap.resample(sample.unit, sample.weights, REPLICATES, rng):
        naive_replicates.append((draw.weights @ inputs.predicted[draw.rows])[:, :-1])
        draws.append(_estimate(inputs, draw.rows, draw.weights, prevalence, rng))
    counted = np.concatenate(naive_replicates)
    replicates = counted + inputs.correction * (np.concatenate(draws) - counted)
    # The part of the correction that is not applied may be bias that stays, or noise: it counts as uncertainty.
    left = (1 - inputs.correction) * np.abs(correction)
    replicates += left * rng.normal(size=replicates.shape) / scale
    units = int(sample.unit.max()) + 1
    effective = bootstrap.effective_sample_size(naive, counted, scale, units, len(sample.unit))
    low, high = bootstrap.confidence_limits(prevalence, replicates, scale, effective)
    classes = sample.predictions.classes[task]
    return TaskPrevalence(
        task=task,
        estimator=inputs.estimator,
        classes=_list_classes(classes, naive, prevalence, low, high),
        images=len(sample.unit),
        units=units,
        unit=sample.kind,
        effective_size=round(effective, 1),
        ood=check_ood(sample.predictions.logits[task], sample.weights, inputs.card, effective),
        notes=(*inputs.notes, *_note_few_units(units, sample.kind)),
    )


def _prepare(sample: Sample, task: str, card: Mapping[str, Any] | None, estimator: Estimator) -> _Inputs:
    """Posteriors and predictions of a task, and the estimator that its card allows."""
    predictions, classes = sample.predictions, sample.predictions.classes[task]
    data, notes, allowed = cards.read_card(card, classes), [], str(estimator)
    if data is None and estimator != "naive":
        allowed = "naive"
        notes.append(
            "no task card for these classes, so the counts are not corrected; create one with `taskgraft calibrate`"
        )
    elif data is not None and estimator in ("auto", "emq") and data.temperature is None:
        allowed = "acc"
        notes.append(
            "the task card has no temperature (an old card), so counts are adjusted by its confusion matrix (ACC)"
        )
    elif data is not None and estimator in ("auto", "pacc") and data.rates is None:
        allowed = "acc"
        notes.append(
            "the task card has no mean posteriors (an old card), so counts are adjusted by its confusion matrix (ACC)"
        )
    if data is not None and allowed != "naive":
        few = int((data.counts.sum(axis=1) < 5).sum())
        if few:
            notes.append(f"{few} of {len(classes)} classes have fewer than 5 images on the card")
    if len(sample.unit) < MIN_PER_CLASS * len(classes):
        notes.append(
            f"{len(sample.unit)} images for {len(classes)} classes: few are seen more than a few times, and their "
            "intervals are wide"
        )
    temperature = data.temperature if data and data.temperature else 1.0
    predicted = np.zeros((len(sample.unit), len(classes) + 1))
    predicted[np.arange(len(predicted)), predicted_classes(predictions, task)] = 1  # -1 is the last column
    correction = 1.0
    if data is not None and allowed == "auto":
        effective = 1 / float(np.square(np.bincount(sample.unit, sample.weights)).sum())
        shift = cards.measure_shift((sample.weights @ predicted)[:-1], data.counts, effective)
        correction = cards.weigh_correction(shift)
        if correction < 0.5:
            notes.append("the counts differ from those on the task card by no more than chance, so they stand")
    posteriors = probabilities(predictions.logits[task], temperature)
    return _Inputs(data, posteriors, predicted, allowed, correction, tuple(notes))


def _estimate(
    inputs: _Inputs,
    rows: Any,
    weights: Floats,
    point: Floats | None,
    rng: np.random.Generator | None = None,
) -> Floats:
    """Prevalences [R, K] of the images `rows` under weights [R, n]; with `point` and `rng`, one replicate each."""
    data = inputs.card
    if data is None or inputs.estimator == "naive":
        return (weights @ inputs.predicted[rows])[:, :-1]
    if inputs.estimator == "auto":
        return _estimate_mean(inputs, data, rows, weights, point, rng)
    if inputs.estimator == "emq":
        if point is None or rng is None:
            return estimate_emq(inputs.posteriors[rows], data.prior, weights)
        start_near = np.tile(0.95 * point + 0.05 * data.prior, (len(weights), 1))
        estimates = estimate_emq(inputs.posteriors[rows], data.prior, weights, start_near, 150, 1e-5)
        return estimates + cards.draw_card_errors(data.counts, point, len(weights), rng)[:, : len(point)]
    counts = _card_counts(data, inputs.estimator)
    rates = cards.smooth_rates(counts)[0]
    predicted = weights @ (inputs.posteriors if inputs.estimator == "pacc" else inputs.predicted)[rows]
    if point is None or rng is None:
        return estimate_adjusted(rates, predicted)
    return estimate_adjusted(rates, predicted - cards.draw_card_errors(counts, point, len(weights), rng), 500, 1e-7)


def _estimate_mean(
    inputs: _Inputs, data: CardData, rows: Any, weights: Floats, point: Floats | None, rng: np.random.Generator | None
) -> Floats:
    """A mean of EMQ and PACC, whose errors have different causes."""
    posteriors, counts = inputs.posteriors[rows], _card_counts(data, "pacc")
    rates, observed = cards.smooth_rates(counts)[0], weights @ posteriors
    if point is None or rng is None:
        maximized, adjusted = estimate_emq(posteriors, data.prior, weights), estimate_adjusted(rates, observed)
    else:
        errors = cards.draw_card_errors(counts, point, len(weights), rng)  # the same for both: they share the card
        start_near = np.tile(0.95 * point + 0.05 * data.prior, (len(weights), 1))
        maximized = estimate_emq(posteriors, data.prior, weights, start_near, 150, 1e-5) - errors
        adjusted = estimate_adjusted(rates, observed - errors, 500, 1e-7)
    share = _weigh_emq(maximized if point is None else point[None])
    return share * maximized + (1 - share) * adjusted


def _weigh_emq(prevalences: Floats) -> Floats:
    """The share of EMQ in its mean with PACC [R, 1]: half, and more where few classes make up a sample [R, K].

    EMQ then leaves absent classes near 0, while the noise of PACC gives each of them a little.
    """
    likely = np.clip(prevalences, 1e-12, None)
    effective = np.exp(-(likely * np.log(likely)).sum(axis=1, keepdims=True))  # number of classes
    return 0.5 + 0.5 / (1 + ((effective - 1) / FEW_CLASSES) ** 2)


def _card_counts(data: CardData, estimator: str) -> Floats:
    """The card's images by true class and output: posteriors [K, K] for PACC, predicted classes [K, K + 1] for ACC."""
    if estimator in ("auto", "pacc") and data.rates is not None:
        return data.counts.sum(axis=1, keepdims=True) * data.rates
    return data.counts


def estimate_joint_prevalence(
    sample: Sample,
    tasks: tuple[str, str],
    cards_of: Mapping[str, Mapping[str, Any]],
    estimator: Estimator = "auto",
) -> JointPrevalence:
    """Estimate the prevalences of pairs of classes of two tasks, counted and corrected, with 95 % intervals.

    Errors of the two tasks are assumed to be independent given the true pair.

    Args:
        sample: the predictions.
        tasks: the names of two tasks.
        cards_of: task cards by task.
        estimator: see `estimate_prevalence`.
    """
    first, second = (_prepare(sample, task, cards_of.get(task), estimator) for task in tasks)
    chosen = first.estimator if first.estimator == second.estimator else "naive"
    rng = seeding.generator(0, "distribution", *tasks)
    scale = bootstrap.deviation_scale(sample.unit)
    naive = _count_joint(first, second, slice(None), sample.weights)
    point = _estimate_joint(chosen, first, second, slice(None), sample.weights, None)
    draws, naive_replicates = [], []
    for draw in bootstrap.resample(sample.unit, sample.weights, PAIR_REPLICATES, rng):
        for weights in draw.weights:
            naive_replicates.append(_count_joint(first, second, draw.rows, weights).ravel())
            draws.append(_estimate_joint(chosen, first, second, draw.rows, weights, point).ravel())
    replicates = np.array(draws)
    if chosen != "naive":
        correction = max(first.correction, second.correction)
        replicates += correction * _draw_joint_errors(first, second, chosen, point, rng)
    units = int(sample.unit.max()) + 1
    effective = bootstrap.effective_sample_size(
        naive.ravel(), np.array(naive_replicates), scale, units, len(sample.unit)
    )
    low, high = bootstrap.confidence_limits(point.ravel(), replicates, scale, effective)
    classes = [sample.predictions.classes[task] for task in tasks]
    names = [f"{a} × {b}" for a in classes[0] for b in classes[1]]
    pairs = _list_classes(names, naive.ravel(), point.ravel(), low, high)
    pairs = tuple(pair for pair in pairs if pair.prevalence >= 1e-4 or pair.naive > 0)
    note = "errors of the two tasks are assumed to be independent given the true pair"
    return JointPrevalence(
        tasks=tasks,
        estimator=chosen,
        pairs=pairs,
        notes=(note,) if chosen != "naive" else (*first.notes, *second.notes),
    )


def _estimate_joint(
    estimator: str, first: _Inputs, second: _Inputs, rows: Any, weights: Floats, point: Floats | None
) -> Floats:
    if first.card is None or second.card is None or estimator == "naive":
        return _count_joint(first, second, rows, weights)
    if estimator == "auto":
        naive = _count_joint(first, second, rows, weights)
        maximized, adjusted = (_estimate_joint(name, first, second, rows, weights, point) for name in ("emq", "pacc"))
        share = float(_weigh_emq((maximized if point is None else point).reshape(1, -1))[0, 0])
        mean = share * maximized + (1 - share) * adjusted
        return naive + max(first.correction, second.correction) * (mean - naive)
    if estimator == "emq":
        start = np.outer(first.card.prior, second.card.prior)
        start_near = start if point is None else 0.95 * point + 0.05 * start
        max_iterations = 500 if point is None else 60
        tasks = (first.posteriors[rows], first.card.prior), (second.posteriors[rows], second.card.prior)
        return estimate_joint_emq(*tasks, weights, start_near, max_iterations)
    columns = [task.posteriors if estimator == "pacc" else task.predicted for task in (first, second)]
    predicted = columns[0][rows].T @ (columns[1][rows] * weights[:, None])
    rates = [cards.smooth_rates(_card_counts(card, estimator))[0] for card in (first.card, second.card)]
    return estimate_joint_adjusted(rates[0], rates[1], predicted)


def _count_joint(first: _Inputs, second: _Inputs, rows: Any, weights: Floats) -> Floats:
    return first.predicted[rows, :-1].T @ (second.predicted[rows, :-1] * weights[:, None])


def _draw_joint_errors(
    first: _Inputs, second: _Inputs, estimator: str, point: Floats, rng: np.random.Generator
) -> Floats:
    """Errors of pairs from the cards' few images [R, K1 * K2]: those of each task, in proportion along the other."""

    def draw(inputs: _Inputs, prevalence: Floats) -> Floats:
        counts = _card_counts(cast(CardData, inputs.card), estimator)
        return cards.draw_card_errors(counts, prevalence, PAIR_REPLICATES, rng)[:, : len(prevalence)]

    rows, columns = point.sum(axis=1), point.sum(axis=0)
    errors = np.einsum("rk,j->rkj", draw(first, rows), columns)
    errors += np.einsum("rj,k->rkj", draw(second, columns), rows)
    return errors.reshape(PAIR_REPLICATES, -1)


def _list_classes(names: Sequence[str], *columns: Floats) -> tuple[ClassPrevalence, ...]:
    rows = zip(names, *(np.round(column, 6).tolist() for column in columns), strict=True)
    return tuple(ClassPrevalence(name=name, naive=a, prevalence=b, low=c, high=d) for name, a, b, c, d in rows)


def _note_few_units(units: int, kind: str) -> tuple[str, ...]:
    if units >= MIN_UNITS:
        return ()
    return (f"only {units} {plural(kind, units)} to resample, so the interval is rough",)


def plural(unit: str, count: int) -> str:
    """Return the plural of a unit where the count asks for it: "blocks of 10 s"."""
    first, space, rest = unit.partition(" ")
    return first + "s" * (count != 1) + space + rest
