"""What both benchmarks share: MNIST in memory, a file of finished runs that can be resumed, means and intervals."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import taskgraft
from taskgraft.metrics import t_interval

RESULTS = Path(__file__).parent / "results"
CLEAR = 0.5  # points by which an accuracy must lie below the best one to count as fallen
Entry = dict[str, Any]


class Digits(NamedTuple):
    """MNIST as rows of 784 numbers in [0, 1], with labels 0 to 9."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def mnist(path: Path) -> Digits:
    with np.load(path) as file:
        x_train, x_test = (
            torch.from_numpy(file[f"x_{part}"].reshape(-1, 784)).float() / 255 for part in ("train", "test")
        )
        y_train, y_test = (torch.from_numpy(file[f"y_{part}"]).long() for part in ("train", "test"))
    return Digits(x_train, y_train, x_test, y_test)


def mlp(outputs: int, seed: int) -> nn.Sequential:
    """784-400-400-outputs with torch's own initial weights, drawn from the seed; the head is layer "4"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, outputs))


def accuracy(classifier: nn.Module, task: str, pixels: Tensor, labels: Tensor) -> float:
    """Per cent of right answers."""
    classifier.eval()
    with torch.inference_mode():
        return 100 * (classifier(pixels)[task].argmax(1) == labels).double().mean().item()


class Store:
    """Finished runs in a JSON file; each is written at once, and none is computed twice."""

    def __init__(self, path: Path, protocol: Entry, published: Entry, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.head = {"protocol": protocol, "published": published, "versions": versions()}
        self.runs: list[Entry] = json.loads(path.read_text())["runs"] if path.exists() else []

    def run(self, settings: Entry, work: Callable[[], list[float]]) -> Entry:
        """The finished run with these settings; `work` computes the accuracies of its tasks if there is none yet."""
        for known in self.runs:
            if all(known.get(name) == value for name, value in settings.items()):
                return known
        begun, busy = time.perf_counter(), time.process_time()
        accuracies = work()
        entry = {
            **settings,
            "accuracy": statistics.fmean(accuracies),
            "accuracies": accuracies,
            "seconds": round(time.perf_counter() - begun, 1),
            "cpu_seconds": round(time.process_time() - busy, 1),
            "load": round(os.getloadavg()[0], 2),
        }
        self.runs.append(entry)
        self.write()
        shown = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"{shown}: {entry['accuracy']:.2f} ({entry['seconds']:.0f} s)", flush=True)
        return entry

    def write(self) -> None:
        """Replace the file as a whole, so that a run cut short leaves the last one."""
        made = {**self.head, "summary": list(self.summary()), "runs": self.runs}
        self.path.parent.mkdir(exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(made, indent=1) + "\n")
        draft.replace(self.path)

    def summary(self) -> Iterator[Entry]:
        """Mean, standard error and 95 % t-interval of the final runs of each setting."""
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.runs:
            if entry["stage"] == "final":
                groups.setdefault(tuple(entry[name] for name in self.key), []).append(entry)
        for values, entries in groups.items():
            scores = [entry["accuracy"] for entry in entries]
            mean, half = t_interval(scores)
            yield {
                **dict(zip(self.key, values, strict=True)),
                "seeds": [entry["seed"] for entry in entries],
                "mean": mean,
                "standard_error": statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
                "interval_95": [mean - half, mean + half] if len(scores) > 1 else None,
                "seconds": statistics.median(entry["seconds"] for entry in entries),
                "cpu_seconds": statistics.median(entry["cpu_seconds"] for entry in entries),
                "published": self.head["published"].get(values[0]),
            }

    def best(self, **settings: Any) -> Entry | None:
        """The search run of highest accuracy with these settings; of equal ones the first."""
        found = [
            entry
            for entry in self.runs
            if entry["stage"] == "search" and all(entry[name] == value for name, value in settings.items())
        ]
        return max(found, key=lambda entry: entry["accuracy"], default=None)


def climb(grid: list[float], measure: Callable[[float], float]) -> None:
    """Measure upwards, until the accuracy has lain clearly below the best one twice in a row beyond it."""
    best, fallen = float("-inf"), 0
    for strength in grid:
        found = measure(strength)
        fallen = fallen + 1 if found < best - CLEAR else 0
        best = max(best, found)
        if fallen == 2:
            return


def versions() -> Entry:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "taskgraft": taskgraft.__version__,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
    }
