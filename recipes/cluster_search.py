"""Search for hyperparameters on a Ray cluster, in a Slurm job, or on the cores of this machine.

The same program runs in all three: one coordinator that hands out trials. With RAY_ADDRESS they are trained on that
cluster. In a Slurm allocation it trains one trial per GPU of the node, or per 4 cores; for several nodes, start Ray in
the allocation. Run it again to resume an interrupted search. OUT must be on a disk that all workers see.

    python recipes/cluster_search.py PARENT IMAGES OUT OLD_VALIDATION_IMAGES
    srun --ntasks=1 --gpus=4 --cpus-per-task=16 python recipes/cluster_search.py …
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import taskgraft
from taskgraft import Request, SearchConfig, TrainingConfig, WorkerConfig
from taskgraft.tuning import space

SEARCH = SearchConfig(trials=40, max_forgetting="1%")
METHOD = "distill(strength=0.1..10) + wise"
SETTINGS = "lr=1e-4..1e-2"


def worker_config() -> WorkerConfig:
    """Return where to train: a Ray cluster, or processes of this machine, which may be a Slurm node."""
    if os.environ.get("RAY_ADDRESS"):
        return WorkerConfig(ray=os.environ["RAY_ADDRESS"], threads=4)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", os.cpu_count() or 1))
    gpus = os.environ.get("SLURM_GPUS", "").rpartition(":")[2]  # 4 or a100:4
    jobs = int(gpus or max(1, cores // 4))
    return WorkerConfig(jobs=jobs, threads=max(1, cores // jobs))


def main(
    parent: Path,
    images: Path,
    out: Path,
    old: Path,
    search_config: SearchConfig = SEARCH,
    config: TrainingConfig = TrainingConfig(),
    method: str = METHOD,
) -> dict[str, Path]:
    """Search, print the command that reproduces each selected model, and return their bundles by goal."""
    request = Request(str(parent), images, images.name, old_val=(old,))
    search_config = replace(search_config, storage=os.environ.get("SEARCH_STORAGE", ""))
    result = taskgraft.tune(
        request,
        space.parse(method, SETTINGS, config),
        out,
        search_config=search_config,
        worker_config=worker_config(),
        callbacks=taskgraft.Callbacks(info=print),
    )
    for model in result.choices:
        if model.candidate:
            print(f"{model.goal}: {model.rule}: {out / model.folder}\n    {model.command}")
    print(f"{out}/report.html shows the Pareto front")
    return {model.goal: out / model.folder for model in result.choices if model.folder}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
