"""taskgraft: teach a trained image classifier a new task without the old data, and without losing the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskgraft.bundle import Bundle, open_parent
    from taskgraft.compare import Arm, compare
    from taskgraft.evaluate import predict
    from taskgraft.extend import Extension, Request, extend, load
    from taskgraft.learn import learn
    from taskgraft.problem import Problem
    from taskgraft.settings import Run

__version__ = "0.1.0"

# Where each public name lives; loaded when first used, so that `import taskgraft` does not wait for torch.
_PLACES = {
    "Arm": "compare",
    "Bundle": "bundle",
    "Extension": "extend",
    "Problem": "problem",
    "Request": "extend",
    "Run": "settings",
    "compare": "compare",
    "extend": "extend",
    "learn": "learn",
    "load": "extend",
    "open_parent": "bundle",
    "predict": "evaluate",
}

__all__ = [
    "Arm",
    "Bundle",
    "Extension",
    "Problem",
    "Request",
    "Run",
    "compare",
    "extend",
    "learn",
    "load",
    "open_parent",
    "predict",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'taskgraft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"taskgraft.{_PLACES[name]}"), name)
