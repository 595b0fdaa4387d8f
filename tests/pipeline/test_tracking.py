"""Trackers receive the metrics; whatever they do, the run ends as it would without them."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest

from taskgraft import Callbacks, TaskgraftError
from taskgraft.pipeline import tracking
from taskgraft.results.record import StepMetrics

LINES = [StepMetrics(step=step, lr=0.1, terms={"data": 1.0}, accuracy={"paint": 0.5}) for step in range(3)]


def track(out: Path, name: str = "tensorboard") -> list[str]:
    lines: list[str] = []
    with tracking.tracked(name, out, {"lr": 0.1}, Callbacks(info=lines.append)) as callbacks:
        for line in LINES:
            callbacks.on_metrics(line)
    return lines


def test_tensorboard_holds_every_value(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert track(tmp_path) == []
    folder = next((tmp_path / "tensorboard").rglob("events.*")).parent
    result = events.EventAccumulator(str(folder)).Reload()
    assert [(one.step, one.value) for one in result.Scalars("accuracy/paint")] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert set(result.Tags()["scalars"]) >= {"accuracy/paint", "loss/data", "lr"}


class Broken:
    """A tracker whose server is down."""

    def __init__(self, **arguments: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        raise ConnectionError("the server is down")

    def finish(self) -> None:
        pass


class Hanging(Broken):
    """A tracker whose server never answers."""

    over = threading.Event()

    def log(self, values: dict[str, float], step: int) -> None:
        self.over.wait(60)


@pytest.mark.parametrize(
    ("kind", "message"), [(Broken, "failed and is disabled: ConnectionError"), (Hanging, "did not finish")]
)
def test_a_tracker_that_is_down_costs_a_line(
    kind: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(__import__("accelerate.tracking", fromlist=[""]).LOGGER_TYPE_TO_CLASS, "tensorboard", kind)
    monkeypatch.setattr(tracking, "JOIN_TIMEOUT", 0.2)
    Hanging.over.clear()
    lines = track(tmp_path)
    Hanging.over.set()
    (line,) = lines
    assert message in line


def test_without_a_tracker_nothing_is_added(tmp_path: Path) -> None:
    callbacks = Callbacks()
    with tracking.tracked("", tmp_path, {}, callbacks) as same:
        assert same is callbacks


def test_an_unknown_or_missing_tracker_is_refused() -> None:
    with pytest.raises(TaskgraftError, match="available: tensorboard, mlflow, wandb"):
        tracking.check("excel")
    with pytest.raises(TaskgraftError, match="pip install mlflow") as caught:
        tracking.check("mlflow")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_trackers_name_the_extra_that_brings_accelerate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda requested: None if requested == "accelerate" else result(requested)
    )
    with pytest.raises(TaskgraftError, match=rf"^--track {name} needs accelerate.*'taskgraft\[track\]'$") as caught:
        tracking.check(name)
    assert caught.value.exit_code == 3
