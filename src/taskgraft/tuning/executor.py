"""Where trials are trained: in this process, in worker processes of this machine, or on a Ray cluster.

All executors train the same jobs. A worker that dies is noticed by the engine, `concurrent.futures` or Ray, and its job
is started again; the trial then continues from its last checkpoint.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from taskgraft.data import decode
from taskgraft.errors import SetupError, TaskgraftError, TrainingError, require
from taskgraft.pipeline.opening import Opened, open_request
from taskgraft.pipeline.parent_check import predict_parent
from taskgraft.pipeline.request import Request
from taskgraft.results.search import RungResult
from taskgraft.tuning.search_config import WorkerConfig
from taskgraft.tuning.trial import Context, Job, train_trial
from taskgraft.types import Callbacks

MAX_RESTARTS = 3  # of a worker that keeps dying
# Forked from a process that has imported everything, a worker starts in milliseconds and shares that memory. Elsewhere
# than on Linux, libraries do not promise to survive a fork.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


Outcome = RungResult | TaskgraftError | None  # the coordinator raises an error; None = the time was up


class Executor:
    """Trains up to `workers` jobs at a time."""

    workers = 1

    def submit(self, job: Job, deadline: float | None) -> None:
        """Start a job that stops at `deadline`, on the monotonic clock."""
        raise NotImplementedError

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Wait until a job ends; return those that did."""
        raise NotImplementedError

    def close(self) -> None:
        """End all workers; what they were training continues from its last checkpoint when the search is resumed."""


@contextmanager
def open_executor(
    context: Context, opened: Opened, worker_config: WorkerConfig, callbacks: Callbacks
) -> Iterator[Executor]:
    """Start the executor that a `WorkerConfig` describes, and close it afterwards."""
    if worker_config.ray:
        executor = _RayExecutor(context, worker_config, callbacks)
    elif worker_config.jobs > 1:
        executor = _ProcessExecutor(context, worker_config, callbacks)
    else:
        executor = _InlineExecutor(context, opened, callbacks)
    try:
        yield executor
    finally:
        executor.close()


class _InlineExecutor(Executor):
    """Trains in this process."""

    def __init__(self, context: Context, opened: Opened, callbacks: Callbacks) -> None:
        self._context, self._opened, self._callbacks = context, opened, callbacks
        self._ended: list[tuple[Job, Outcome]] = []

    def submit(self, job: Job, deadline: float | None) -> None:
        quiet = self._callbacks._replace(info=lambda line: None)
        self._ended.append((job, train_trial(self._context, job, self._opened, deadline, quiet)))

    def wait(self) -> list[tuple[Job, Outcome]]:
        ended, self._ended = self._ended, []
        return ended


