"""What every method obeys, and one composition; a method that joins the registry joins these tests."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from taskgraft import data, losses, pytree
from taskgraft.config import TrainingConfig
from taskgraft.methods import composition, notation, registry
from taskgraft.methods.composition import compose
from taskgraft.models.classifier import Classifier, grow
from taskgraft.models.inference import predict
from taskgraft.training import checkpoints as states
from taskgraft.training import loop
from taskgraft.types import Memory, Params
from toys import (
    NEW,
    OLD,
    RUN,
    digest,
    equal,
    make_data,
    make_images,
    parent,
    parent_memory,
    run_steps,
    run_to_end,
    start_run,
    weights,
)

VARIANTS = {
    "finetune": ["finetune"],
    "frozen": ["frozen"],
    "taps": ["taps", "taps(backbone=trained)"],
    "branch": ["branch(shared=0.5)"],
    "ladder": ["ladder(rungs=2, width=8)"],
    "distill": [
        "distill",
        "distill(teacher=live)",
        "distill(scale=none)",
        "distill(teacher=live, loss=logits, blend=0.5)",
    ],
    "lwf": ["lwf"],
    "l2sp": ["l2sp", "l2sp(implicit=False)"],
    "ewc": ["ewc(images=16)", "ewc(images=16, implicit=False, strength=1.0)", "ewc(images=16, labels=exact)"],
    "mas": ["mas(images=16)", "mas(images=16, implicit=False)"],
    "si": ["si", "si(implicit=False)"],
    "gpm": ["gpm(images=16)"],
    "lora": ["lora(rank=2)"],
    "wise": ["wise", "wise(weight=0.5)"],
    "replay": ["replay"],
}
SUMS = [
    "ewc(images=16) + distill",
    "taps(backbone=trained) + distill + wise",
    "branch(shared=0.5) + taps",
    "ladder(rungs=2, width=8) + taps",
    "lora(rank=2) + distill",
    "l2sp + mas(images=16) + si + replay",
    "gpm(images=16) + distill",
]
ALL = [*SUMS, *(text for texts in VARIANTS.values() for text in texts)]
WITH_STRENGTH = [
    text
    for name, texts in VARIANTS.items()
    for text in texts
    if "strength" in {field.name for field in dataclasses.fields(registry.METHODS[name])}  # pyright: ignore
]
NEW_PROCESS = [*SUMS, "lwf"]  # every kind of memory; each method alone is resumed in this process
KEEPS_OLD = [
    "frozen", "taps", "branch(shared=0.5)", "branch(shared=0.5) + taps", "ladder(rungs=2, width=8)",
    "ladder(rungs=2, width=8) + taps",
]  # fmt: skip
CHANGES = [text for text in ALL if text not in KEEPS_OLD]


def test_every_method_has_laws() -> None:
    assert VARIANTS.keys() == registry.METHODS.keys()


@pytest.mark.parametrize("text", WITH_STRENGTH)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("softmax", ["per-task", "joint"])
def test_strength_0_equals_finetune(text: str, optimizer: str, softmax: str) -> None:
    config = replace(RUN, optimizer=optimizer, softmax=softmax, clip_grad=0.0)
    head, _, rest = text.partition("(")
    others = [part for part in rest.rstrip(")").split(", ") if part and not part.startswith("strength")]
    nothing = f"{head}({', '.join([*others, 'strength=0'])})"
    assert equal(weights(run_steps(nothing, config)), weights(run_steps("finetune", config)))


def test_positive_strength_differs_from_finetune() -> None:
    free = weights(run_steps("finetune"))
    assert not any(equal(weights(run_steps(text)), free) for text in [*WITH_STRENGTH, SUMS[0]])


# ---- defaults: those of the training settings but for the number of steps, and a parent whose logits are not all small


DEFAULTS = replace(RUN, optimizer="adamw", lr=TrainingConfig().lr, steps=12)


def trained_parent() -> Classifier:
    model = parent()
    with torch.no_grad():
        model.linears()[0].weight.mul_(10)
    return model


@cache
def finetuned() -> Params:
    return {
        name: value.detach() for name, value in run_to_end("finetune", DEFAULTS, trained_parent())[0].named_parameters()
    }


def distance(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """Over what is inherited from the parent, whatever else a child has."""
    names = dict(trained_parent().named_parameters())
    return sum(float((left[name] - right[name]).detach().square().sum()) for name in names) ** 0.5


@pytest.mark.parametrize("name", sorted(registry.METHODS.keys() - {"finetune"}))
def test_defaults_differ_from_finetune(name: str) -> None:
    """By 1 % of the way that fine-tuning goes: a default that is too weak to matter is a bug."""
    child = dict(run_to_end(name, DEFAULTS, trained_parent())[0].named_parameters())
    assert distance(child, finetuned()) > 0.01 * distance(finetuned(), dict(trained_parent().named_parameters()))


@pytest.mark.parametrize("name", ["l2sp", "ewc", "mas", "si"])
def test_default_penalties_hold_what_they_penalize(name: str) -> None:
    start, method, images = start_run(name, DEFAULTS, trained_parent())
    assert method.weight is not None
    (penalty,) = method.weight(dict(start.classifier.named_parameters()), start.memory).values()

    def penalized(params: Params) -> float:
        parts = (
            (params[name] - anchor).square() * (penalty.importance or {}).get(name, 1.0)
            for name, anchor in penalty.anchor.items()
        )
        return sum(float(part.sum()) for part in parts)

    child = loop.fit(start, method, images, DEFAULTS).classifier
    assert penalized({name: value.detach() for name, value in child.named_parameters()}) < 0.998 * penalized(
        finetuned()
    )


def test_huge_strength_pins_ewc_weights() -> None:
    start, _, _ = start_run("ewc(images=16)")
    anchor, fisher = start.memory["ewc"]["anchor"], start.memory["ewc"]["importance"]

    def moved(text: str) -> float:
        now = weights(run_steps(text))
        return sum(float((fisher[name] * (now[name] - anchor[name]).square()).sum()) for name in anchor)

    assert moved("ewc(images=16, strength=1e15)") < 1e-9 * moved("finetune")


def test_huge_strength_pins_distilled_logits() -> None:
    config = replace(RUN, steps=20, lr=1e-4, schedule="constant", clip_grad=0.0, norm="frozen", head_steps=0)
    images, old = make_data(config=config), OLD.name
    before = torch.from_numpy(predict(parent(), images.new).logits[old])

    def drift(text: str, lr: float) -> float:
        child = run_steps(text, replace(config, lr=lr)).classifier
        return float(losses.distillation(torch.from_numpy(predict(child, images.new).logits[old]), before, 1.0))

    assert drift("distill(strength=1000, teacher=live)", 1e-4) < 0.2 * drift("finetune", 1e-4)


@pytest.mark.parametrize("text", ALL)
def test_memory_is_tensors_and_round_trips(text: str, tmp_path: Path) -> None:
    start, _method, _images = start_run(text)
    kept = dict(pytree.flatten(start.memory))
    assert not any(value.requires_grad for value in kept.values())
    states.save(tmp_path, start)
    again = states.restore(states.list_checkpoints(tmp_path)[0], replace(start_run(text)[0], memory={}))
    assert equal(dict(pytree.flatten(again.memory)), kept)


@pytest.mark.parametrize("text", ALL)
def test_resuming_is_bit_identical(text: str, tmp_path: Path) -> None:
    full = run_steps(text)
    half, method, images = start_run(text)
    while half.step < 3:
        half, _ = loop.train_step(half, method, images, RUN)
    torch.manual_seed(99)  # an evaluation and stray draws in between
    predict(half.classifier, make_images(8, NEW, 8))
    np.random.default_rng().random(5)
    torch.rand(5)
    path = states.save(tmp_path, half)
    blank = loop.prepare(grow(parent(), NEW, RUN.seed), method, images, RUN)
    rest = loop.fit(states.restore(path, blank), method, images, RUN)
    assert equal(weights(rest), weights(full))


def test_resuming_in_a_new_process_is_bit_identical(tmp_path: Path) -> None:
    expected = []
    for number, text in enumerate(NEW_PROCESS):
        half, method, images = start_run(text)
        for _ in range(3):
            half, _ = loop.train_step(half, method, images, RUN)
        states.save(tmp_path / str(number), half)
        expected.append(digest(weights(loop.fit(half, method, images, RUN))))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("resume.py")), str(tmp_path), *NEW_PROCESS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == expected


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
def test_old_logits_start_as_the_parents(text: str, arch: str) -> None:
    start, _, images = start_run(text, model=parent(arch))
    before = predict(parent(arch), images.new).logits[OLD.name]
    assert np.array_equal(predict(start.classifier, images.new).logits[OLD.name], before)


@pytest.mark.parametrize("softmax", ["per-task", "joint"])
def test_recorded_logits_are_the_parents_on_the_same_view(softmax: str) -> None:
    config = replace(RUN, softmax=softmax)
    state, method, images = start_run("distill", config)
    teacher = loop.start(grow(parent(), NEW, config.seed), compose({}), images, {}, config).classifier.eval()
    state = loop.fit(state, method, images, config)
    memory = state.memory["distill"]
    rows, views = memory["recorded"].nonzero(as_tuple=True)
    assert len(rows) > 20
    with torch.no_grad():
        answers = teacher(data.build_views(images, rows.numpy(), views.numpy()))
    expected = torch.cat(list(answers.values()), 1) if softmax == "joint" else answers[OLD.name]
    kept = next(iter(memory["logits"].values()))[rows, views]
    torch.testing.assert_close(kept.float(), expected, rtol=1e-3, atol=1e-3)  # float16
    flipped = next(iter(memory["logits"].values()))[rows, 1 - views]
    assert not torch.allclose(flipped.float(), expected, rtol=1e-3, atol=1e-3)


def test_teacher_runs_once_per_view(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[int] = []
    real = loop._build_predict

    def counting(*given):
        predict, teach = real(*given)

        def counted(params, chosen):
            requested.append(int(chosen.sum()))
            return predict(params, chosen)

        return counted, teach

    monkeypatch.setattr(loop, "_build_predict", counting)
    run_steps("distill", replace(RUN, steps=20))  # 160 places, 20 images x 2 views
    assert sum(requested) == 20 * RUN.views


def test_composing_one_method_changes_nothing() -> None:
    settings = notation.parse("distill")["distill"]
    alone, joined = settings.build(), compose({"distill": settings.build()})
    start, _, images = start_run("distill")
    once = alone.remember(start.classifier, images, {}) if alone.remember else {}
    assert joined.remember
    assert equal(
        dict(pytree.flatten({"distill": once})), dict(pytree.flatten(joined.remember(start.classifier, images, {})))
    )
    assert compose({}) == composition.build("finetune")


def test_order_of_methods_does_not_matter() -> None:
    left, right = weights(run_steps("ewc(images=16) + distill")), weights(run_steps("distill + ewc(images=16)"))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ALL)
def test_permuting_classes_permutes_predictions(text: str) -> None:
    order = torch.tensor([2, 0, 3, 1])  # class k is called order[k]

    def answers(relabeled: bool) -> torch.Tensor:
        method, images = composition.build(text), make_data()
        child = grow(parent(), NEW, RUN.seed)
        if relabeled:
            head = child.linears()[-1]
            with torch.no_grad():
                head.weight[order], head.bias[order] = head.weight.clone(), head.bias.clone()
            new = images.new._replace(labels={NEW.name: order[images.new.labels[NEW.name]]})
            images = images._replace(new=new)
        end = loop.fit(loop.start(child, method, images, parent_memory(child), RUN), method, images, RUN)
        return torch.from_numpy(predict(end.classifier, images.new).logits[NEW.name])

    torch.testing.assert_close(answers(True)[:, order], answers(False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("text", ALL)
def test_memory_protects_a_third_task_without_old_images(text: str) -> None:
    classifier, kept = run_to_end(text)
    method, images = composition.build(text), make_data()
    third = OLD._replace(name="size")
    more = images._replace(new=make_images(16, third, 9))
    child = grow(classifier, third, 4)
    past: Memory = pytree.unflatten(dict(pytree.flatten(kept)))
    last = loop.fit(loop.start(child, method, more, past, RUN), method, more, RUN)
    assert [task.name for task in last.classifier.tasks] == ["shape", "paint", "size"]
    for name in set(last.memory) & {"ewc", "mas", "si"}:  # the importance covers what was the new head
        assert float(last.memory[name]["importance"]["heads.1.weight"].sum()) > 0


@pytest.mark.parametrize("text", KEEPS_OLD)
@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
def test_freezing_methods_keep_old_logits_bit_identical(text: str, arch: str) -> None:
    old, images = parent(arch), make_images(20, NEW, 8)
    child, _ = run_to_end(text, replace(RUN, steps=12), old)
    assert np.array_equal(predict(child, images).logits[OLD.name], predict(old, images).logits[OLD.name])
    assert RUN.norm == "train"  # statistics of BatchNorm would follow the new images


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
def test_merged_lora_keeps_logits_and_names(arch: str) -> None:
    state, method, images = start_run("lora(rank=2)", model=parent(arch))
    state = loop.fit(state, method, images, RUN)
    before = predict(state.classifier, images.new).logits
    assert method.finish
    merged, _ = method.finish(state.classifier, state.memory, images)
    grown = grow(parent(arch), NEW, RUN.seed)
    assert {name: value.shape for name, value in pytree.state(merged).items()} == {
        name: value.shape for name, value in pytree.state(grown).items()
    }
    for task, logits in predict(merged, images.new).logits.items():
        np.testing.assert_allclose(logits, before[task], rtol=1e-4, atol=1e-5)
    assert not equal(pytree.state(merged.backbone), pytree.state(grown.backbone))


def test_wise_interpolates_from_parent_to_child() -> None:
    child, started = weights(run_steps("finetune")), weights(start_run("finetune")[0])
    assert equal(pytree.state(run_to_end("wise(weight=1)")[0]), child)
    near = pytree.state(run_to_end("wise(weight=1e-6)")[0])
    for name, value in started.items():
        if value.is_floating_point():
            torch.testing.assert_close(near[name], value, rtol=1e-4, atol=1e-4)
    assert not equal(child, started)


@pytest.mark.parametrize("text", ["ewc(images=16)", "ewc(images=16, labels=exact)", "mas(images=16)"])
def test_importance_does_not_depend_on_batch_or_mode(text: str) -> None:
    name, result = text.partition("(")[0], []
    for batch, lively in ((2, False), (8, True), (20, True)):
        start, _, _ = start_run(text, replace(RUN, batch_size=batch), parent().train(lively))
        result.append(start.memory[name]["importance"])
    assert equal(result[0], result[1])
    assert equal(result[0], result[2])
