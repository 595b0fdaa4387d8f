"""Shares with intervals from simulated answers: right on average, right often enough, honest where the card is thin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taskgraft.pipeline.measuring import build_task_card
from taskgraft.quantification import Sample, TaskPrevalence, estimate_joint_prevalence, estimate_prevalence
from taskgraft.results.predictions import Predictions

CLASSES = ("a", "b", "c", "d")
SIZE = len(CLASSES)


def answers(labels: np.ndarray, seed: int, noise: float = 1.0, factor: float = 1.6) -> np.ndarray:
    """Logits of a model that is right four times of five, and too sure of itself."""
    rng = np.random.default_rng(seed)
    seen = 2.0 * np.eye(SIZE)[labels] + rng.normal(0, noise, (len(labels), SIZE))
    return (factor * 2.0 * seen).astype(np.float32)


def predicted(logits: np.ndarray, labels: np.ndarray | None = None, softmax: str = "per-task") -> Predictions:
    ids = tuple(f"{row}.png" for row in range(len(logits)))
    return Predictions({"kind": CLASSES}, softmax, ids, {} if labels is None else {"kind": labels}, {"kind": logits})


def card_of(seed: int = 0, count: int = 400) -> dict[str, Any]:
    labels = np.arange(count) % SIZE
    return build_task_card(predicted(answers(labels, seed), labels), "kind", {}, "a simulation")


def alone(logits: np.ndarray) -> Sample:
    rows = np.arange(len(logits))
    return Sample(predicted(logits), rows, np.full(len(rows), 1 / len(rows)), "image")


def column(result: TaskPrevalence, name: str) -> np.ndarray:
    return np.array([getattr(one, name) for one in result.classes])


WANTED = np.array([0.75, 0.15, 0.1, 0.0])


@pytest.mark.parametrize("estimator", ["auto", "emq", "pacc"])
def test_intervals_hold_what_they_promise_and_errors_are_halved(estimator: Any) -> None:
    held, errors, counted = [], [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        labels = rng.choice(SIZE, 400, p=WANTED)
        result = estimate_prevalence(alone(answers(labels, 1000 + seed)), "kind", card_of(seed), estimator)
        assert result.estimator == estimator
        assert (result.images, result.units, result.effective_size) == (400, 400, 400)
        low, high = column(result, "low"), column(result, "high")
        held += [*((low <= WANTED) & (high >= WANTED))]
        errors.append(np.abs(column(result, "prevalence") - WANTED).mean())
        counted.append(np.abs(column(result, "naive") - WANTED).mean())
    assert 0.9 <= np.mean(held) <= 1.0
    assert np.mean(errors) < 0.5 * np.mean(counted)


def test_counts_stand_where_nothing_has_shifted() -> None:
    """The model's errors cancel there, and a correction would add its own noise."""
    even = np.full(SIZE, 0.25)
    wrong: dict[str, list[float]] = {"auto": [], "naive": [], "emq": []}
    for seed in range(10):
        labels = np.random.default_rng(seed).choice(SIZE, 108, p=even)
        sample, card = alone(answers(labels, 3000 + seed)), card_of(seed, 80)
        for estimator, errors in wrong.items():
            result = estimate_prevalence(sample, "kind", card, estimator)  # pyright: ignore[reportArgumentType]
            errors.append(float(np.abs(column(result, "prevalence") - even).mean()))
            if estimator == "auto" and np.allclose(column(result, "prevalence"), column(result, "naive"), atol=0.002):
                assert any("no more than chance" in note for note in result.notes)
    assert np.mean(wrong["auto"]) < 1.05 * np.mean(wrong["naive"]) < np.mean(wrong["emq"])


