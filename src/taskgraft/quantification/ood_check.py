"""Whether images look unlike those that a task card was measured on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from taskgraft.quantification.intervals import Z
from taskgraft.quantification.results import Unlike
from taskgraft.quantification.task_card import LEVEL, Known, energy

Floats = NDArray[np.float64]

TIMES = 3.0  # times the expected share of images of low energy: that many are not chance, nor another mix of classes


def ood_check(logits: NDArray[np.float32], weights: Floats, known: Known | None, effective: float) -> Unlike:
    """Compare the share of images of low energy with the card's own LEVEL.

    The energy log sum exp(logits) is low for images unlike those of the training (Liu et al. 2020). Flagged where
    even the lower 95 % limit of the share (Wilson, for the effective sample size) is above TIMES * LEVEL.
    """
    if known is None or known.level is None:
        return Unlike(flag=None, text="the task card does not say how its images look to the model")
    share = float((weights * (energy(logits) < known.level)).sum())
    square = Z**2 / effective
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * (share * (1 - share) / effective + square / (4 * effective)) ** 0.5
    flag = middle - half > TIMES * LEVEL
    text = f"{share:.0%} of the images have a lower energy than {1 - LEVEL:.0%} of the card's ({LEVEL:.0%} expected)"
    if flag:
        text += ": many look unlike anything that the card was measured on; do not trust the shares"
    return Unlike(flag=bool(flag), share=round(share, 4), expected=LEVEL, text=text)
