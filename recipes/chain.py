"""One model that learns one task after another, over years.

Each folder is a task, named after the folder. The first is trained with `keep="ewc"`, which records what will protect
it; every later one extends the model before it and needs none of the earlier training images: what the chain
remembers of them travels in the bundle. Here the validation images of earlier tasks are still at hand, so that
forgetting is measured after every link; without them the chain goes on as well, and says what it cannot know.

    python recipes/chain.py OUT FOLDER FOLDER FOLDER …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import taskgraft
from taskgraft import TrainingConfig


def main(
    out: Path,
    folders: Sequence[Path],
    model: str = "resnet18",
    preprocessing: str = "96 squash bilinear imagenet",
    method: str = "branch",
    first: TrainingConfig = TrainingConfig(steps=1200),
    later: TrainingConfig = TrainingConfig(),
) -> dict[str, dict[str, float]]:
    """Learn the folders in order; gives the accuracy of every task after every link."""
    start, *rest = folders
    done = taskgraft.train(
        start, out / start.name, task=start.name, model=model, preprocessing=preprocessing, config=first, keep="ewc"
    )
    table = {start.name: accuracies(done)}
    for number, folder in enumerate(rest, start=1):
        known = folders[:number]
        done = taskgraft.extend(
            done.out, folder, out / folder.name, task=folder.name, method=method, config=later, old_val=known
        )
        table[folder.name] = accuracies(done)
    for learned, found in table.items():
        print(f"after {learned:<12}", "  ".join(f"{task} {share:.1%}" for task, share in found.items()))
    print(f"{len(done.bundle.lineage)} extensions stand in the lineage of {done.out}")
    return table


def accuracies(done: taskgraft.Extension) -> dict[str, float]:
    """Validation accuracy of each task that has images."""
    return {task.name: task.child.mean for task in done.record.tasks if task.child}


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
