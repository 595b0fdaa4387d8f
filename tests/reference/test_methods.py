"""Each method against a plain loop, a closed form, or what its paper says of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reference.by_hand import (
    PLAIN,
    RUN,
    Loss,
    child_of,
    close,
    fisher,
    perceptron,
    sensitivity,
    squares,
    trained_by_hand,
    vectors,
    watched,
)
from taskgraft import Images, TaskgraftError, data, learn, pytree
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier, grow, inherited_parameters
from taskgraft.training import loop
from taskgraft.types import Batch, Memory, Outputs, Params, TrainingData, Update
from toys import NEW, OLD, equal

IMAGES, OLDS = vectors(20, NEW, 5), vectors(12, OLD, 7)


def weights(classifier: Classifier) -> Params:
    return {name: value.detach() for name, value in classifier.named_parameters()}


def anchor_of(child: Classifier) -> Params:
    return {name: value.detach().clone() for name, value in inherited_parameters(child).items()}


@pytest.mark.parametrize("implicit", [True, False])
def test_l2sp_matches_reference(implicit: bool) -> None:
    child, strength = child_of(perceptron()), 0.7
    anchor, pull = anchor_of(child), PLAIN.lr * strength
    result = learn(child, IMAGES, method=f"l2sp(strength={strength}, implicit={implicit})", config=PLAIN).classifier

    def proximal(name: str, value: Tensor) -> Tensor:
        return (value + pull * anchor[name]) / (1 + pull) if name in anchor else value

    if implicit:
        expected, _ = trained_by_hand(child, IMAGES, PLAIN, then=proximal)
    else:
        expected, _ = trained_by_hand(child, IMAGES, PLAIN, also=squares(anchor, None, strength))
    close(weights(result), expected)


@pytest.mark.parametrize("text", ["mas(strength={}, implicit=False)", "ewc(labels=exact, strength={}, implicit=False)"])
def test_mas_and_ewc_match_reference(text: str) -> None:
    child, strength = child_of(perceptron()), 0.5
    if text.startswith("mas"):
        full = sensitivity(child, OLDS, OLD.name)
    else:
        full = fisher(child, OLDS, OLD.name, lambda i, p: p)
    anchor = anchor_of(child)
    importance = {name: full[name] for name in anchor}
    expected, _ = trained_by_hand(child, IMAGES, PLAIN, also=squares(anchor, importance, strength))
    free, _ = trained_by_hand(child, IMAGES, PLAIN)
    close(
        weights(learn(child, IMAGES, method=text.format(strength), config=PLAIN, old=OLDS).classifier), expected, 1e-3
    )
    with pytest.raises(AssertionError):
        close(free, expected, 1e-3)


def test_si_matches_reference() -> None:
    child, strength, damping = child_of(perceptron()), 8.0, 0.05
    anchor = anchor_of(child)
    known = {name: 1.5 + torch.sin(torch.arange(value.numel())).reshape(value.shape) for name, value in anchor.items()}
    text = f"si(strength={strength}, damping={damping}, implicit=False)"
    second = learn(child, IMAGES, method=text, config=PLAIN, memory={"si": {"importance": known}})
    expected, path = trained_by_hand(child, IMAGES, PLAIN, also=squares(anchor, known, strength))
    close(weights(second.classifier), expected, 1e-3)
    start = weights(child)
    added = {n: (path[n] / ((expected[n] - start[n]).square() + damping)).clamp(min=0) for n in expected}
    close(second.memory["si"]["importance"], {n: v + known.get(n, 0) for n, v in added.items()}, 2e-3)


def test_si_importance_is_not_negative() -> None:
    """Decay carries weights uphill, which makes parts of the path negative; the importance is not."""
    method, walked = composition.build("si(damping=0.05)"), {}

    def observe(memory: Memory, move: Update) -> Memory:
        for name, gradient in move.gradient.items():
            walked[name] = walked.get(name, 0) - gradient * (move.after[name] - move.before[name])
        return method.observe(memory, move) if method.observe else memory

    start = perceptron()
    config = replace(RUN, steps=20, weight_decay=1.0, clip_grad=0.0, head_steps=0)
    end = learn(start, OLDS, method=method._replace(observe=observe), config=config)
    assert any(bool((path < 0).any()) for path in walked.values())
    moved = {name: value - weights(start)[name] for name, value in weights(end.classifier).items()}
    expected = {name: (path / (moved[name].square() + 0.05)).clamp(min=0) for name, path in walked.items()}
    close(end.memory["si"]["importance"], expected)


def test_si_without_recorded_path_is_refused() -> None:
    with pytest.raises(TaskgraftError, match=r"this parent lacks.*train it with train --keep si, use ewc or mas"):
        learn(child_of(perceptron()), IMAGES, method="si", config=PLAIN)


def answers_kept(child: Classifier, strength: float, temperature: float, factor: float) -> Loss:
    """strength * factor * KL between softened answers; the teacher in eval mode."""
    teacher = copy.deepcopy(child).eval()

    def loss(params: Params, batch: Batch, outputs: Outputs) -> Tensor:
        with torch.no_grad():
            target = (teacher(batch.images)[OLD.name] / temperature).softmax(1)
        own = (outputs[OLD.name] / temperature).softmax(1)
        return strength * factor * (target * (target.log() - own.log())).sum(1).mean()

    return loss


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("lwf(strength=3, temperature=2)", 1),
        ("distill(strength=3, temperature=2)", 4),
        ("distill(strength=3, temperature=2, teacher=live)", 4),
        ("distill(strength=3, temperature=2, scale=none)", 1),
    ],
)
def test_lwf_and_distill_match_reference(text: str, factor: float) -> None:
    child = child_of(perceptron())
    result = learn(child, IMAGES, method=text, config=PLAIN).classifier
    expected, _ = trained_by_hand(child, IMAGES, PLAIN, also=answers_kept(child, 3, 2, factor))
    close(weights(result), expected, 5e-3 if "recorded" in text or "distill" in text else 1e-4)


def test_distill_with_joint_softmax() -> None:
    config = replace(PLAIN, softmax="joint")
    child = learn(child_of(perceptron()), IMAGES, method="distill", config=config).classifier
    assert child.softmax == "joint"


def test_frozen_matches_reference() -> None:
    child = child_of(perceptron())
    result = learn(child, IMAGES, method="frozen", config=PLAIN).classifier
    expected, _ = trained_by_hand(child, IMAGES, PLAIN, frozen=True)
    close(weights(result), expected)
    assert equal(pytree.state(result.backbone), pytree.state(child.backbone))
    assert not torch.equal(result.linears()[-1].weight, child.linears()[-1].weight)


def test_wise_chooses_the_best_score() -> None:
    """A Score that peaks inside, and one that grows towards the parent; BatchNorm's statistics go along."""
    child = child_of(perceptron())
    end = pytree.state(learn(child, IMAGES, method="finetune", config=PLAIN).classifier)
    start = pytree.state(child)
    far = end["heads.1.weight"] - start["heads.1.weight"]

    def way(model: Classifier) -> float:
        return float(((model.linears()[1].weight.detach() - start["heads.1.weight"]) / far).mean())

    for aim, expected in ((0.6, 0.6), (0.0, 0.2), (2.0, 1.0)):
        result = learn(child, IMAGES, method="wise(points=5)", config=PLAIN, score=lambda m, a=aim: -abs(way(m) - a))
        assert float(result.memory["wise"]["weight"]) == pytest.approx(expected)
        got = pytree.state(result.classifier)
        moved = [name for name in got if got[name].is_floating_point()]
        assert "backbone.1.running_var" in moved
        assert not torch.equal(end["backbone.1.running_var"], start["backbone.1.running_var"])
        close(
            {name: got[name] for name in moved},
            {name: start[name] + expected * (end[name] - start[name]) for name in moved},
        )


