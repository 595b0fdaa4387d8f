"""Methods against forgetting: one file each, what they declare about themselves, and how they are combined.

`protocol` says what a method is, `registry` lists them, `notation` reads and writes `ewc(strength=30) + distill`,
`compatibility` says which combinations are refused, `composition` makes one method of several, and `presets` names the
methods that the command line, the reports and the demo suggest. Importing this package, or `presets`, imports no torch.

From Python, `methods.Ewc(strength=30) + methods.Distill()` is the same as its notation, with completion and types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskgraft.methods.branch import Branch
    from taskgraft.methods.distill import Distill
    from taskgraft.methods.ewc import Ewc
    from taskgraft.methods.finetune import Finetune
    from taskgraft.methods.frozen import Frozen
    from taskgraft.methods.gpm import Gpm
    from taskgraft.methods.l2sp import L2sp
    from taskgraft.methods.ladder import Ladder
    from taskgraft.methods.lora import Lora
    from taskgraft.methods.lwf import Lwf
    from taskgraft.methods.mas import Mas
    from taskgraft.methods.replay import Replay
    from taskgraft.methods.si import Si
    from taskgraft.methods.taps import Taps
    from taskgraft.methods.wise import Wise

__all__ = [
    "Branch",
    "Distill",
    "Ewc",
    "Finetune",
    "Frozen",
    "Gpm",
    "L2sp",
    "Ladder",
    "Lora",
    "Lwf",
    "Mas",
    "Replay",
    "Si",
    "Taps",
    "Wise",
]


def __dir__() -> list[str]:
    """List the methods, also those that are not imported yet, for completion."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a method when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'taskgraft.methods' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"taskgraft.methods.{name.lower()}"), name)
