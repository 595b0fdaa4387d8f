"""Methods that change the network's shape or freeze its weights: what their papers say of them, checked."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.by_hand import RUN, child_of
from taskgraft import Images, data, learn, predict, pytree, wrap
from taskgraft.errors import TaskgraftError
from taskgraft.methods import composition
from taskgraft.models import feature_points, side_networks
from taskgraft.models.classifier import Classifier, grow
from taskgraft.models.inference import compute_features
from taskgraft.types import Memory, Params, TrainingData
from toys import NEW, OLD, make_images, parent

pytestmark = pytest.mark.usefixtures("no_charts")


def weights(classifier: Classifier) -> Params:
    return {name: value.detach() for name, value in classifier.named_parameters()}


def test_lora_matches_reference() -> None:
    images, child = make_images(20, NEW, 5), child_of(parent())
    method, before = composition.build("lora(rank=2)"), []

    def finish(classifier: Classifier, memory: Memory, training_data: TrainingData) -> tuple[Classifier, Memory]:
        before.append(predict(classifier, images).logits)
        assert method.finish
        return method.finish(classifier, memory, training_data)

    assert method.adapt
    adapted = method.adapt(copy.deepcopy(child), TrainingData(images, None, 0, "none", 0))
    assert (predict(adapted, images).logits[OLD.name] == predict(child, images).logits[OLD.name]).all()
    result = learn(child, images, method=method._replace(finish=finish), config=RUN).classifier
    assert pytree.state(result).keys() == pytree.state(child).keys()
    for task, logits in predict(result, images).logits.items():
        torch.testing.assert_close(torch.from_numpy(logits), torch.from_numpy(before[0][task]), rtol=1e-4, atol=1e-5)
    ranks = {}
    for name, value in weights(result).items():
        moved = (value - weights(child)[name]).double()
        if name.startswith("backbone") and value.dim() > 1:
            ranks[name] = int(torch.linalg.matrix_rank(moved.flatten(1), atol=1e-6)) if value.shape[-1] == 1 else -1
        elif name.startswith(("backbone", "heads.0")):
            assert not moved.any(), name
    assert any(0 < rank <= 2 for rank in ranks.values())
    assert all(rank <= 2 for rank in ranks.values())
    assert torch.equal(result.linears()[0].weight, child.linears()[0].weight)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_branch_trains_only_its_copy(shared: float) -> None:
    images, old = make_images(20, NEW, 5), parent()
    child = learn(child_of(old), images, method=f"branch(shared={shared})", config=RUN).classifier
    assert (predict(child, images).logits[OLD.name] == predict(old, images).logits[OLD.name]).all()
    known = feature_points.find_points(old.backbone)
    tail = feature_points.copy_tail(old.backbone, known[round(shared * (len(known) - 1))])
    own = {name.removeprefix("extras.0.net."): v for name, v in weights(child).items() if name.startswith("extras")}
    assert own.keys() == {name for name, _ in tail.named_parameters()}
    assert all(not torch.equal(own[name], value) for name, value in tail.named_parameters() if value.dim() > 1)
    count = sum(value.numel() for value in old.parameters()) + sum(value.numel() for value in tail.parameters())
    assert sum(value.numel() for value in child.parameters()) == count + 4 * (child.linears()[1].in_features + 1)
    with torch.no_grad():  # nothing is shared: the copy may become anything
        for value in child.extras.parameters():
            value.fill_(7)
    assert (predict(child, images).logits[OLD.name] == predict(old, images).logits[OLD.name]).all()


class Forgetful(nn.Module):
    """Its first stage sees all colours, its second only the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, len(OLD.classes))
        with torch.no_grad():
            self.one.weight.copy_(torch.eye(3)[:, :, None, None])
            self.two.weight[:, 1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(x)).mean((2, 3)))


