"""A batch in pieces: the same loss and gradient as at once, and what happens when memory runs out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taskgraft import TaskgraftError, TrainingConfig, extend, pytree
from taskgraft.errors import InputError
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier, grow
from taskgraft.training import loop, precision
from taskgraft.types import Callbacks
from toys import NEW, RUN, make_data, parent, run_to_end, start_run

pytestmark = pytest.mark.usefixtures("no_charts")

FROZEN = replace(RUN, norm="frozen")  # BatchNorm in training mode sees pieces, and rightly answers otherwise


@pytest.mark.slow
@pytest.mark.parametrize(
    "notation", ["finetune", "distill", "replay + lwf", "ewc(images=20) + si(strength=0)", "branch",
                 "ladder(width=8, dropout=0)"],
)  # fmt: skip
@pytest.mark.parametrize("micro_batches", [3, 8])
def test_micro_batches_give_equal_weights(notation: str, micro_batches: int) -> None:
    whole, kept = run_to_end(notation, FROZEN)
    child, memory = run_to_end(notation, replace(FROZEN, micro_batches=micro_batches))
    preprocessing = {**pytree.state(whole), **dict(pytree.flatten(kept))}
    result = {**pytree.state(child), **dict(pytree.flatten(memory))}
    assert result.keys() == preprocessing.keys()
    for name, value in preprocessing.items():
        distance = (result[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-9)
        assert distance < 1e-5, f"{name}: {distance:.1e}"


def test_batchnorm_statistics_move_once_per_step() -> None:
    state, method, training_data = start_run("finetune", replace(RUN, micro_batches=2))
    counts = {name: value for name, value in state.classifier.named_buffers() if name.endswith("num_batches_tracked")}
    before = {name: int(value) for name, value in counts.items()}
    loop.train_step(state, method, training_data, replace(RUN, micro_batches=2))
    assert {int(value) - before[name] for name, value in counts.items()} == {2}  # one for each piece


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(1, 1), (4, 4)])
def test_single_image_needs_frozen_norm(batch_size: int, micro_batches: int) -> None:
    config = replace(RUN, batch_size=batch_size, micro_batches=micro_batches)
    with pytest.raises(
        TaskgraftError, match=r"from a single image: set --batch-size and --micro-batches .* or use --norm frozen"
    ):
        run_to_end("finetune", config)
    run_to_end("finetune", replace(config, norm="frozen"))


def test_single_image_is_refused_before_anything_is_written(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(steps=1, batch_size=1, head_steps=0, precision="auto")
    with pytest.raises(InputError, match="BatchNorm cannot compute statistics from a single image"):
        extend(alice, new_folder, tmp_path / "out", task="paint", method="finetune", config=config)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and not path.name.startswith(".")]
    child = grow(parent(), NEW, 0)
    loop.check_batch_size(child, composition.build("frozen"), make_data(), config)  # its BatchNorm layers are frozen
    assert precision.choose_precision(child, make_data(), config, None)[0].precision != "auto"


RUN_OUT = TrainingConfig(
    steps=8, batch_size=8, head_steps=5, eval_every=4, save_every=2, precision="fp32", norm="frozen"
)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, first: int) -> None:
    """From the training pass number `first` on, more than `most` images with a graph do not fit."""
    real, passes = Classifier.forward, [0]

    def forward(self: Classifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training and torch.is_grad_enabled():
            passes[0] += 1
            if passes[0] >= first and len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, images)

    monkeypatch.setattr(Classifier, "forward", forward)


@pytest.mark.slow
def test_out_of_memory_doubles_micro_batches(
    alice: Path, old_folder: Path, new_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict = {"task": "paint", "method": "distill", "config": RUN_OUT, "old_val": [old_folder]}
    whole = extend(alice, new_folder, tmp_path / "whole", **options)
    short_of_memory(monkeypatch, 2, 5)
    messages: list[str] = []
    done = extend(alice, new_folder, tmp_path / "short", **options, callbacks=Callbacks(info=messages.append))
    assert [line for line in messages if line.startswith("out of memory")] == [
        "out of memory: batches of 8 now run in 2 micro-batches",
        "out of memory: batches of 8 now run in 4 micro-batches",
    ]
    assert messages.count("resuming at step 4") == 2
    assert json.loads((tmp_path / "short" / "run.json").read_text())["resolved"]["config"]["micro_batches"] == 4
    assert done.record.config["micro_batches"] == 4
    assert ("micro_batches", "4", "out of memory with fewer") in done.record.settings
    for name, value in whole.bundle.classifier.state_dict().items():
        torch.testing.assert_close(done.bundle.classifier.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_out_of_memory_with_single_images(
    alice: Path, old_folder: Path, new_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0, 1)
    with pytest.raises(TaskgraftError, match="out of memory with a batch of 8 in 8 micro-batch") as error:
        extend(
            alice,
            new_folder,
            tmp_path / "out",
            task="paint",
            method="distill",
            config=RUN_OUT,
            old_val=[old_folder],
        )
    assert error.value.exit_code == 4
