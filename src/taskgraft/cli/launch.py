"""`--gpus N`: start the same command in N processes that train one model, with torch's elastic launcher.

On several machines torchrun starts `-m taskgraft.cli ...` directly; the processes find each other in the same way.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskgraft.errors import InputError, ResultError

OUTCOME = "TASKGRAFT_OUTCOME"  # environment variable: file for the exit code of an error that a restart cannot fix


def is_worker() -> bool:
    """Return whether a launcher started this process as one of a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def is_main_process() -> bool:
    """Return whether this process talks to the user. Unlike `distributed.is_main_process`, it imports no torch."""
    return not is_worker() or os.environ.get("RANK") == "0"


@contextmanager
def joined(heartbeat_timeout: float) -> Iterator[bool]:
    """Join the group of processes if a launcher started this one.

    Args:
        heartbeat_timeout: Seconds without a heartbeat after which a process counts as dead.

    Yields:
        Whether the launcher has restarted the group, so that the run has to resume.
    """
    if not is_worker():
        yield False
        return
    from taskgraft import distributed

    with distributed.join_group(heartbeat_timeout, _abort):
        yield int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _abort(rank: int) -> None:
    """End this process, which may be blocked waiting for the silent one; the launcher handles the rest."""
    print(f"taskgraft: no heartbeat from process {rank}", file=sys.stderr, flush=True)
    os._exit(1)


def report_exit_code(code: int) -> int:
    """Hand the exit code of a user's error to the launcher, which would restart a process that failed.

    Returns:
        The code to exit with: 0 in a worker whose launcher reads the code from a file.
    """
    file = os.environ.get(OUTCOME)
    if not file or not is_worker():
        return code
    Path(file).write_text(str(code))
    return 0


def is_lost_peer(error: Exception) -> bool:
    """Return whether an error is how torch reports that another process of the group has died."""
    return is_worker() and isinstance(error, RuntimeError) and any(
        name in str(error) for name in ("gloo", "NCCL", "TCPStore")
    )  # fmt: skip


def launch(count: int, restarts: int, device: str = "auto") -> int:
    """Run the current command in several processes.

    Args:
        count: Number of processes.
        restarts: Restarts of the whole group after one process has died.
        device: The value of --device.

    Returns:
        The exit code.

    Raises:
        InputError: There are fewer GPUs than processes, or one GPU was named for all of them.
        ResultError: A process died, and the restarts are used up.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if ":" in device:
        raise InputError(f"--device {device}: {count} processes need a GPU each; give cuda, or leave --gpus out")
    available = 0 if device == "cpu" else torch.cuda.device_count()
    if 0 < available < count:
        raise InputError(f"--gpus {count}: this machine has {available}; give at most that many")
    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as folder:
        outcome = Path(folder) / "outcome"
        os.environ[OUTCOME] = str(outcome)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id="taskgraft", max_restarts=restarts, monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "taskgraft.cli", *sys.argv[1:])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise ResultError(
                f"process {rank} of {count} exited with code {failure.exitcode}{_last_line(Path(folder), rank)}; "
                "rerun with --resume to continue from the last checkpoint"
            ) from error
        except (SignalException, KeyboardInterrupt):
            return 130
        return int(outcome.read_text()) if outcome.exists() else 0


def _last_line(folder: Path, rank: int) -> str:
    files = sorted(folder.glob(f"**/{rank}/stderr.log"))
    lines = files[-1].read_text(errors="replace").strip().splitlines() if files else []
    return f" ({lines[-1]})" if lines else ""