def blue_or_green(count: int, seed: int) -> Images:
    """Images with equal red; the class is the channel that is bright."""
    labels = torch.arange(count) % 2
    pixels = torch.randint(90, 110, (count, 8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    pixels[torch.arange(count), :, :, 1 + labels] += 40
    return Images(pixels, {"light": labels}, tuple(map(str, range(count))), (0.5,) * 3, (0.25,) * 3)


def test_taps_find_early_features() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = wrap(Forgetful(), "fc", [OLD])
    child = grow(old, NEW._replace(name="light", classes=("green", "blue")), 0)
    unseen, share = blue_or_green(40, 2), {}
    for text in ("frozen", "taps(thumbnail=0)"):
        result = learn(
            child, blue_or_green(40, 1), method=text, config=replace(RUN, head_steps=100, steps=20)
        ).classifier
        answers = torch.from_numpy(predict(result, unseen).logits["light"]).argmax(1)
        share[text] = float((answers == unseen.labels["light"]).float().mean())
    assert share["taps(thumbnail=0)"] == 1.0
    assert share["frozen"] < 0.8


def test_taps_standardize_every_stage() -> None:
    images, old = make_images(20, NEW, 5), parent()
    child = learn(child_of(old), images, method="taps(thumbnail=3)", config=RUN).classifier
    assert (predict(child, images).logits[OLD.name] == predict(old, images).logits[OLD.name]).all()
    start = old.linears()[0].in_features
    columns = compute_features(child, images)[:, start:]
    spread = columns.std(0, correction=0) * columns.shape[1] ** 0.5 / side_networks.NORM
    assert float(columns.mean(0).abs().max()) < 1e-3
    assert float(spread.max()) < 1.001
    assert float((spread > 0.999).float().mean()) > 0.7  # the others hardly vary at all
    points = [*feature_points.find_points(old.backbone), feature_points.LAST]
    read = feature_points.expose_points(copy.deepcopy(old.backbone).eval(), points[:-1])
    with torch.no_grad():
        last, seen = read(data.normalize(images, 0, 2))
    channels = sum(2 * value.shape[1] for value in seen.values()) + last.shape[1] + 3 * 3 * 3
    assert columns.shape[1] == channels == child.linears()[1].in_features
    assert F.linear(columns, child.linears()[1].weight, child.linears()[1].bias).shape == (20, 4)


@pytest.mark.parametrize("notation", ["finetune", "taps", "branch", "branch(shared=0.5)", "ladder"])
def test_newest_logits_are_bit_identical(notation: str) -> None:
    images, method = make_images(8, NEW, 5), composition.build(notation)
    child = child_of(parent())
    if method.adapt:
        child = method.adapt(child, TrainingData(images, None, 0, "none", 0))
    child.eval()
    ready = data.normalize(images, 0, 8)
    full = child(ready)[NEW.name]
    for model in (child, copy.deepcopy(child)):
        assert torch.equal(model.newest_logits(ready), full)
        assert not [name for name in model.state_dict() if "_lean" in name]


@pytest.mark.parametrize(
    ("arch", "options", "at"),
    [
        ("test_resnet", {}, ["layer2.0", "layer3.0", "layer4.0"]),  # the last of each size of the image
        ("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 4}, ["blocks.1", "blocks.2", "norm"]),
    ],
)
def test_ladder_matches_reference(arch: str, options: dict[str, int], at: list[str]) -> None:
    images, old = make_images(20, NEW, 5), parent(arch, **options)
    child = learn(child_of(old), images, method="ladder(rungs=3, width=8)", config=RUN).classifier
    ladder = child.extras[0]
    assert isinstance(ladder, side_networks.Ladder)
    assert list(ladder.at) == at
    assert ladder.widths == ((8, 11, 16) if arch == "test_resnet" else (8, 8, 8))
    assert (predict(child, images).logits[OLD.name] == predict(old, images).logits[OLD.name]).all()
    assert child.linears()[1].in_features == 2 * sum(ladder.widths)
    again = composition.build("ladder(rungs=3, width=8)").adapt
    assert again
    started = again(child_of(old), TrainingData(images, None, 0, "none", RUN.seed))
    pairs = zip(started.extras.parameters(), ladder.parameters(), strict=True)
    moved = [not torch.equal(one, two) for one, two in pairs if one.dim() > 1]
    assert all(moved)
    child.train()
    child(data.normalize(images, 0, 8))[NEW.name].sum().backward()
    reached = {name for name, value in child.named_parameters() if value.grad is not None}
    assert all(name.startswith(("extras.", "heads.1.")) for name in reached)


def test_tokens_become_maps() -> None:
    tokens = torch.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    square = side_networks.to_map(tokens, image=True)
    assert square.shape == (2, 3, 3, 3)
    assert torch.equal(square[:, :, 0, 0], tokens[:, 1])  # the first one is no place of the image
    assert torch.equal(square[:, :, 1, 2], tokens[:, 6])
    row = side_networks.to_map(tokens, image=False)
    assert row.shape == (2, 3, 1, 10)
    assert torch.equal(row[:, :, 0, 9], tokens[:, 9])
    assert side_networks.to_map(tokens[:, 0], image=True).shape == (2, 3, 1, 1)
    maps = torch.rand(2, 4, 4, 7)
    assert torch.equal(side_networks.to_map(maps, image=True), maps.permute(0, 3, 1, 2))
    assert side_networks.to_map(maps.permute(0, 3, 1, 2), image=True).shape == (2, 7, 4, 4)


@pytest.mark.parametrize("notation", ["branch", "ladder"])
def test_network_of_one_stage_is_refused(notation: str) -> None:
    old = wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, len(OLD.classes))), "1", [OLD])
    with pytest.raises(TaskgraftError, match="Sequential has only one stage"):
        learn(grow(old, NEW, 0), make_images(8, NEW, 1, size=8), method=notation, config=RUN)
