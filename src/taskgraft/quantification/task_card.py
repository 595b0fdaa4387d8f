"""What an estimate reads of a task card, and what is noted there of a task's images; old cards lack most of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.metrics import probabilities

Floats = NDArray[np.float64]

LEVEL = 0.05  # of the card's images lie below the level that tells unlike images
DIGITS = 5


class Known(NamedTuple):
    """A card as arrays: counts [K, K + 1] of true class by answer, mean posteriors [K, K] by true class or None.

    `prior` [K] are the class shares under which the posteriors hold, `level` the energy below which LEVEL of the
    card's images lie, None where the card does not say.
    """

    temperature: float | None
    counts: Floats
    lrs: Floats | None
    prior: Floats
    level: float | None


def describe(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """What a card notes for later estimates, of labeled images: mean posterior by true class, and the energy's level.

    `mean_posterior` [K, K]; a class without images has a row of zeros.
    """
    known = labels >= 0
    logits, labels = logits[known], labels[known]
    size = logits.shape[1]
    sums = np.zeros((size, size))
    np.add.at(sums, labels, probabilities(logits, temperature))
    rows = sums / np.maximum(np.bincount(labels, minlength=size), 1)[:, None]
    return {
        "mean_posterior": [[round(value, DIGITS) for value in row] for row in rows.tolist()],
        "energy_level": round(float(np.quantile(energy(logits), LEVEL)), DIGITS),
    }


def energy(logits: NDArray[np.float32]) -> Floats:
    """The energy log sum exp of logits [N, K]: low for images unlike those of the training (Liu et al. 2020)."""
    top = logits.max(axis=1).astype(np.float64)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def read(card: Mapping[str, Any] | None, classes: Sequence[str]) -> Known | None:
    """The card of a task as arrays; None where there is none for just these classes."""
    size = len(classes)
    if not card or list(card.get("classes", ())) != list(classes):
        return None
    counts = np.asarray(card.get("confusion", ()), float)
    if counts.shape != (size, size + 1) or not counts.sum():
        return None
    lrs = np.asarray(card.get("mean_posterior", ()), float)
    return Known(
        card.get("temperature"),
        counts,
        _whole(lrs) if lrs.shape == (size, size) else None,
        _prior(card, classes, counts),
        card.get("energy_level"),
    )


def _prior(card: Mapping[str, Any], classes: Sequence[str], counts: Floats) -> Floats:
    """Class shares in training where the card has them, else those of the images that it was measured on."""
    trained = card.get("train_counts") or {}
    known = np.array([trained.get(name, 0) for name in classes], float)
    found = known if (known > 0).all() else counts.sum(axis=1)
    return (found + 1) / (found + 1).sum()


def _whole(lrs: Floats) -> Floats:
    """Rows that sum to 1; of a class without images its own answer is assumed, as QuaPy does."""
    sums = lrs.sum(axis=1, keepdims=True)
    return np.where(sums > 0, lrs / np.maximum(sums, 1e-9), np.eye(len(lrs)))


def smoothed(counts: Floats) -> tuple[Floats, Floats]:
    """Answers [K, J] of each true class as shares with two images of prior, and how many images stand behind a row.

    The prior has the overall accuracy on its own class and the rest as all answers lie: so a class with few images on
    the card is near to the others, and none is known perfectly.
    """
    size = counts.shape[0]
    right = float(np.trace(counts[:, :size]) / counts.sum())
    base = counts + 2 * (right * np.eye(*counts.shape) + (1 - right) * counts.sum(axis=0) / counts.sum())
    sums = base.sum(axis=1)
    return base / sums[:, None], sums


def displacement(counts: Floats, shares: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """How far answers [R, J] may be from what the card says of classes in these `shares` [K], as it was measured
    on so few images: sum_k share_k (drawn row k - row k), each row a Dirichlet of its counts.
    """
    lrs, sums = smoothed(counts)
    moved = np.zeros((replicates, counts.shape[1]))
    for k in np.flatnonzero(shares > 1e-6):
        drawn = rng.standard_gamma(lrs[k] * sums[k] + 1e-9, size=(replicates, counts.shape[1]))
        moved += shares[k] * (drawn / drawn.sum(axis=1, keepdims=True) - lrs[k])
    return moved
