"""From logits, units and a task card to class shares with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from taskgraft import seeding
from taskgraft.metrics import predicted_classes, probabilities
from taskgraft.quantification import intervals
from taskgraft.quantification import task_card as cards
from taskgraft.quantification.estimators import adjust, adjust_pair, em, em_pair
from taskgraft.quantification.ood_check import ood_check
from taskgraft.quantification.results import ClassShare, PairShares, TaskShares
from taskgraft.quantification.task_card import Known
from taskgraft.results.predictions import Predictions

Floats = NDArray[np.float64]
Estimator = Literal["emq", "pacc", "naive"]

REPLICATES = 400  # a limit then moves by about a tenth of the interval's width from seed to seed
PAIR_REPLICATES = 100
FEW_UNITS = 20


class Sample(NamedTuple):
    """Answers of a model on the images whose class shares are asked for.

    `predictions` without labels; `unit` [N] numbers what is resampled from 0, `kind` says what it is ("image",
    "track", "clip", "block of 10 s"); `weights` [N] sum to 1.
    """

    predictions: Predictions
    unit: NDArray[np.int64]
    weights: Floats
    kind: str


class Ready(NamedTuple):
    """A task's part of a sample, ready for an estimator; `way` is what the estimator became."""

    known: Known | None
    posteriors: Floats  # [N, K]
    answered: Floats  # [N, K + 1], one-hot; the last column is lost to another task
    way: str
    notes: tuple[str, ...]


def measure(sample: Sample, task: str, card: Mapping[str, Any] | None, estimator: Estimator = "emq") -> TaskShares:
    """The class shares of one task, naive and corrected, with 95 % intervals.

    The interval resamples units, and adds what the card's own few images leave open.
    """
    ready = prepare(sample, task, card, estimator)
    rng = seeding.generator(0, "distribution", task)
    weights, scale = sample.weights[None], intervals.spread(sample.unit)
    naive = (weights @ ready.answered)[0, :-1]
    shares = _shares(ready, slice(None), weights, None)[0]
    found, counted = [], []
    for draw in intervals.draws(sample.unit, sample.weights, REPLICATES, rng):
        counted.append((draw.weights @ ready.answered[draw.rows])[:, :-1])
        found.append(_shares(ready, draw.rows, draw.weights, shares, rng))
    units = int(sample.unit.max()) + 1
    effective = intervals.effective_size(naive, np.concatenate(counted), scale, units, len(sample.unit))
    low, high = intervals.bounds(shares, np.concatenate(found), scale, effective)
    classes = sample.predictions.classes[task]
    return TaskShares(
        task=task,
        estimator=ready.way,
        classes=_listed(classes, naive, shares, low, high),
        images=len(sample.unit),
        units=units,
        unit=sample.kind,
        effective=round(effective, 1),
        unlike=ood_check(sample.predictions.logits[task], sample.weights, ready.known, effective),
        notes=(*ready.notes, *_few(units, sample.kind)),
    )


def prepare(sample: Sample, task: str, card: Mapping[str, Any] | None, estimator: Estimator) -> Ready:
    """Posteriors and answers of a task, and what the estimator can be with the card that there is."""
    predictions, classes = sample.predictions, sample.predictions.classes[task]
    known, notes, way = cards.read(card, classes), [], str(estimator)
    if known is None and estimator != "naive":
        way = "naive"
        notes.append("no task card for these classes: the counts stand uncorrected; `taskgraft calibrate` makes one")
    elif known is not None and estimator == "emq" and known.temperature is None:
        way = "acc"
        notes.append("the task card has no temperature (an old card): adjusted counts (ACC) from its confusion matrix")
    elif known is not None and estimator == "pacc" and known.lrs is None:
        way = "acc"
        notes.append("the task card has no mean posteriors (an old card): adjusted counts (ACC) from its confusion")
    if known is not None and way != "naive":
        thin = int((known.counts.sum(axis=1) < 5).sum())
        if thin:
            notes.append(f"{thin} of {len(classes)} classes have fewer than 5 images on the card")
    temperature = known.temperature if known and known.temperature else 1.0
    answered = np.zeros((len(sample.unit), len(classes) + 1))
    answered[np.arange(len(answered)), predicted_classes(predictions, task)] = 1  # -1 is the last column
    return Ready(known, probabilities(predictions.logits[task], temperature), answered, way, tuple(notes))


def _shares(
    ready: Ready,
    rows: Any,
    weights: Floats,
    point: Floats | None,
    rng: np.random.Generator | None = None,
) -> Floats:
    """Shares [R, K] of the images `rows` under weights [R, n]; with `point` and `rng`, one replicate each."""
    known = ready.known
    if known is None or ready.way == "naive":
        return (weights @ ready.answered[rows])[:, :-1]
    if ready.way == "emq":
        if point is None or rng is None:
            return em(ready.posteriors[rows], known.prior, weights)
        near = np.tile(0.95 * point + 0.05 * known.prior, (len(weights), 1))
        moved = em(ready.posteriors[rows], known.prior, weights, near, 150, 1e-5)
        return moved + cards.displacement(known.counts, point, len(weights), rng)[:, : len(point)]
    counts = table(known, ready.way)
    lrs = cards.smoothed(counts)[0]
    answered = weights @ (ready.posteriors if ready.way == "pacc" else ready.answered)[rows]
    if point is None or rng is None:
        return adjust(lrs, answered)
    return adjust(lrs, answered - cards.displacement(counts, point, len(weights), rng), 500, 1e-7)


