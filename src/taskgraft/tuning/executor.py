"""Where the workers of a search run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from taskgraft.errors import InputError, TaskgraftError, TrainingError, require
from taskgraft.pipeline import fitting
from taskgraft.pipeline.fitting import Opened
from taskgraft.tuning.search_config import WorkerConfig
from taskgraft.tuning.worker import Search, queue_of, work
from taskgraft.types import Callbacks

RESTARTS = 3  # of a worker that dies again and again


def run(
    search: Search, marks: dict[str, Any], opened: Opened, worker_config: WorkerConfig, callbacks: Callbacks
) -> None:
    """Let a crew work until the search is over or its time is up. Raises TaskgraftError as a worker raised it."""
    if worker_config.ray:
        _on_ray(search, marks, worker_config, callbacks)
    elif worker_config.jobs == 1:
        work(search, queue_of(search, marks), opened, callbacks)
    else:
        _in_processes(search, marks, worker_config, callbacks)


def begin(search: Search, marks: dict[str, Any], threads: int, gpu: int | None, callbacks: Callbacks) -> None:
    """A worker in a process of its own: opens everything itself, then works."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import torch

    torch.set_num_threads(threads)
    opened = fitting.open_all(search.request, search.cache, Callbacks())
    work(search, queue_of(search, marks), opened, callbacks)


def _in_processes(search: Search, marks: dict[str, Any], worker_config: WorkerConfig, callbacks: Callbacks) -> None:
    import torch

    gpus = torch.cuda.device_count()
    threads = worker_config.threads or max(1, (os.cpu_count() or 1) // worker_config.jobs)

    def start(number: int) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        gpu = number % gpus if gpus else None
        process = context.Process(target=_child, args=(search, marks, threads, gpu, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    running = {number: start(number) for number in range(worker_config.jobs)}
    deaths = dict.fromkeys(running, 0)
    try:
        while running:
            wait([*(pipe for _, pipe in running.values())], timeout=1.0)
            for number, (process, pipe) in list(running.items()):
                _hear(pipe, callbacks)
                if process.is_alive():
                    continue
                _hear(pipe, callbacks)
                del running[number]
                if process.exitcode == 0:
                    continue
                deaths[number] += 1
                if deaths[number] > RESTARTS:
                    raise TrainingError(f"worker {number + 1} died {deaths[number]} times; see what the trials say")
                callbacks.info(f"worker {number + 1} died (exit {process.exitcode}); another one takes its place")
                running[number] = start(number)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _hear(pipe: Connection, callbacks: Callbacks) -> None:
    """Pass on what a worker said; raises the TaskgraftError that it met."""
    try:
        while pipe.poll():
            kind, *content = pipe.recv()
            if kind == "error":
                raise content[0]
            callbacks.info(content[0])
    except (EOFError, ConnectionError):
        return


def _child(search: Search, marks: dict[str, Any], threads: int, gpu: int | None, pipe: Connection) -> None:
    def say(line: str) -> None:
        pipe.send(("say", line))

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        begin(search, marks, threads, gpu, Callbacks(info=say))
    except TaskgraftError as error:
        pipe.send(("error", error))
    except KeyboardInterrupt:
        return  # the process that began this one says so


def _end_with_parent() -> None:
    """A worker whose search was killed must not go on alone."""
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _on_ray(search: Search, marks: dict[str, Any], worker_config: WorkerConfig, callbacks: Callbacks) -> None:
    """As many workers as the cluster has room for; they share OUT and the storage, as processes do."""
    ray = _ray()
    address = None if worker_config.ray == "local" else worker_config.ray
    _answers(worker_config.ray)
    threads = worker_config.threads or 1
    try:
        ray.init(address=address, num_cpus=worker_config.jobs * threads if address is None else None, include_dashboard=False,
                 log_to_driver=False, configure_logging=False)  # fmt: skip
    except Exception as error:  # many kinds, each meaning that the cluster cannot be reached
        raise InputError(
            f"--ray {worker_config.ray}: no cluster answers there ({str(error).splitlines()[0][:160]}); "
            "start one with ray start --head"
        ) from error
    try:
        room = int(ray.cluster_resources().get("CPU", 1)) // threads
        count = min(worker_config.jobs, room) if worker_config.jobs > 1 else max(1, room)
        callbacks.info(f"{count} workers on Ray, {threads} thread{'s' if threads > 1 else ''} each")
        task: Callable[..., Any] = ray.remote(num_cpus=threads, max_retries=RESTARTS)(_remote)
        left = None if search.deadline is None else search.deadline - time.monotonic()  # each machine has its own clock
        for problem in ray.get([task.remote(search, marks, threads, left) for _ in range(count)]):  # pyright: ignore
            if problem:
                raise problem
    finally:
        ray.shutdown()


def _remote(search: Search, marks: dict[str, Any], threads: int, left: float | None) -> TaskgraftError | None:
    deadline = None if left is None else time.monotonic() + left
    try:
        begin(search._replace(deadline=deadline), marks, threads, None, Callbacks())
    except TaskgraftError as error:
        return error
    return None


def _answers(address: str) -> None:
    """Raises TaskgraftError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"--ray {address}: no cluster answers there ({error.strerror or error}); start one with ray start --head"
        ) from error


def _ray() -> Any:
    require("ray", "ray", what="--ray")
    import ray

    return ray
