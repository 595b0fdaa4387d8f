"""Laws of longer lives: methods that alternate along a chain of tasks, and old tasks that get further classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taskgraft import learn
from taskgraft.bundle import Bundle, read_bundle, write_bundle
from taskgraft.bundle.architecture import create_network
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier, grow, widen
from taskgraft.models.inference import predict
from taskgraft.training import loop
from taskgraft.types import Memory, Task
from toys import OLD, RUN, make_data, make_images, parent

CHAINS = [
    ("ewc(images=16)", "branch(shared=0.5)", "ewc(images=16)"),
    ("taps", "distill", "taps"),
    ("frozen", "mas(images=16)", "branch(shared=0.5) + taps"),
    ("lora(rank=2)", "l2sp", "wise(weight=0.5)"),
    ("ladder(width=8)", "ewc(images=16)", "ladder(width=8)"),
]
WIDER = OLD._replace(classes=(*OLD.classes, "star", "cross"))
WIDEN = ["finetune", "distill", "ewc(images=16)", "branch(shared=0.5)", "taps", "ladder", "mas(images=16) + lwf"]


def through_disk(folder: Path, child: Classifier, memory: Memory) -> tuple[Classifier, Memory]:
    """Written as a bundle and read again."""
    _, head, preprocessing = create_network("test_resnet", 2)
    folder.mkdir()
    write_bundle(folder, Bundle(child, preprocessing, memory, "", "", "test_resnet", head), method="", parent={})
    bundle = read_bundle(folder)
    return bundle.classifier, bundle.memory


def lived(chain: tuple[str, ...], folder: Path | None) -> list[Classifier]:
    """The classifiers after each task of a chain, handed on in memory or through a folder."""
    model, memory, result = parent(), {}, []
    for number, text in enumerate(chain):
        task = Task(f"task {number}", ("red", "green", "blue", "grey"))
        model, memory, _ = learn(
            grow(model, task, number), make_images(20, task, number), method=text, config=RUN, memory=memory,
        )  # fmt: skip
        if folder:
            model, memory = through_disk(folder / str(number), model, memory)
        result.append(model)
    return result


@pytest.mark.parametrize("chain", CHAINS, ids=" → ".join)
def test_methods_can_alternate_in_a_chain(chain: tuple[str, ...], tmp_path: Path) -> None:
    models, images = lived(chain, tmp_path), make_images(12, OLD, 3)
    assert [task.name for task in models[-1].tasks] == ["shape", "task 0", "task 1", "task 2"]
    before = parent()
    for text, after in zip(chain, models, strict=True):
        one, two = predict(before, images).logits, predict(after, images).logits
        kept = text.startswith(("branch", "frozen", "ladder")) or text == "taps"
        for task in one:
            assert np.array_equal(one[task], two[task]) == kept, (text, task)
        moved = [bool((left != right).any()) for left, right in zip(
            before.backbone.state_dict().values(), after.backbone.state_dict().values(), strict=True
        )]  # fmt: skip
        assert any(moved) != kept
        before = after


@pytest.mark.parametrize("chain", CHAINS, ids=" → ".join)
def test_chain_in_memory_equals_chain_of_bundles(chain: tuple[str, ...], tmp_path: Path) -> None:
    images = make_images(12, OLD, 3)
    one, two = (predict(lived(chain, folder)[-1], images).logits for folder in (None, tmp_path))
    for task, logits in two.items():
        np.testing.assert_allclose(one[task], logits, rtol=1e-3, atol=1e-3)


def test_importance_survives_an_extension_without_it() -> None:
    a, b, c = (Task(name, ("x", "y")) for name in "abc")
    first = learn(grow(parent(), a, 1), make_images(20, a, 1), method="ewc(images=16)", config=RUN)
    child = grow(first.classifier, b, 1)
    second = learn(child, make_images(20, b, 2), method="branch(shared=0.5)", config=RUN, memory=first.memory)
    kept, now = first.memory["ewc"]["importance"], second.memory["ewc"]["importance"]
    assert all(torch.equal(now[name], value) for name, value in kept.items())
    last = grow(second.classifier, c, 1)
    method, images = composition.build("ewc(images=16)"), make_data()
    more = images._replace(new=make_images(20, c, 3), old=None)
    held = loop.start(last, method, more, second.memory, RUN).memory["ewc"]["importance"]
    assert held.keys() == dict(last.named_parameters()).keys() - {"heads.3.weight", "heads.3.bias"}
    assert sum(float(value.sum()) for name, value in held.items() if name.startswith("extras.0.")) > 0
    for name, value in kept.items():
        assert (held[name] >= value).all()
    assert float(held["heads.2.weight"].sum()) > 0  # of the branch's task nothing was kept, so it is measured


@pytest.mark.parametrize("text", WIDEN)
def test_added_classes_leave_old_logits_unchanged(text: str) -> None:
    images, old = make_images(20, WIDER, 5), parent()
    wide = widen(old, OLD.name, WIDER.classes, RUN.seed)
    assert wide.tasks == (WIDER,)
    method, given = composition.build(text), make_data()._replace(new=images, old=None)
    started = loop.start(wide, method, given, {}, RUN).classifier
    before, first = predict(old, images).logits[OLD.name], predict(started, images).logits[OLD.name]
    assert first.shape == (20, len(OLD.classes) + 2)
    assert np.array_equal(first[:, : len(OLD.classes)], before)
    end = learn(wide, images, method=text, config=replace(RUN, steps=12)).classifier
    last = predict(end, images).logits[OLD.name]
    assert last.shape == (20, 5)
    assert np.array_equal(last[:, :3], before) == (text in ("branch(shared=0.5)", "taps", "ladder"))
    assert not np.array_equal(last[:, 3:], first[:, 3:])
