"""Rivals that read image files: decoding, and predicting from files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.first_step import WORKERS, pictures
from benchmarks.speed.networks import OLD, Case, network
from benchmarks.speed.worker import Ready, Work
from torch import Tensor
from torch.utils.data import DataLoader

from taskgraft.commands.predict import predict_files
from taskgraft.data import Dataset, Preprocessing, open_images


def read(case: Case) -> Ready:
    """taskgraft's verified pixels, without its cache: checked, hashed, decoded, resized."""

    def call() -> Work:
        return Work(_opened(case, None).decoded)

    return Ready(call)


def read_plainly(case: Case) -> Ready:
    """torchvision's ImageFolder through a DataLoader with worker processes: an epoch of pixels."""

    def call() -> Work:
        return Work(sum(len(images) for images, _ in _loader(case)))

    return Ready(call, f"{WORKERS} workers")


def decoded(case: Case) -> dict[str, Any]:
    """How many images a run with a cache decodes, and its seconds."""
    begin = time.perf_counter()
    found = _opened(case, Path(case["cache"]))
    return {"decoded": found.decoded, "seconds": round(time.perf_counter() - begin, 3)}


def write_parent(case: Case) -> None:
    """A file of weights and its class names beside it, as somebody else may have left them."""
    net = network({"arch": "resnet18", "size": 128}, OLD)
    path = Path(case["path"])
    torch.save(net.state_dict(), path)
    path.with_suffix(".txt").write_text("".join(f"model {number}\n" for number in range(OLD)))


def predict(case: Case) -> Ready:
    """`taskgraft predict` on a folder: files to labels and probabilities."""
    parent = Path(case["parent"])
    options = {
        "arch": "resnet18",
        "labels": parent.with_suffix(".txt"),
        "preprocessing": f"{case['size']} squash bilinear imagenet",
    }

    def call() -> Work:
        return Work(sum(1 for _ in predict_files(parent, [case["folder"]], **options)))

    return Ready(call)


def predict_plainly(case: Case) -> Ready:
    """ImageFolder, a DataLoader with worker processes, softmax and argmax."""
    net = network({"arch": "resnet18", "size": 128}, OLD).eval()

    def call() -> Work:
        with torch.inference_mode():
            return Work(sum(len(net(images).softmax(1).max(1).indices) for images, _ in _loader(case)))

    return Ready(call, f"{WORKERS} workers")


def _opened(case: Case, cache: Path | None) -> Dataset:
    preprocessing = Preprocessing(case["size"], "squash", 1.0, "bilinear")
    return open_images(Path(case["folder"]), "paint", preprocessing, seed=0, cache_folder=cache)


def _loader(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    yield from DataLoader(pictures(f"{case['folder']}/train", case["size"]), 32, num_workers=WORKERS)
    yield from DataLoader(pictures(f"{case['folder']}/val", case["size"]), 32, num_workers=WORKERS)