def test_replay_adds_old_images() -> None:
    method, seen = watched("replay(share=0.5)")
    child = child_of(perceptron())
    result = learn(child, IMAGES, method=method, config=PLAIN, old=OLDS)
    assert result.memory == {}
    chosen = set()
    for step, _ in seen.steps:
        batch = step.batch
        assert len(batch.images) == 8 + 4
        assert batch.labels[NEW.name][8:].tolist() == batch.labels[OLD.name][:8].tolist()[:4] == [-1] * 4
        assert batch.labels[OLD.name][:8].tolist() == batch.rows[8:].tolist() * 2 == [-1] * 8
        assert torch.equal(batch.images[:8], IMAGES.pixels[batch.rows[:8]])
        rows = [int((OLDS.pixels == image).all(1).nonzero()[0, 0]) for image in batch.images[8:]]
        assert batch.labels[OLD.name][8:].tolist() == OLDS.labels[OLD.name][rows].tolist()
        assert step.outputs[OLD.name].requires_grad
        chosen |= set(rows)
    assert len(chosen) > 5
    assert not torch.equal(result.classifier.linears()[0].weight, child.linears()[0].weight)  # old labels are learnt


def test_kept_replay_needs_no_old_sample() -> None:
    first = learn(child_of(perceptron()), IMAGES, method="replay(keep=True)", config=PLAIN, old=OLDS)
    assert torch.equal(first.memory["replay"]["pixels"], OLDS.pixels)
    third = grow(first.classifier, NEW._replace(name="third"), 1)
    more = IMAGES._replace(labels={"third": IMAGES.labels[NEW.name]})
    method, seen = watched("replay")
    learn(third, more, method=method, config=PLAIN, memory=first.memory)
    assert (seen.steps[0][0].batch.labels[OLD.name][8:] >= 0).all()
    with pytest.raises(TaskgraftError, match="give one with --old DIR"):
        learn(third, more, method="replay", config=PLAIN)


