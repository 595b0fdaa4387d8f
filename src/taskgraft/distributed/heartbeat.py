"""Heartbeats between the processes of a run, so that none waits forever for one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch.distributed import Store

BEATS = 8  # heartbeats within the timeout
LEFT = 2**40  # more heartbeats than a run could send: the process has left in good order


@contextmanager
def monitor(
    store: Store, rank: int, world_size: int, timeout: float, on_timeout: Callable[[int], None]
) -> Iterator[None]:
    """Send heartbeats, and call `on_timeout` in a thread with the rank of a process that sent none for `timeout` s.

    A process that reads images for hours sends them; one that is stopped, or whose machine is down, does not.
    """
    stopped = threading.Event()

    def watch() -> None:
        last_beats = {peer: (0, time.monotonic()) for peer in range(world_size) if peer != rank}
        while not stopped.wait(timeout / BEATS):
            try:
                store.add(f"beats of {rank}", 1)
                counts = {peer: store.add(f"beats of {peer}", 0) for peer in last_beats}
            except RuntimeError:  # the store is gone, and with it whoever started this process
                return
            for peer, count in counts.items():
                if count != last_beats[peer][0]:
                    last_beats[peer] = count, time.monotonic()
                elif count < LEFT and time.monotonic() - last_beats[peer][1] > timeout:
                    on_timeout(peer)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        with suppress(RuntimeError):  # the store may be gone first
            store.add(f"beats of {rank}", LEFT)
