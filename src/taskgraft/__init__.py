"""taskgraft: teach a trained image classifier a new task without the old data, and without losing the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskgraft.version import __version__ as __version__

if TYPE_CHECKING:
    from taskgraft.bundle import Bundle, Prediction, from_pretrained, open_parent
    from taskgraft.commands.calibrate import calibrate
    from taskgraft.commands.check import check
    from taskgraft.commands.compare import Variant, compare
    from taskgraft.commands.compress import compress
    from taskgraft.commands.demo import demo
    from taskgraft.commands.distribution import distribution
    from taskgraft.commands.doctor import doctor
    from taskgraft.commands.evaluate import evaluate
    from taskgraft.commands.export import export
    from taskgraft.commands.extend import extend
    from taskgraft.commands.merge import merge
    from taskgraft.commands.predict import predict_files, predict_to
    from taskgraft.commands.refresh import refresh
    from taskgraft.commands.remove import Removed, remove
    from taskgraft.commands.serve import serve
    from taskgraft.commands.sign import sign, verify_signature
    from taskgraft.commands.train import train
    from taskgraft.commands.tune import tune
    from taskgraft.config import TrainingConfig
    from taskgraft.errors import (
        CheckpointError,
        DataError,
        InputError,
        MissingDependency,
        TaskgraftError,
        TrainingError,
    )
    from taskgraft.models.classifier import Classifier, grow, wrap
    from taskgraft.models.inference import predict
    from taskgraft.pipeline.estimator import Extender
    from taskgraft.pipeline.learn import learn
    from taskgraft.pipeline.request import Request
    from taskgraft.pipeline.run import Extension, load
    from taskgraft.regularizers.distillation import LwF
    from taskgraft.regularizers.importance import fisher_diagonal
    from taskgraft.regularizers.weights import EWC, L2SP, MAS, SI
    from taskgraft.tuning.search_config import SearchConfig, WorkerConfig
    from taskgraft.types import Callbacks, Images, Task

# Public names by module, imported when first used, so that `import taskgraft` does not wait for torch.
_NAMES = {
    "bundle": ("Bundle", "Prediction", "from_pretrained", "open_parent"),
    "commands.calibrate": ("calibrate",),
    "commands.check": ("check",),
    "commands.compare": ("Variant", "compare"),
    "commands.compress": ("compress",),
    "commands.demo": ("demo",),
    "commands.distribution": ("distribution",),
    "commands.doctor": ("doctor",),
    "commands.evaluate": ("evaluate",),
    "commands.export": ("export",),
    "commands.extend": ("extend",),
    "commands.merge": ("merge",),
    "commands.predict": ("predict_files", "predict_to"),
    "commands.refresh": ("refresh",),
    "commands.remove": ("Removed", "remove"),
    "commands.serve": ("serve",),
    "commands.sign": ("sign", "verify_signature"),
    "commands.train": ("train",),
    "commands.tune": ("tune",),
    "config": ("TrainingConfig",),
    "errors": ("CheckpointError", "DataError", "InputError", "MissingDependency", "TaskgraftError", "TrainingError"),
    "models.classifier": ("Classifier", "grow", "wrap"),
    "models.inference": ("predict",),
    "pipeline.estimator": ("Extender",),
    "pipeline.learn": ("learn",),
    "pipeline.request": ("Request",),
    "pipeline.run": ("Extension", "load"),
    "regularizers.distillation": ("LwF",),
    "regularizers.importance": ("fisher_diagonal",),
    "regularizers.weights": ("EWC", "L2SP", "MAS", "SI"),
    "tuning.search_config": ("SearchConfig", "WorkerConfig"),
    "types": ("Callbacks", "Images", "Task"),
}
_SUBMODULES = ("losses", "methods")  # of which users need several names
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "EWC",
    "L2SP",
    "MAS",
    "SI",
    "Bundle",
    "Callbacks",
    "CheckpointError",
    "Classifier",
    "DataError",
    "Extender",
    "Extension",
    "Images",
    "InputError",
    "LwF",
    "MissingDependency",
    "Prediction",
    "Removed",
    "Request",
    "SearchConfig",
    "Task",
    "TaskgraftError",
    "TrainingConfig",
    "TrainingError",
    "Variant",
    "WorkerConfig",
    "calibrate",
    "check",
    "compare",
    "compress",
    "demo",
    "distribution",
    "doctor",
    "evaluate",
    "export",
    "extend",
    "fisher_diagonal",
    "from_pretrained",
    "grow",
    "learn",
    "load",
    "merge",
    "open_parent",
    "predict",
    "predict_files",
    "predict_to",
    "refresh",
    "remove",
    "serve",
    "sign",
    "train",
    "tune",
    "verify_signature",
    "wrap",
]  # fmt: skip


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet, for completion."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    import importlib

    if name in _SUBMODULES:
        return importlib.import_module(f"taskgraft.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'taskgraft' has no attribute {name!r}")
    return getattr(importlib.import_module(f"taskgraft.{_MODULES[name]}"), name)