class _Worker:
    """A worker process; replaced when it dies. It ends when this process closes its end of a pipe, or is killed."""

    def __init__(self, index: int, threads: int, gpu: int | None) -> None:
        self.name, self.threads, self.gpu, self.deaths = f"worker {index + 1}", threads, gpu, 0
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])
        worker_end, self._pipe = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_start_worker, initargs=(worker_end, self.gpu)
        )

    def submit(self, context: Context, job: Job, deadline: float | None) -> Future[Outcome]:
        with _sigint_blocked():  # inherited by a process that is started here, from its first instruction on
            return self._pool.submit(_train_remotely, context, job, _seconds_left(deadline), self.threads)

    def stop(self) -> None:
        self._pipe.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _ProcessExecutor(Executor):
    """Trains in worker processes of this machine, one per GPU if there are any."""

    def __init__(self, context: Context, worker_config: WorkerConfig, callbacks: Callbacks) -> None:
        import torch

        self._context, self._callbacks, self.workers = context, callbacks, worker_config.jobs
        gpus = torch.cuda.device_count()
        threads = worker_config.threads or max(1, (os.cpu_count() or 1) // self.workers)
        self._idle = [_Worker(i, threads, i % gpus if gpus else None) for i in range(self.workers)]
        self._busy: dict[Future[Outcome], tuple[_Worker, Job, float | None]] = {}

    def submit(self, job: Job, deadline: float | None) -> None:
        self._start(self._idle.pop(0), job, deadline)

    def _start(self, worker: _Worker, job: Job, deadline: float | None) -> None:
        self._busy[worker.submit(self._context, job, deadline)] = worker, job, deadline

    def wait(self) -> list[tuple[Job, Outcome]]:
        ended: list[tuple[Job, Outcome]] = []
        while not ended and self._busy:
            for future in wait_for(self._busy, return_when=FIRST_COMPLETED).done:
                worker, job, deadline = self._busy.pop(future)
                try:
                    ended.append((job, future.result()))
                    self._idle.append(worker)
                except BrokenProcessPool as error:
                    self._restart(worker, job, error)
                    self._start(worker, job, deadline)
        return ended

    def _restart(self, worker: _Worker, job: Job, error: BrokenProcessPool) -> None:
        worker.stop()
        worker.deaths += 1
        if worker.deaths > MAX_RESTARTS:
            raise TrainingError(
                f"{worker.name} died {worker.deaths} times, last in trial {job.trial}; "
                "check the memory that is free, and use fewer --jobs"
            ) from error
        self._callbacks.info(
            f"{worker.name} died and is replaced; trial {job.trial} continues from its last checkpoint"
        )
        worker.start()

    def close(self) -> None:
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            worker.stop()


class _RayExecutor(Executor):
    """Trains in tasks of a Ray cluster; all of its machines must see OUT and the images."""

    def __init__(self, context: Context, worker_config: WorkerConfig, callbacks: Callbacks) -> None:
        require("ray", "ray", what="--ray")
        import ray

        threads, jobs, address = worker_config.threads or 1, worker_config.jobs, worker_config.ray
        self._ray, self._context, self._threads = ray, context, threads
        cluster: dict[str, Any] = {"num_cpus": jobs * threads} if address == "local" else {"address": address}
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(**cluster, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises many classes where a cluster cannot be reached
            ray.shutdown()
            reason = (str(error).splitlines() or [""])[0][:160]
            raise SetupError(
                f"--ray {address}: cannot connect ({reason}); start a cluster with ray start --head"
            ) from error
        capacity = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        self.workers = min(jobs, capacity) if jobs > 1 else capacity
        callbacks.info(f"{self.workers} workers on Ray, {threads} thread{'s' if threads > 1 else ''} each")
        self._task: Any = ray.remote(num_cpus=threads, max_retries=MAX_RESTARTS)(_train_remotely)
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job, deadline: float | None) -> None:
        self._running[self._task.remote(self._context, job, _seconds_left(deadline), self._threads)] = job

    def wait(self) -> list[tuple[Job, Outcome]]:
        ended, _ = self._ray.wait(list(self._running), num_returns=1)
        try:
            return [(self._running.pop(task), self._ray.get(task)) for task in ended]
        except self._ray.exceptions.RayError as error:
            raise TrainingError(f"a Ray task failed: {str(error).strip().splitlines()[-1][:160]}") from error

    def close(self) -> None:
        self._ray.shutdown()


def _start_worker(pipe: Connection, gpu: int | None) -> None:
    """Assign a GPU to a worker process, and end it when the coordinator ends."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)

    def end_with_coordinator() -> None:
        pipe.poll(None)  # returns once the coordinator's end is closed
        os.kill(os.getpid(), signal.SIGKILL)  # nothing is lost: a run is safe against kills

    threading.Thread(target=end_with_coordinator, daemon=True).start()


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal, but the coordinator alone decides when workers end."""
    if sys.platform == "win32":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.lru_cache(maxsize=1)
def _open_once(request: Request, cache: Path | None) -> Opened:
    """Open the parent and the images once per worker."""
    return predict_parent(open_request(request, cache, Callbacks()), cache)


def _train_remotely(context: Context, job: Job, seconds_left: float | None, threads: int) -> Outcome:
    """Train a job in a worker. Errors are returned: Ray would wrap them in one of its own with a long text."""
    import torch

    torch.set_num_threads(threads)
    deadline = None if seconds_left is None else time.monotonic() + seconds_left  # each machine has its own clock
    try:
        with decode.use_workers(context.decoding_threads):
            return train_trial(context, job, _open_once(context.request, context.cache), deadline, Callbacks())
    except TaskgraftError as error:
        return error


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
