"""Several processes that are one run: each does a share of the work, and all hold the same state.

Outside of such a group, every function here does nothing and costs nothing.
"""

from taskgraft.parallel.group import (
    added_up,
    chief,
    chief_first,
    device,
    gathered,
    join,
    part,
    rank,
    same,
    size,
    told,
)
from taskgraft.parallel.norm import synchronised

__all__ = [
    "added_up",
    "chief",
    "chief_first",
    "device",
    "gathered",
    "join",
    "part",
    "rank",
    "same",
    "size",
    "synchronised",
    "told",
]
