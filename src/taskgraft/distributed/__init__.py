"""Several processes as one run: each does a part of the work, and all hold the same state.

Without a process group, every function here does nothing and costs nothing.
"""

from taskgraft.distributed.batchnorm import sync_batchnorm
from taskgraft.distributed.gradients import sum_gradients
from taskgraft.distributed.group import (
    all_gather,
    all_reduce,
    broadcast,
    broadcast_tensors,
    device,
    is_main_process,
    join_group,
    local_slice,
    main_process_first,
    rank,
    use_device,
    world_size,
)

__all__ = [
    "all_gather",
    "all_reduce",
    "broadcast",
    "broadcast_tensors",
    "device",
    "is_main_process",
    "join_group",
    "local_slice",
    "main_process_first",
    "rank",
    "sum_gradients",
    "sync_batchnorm",
    "use_device",
    "world_size",
]