@pytest.mark.parametrize("wanted", [(1.0, 0.0, 0.0, 0.0), (0.8, 0.2, 0.0, 0.0), (0.6, 0.2, 0.1, 0.1)])
def test_emq_counts_the_more_the_fewer_classes_are_there(wanted: tuple[float, ...]) -> None:
    labels = np.random.default_rng(3).choice(SIZE, 2000, p=wanted)
    sample = alone(answers(labels, 1003))
    auto, emq, pacc = (
        column(estimate_prevalence(sample, "kind", card_of(), estimator), "prevalence")
        for estimator in ("auto", "emq", "pacc")
    )
    classes = np.exp(-sum(share * np.log(share) for share in emq if share > 0))
    share = 0.5 + 0.5 / (1 + ((classes - 1) / 4) ** 2)
    np.testing.assert_allclose(auto, share * emq + (1 - share) * pacc, atol=1e-3)
    assert np.abs(emq - pacc).max() > 0.003, "the two must differ for this to mean anything"


def test_a_small_sample_is_said() -> None:
    labels = np.random.default_rng(0).choice(SIZE, 12)
    result = estimate_prevalence(alone(answers(labels, 1)), "kind", card_of())
    assert any("12 images for 4 classes" in note for note in result.notes)


def test_frames_of_a_track_are_not_independent() -> None:
    tracks, frames = 40, 12
    held: dict[str, list[bool]] = {"track": [], "image": []}
    sizes = {}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = rng.choice(SIZE, tracks, p=[0.4, 0.3, 0.2, 0.1])
        logits = np.repeat(answers(labels, 2000 + seed), frames, axis=0)
        logits += rng.normal(0, 0.3, logits.shape).astype(np.float32)
        for kind in held:
            unit = np.repeat(np.arange(tracks), frames) if kind == "track" else np.arange(tracks * frames)
            sample = Sample(predicted(logits), unit, np.full(len(unit), 1 / len(unit)), kind)
            result = estimate_prevalence(sample, "kind", card_of(seed))
            preprocessing = np.array([0.4, 0.3, 0.2, 0.1])
            held[kind] += [*((column(result, "low") <= preprocessing) & (preprocessing <= column(result, "high")))]
            sizes[kind] = result.effective_size
    assert np.mean(held["track"]) >= 0.9
    assert np.mean(held["image"]) < 0.75
    assert sizes["track"] < 1.4 * tracks
    assert sizes["image"] == tracks * frames


def test_a_track_counts_once_however_long_it_is() -> None:
    labels = np.array([0] * 50 + [1] * 1 + [2] * 1)  # one vehicle that stays, two that pass
    logits = 8 * np.eye(SIZE, dtype=np.float32)[labels]
    unit = np.array([0] * 50 + [1, 2])
    weights = 1 / np.bincount(unit)[unit]
    result = estimate_prevalence(Sample(predicted(logits), unit, weights / weights.sum(), "track"), "kind", None)
    assert column(result, "naive") == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-6)
    assert any("only 3 tracks" in note for note in result.notes)


def test_a_class_that_was_not_met_may_still_be_there() -> None:
    labels = np.zeros(30, int)
    result = estimate_prevalence(alone(8 * np.eye(SIZE, dtype=np.float32)[labels]), "kind", None, "naive")
    assert column(result, "prevalence") == pytest.approx([1, 0, 0, 0])
    assert column(result, "high")[1] == pytest.approx(3.84 / 33.84, abs=0.01)  # Wilson's limit for none of 30
    assert column(result, "low")[0] == 1.0


def test_an_old_card_still_corrects() -> None:
    labels = np.random.default_rng(1).choice(SIZE, 2000, p=WANTED)
    old = {name: value for name, value in card_of().items() if name in ("classes", "confusion", "accuracy")}
    result = estimate_prevalence(alone(answers(labels, 5)), "kind", old)
    assert result.estimator == "acc"
    assert any("old card" in note for note in result.notes)
    assert result.ood.flag is None
    error, counted = (np.abs(column(result, name) - WANTED).mean() for name in ("prevalence", "naive"))
    assert error < 0.6 * counted


@pytest.mark.parametrize("card", [None, {"classes": ["x", "y"], "confusion": [[1, 0, 0], [0, 1, 0]]}])
def test_without_a_card_the_count_stands_and_says_so(card: dict[str, Any] | None) -> None:
    result = estimate_prevalence(alone(answers(np.arange(40) % SIZE, 0)), "kind", card)
    assert result.estimator == "naive"
    assert column(result, "prevalence") == pytest.approx(column(result, "naive"))
    assert any("no task card" in note for note in result.notes)