def table(known: Known, way: str) -> Floats:
    """What the card counted, for PACC in posteriors [K, K], for ACC in answers [K, K + 1]."""
    if way == "pacc" and known.lrs is not None:
        return known.counts.sum(axis=1, keepdims=True) * known.lrs
    return known.counts


def measure_pair(
    sample: Sample,
    tasks: tuple[str, str],
    cards_of: Mapping[str, Mapping[str, Any]],
    estimator: Estimator = "emq",
) -> PairShares:
    """The shares of pairs of classes of two tasks, naive and corrected, with 95 % intervals.

    Errors of the two tasks are taken to be independent given the true pair.
    """
    first, second = (prepare(sample, task, cards_of.get(task), estimator) for task in tasks)
    way = first.way if first.way == second.way else "naive"
    rng = seeding.generator(0, "distribution", *tasks)
    scale = intervals.spread(sample.unit)
    naive = _counted(first, second, slice(None), sample.weights)
    point = _pair(way, first, second, slice(None), sample.weights, None)
    found, counted = [], []
    for draw in intervals.draws(sample.unit, sample.weights, PAIR_REPLICATES, rng):
        for weights in draw.weights:
            counted.append(_counted(first, second, draw.rows, weights).ravel())
            found.append(_pair(way, first, second, draw.rows, weights, point).ravel())
    replicates = np.array(found)
    if way != "naive":
        replicates += _pair_displacement(first, second, way, point, rng)
    units = int(sample.unit.max()) + 1
    effective = intervals.effective_size(naive.ravel(), np.array(counted), scale, units, len(sample.unit))
    low, high = intervals.bounds(point.ravel(), replicates, scale, effective)
    one, two = (sample.predictions.classes[task] for task in tasks)
    names = [f"{a} × {b}" for a in one for b in two]
    pairs = _listed(names, naive.ravel(), point.ravel(), low, high)
    kept = tuple(pair for pair in pairs if pair.share >= 1e-4 or pair.naive > 0)
    note = "errors of the two tasks are taken to be independent given the true pair"
    return PairShares(
        tasks=tasks, estimator=way, pairs=kept, notes=(note,) if way != "naive" else (*first.notes, *second.notes)
    )


def _pair(way: str, one: Ready, two: Ready, rows: Any, weights: Floats, point: Floats | None) -> Floats:
    if one.known is None or two.known is None or way == "naive":
        return _counted(one, two, rows, weights)
    if way == "emq":
        start = np.outer(one.known.prior, two.known.prior)
        near = start if point is None else 0.95 * point + 0.05 * start
        most = 500 if point is None else 60
        first, second = ((part.posteriors[rows], cast(Known, part.known).prior) for part in (one, two))
        return em_pair(first, second, weights, near, most)
    columns = [part.posteriors if way == "pacc" else part.answered for part in (one, two)]
    answered = columns[0][rows].T @ (columns[1][rows] * weights[:, None])
    lrs = [cards.smoothed(table(part, way))[0] for part in (one.known, two.known)]
    return adjust_pair(lrs[0], lrs[1], answered)


def _counted(one: Ready, two: Ready, rows: Any, weights: Floats) -> Floats:
    return one.answered[rows, :-1].T @ (two.answered[rows, :-1] * weights[:, None])


def _pair_displacement(one: Ready, two: Ready, way: str, point: Floats, rng: np.random.Generator) -> Floats:
    """What the cards' few images leave open of pairs, [R, K1 * K2]: each task's own, in proportion along the other."""
    moved = np.zeros((PAIR_REPLICATES, *point.shape))
    rows, columns = point.sum(axis=1), point.sum(axis=0)
    for axis, part, shares in ((1, one, rows), (2, two, columns)):
        assert part.known is not None
        change = cards.displacement(table(part.known, way), shares, PAIR_REPLICATES, rng)[:, : len(shares)]
        given = columns if axis == 1 else rows
        moved += np.einsum("rk,j->rkj", change, given) if axis == 1 else np.einsum("rj,k->rkj", change, given)
    return moved.reshape(PAIR_REPLICATES, -1)


def _listed(names: Sequence[str], *columns: Floats) -> tuple[ClassShare, ...]:
    found = zip(names, *(np.round(column, 6).tolist() for column in columns), strict=True)
    return tuple(ClassShare(name=name, naive=a, share=b, low=c, high=d) for name, a, b, c, d in found)


def _few(units: int, kind: str) -> tuple[str, ...]:
    if units >= FEW_UNITS:
        return ()
    return (f"only {units} {plural(kind, units)} to resample: the interval is rough",)


def plural(unit: str, count: int) -> str:
    """The word for so many units: "blocks of 10 s"."""
    first, space, rest = unit.partition(" ")
    return first + "s" * (count != 1) + space + rest
