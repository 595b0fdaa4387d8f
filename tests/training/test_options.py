"""Options of training: layer-wise rates, the average of weights, mixed images; each resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import param_groups_layer_decay

from taskgraft import InputError, data, losses, pytree, wrap
from taskgraft.bundle.architecture import create_network
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import grow
from taskgraft.models.inference import predict
from taskgraft.training import checkpoints, loop
from taskgraft.training.layer_decay import compute_lr_scales
from taskgraft.types import UNLABELED, Memory, Step, Terms
from toys import NEW, OLD, RUN, equal, make_data, make_images, parent, run_steps, start_run, weights

EVERYTHING = replace(
    RUN, mixup=0.4, cutmix=1.0, label_smoothing=0.1, class_weights="balanced", layer_decay=0.7, ema=0.9,
    augment="randaugment",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "optimizer"), [("distill + ewc(images=16) + replay", "sgd"), ("branch(shared=0)", "adamw")]
)
def test_resuming_with_every_option_is_bit_identical(text: str, optimizer: str, tmp_path: Path) -> None:
    config = replace(EVERYTHING, optimizer=optimizer)
    full = run_steps(text, config)
    half, method, images = start_run(text, config)
    half = loop.fit(half, method, images, config, until=3)
    torch.manual_seed(99)  # an evaluation in between
    predict(half.kept, make_images(8, NEW, 8))
    blank = loop.prepare(grow(parent(), NEW, RUN.seed), method, images, config)
    rest = loop.fit(checkpoints.restore(checkpoints.save(tmp_path, half), blank), method, images, config)
    assert equal(weights(rest), weights(full))
    assert equal(pytree.state(rest.kept), pytree.state(full.kept))


@pytest.mark.parametrize(
    "change",
    [{"mixup": 0.4}, {"cutmix": 1.0}, {"label_smoothing": 0.1}, {"layer_decay": 0.7}, {"augment": "randaugment"}],
    ids=str,
)
def test_each_option_changes_the_weights(change: dict) -> None:
    plain = replace(RUN, steps=2)
    assert not equal(weights(run_steps("finetune", replace(plain, **change))), weights(run_steps("finetune", plain)))


# ---- layer-wise rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit"])
def test_layer_rates_are_those_of_timm(arch: str) -> None:
    network = create_network(arch, 3)[0]
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    scales = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    expected = {name: scales[id(value)] for name, value in network.named_parameters()}
    model = parent(arch)
    found = compute_lr_scales(model, dict(model.named_parameters()), 0.5)
    for name, scale in found.items():
        inner = name.removeprefix("backbone.")
        assert scale == expected.get(inner, 1.0), name


def test_copied_stages_and_adapters_learn_at_the_rate_of_their_layer() -> None:
    names = ["backbone.layer4.0.conv1.lora_A.default.weight", "extras.0.net.layer4.0.bn1.bias", "extras.1.read.weight"]
    found = compute_lr_scales(parent(), [*names, "heads.1.weight"], 0.5)
    assert list(found.values()) == [0.5, 0.5, 1.0, 1.0]
    state, *_ = start_run("branch(shared=0)", replace(RUN, layer_decay=0.5))
    rates = {group["lr_scale"] for group in state.optimizer.param_groups}
    assert rates == {2.0**-depth for depth in range(6)}


def test_penalties_take_the_rate_of_the_layer() -> None:
    """Moves scale with the rate, and so does the pull back: a huge strength still pins every layer."""
    config = replace(RUN, layer_decay=0.5, clip_grad=0.0)
    pinned = run_steps("l2sp(strength=1e9, implicit=True)", config)
    start = dict(parent().named_parameters())
    for name, value in pinned.classifier.named_parameters():
        if name in start:
            torch.testing.assert_close(value, start[name], rtol=1e-4, atol=1e-5)


def test_layer_decay_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(InputError, match="--layer-decay: all that this method trains lies in one layer"):
        start_run("frozen", replace(RUN, layer_decay=0.5))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    with pytest.raises(InputError, match="--layer-decay: Sequential does not say which layers"):
        compute_lr_scales(wrap(net, "1", [OLD]), ["heads.0.weight"], 0.5)


# ---- the average of weights --------------------------------------------------------------------------------------


def test_the_average_follows_the_weights() -> None:
    config = replace(RUN, ema=0.5)
    state, method, images = start_run("finetune", config)
    assert state.average is not None
    expected = pytree.state(state.classifier)
    for step in range(1, 5):
        state, _ = loop.train_step(state, method, images, config)
        decay = min(0.5, 1 - step ** (-2 / 3))  # it rises in the first steps
        expected = {
            name: decay * value + (1 - decay) * now if value.is_floating_point() else now
            for (name, value), now in zip(expected.items(), weights(state).values(), strict=True)
        }
    for name, value in pytree.state(state.kept).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not equal(pytree.state(state.kept), weights(state))
    loop.keep_average(state)
    assert equal(pytree.state(state.kept), weights(state))


def test_the_average_keeps_frozen_weights_to_the_bit() -> None:
    state = run_steps("branch(shared=0)", replace(RUN, ema=0.9))
    old, images = parent(), make_images(12, OLD, 8)
    assert (predict(state.kept, images).logits[OLD.name] == predict(old, images).logits[OLD.name]).all()
    assert [value.requires_grad for value in state.kept.parameters()] == [
        value.requires_grad for value in state.classifier.parameters()
    ]


def test_a_checkpoint_without_the_average_is_damaged(tmp_path: Path) -> None:
    state = run_steps("finetune", replace(RUN, ema=0.9, steps=1))
    path = checkpoints.save(tmp_path, state)
    assert checkpoints.find_newest(tmp_path) == (path, [])
    (path / "average.safetensors").unlink()
    found, lines = checkpoints.find_newest(tmp_path)
    assert found is None
    assert "average" in lines[0]


# ---- mixed images ------------------------------------------------------------------------------------------------


def test_teachers_are_asked_on_the_mixed_images() -> None:
    config = replace(RUN, mixup=1.0, steps=1)
    state, method, images = start_run("distill(temperature=1)", config)
    assert method.response
    teacher, seen = parent(), []

    def response(step: Step, memory: Memory) -> Terms:
        assert method.response
        terms = method.response(step, memory)
        with torch.no_grad():
            expected = losses.distillation(step.outputs[OLD.name], teacher(step.batch.images)[OLD.name], 1.0)
        torch.testing.assert_close(terms["distill"], expected, rtol=1e-3, atol=1e-5)
        seen.append(step.batch)
        return terms

    loop.fit(state, method._replace(response=response), images, config)
    assert (seen[0].rows == UNLABELED).all(), "what was recorded of the plain image does not count"
    assert 0 < seen[0].share < 1
    assert seen[0].labels[NEW.name].tolist() != seen[0].partners[NEW.name].tolist()


def test_the_loss_of_mixed_images_is_shared_between_two_labels() -> None:
    config = replace(RUN, mixup=1.0, steps=1, head_steps=0)
    state, _, images = start_run("finetune", config)
    seen: list[Step] = []

    def response(step: Step, memory: Memory) -> Terms:
        seen.append(step)
        return {"none": 0 * step.outputs[NEW.name].sum()}

    _, terms = loop.train_step(state, Method(response=response), images, config)
    batch, logits = seen[0].batch, seen[0].outputs[NEW.name]
    assert batch.partners
    labels, partners = (
        float(torch.nn.functional.cross_entropy(logits.detach(), item[NEW.name]))
        for item in (batch.labels, batch.partners)
    )
    assert terms["data"] == pytest.approx(batch.share * labels + (1 - batch.share) * partners, rel=1e-5)


def test_cutmix_of_vectors_is_refused() -> None:
    floats = make_images(8, NEW, 5)
    flat = floats._replace(pixels=torch.rand(8, 12))
    batch = data.build_batch(make_data()._replace(new=flat), 0, 8)
    with pytest.raises(InputError, match="--cutmix needs images, not inputs of shape"):
        data.mix_batch(batch, 0.0, 1.0, np.random.default_rng(0))
