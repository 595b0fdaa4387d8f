"""Every number of the report on cases that can be counted by hand, and intervals on simulated ones."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from sklearn.metrics import f1_score, top_k_accuracy_score

from taskgraft import metrics
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import StepMetrics


def predictions(softmax: str = "per-task") -> Predictions:
    a = [[3, 1], [3, 1], [1, 3], [0, 2], [2, 0]]
    b = [[0, 0, 4], [0, 0, 1], [0, 2, 1], [0, 5, 0], [2, 1, 0]]
    return Predictions(
        {"a": ("x", "y"), "b": ("u", "v", "w")},
        softmax,
        tuple("12345"),
        {"a": np.array([0, 1, 1, 1, -1]), "b": np.array([2, 2, 0, 1, -1])},
        {"a": np.array(a, np.float32), "b": np.array(b, np.float32)},
    )


def test_predicted_classes() -> None:
    assert metrics.predicted_classes(predictions(), "a").tolist() == [0, 0, 1, 1, 0]
    assert metrics.predicted_classes(predictions(), "b").tolist() == [2, 2, 1, 1, 0]
    assert metrics.correct(predictions(), "a").tolist() == [1, 0, 1, 1]
    assert metrics.accuracy(predictions(), "a") == 0.75
    assert metrics.accuracy(predictions(), "b") == 0.75


def test_predicted_classes_under_joint_softmax() -> None:
    assert metrics.predicted_classes(predictions("joint"), "a").tolist() == [-1, 0, 1, -1, 0]
    assert metrics.accuracy(predictions("joint"), "a") == 0.25
    assert metrics.predicted_classes(predictions("joint"), "b").tolist() == [2, 2, 1, 1, 0]  # the newest is asked alone
    assert metrics.accuracy(predictions("joint"), "b") == 0.75


def answers(labels: list[int], predicted: list[int], classes: tuple[str, ...]) -> Predictions:
    logits = np.eye(len(classes), dtype=np.float32)[predicted]
    names = tuple(map(str, range(len(labels))))
    return Predictions({"t": classes}, "per-task", names, {"t": np.array(labels)}, {"t": logits})


def test_majority_share_is_what_accuracy_has_to_beat() -> None:
    cars = answers([0] * 26 + [1] * 3 + [-1], [0] * 30, ("silver", "white", "red"))
    balance = metrics.class_balance(cars, "t")
    assert (balance.chance, balance.majority) == (26 / 29, "silver")
    assert (balance.balanced, balance.uneven, balance.never_predicted) == (0.5, True, ("white",))
    even = metrics.class_balance(answers([0, 1, 0, 1], [0, 1, 1, 1], ("x", "y")), "t")
    assert (even.chance, even.balanced, even.uneven, even.never_predicted) == (0.5, 0.75, False, ())


def test_images_of_one_class_are_compared_with_guessing_among_all() -> None:
    assert metrics.class_balance(answers([2, 2], [2, 2], ("x", "y", "z")), "t").chance == 1 / 3
    with pytest.raises(ValueError, match="nothing to measure"):
        metrics.class_balance(answers([-1], [0], ("x", "y")), "t")


def test_newest_of_three_tasks() -> None:
    logits = {"a": [[1, 0], [9, 0]], "b": [[0, 2], [0, 5]], "c": [[3, 0], [0, 1]]}
    result = Predictions(
        dict.fromkeys(logits, ("x", "y")), "joint", ("1", "2"), {},
        {task: np.array(rows, np.float32) for task, rows in logits.items()},
    )  # fmt: skip
    assert metrics.predicted_classes(result, "a").tolist() == [-1, 0]
    assert metrics.predicted_classes(result, "b").tolist() == [-1, -1]
    assert metrics.predicted_classes(result, "c").tolist() == [0, 1]


def test_confusion_matrix() -> None:
    assert metrics.confusion_matrix(predictions(), "a").tolist() == [[1, 0, 0], [1, 2, 0]]
    assert metrics.confusion_matrix(predictions("joint"), "a").tolist() == [[0, 0, 1], [1, 1, 1]]
    assert metrics.confusion_matrix(predictions("joint"), "b").tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]]


def test_accuracy_without_labels() -> None:
    empty = predictions()._replace(labels={"a": np.full(5, -1)})
    with pytest.raises(ValueError, match="no image is labeled for task 'a'"):
        metrics.accuracy(empty, "a")
    with pytest.raises(ValueError, match=r"^an interval needs at least one value$"):
        metrics.bootstrap_interval(np.array([]))


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(-1, 4, 60), rng.normal(size=(60, 6)).astype(np.float32)
    labels[labels == 2] = 3  # a class that no image has
    found = Predictions({"t": tuple("abcdef")}, "per-task", tuple(map(str, range(60))), {"t": labels}, {"t": logits})
    rows = labels >= 0
    expected = f1_score(labels[rows], logits[rows].argmax(1), average="macro")
    assert metrics.macro_f1(found, "t") == pytest.approx(expected)
    with pytest.raises(ValueError, match="no image is labeled"):
        metrics.macro_f1(found._replace(labels={"t": np.full(60, -1)}), "t")


@pytest.mark.parametrize("softmax", ["per-task", "joint"])
def test_top_5_is_that_of_scikit_learn(softmax: Literal["per-task", "joint"]) -> None:
    rng = np.random.default_rng(0)
    logits = {"old": rng.normal(size=(80, 12)).astype(np.float32), "new": rng.normal(size=(80, 3)).astype(np.float32)}
    labels = rng.integers(0, 12, 80)
    classes = {"old": tuple("abcdefghijkl"), "new": ("x", "y", "z")}
    found = Predictions(classes, softmax, tuple(map(str, range(80))), {"old": labels}, logits)
    scores = logits["old"] if softmax == "per-task" else np.concatenate([*logits.values()], axis=1)
    expected = top_k_accuracy_score(labels, scores, k=5, labels=range(scores.shape[1]))
    assert metrics.top_5(found, "old") == pytest.approx(expected)
    assert metrics.top_5(found._replace(labels={"new": labels % 3}), "new") is None, "guessing among three is no feat"


def test_agreement() -> None:
    child = predictions()._replace(logits={**predictions().logits, "a": predictions().logits["a"][::-1]})
    assert metrics.agreement(predictions(), predictions(), "a").tolist() == [1] * 5
    assert metrics.agreement(predictions(), child, "a").tolist() == [1, 0, 1, 0, 1]


def line(step: int, **accuracy: float) -> StepMetrics:
    return StepMetrics(step=step, accuracy=accuracy)


def test_score_is_the_first_peak() -> None:
    history = [line(0, a=1.0, b=1.0), line(5, a=0.9, b=0.1), line(10, a=0.5, b=0.7), line(15, a=0.6, b=0.6)]
    assert metrics.score(history, ["a", "b"]) == (pytest.approx(0.6), 10)
    assert metrics.score(history, ["a"]) == (0.9, 5)
    assert metrics.score(history, ["b"]) == (0.7, 10)


def test_score_counts_the_first_step() -> None:
    assert metrics.score([line(0, a=0.9), line(1, a=0.4)], ["a"]) == (0.4, 1)


def test_no_score_without_all_tasks() -> None:
    assert metrics.score([line(5, a=0.9), line(10, b=0.5)], ["a", "b"]) is None
    assert metrics.score([line(5, a=0.9), line(10, a=0.1, b=0.5)], ["a", "b"]) == (0.3, 10)
    assert metrics.score([line(0, a=0.9)], ["a"]) is None
    assert metrics.score([], ["a"]) is None


@pytest.mark.parametrize("kind", ["shares", "differences", "values"])
def test_bootstrap_interval_covers(kind: str) -> None:
    rng, n, rounds = np.random.default_rng(0), 100, 60 if kind == "values" else 400
    draw = {
        "shares": (lambda: (rng.random(n) < 0.7).astype(float), 0.7),
        "differences": (lambda: rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.6, 0.3]), 0.2),
        "values": (lambda: rng.normal(3.0, 2.0, n), 3.0),
    }[kind]
    result = [metrics.bootstrap_interval(draw[0](), seed) for seed in range(rounds)]
    covered = np.mean([one.low <= draw[1] <= one.high for one in result])
    assert 0.88 <= covered <= 0.99
    assert all(one.low <= one.mean <= one.high and one.n == n for one in result)
    width = np.mean([one.high - one.low for one in result])
    spread = {"shares": 0.458, "differences": 0.6, "values": 2.0}[kind]
    assert width == pytest.approx(2 * 1.96 * spread / math.sqrt(n), rel=0.1)


def test_bootstrap_interval_is_deterministic() -> None:
    values = np.random.default_rng(0).random(40)
    assert (
        metrics.bootstrap_interval(values, 1)
        == metrics.bootstrap_interval(values, 1)
        != metrics.bootstrap_interval(values, 2)
    )
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values, 0)
    sure = metrics.bootstrap_interval(np.ones(5))
    assert (sure.mean, sure.low, sure.high) == (1, 1, 1)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_bootstrap_draws_every_value(place: int) -> None:
    values = np.full(3, 0.5)
    values[place] = 100.5
    result = metrics.bootstrap_interval(values)
    assert (result.low, result.high) == (0.5, 100.5)  # three times the same value: 1 draw of 27, more than 2.5 %


def test_t_interval() -> None:
    mean, half = metrics.t_interval([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-6)
    assert math.isnan(metrics.t_interval([0.5])[1])
    assert metrics.t_interval([0.5, 0.5]) == (0.5, 0.0)


@pytest.mark.parametrize("count", range(2, 60))
def test_t_interval_matches_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).random(count)
    preprocessing = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    assert metrics.t_interval(list(values))[1] == pytest.approx(preprocessing, rel=0.01)


def logits_of(confidence: list[float]) -> np.ndarray:
    return np.log(np.array([[share, 1 - share] for share in confidence])).astype(np.float32)


def test_expected_calibration_error() -> None:
    logits = logits_of([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    labels = np.array([0, 0, 0, 1, 0, 1])  # 75 % right at 90 %, 50 % right at 60 %
    preprocessing = 4 / 6 * 0.15 + 2 / 6 * 0.1
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(preprocessing, abs=1e-6)
    more = np.concatenate([logits, logits_of([0.99])])
    assert metrics.expected_calibration_error(more, np.append(labels, -1)) == pytest.approx(preprocessing, abs=1e-6)
    assert metrics.expected_calibration_error(np.array([[50, 0]], np.float32), np.array([0])) == pytest.approx(
        0, abs=1e-9
    )
    with pytest.raises(ValueError, match=r"^calibration needs labeled images$"):
        metrics.expected_calibration_error(logits, np.full(6, -1))


def test_expected_calibration_error_with_temperature() -> None:
    logits, labels = logits_of([0.9, 0.9, 0.6, 0.6]), np.array([0, 1, 0, 1])  # both bins are right half of the time
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1, abs=1e-6)
    softened = [math.sqrt(odds) / (1 + math.sqrt(odds)) for odds in (9.0, 1.5)]  # 0.75 and 0.55
    preprocessing = 0.5 * (softened[0] - 0.5) + 0.5 * (softened[1] - 0.5)
    assert metrics.expected_calibration_error(logits, labels, 2.0) == pytest.approx(preprocessing, abs=1e-6)


def test_probabilities_with_temperature() -> None:
    logits = np.array([[2.0, 0.0]], np.float32)
    assert metrics.probabilities(logits, 2.0)[0].tolist() == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert metrics.probabilities(logits).tolist() == metrics.probabilities(logits, 1.0).tolist()
    assert metrics.probabilities(logits).dtype == np.float64
    huge = metrics.probabilities(np.array([[1e4, -1e4]], np.float32))
    assert huge.tolist() == [[1.0, 0.0]]


def test_gap() -> None:
    assert metrics.gap(0.7, {"a": 0.9, "b": 0.7}) == pytest.approx(0.1)


def test_agreement_stands_in_only_where_that_is_asked_for() -> None:
    lines = [
        StepMetrics(step=step, accuracy={"a": a}, agreement={"b": b}) for step, a, b in ((5, 0.9, 0.2), (9, 0.8, 0.6))
    ]
    assert metrics.score(lines, ["a", "b"]) is None
    assert metrics.score(lines, ["a", "b"], with_agreement=True) == (pytest.approx(0.7), 9)