def test_strange_images_are_flagged_and_a_shift_of_classes_is_not() -> None:
    known = card_of()
    shifted = answers(np.random.default_rng(2).choice(SIZE, 300, p=WANTED), 7)
    assert estimate_prevalence(alone(shifted), "kind", known).ood.flag is False
    strange = np.random.default_rng(3).normal(0, 0.5, (300, SIZE)).astype(np.float32) - 2
    result = estimate_prevalence(alone(strange), "kind", known).ood
    assert result.flag is True
    assert result.fraction is not None
    assert result.fraction > 0.9
    assert "do not trust" in result.text


def test_many_images_take_no_more_work_and_give_the_same_width() -> None:
    labels = np.arange(4000) % SIZE
    few, many = answers(labels, 0), answers(np.tile(labels, 3), 1)
    known = card_of(count=4000)
    narrow, wide = (estimate_prevalence(alone(logits), "kind", known, "pacc") for logits in (many, few))
    ratio = (column(narrow, "high") - column(narrow, "low")).mean() / (
        column(wide, "high") - column(wide, "low")
    ).mean()
    assert 0.55 < ratio < 0.95  # between 3 ** -0.5 and the card's own share, which more images do not lower


def test_the_same_sample_gives_the_same_interval() -> None:
    sample = alone(answers(np.arange(100) % SIZE, 0))
    assert estimate_prevalence(sample, "kind", card_of()) == estimate_prevalence(sample, "kind", card_of())


def test_answers_lost_to_another_task_are_counted_as_lost() -> None:
    labels = np.arange(400) % SIZE
    own, other = answers(labels, 0), np.full((400, 2), -50, np.float32)
    lost = (labels == 0) & (np.arange(400) < 200)  # half of class a is answered by the other task
    other[lost] = 50
    both = Predictions(
        {"kind": CLASSES, "new": ("x", "y")},
        "joint",
        tuple(map(str, labels)),
        {"kind": labels},
        {"kind": own, "new": other},
    )
    known = {"classes": list(CLASSES), "confusion": build_task_card(both, "kind", {}, "")["confusion"]}
    rows = np.arange(400)
    result = estimate_prevalence(Sample(both._replace(labels={}), rows, np.full(400, 1 / 400), "image"), "kind", known)
    assert column(result, "naive").sum() == pytest.approx(1 - lost.mean(), abs=1e-5)
    assert result.estimator == "acc"
    assert column(result, "prevalence") == pytest.approx(np.full(4, 0.25), abs=0.03)


@pytest.mark.parametrize("estimator", ["auto", "emq", "pacc", "naive"])
def test_pairs_have_intervals(estimator: Any) -> None:
    rng = np.random.default_rng(4)
    joint = np.zeros((SIZE, SIZE))
    joint[0, 0], joint[1, 1], joint[2, 0] = 0.5, 0.3, 0.2
    cells = rng.choice(SIZE * SIZE, 500, p=joint.ravel())
    logits = {"kind": answers(cells // SIZE, 1), "other": answers(cells % SIZE, 2)}
    both = Predictions(dict.fromkeys(logits, CLASSES), "per-task", tuple(map(str, range(500))), {}, logits)
    sample = Sample(both, np.arange(500), np.full(500, 1 / 500), "image")
    result = estimate_joint_prevalence(sample, ("kind", "other"), {"kind": card_of(0), "other": card_of(1)}, estimator)
    pairs = {one.name: one for one in result.pairs}
    preprocessing = {"a × a": 0.5, "b × b": 0.3, "c × a": 0.2, "d × d": 0.0}
    if estimator == "emq":  # PACC's pairs are held back by all the pairs that may not be below 0
        for name, share in preprocessing.items():
            one = pairs.get(name)
            assert (one.low <= share <= one.high) if one else share == 0
    assert sum(one.prevalence for one in result.pairs) == pytest.approx(1, abs=0.02)
    wrong = sum(abs((pairs[name].prevalence if name in pairs else 0) - share) for name, share in preprocessing.items())
    assert (wrong > 0.2) == (estimator == "naive")
