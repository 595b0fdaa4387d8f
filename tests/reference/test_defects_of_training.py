"""Defects of other continual-learning code, D11 to D17: evidence, scales, and what happens to the network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import taskgraft
from reference.by_hand import PLAIN, RUN, child_of, foreign, perceptron, vectors, watched
from taskgraft import TrainingConfig, learn, losses, open_parent, predict, pytree
from taskgraft.data import open_images
from taskgraft.methods import composition, registry
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.training.penalties import add_gradients
from taskgraft.types import Memory, Params, Quadratic, TrainingData, Update
from toys import NEW, OLD, equal, make_images, parent, run_steps, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")

JOB = TrainingConfig(
    steps=12, batch_size=8, lr=0.02, head_steps=10, eval_every=4, save_every=6, log_every=4, precision="fp32"
)


def right(model: Classifier, images: taskgraft.Images, task: str) -> float:
    """The share of right answers, counted anew."""
    logits = np.asarray(predict(model, images).logits[task])
    return float((logits.argmax(1) == images.labels[task].numpy()).mean())


def is_picture(value: Tensor) -> bool:
    return value.dtype == torch.uint8 or {tuple(value.shape[-3:])} & {(32, 32, 3), (3, 32, 32)} != set()


def test_forgetting_is_measured_on_validation_images(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    """ "94 % retained" is an absolute accuracy on training images: clearn."""
    done = taskgraft.extend(
        alice, new_folder, tmp_path / "both", task="paint", method="finetune", config=replace(JOB, lr=0.2),
        old_val=(old_folder,),
    )  # fmt: skip
    before = open_parent(str(alice))
    result = open_images(old_folder, "shape", before.preprocessing, seed=0, classes=before.classifier.tasks[0].classes)
    assert result.val
    assert result.train
    assert set(done.predictions["old"].ids) == set(result.val.names)
    assert not set(done.predictions["old"].ids) & set(result.train.names)
    was, now = (right(bundle.classifier, result.val, "shape") for bundle in (before, done.bundle))
    shape = done.record.tasks[0]
    assert shape.parent
    assert shape.child
    assert shape.forgetting
    assert (shape.parent.mean, shape.child.mean) == pytest.approx((was, now))
    assert shape.forgetting.mean == pytest.approx(was - now)
    assert was - now > 0.1  # so the sign and the set matter


def stored_pictures(out: Path) -> set[str]:
    return {
        str(path.relative_to(out).parts[0])
        for path in out.rglob("*.safetensors")
        if any(is_picture(value) for value in load_file(path).values())
    }


KEEPING = [
    "ewc(images=16) + distill + wise",
    "taps",
    "branch",
    "ladder",
    "replay",
]


@pytest.mark.parametrize("text", KEEPING)
def test_bundle_contains_no_training_image(
    text: str, alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    """Checkpoints hold up to 500 raw training samples of each task: clearn."""
    out = tmp_path / "both"
    taskgraft.extend(alice, new_folder, out, task="paint", method=text, config=JOB, old=old_folder)
    assert stored_pictures(out) == set()


@pytest.mark.parametrize("name", sorted(registry.METHODS.keys() - {"replay"}))
def test_checkpoints_contain_no_training_image(name: str) -> None:
    """What a method remembers is in every checkpoint of its run."""
    memory = run_steps(
        {"ewc": "ewc(images=16)", "mas": "mas(images=16)", "gpm": "gpm(images=16)"}.get(name, name)
    ).memory
    assert not [path for path, value in pytree.flatten(memory) if is_picture(value)]


def test_only_replay_keeps_images() -> None:
    """As above, of what `learn` hands on."""
    text = {"ewc": "ewc(images=16)", "mas": "mas(images=16)", "lora": "lora(rank=2)", "wise": "wise(weight=0.5)"}
    first = learn(parent(), make_images(9, OLD, 1), method="si", config=RUN)
    for name in registry.METHODS:
        memory = learn(
            child_of(first.classifier), make_images(20, NEW, 5), method=text.get(name, name), config=RUN,
            old=make_images(9, OLD, 7), memory=first.memory,
        ).memory  # fmt: skip
        assert not [path for path, value in pytree.flatten(memory) if is_picture(value)], name
    kept = learn(
        child_of(parent()), make_images(20, NEW, 5), method="replay(keep=True)", config=RUN, old=make_images(9, OLD, 7)
    ).memory
    assert torch.equal(kept["replay"]["pixels"], make_images(9, OLD, 7).pixels)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_distillation_scales_with_temperature_squared(temperature: float) -> None:
    """Some have T^2 and some not, torchdistill both, so a strength means different things."""
    z, t = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for scale, factor in (("T2", temperature), ("none", 1 / temperature)):
        own = z.clone().requires_grad_()
        losses.distillation(own, t, temperature, scale).backward()  # pyright: ignore[reportArgumentType]
        expected = factor * ((z / temperature).softmax(1) - (t / temperature).softmax(1)) / len(z)
        torch.testing.assert_close(own.grad, expected)
    result = []
    for text in ("distill(temperature={})", "distill(scale=none, temperature={})", "lwf(temperature={})"):
        method, seen = watched(text.format(temperature))
        learn(child_of(foreign()), make_images(20, NEW, 5), method=method, config=replace(RUN, steps=1, norm="train"))
        result.append(sum(map(float, seen.terms[0].values())))  # dropout and BatchNorm alone move the first answers
    assert result[0] > 0
    assert result[1] == pytest.approx(result[0] / temperature**2, rel=1e-4)
    assert result[2] == pytest.approx(result[1], rel=2e-3)  # recorded in half precision


DECAY = [
    "finetune",
    "ewc(images=16, strength=0)",
    "ewc(images=16, strength=0, implicit=False)",
]


def test_weight_decay_defaults_to_0() -> None:
    """A decay of 2e-4 acts on all weights, also on old rows: PyCIL (issue 7)."""
    assert TrainingConfig().weight_decay == 0
    for optimizer in ("sgd", "adamw"):
        config = replace(PLAIN, optimizer=optimizer, lr=0.01)
        before, after = (
            learn(child_of(perceptron()), vectors(20, NEW, 5), method="finetune", config=one).classifier
            for one in (replace(config, weight_decay=0.5), config)
        )
        assert not equal(pytree.state(before), pytree.state(after))  # so a decay would be seen


@pytest.mark.parametrize("text", DECAY)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_without_gradient_do_not_decay(text: str, optimizer: str) -> None:
    """Rows of old classes get no gradient from the loss and shrink all the same: PyCIL (issue 7)."""
    config = replace(RUN, optimizer=optimizer, weight_decay=0.1, clip_grad=0.0)
    child = learn(child_of(parent()), make_images(20, NEW, 5), method=text, config=config).classifier
    assert torch.equal(child.linears()[0].weight, parent().linears()[0].weight)
    assert torch.equal(child.linears()[0].bias, parent().linears()[0].bias)


def norms(model: nn.Module) -> list[type]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return [type(module) for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("text", ["finetune", "ewc(images=16) + distill", "mas(images=16)", "taps", "branch"])
@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "foreign"])
def test_batchnorm_is_bit_identical(text: str, arch: str) -> None:
    """BatchNorm is replaced, and its trained weights and statistics are dropped: Renate."""
    old = foreign() if arch == "foreign" else parent(arch)
    started, method = [], composition.build(text)

    def remember(classifier: Classifier, training_data: TrainingData, past: Memory) -> Memory:
        started.append(
            (pytree.state(classifier), norms(classifier), predict(classifier, training_data.new).logits[OLD.name])
        )
        return method.remember(classifier, training_data, past) if method.remember else {}

    config = replace(RUN, steps=1)
    learn(child_of(old), make_images(20, NEW, 5), method=method._replace(remember=remember), config=config)
    state, kinds, logits = started[0]
    assert equal({name: state[name] for name in pytree.state(old)}, pytree.state(old))
    assert kinds[: len(norms(old))] == norms(old)
    assert norms(old)
    assert np.array_equal(logits, predict(old, make_images(20, NEW, 5)).logits[OLD.name])


@pytest.mark.parametrize("implicit", [True, False])
def test_penalty_builds_no_graph(implicit: bool) -> None:
    """The penalty is a loop over parameters under autograd at every step: Avalanche, FACIL, PyCIL, van de Ven."""
    lr, strength, moves = 0.1, 3.0, []
    made = composition.build(f"l2sp(strength={strength}, implicit={implicit})")

    def observe(memory: Memory, move: Update) -> Memory:
        before, after, gradient = ({name: value.clone() for name, value in part.items()} for part in move[:3])
        moves.append(Update(before, after, {name: value / move.scale for name, value in gradient.items()}))
        return memory

    parent_ = child_of(perceptron())
    learn(parent_, vectors(20, NEW, 5), method=made._replace(observe=observe), config=replace(PLAIN, lr=lr))
    anchor = {name: value.detach() for name, value in inherited_parameters(parent_).items()}
    for move in moves:  # the loss's own gradient never contains the penalty
        for name, start in anchor.items():
            before = move.before[name]
            gradient = move.gradient.get(name, torch.zeros_like(before))
            if implicit:
                expected = (before - lr * gradient + lr * strength * start) / (1 + lr * strength)
            else:
                expected = before - lr * (gradient + strength * (before - start))
            torch.testing.assert_close(move.after[name], expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(moves[-1].before[name], start) for name, start in anchor.items())
    params: Params = {name: value.requires_grad_() for name, value in moves[-1].after.items()}
    item = Quadratic(anchor, {name: value.square() for name, value in anchor.items()}, strength, False)
    add_gradients(params, [item])
    for name, start in anchor.items():
        value, gradient = params[name], params[name].grad
        assert gradient is not None
        assert gradient.grad_fn is None
        torch.testing.assert_close(gradient, strength * start.square() * (value.detach() - start))


@pytest.mark.parametrize("text", ["finetune", "distill", "ewc(images=16)"])
def test_old_logits_are_the_plain_linear_output(text: str) -> None:
    """Old logits are masked: multiplied by 0 (CapyMOA) or set to -1000 (Avalanche)."""
    images = make_images(20, NEW, 5)
    grown = child_of(parent())
    for child in (grown, learn(grown, images, method=text, config=RUN).classifier):
        child.eval()
        with torch.no_grad():
            features = child.features(taskgraft.data.normalize(images, 0, 20))
            for train in (False, True):
                child.heads.train(train)
                for task, head in zip((OLD.name, NEW.name), child.linears(), strict=True):
                    assert torch.equal(child.logits(features)[task], F.linear(features, head.weight, head.bias))
    before = predict(parent(), images).logits[OLD.name]
    assert np.array_equal(predict(grown, images).logits[OLD.name], before)


def test_test_images_select_nothing(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    """Settings are chosen on test accuracy: van de Ven's script, and the published tables."""
    for name, seed in (("one", 5), ("two", 6)):
        shutil.copytree(new_folder, tmp_path / name)
        write_folder(tmp_path / name / "test", NEW._replace(classes=NEW.classes[:: (1 if seed == 5 else -1)]), 12, seed)
        taskgraft.extend(
            alice, tmp_path / name, tmp_path / f"out {name}", task="paint", method="wise(points=3)",
            config=replace(JOB, eval_every=1, lr=0.05), old_val=(old_folder,),
        )  # fmt: skip
    for file in ("model.safetensors", "metrics.jsonl", "memory.safetensors"):
        assert (tmp_path / "out one" / file).read_bytes() == (tmp_path / "out two" / file).read_bytes(), file
    one, two = (taskgraft.load(tmp_path / f"out {name}").record for name in ("one", "two"))
    assert (one.step, one.score) == (two.step, two.score)
