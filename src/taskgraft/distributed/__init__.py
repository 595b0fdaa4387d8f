"""Several processes that are one run: each does a share of the work, and all hold the same state.

Outside of such a group, every function here does nothing and costs nothing.
"""

from taskgraft.distributed.group import (
    all_gather,
    all_reduce,
    broadcast,
    device,
    is_main_process,
    join,
    local_slice,
    main_process_first,
    rank,
    same,
    world_size,
)
from taskgraft.distributed.sync_batchnorm import synchronized

__all__ = [
    "all_gather",
    "all_reduce",
    "broadcast",
    "device",
    "is_main_process",
    "join",
    "local_slice",
    "main_process_first",
    "rank",
    "same",
    "synchronized",
    "world_size",
]
