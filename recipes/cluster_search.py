"""Search strengths and rates wherever you are: a Ray cluster, Slurm, or the cores of this machine.

The same program runs in all three. With RAY_ADDRESS it hands the trials to that cluster. Under `srun` every task is a
worker, and they share the search through the database in SEARCH_STORAGE (postgresql://…). With neither, it starts one
worker for every four cores here. Stopped, the same call goes on; OUT must lie on a disk that all workers see.

    python recipes/cluster_search.py PARENT PICTURES OUT OLD_VALIDATION_PICTURES
    srun --ntasks=8 --gpus-per-task=1 python recipes/cluster_search.py …
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import taskgraft
from taskgraft import Request, SearchConfig, TrainingConfig, WorkerConfig
from taskgraft.tuning import space

WISH = SearchConfig(trials=40, max_forgetting="1%")
METHOD = "distill(strength=0.1..10) + wise"
SETTINGS = "lr=1e-4..1e-2"


def worker_config() -> WorkerConfig:
    """Who works: a Ray cluster, this one task of Slurm's, or some processes of this machine."""
    if os.environ.get("RAY_ADDRESS"):
        return WorkerConfig(ray=os.environ["RAY_ADDRESS"], threads=4)
    if "SLURM_PROCID" in os.environ:
        return WorkerConfig(threads=int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
    return WorkerConfig(jobs=max(1, (os.cpu_count() or 1) // 4))


def main(
    parent: Path,
    pictures: Path,
    out: Path,
    old: Path,
    search_config: SearchConfig = WISH,
    config: TrainingConfig = TrainingConfig(),
    method: str = METHOD,
) -> dict[str, Path]:
    """Search, say what each choice costs, and give the bundles of the three choices by their goal."""
    request = Request(str(parent), pictures, pictures.name, old_val=(old,))
    search_config = replace(search_config, storage=os.environ.get("SEARCH_STORAGE", ""))
    found = taskgraft.tune(
        request,
        space.parse(method, SETTINGS, config),
        out,
        search_config=search_config,
        worker_config=worker_config(),
        callbacks=taskgraft.Callbacks(info=print),
    )
    for choice in found.choices:
        if choice.candidate:
            print(f"{choice.goal}: {choice.rule}: {out / choice.folder}\n    {choice.command}")
    print(f"{out}/report.html shows the frontier")
    return {choice.goal: out / choice.folder for choice in found.choices if choice.folder}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
