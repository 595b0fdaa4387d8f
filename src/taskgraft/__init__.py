"""taskgraft: teach a trained image classifier a new task without the old data, and without losing the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskgraft.version import __version__ as __version__

if TYPE_CHECKING:
    from taskgraft.bundle import Bundle, open_parent
    from taskgraft.classifier import Classifier, grow, wrap
    from taskgraft.inference import predict
    from taskgraft.jobs.calibrate import calibrate
    from taskgraft.jobs.check import check
    from taskgraft.jobs.compare import Arm, compare
    from taskgraft.jobs.demo import demo
    from taskgraft.jobs.distribution import distribution
    from taskgraft.jobs.doctor import doctor
    from taskgraft.jobs.evaluate import evaluate
    from taskgraft.jobs.export import export
    from taskgraft.jobs.extend import Extension, extend, load
    from taskgraft.jobs.learn import learn
    from taskgraft.jobs.predict import predict_files, predict_to
    from taskgraft.jobs.request import Request
    from taskgraft.jobs.serve import serve
    from taskgraft.jobs.train import train
    from taskgraft.jobs.tune import tune
    from taskgraft.problem import Problem
    from taskgraft.search.wish import Crew, Wish
    from taskgraft.settings import Run
    from taskgraft.types import Images, Task, Watch

# Where each public name lives; loaded when first used, so that `import taskgraft` does not wait for torch.
_PLACES = {
    "Arm": "jobs.compare",
    "Bundle": "bundle",
    "Classifier": "classifier",
    "Crew": "search.wish",
    "Extension": "jobs.extend",
    "Images": "types",
    "Problem": "problem",
    "Request": "jobs.request",
    "Run": "settings",
    "Task": "types",
    "Watch": "types",
    "Wish": "search.wish",
    "calibrate": "jobs.calibrate",
    "check": "jobs.check",
    "compare": "jobs.compare",
    "demo": "jobs.demo",
    "distribution": "jobs.distribution",
    "doctor": "jobs.doctor",
    "evaluate": "jobs.evaluate",
    "export": "jobs.export",
    "extend": "jobs.extend",
    "grow": "classifier",
    "learn": "jobs.learn",
    "load": "jobs.extend",
    "open_parent": "bundle",
    "predict": "inference",
    "predict_files": "jobs.predict",
    "predict_to": "jobs.predict",
    "serve": "jobs.serve",
    "train": "jobs.train",
    "tune": "jobs.tune",
    "wrap": "classifier",
}

__all__ = [
    "Arm",
    "Bundle",
    "Classifier",
    "Crew",
    "Extension",
    "Images",
    "Problem",
    "Request",
    "Run",
    "Task",
    "Watch",
    "Wish",
    "calibrate",
    "check",
    "compare",
    "demo",
    "distribution",
    "doctor",
    "evaluate",
    "export",
    "extend",
    "grow",
    "learn",
    "load",
    "open_parent",
    "predict",
    "predict_files",
    "predict_to",
    "serve",
    "train",
    "tune",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'taskgraft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"taskgraft.{_PLACES[name]}"), name)