JOINT = replace(RUN, optimizer="adamw", lr=1e-2, softmax="joint", norm="frozen", head_steps=0, clip_grad=0.0, steps=20)


def remembered(text: str, *, old: Images | None = None, past: Memory | None = None) -> Memory:
    """What ewc remembers of a child under one softmax over all outputs."""
    child = child_of(perceptron())
    child.softmax = "joint"
    images = TrainingData(IMAGES, old, JOINT.views, JOINT.augment, JOINT.seed)
    return loop.start(child, composition.build(text), images, past or {}, JOINT).memory["ewc"]


def test_joint_ewc_anchors_the_new_head() -> None:
    memory, child = remembered("ewc(labels=exact)"), child_of(perceptron()).eval()
    assert memory["anchor"].keys() == memory["importance"].keys() == dict(child.named_parameters()).keys()
    assert torch.equal(memory["anchor"]["heads.1.weight"], child.linears()[1].weight)
    # the Fisher of the last layer by hand: with p over the outputs of both tasks and features h, mean of p (1 - p) h^2
    with torch.no_grad():
        images = data.normalize(IMAGES, 0, len(IMAGES.pixels))
        h, p = child.features(images), torch.cat(list(child(images).values()), 1).softmax(1)
    expected = torch.einsum("bk,bd->kd", p * (1 - p), h.square()) / len(h)
    result = torch.cat([memory["importance"][f"heads.{i}.weight"] for i in (0, 1)])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-8)


def test_joint_ewc_prefers_the_old_sample() -> None:
    known = {name: torch.full_like(value, 7.0) for name, value in anchor_of(child_of(perceptron())).items()}
    past: Memory = {"ewc": {"importance": known}}
    beside = remembered("ewc", past=past)["importance"]
    assert all(torch.equal(beside[name], value) for name, value in known.items())
    assert beside["heads.1.weight"].abs().sum() > 0
    alone, again = (remembered("ewc", old=OLDS, past=one)["importance"] for one in (past, None))
    assert all(torch.equal(alone[name], again[name]) for name in again)


def test_joint_ewc_with_huge_strength_keeps_predictions() -> None:
    start = child_of(perceptron()).eval()
    images = data.normalize(IMAGES, 0, len(IMAGES.pixels))

    def moved(text: str) -> float:
        model = learn(child_of(perceptron()), IMAGES, method=text, config=JOINT).classifier
        with torch.no_grad():
            return float(
                torch.stack([(model(images)[task] - z).abs().mean() for task, z in start(images).items()]).sum()
            )

    assert moved("ewc(strength=1e6)") < 0.3 * moved("finetune")
