"""What an estimate reads from a task card, and what a card records for it; cards of older versions lack some of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft.metrics import probabilities
from taskgraft.quantification.bootstrap import wilson_limits

Floats = NDArray[np.float64]

LOW_FRACTION = 0.05  # of the card's images have an energy below its `energy_level`
OOD_FACTOR = 3.0  # times LOW_FRACTION: so many images of low energy are not chance, nor another mix of classes
DIGITS = 5
CLEAR_SHIFT = 3.0  # times the distance that chance explains, at which half of a correction is applied (measured)


class CardData(NamedTuple):
    """A card as arrays: counts [K, K + 1] by true and predicted class, mean posteriors [K, K] by true class or None.

    `prior` [K] is the prevalence under which the posteriors hold, `energy_level` that below which LOW_FRACTION of the
    card's images lie, None where the card does not say.
    """

    temperature: float | None
    counts: Floats
    rates: Floats | None
    prior: Floats
    energy_level: float | None


def describe_for_quantification(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> dict[str, Any]:
    """Return what a card records for later estimates: mean posterior by true class, and the level of the energy.

    `mean_posterior` [K, K]; a class without images has a row of zeros.
    """
    labeled = labels >= 0
    logits, labels = logits[labeled], labels[labeled]
    size = logits.shape[1]
    sums = np.zeros((size, size))
    np.add.at(sums, labels, probabilities(logits, temperature))
    rows = sums / np.maximum(np.bincount(labels, minlength=size), 1)[:, None]
    return {
        "mean_posterior": [[round(value, DIGITS) for value in row] for row in rows.tolist()],
        "energy_level": round(float(np.quantile(compute_energy(logits), LOW_FRACTION)), DIGITS),
    }


def compute_energy(logits: NDArray[np.float32]) -> Floats:
    """Return log sum exp of logits [N, K], low for out-of-distribution images (the negative energy of Liu et al.
    2020).
    """
    top = logits.max(axis=1).astype(np.float64)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def read_card(card: Mapping[str, Any] | None, classes: Sequence[str]) -> CardData | None:
    """Return the card of a task as arrays; None where there is none for exactly these classes."""
    size = len(classes)
    if not card or list(card.get("classes", ())) != list(classes):
        return None
    counts = np.asarray(card.get("confusion", ()), float)
    if counts.shape != (size, size + 1) or not counts.sum():
        return None
    rates = np.asarray(card.get("mean_posterior", ()), float)
    return CardData(
        card.get("temperature"),
        counts,
        _normalize_rows(rates) if rates.shape == (size, size) else None,
        _prior(card, classes, counts),
        card.get("energy_level"),
    )


def _prior(card: Mapping[str, Any], classes: Sequence[str], counts: Floats) -> Floats:
    """Class frequencies in training where the card has them, else those of the images that it was measured on."""
    trained = card.get("train_counts") or {}
    frequencies = np.array([trained.get(name, 0) for name in classes], float)
    if not (frequencies > 0).all():
        frequencies = counts.sum(axis=1)
    return (frequencies + 1) / (frequencies + 1).sum()


def _normalize_rows(rates: Floats) -> Floats:
    """Rows that sum to 1; a class without images is assumed to be predicted correctly, as QuaPy does."""
    sums = rates.sum(axis=1, keepdims=True)
    return np.where(sums > 0, rates / np.maximum(sums, 1e-9), np.eye(len(rates)))


def smooth_rates(counts: Floats) -> tuple[Floats, Floats]:
    """Return the distribution of predictions [K, J] by true class, smoothed by two prior images, and each row's images.

    The prior has the overall accuracy on the true class and spreads the rest as all predictions are distributed, which
    draws classes with few images toward the others.
    """
    size = counts.shape[0]
    accuracy = float(np.trace(counts[:, :size]) / counts.sum())
    smoothed = counts + 2 * (accuracy * np.eye(*counts.shape) + (1 - accuracy) * counts.sum(axis=0) / counts.sum())
    sums = smoothed.sum(axis=1)
    return smoothed / sums[:, None], sums


def draw_card_errors(counts: Floats, prevalence: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """Draw how far mean outputs [R, J] may be from the card's, which was measured on few images.

    For a prevalence q [K] that is sum_k q_k (drawn row k - row k), each row a Dirichlet of its counts.
    """
    rates, sums = smooth_rates(counts)
    errors = np.zeros((replicates, counts.shape[1]))
    for k in np.flatnonzero(prevalence > 1e-6):
        drawn = rng.standard_gamma(rates[k] * sums[k] + 1e-9, size=(replicates, counts.shape[1]))
        errors += prevalence[k] * (drawn / drawn.sum(axis=1, keepdims=True) - rates[k])
    return errors


def measure_shift(counted: Floats, counts: Floats, effective_size: float) -> float:
    """Return the squared distance of counted prevalences [K] from the card's, relative to that of chance.

    About 1 where sample and card have the same prevalence, whatever the errors of the model.

    Args:
        counted: the naive counts of the sample, as fractions.
        counts: the card's images by true and predicted class [K, K + 1].
        effective_size: the effective number of images of the sample.
    """
    total = counts.sum()
    expected = counts.sum(axis=0)[:-1] / total
    chance = float((expected * (1 - expected)).sum()) * (1 / effective_size + 1 / total)
    return float(np.square(counted - expected).sum()) / max(chance, 1e-12)


def weigh_correction(shift: float) -> float:
    """Return how much of a correction to apply, from 0 (no shift: the model's errors cancel) to 1 (a clear shift)."""
    return shift**4 / (shift**4 + CLEAR_SHIFT**4)


class OODCheck(BaseModel):
    """Whether images look like those that the card was measured on; `flag` is None where the card cannot tell."""

    model_config = ConfigDict(frozen=True)
    flag: bool | None
    fraction: float | None = None  # of images below the card's energy level; `expected` where nothing has changed
    expected: float | None = None
    text: str


def check_ood(logits: NDArray[np.float32], weights: Floats, card: CardData | None, effective_size: float) -> OODCheck:
    """Compare the fraction of images of low energy with the card's own.

    It is flagged where even the lower 95 % limit of the fraction is above OOD_FACTOR * LOW_FRACTION.

    Args:
        logits: of one task [N, K].
        weights: of the images [N], summing to 1.
        card: the task's card.
        effective_size: the effective number of images.
    """
    if card is None or card.energy_level is None:
        return OODCheck(flag=None, text="the task card has no energy level, so out-of-distribution images go unnoticed")
    fraction = float((weights * (compute_energy(logits) < card.energy_level)).sum())
    flag = bool(wilson_limits(fraction, effective_size)[0] > OOD_FACTOR * LOW_FRACTION)
    text = f"{fraction:.0%} of images look out-of-distribution ({LOW_FRACTION:.0%} expected)"
    if flag:
        text += "; do not trust these estimates"
    return OODCheck(flag=flag, fraction=round(fraction, 4), expected=LOW_FRACTION, text=text)
