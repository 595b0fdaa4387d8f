"""`--gpus N`: the same command once more in N processes that are one run, by torch's elastic launcher.

On several machines torchrun starts `-m taskgraft.cli …` itself; the processes find each other the same way.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from taskgraft.cli.options import signed
from taskgraft.errors import InputError, ResultError

OUTCOME = "TASKGRAFT_OUTCOME"  # a file for the exit code of an error that starting again would not mend

Gpus = Annotated[
    int,
    typer.Option(
        "--gpus", "--processes", min=1, rich_help_panel="Hardware",
        help="processes that share the work of one run, one a GPU (without GPUs: on the processor)",
    ),
]  # fmt: skip
MaxRestarts = Annotated[
    int,
    typer.Option(
        min=0, rich_help_panel="Hardware", help="of --gpus: how often all go on from the last checkpoint after one died"
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        min=1, rich_help_panel="Hardware",
        help="of --gpus: after so many seconds without a sign of life a process counts as dead",
    ),
]  # fmt: skip


def with_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --gpus, --max-restarts and --patience; it must know `resume`."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    kind = inspect.Parameter.KEYWORD_ONLY
    flags = [
        inspect.Parameter("gpus", kind, default=1, annotation=Gpus),
        inspect.Parameter("max_restarts", kind, default=3, annotation=MaxRestarts),
        inspect.Parameter("patience", kind, default=300.0, annotation=Patience),
    ]

    @functools.wraps(command)
    def wrapper(gpus: int = 1, max_restarts: int = 3, patience: float = 300.0, **given: Any) -> None:
        if gpus > 1 and not inside():
            raise typer.Exit(launch(gpus, max_restarts))
        if not inside():
            command(**given)
            return
        from taskgraft import distributed

        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        with distributed.join_group(patience, _hung):
            command(**{**given, "resume": given["resume"] or again})

    return signed(wrapper, [*own, *flags])


def _hung(rank: int) -> None:
    """End this process, which may wait for another one where nothing else reaches it; the launcher sees to the rest."""
    print(f"taskgraft: process {rank} gives no sign of life", file=sys.stderr, flush=True)
    os._exit(1)


def inside() -> bool:
    """Whether this process is one of a group that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def leads() -> bool:
    """Whether this process speaks to the user."""
    return not inside() or os.environ.get("RANK") == "0"


def settle(code: int) -> int:
    """The exit code of a process that met an error a user can mend: 0 where the launcher reads it from a file."""
    note = os.environ.get(OUTCOME)
    if not note or not inside():
        return code
    Path(note).write_text(str(code))
    return 0


def explained(error: Exception) -> str:
    """An unforeseen error in a line; what a process of a group says when another one has died is put plainly."""
    if (
        inside()
        and isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "NCCL", "TCPStore"))
    ):
        return "another process of this run has ended"
    return f"{type(error).__name__}: {error}"


def launch(count: int, restarts: int) -> int:
    """Run this very command in `count` processes; returns its exit code. Raises TaskgraftError where GPUs are lacking."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    present = torch.cuda.device_count()
    if 0 < present < count:
        raise InputError(f"--gpus {count}: this machine has {present}; give no more than it has")
    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory(prefix="taskgraft-") as folder:
        os.environ[OUTCOME] = str(Path(folder) / "outcome")
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
                f"process {rank} of {count} ended with code {failure.exitcode}{_last_words(Path(folder), rank)}; "
                "the same command with --resume goes on from the last checkpoint",
            ) from error
        except (SignalException, KeyboardInterrupt):
            return 130
        note = Path(folder) / "outcome"
        return int(note.read_text()) if note.exists() else 0


def _last_words(folder: Path, rank: int) -> str:
    """What a process whose output went to a file said last."""
    files = sorted(folder.glob(f"**/{rank}/stderr.log"))
    lines = files[-1].read_text(errors="replace").strip().splitlines() if files else []
    return f" ({lines[-1]})" if lines else ""
