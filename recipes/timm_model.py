"""Extend a timm model with the classes of a folder.

The model keeps its own classes, such as ImageNet's thousand, and learns those of your images beside them. Any name
that timm knows will do, fetched once from the hub; `local-dir:FOLDER`, a folder that timm wrote, needs no network. The
method is one that leaves a single backbone, so plain timm loads what comes out.

    python recipes/timm_model.py PICTURES OUT [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
from torch import nn

import taskgraft
from taskgraft import TrainingConfig


def main(
    pictures: Path, out: Path, model: str = "resnet18.a1_in1k", config: TrainingConfig = TrainingConfig(lr=3e-4)
) -> nn.Module:
    """Look at the images, extend the model, and give the child as plain timm opens it."""
    for problem in taskgraft.check(pictures)["problems"]:
        print(f"before you trust the result: {problem}")
    done = taskgraft.extend(
        model, pictures, out, task=pictures.name, method="distill + wise", config=config, parent_task="imagenet",
        callbacks=taskgraft.Callbacks(info=print),
    )  # fmt: skip
    for task in done.record.tasks:
        for what, found in (("accuracy", task.child), ("agreement with the parent", task.agreement)):
            if found:
                print(f"{task.name}: {what} {found.mean:.1%} ({found.low:.1%} to {found.high:.1%})")
    child = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    print(f"plain timm opens it: {child.num_classes} classes in one layer; {out}/report.html tells the rest")
    return child


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
