"""Signs of life between the processes of a run: nobody waits without end for one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch.distributed import Store

SIGNS = 8  # signs of life within the patience
GONE = 2**40  # more signs than a run could give: its process has left in good order


@contextmanager
def monitor(store: Store, rank: int, count: int, patience: float, silent: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, give signs of life and look for those of the other `count - 1` processes.

    `silent` is told, in a thread of its own, which process gave none for `patience` seconds. A process that reads
    images for hours gives them; one that is stopped, or whose machine is gone, does not.
    """
    over = threading.Event()

    def look() -> None:
        seen = {other: (0, time.monotonic()) for other in range(count) if other != rank}
        while not over.wait(patience / SIGNS):
            try:
                store.add(f"signs of {rank}", 1)
                signs = {other: store.add(f"signs of {other}", 0) for other in seen}
            except RuntimeError:  # the store is gone, and with it whoever started this process
                return
            for other, number in signs.items():
                if number != seen[other][0]:
                    seen[other] = number, time.monotonic()
                elif number < GONE and time.monotonic() - seen[other][1] > patience:
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
            store.add(f"signs of {rank}", GONE)
