"""Heartbeats between the processes of a run, so that none waits forever for one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch.distributed import Store

BEATS = 8  # heartbeats within the patience
GONE = 2**40  # more beats than a run could give: the process has left in good order


@contextmanager
def monitor(store: Store, rank: int, count: int, patience: float, silent: Callable[[int], None]) -> Iterator[None]:
    """Send heartbeats and watch those of the other `count - 1` processes.

    `silent` is called, in a thread of its own, with the rank of a process that sent none for `patience` seconds. A
    process that reads images for hours sends them; one that is stopped, or whose machine is gone, does not.
    """
    over = threading.Event()

    def look() -> None:
        last_beats = {other: (0, time.monotonic()) for other in range(count) if other != rank}
        while not over.wait(patience / BEATS):
            try:
                store.add(f"beats of {rank}", 1)
                beats = {other: store.add(f"beats of {other}", 0) for other in last_beats}
            except RuntimeError:  # the store is gone, and with it whoever started this process
                return
            for other, number in beats.items():
                if number != last_beats[other][0]:
                    last_beats[other] = number, time.monotonic()
                elif number < GONE and time.monotonic() - last_beats[other][1] > patience:
                    silent(other)
                    return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(RuntimeError):  # the store may be gone first
            store.add(f"beats of {rank}", GONE)
