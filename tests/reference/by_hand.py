"""What the reference tests compare with: loops without one clever line, and networks that taskgraft did not make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskgraft import Images, Task, TrainingConfig, data, grow, learn, losses, predict, wrap
from taskgraft.methods import composition
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.types import Batch, Memory, Outputs, Params, Quadratic, Step, Terms, TrainingData
from toys import NEW, OLD, make_images
from toys import RUN as TOY

WIDTH = 6
RUN = replace(TOY, optimizer="sgd")
PLAIN = replace(RUN, steps=5, lr=0.1, momentum=0.0, schedule="constant", clip_grad=0.0, head_steps=0)


class Foreign(nn.Module):
    """Somebody's network: BatchNorm, dropout, a last layer with a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.hidden, self.last = nn.Linear(8, 16), nn.Linear(16, len(OLD.classes))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.last(torch.tanh(self.hidden(self.drop(x))))


@cache
def _foreign(steps: int) -> nn.Module:
    images = make_images(36, OLD, 1)
    pixels, labels = data.normalize(images, 0, 36), images.labels[OLD.name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Foreign()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(net(pixels), labels).backward()
            optimizer.step()
    return net


def foreign(steps: int = 25) -> Classifier:
    """A classifier for OLD trained in plain torch, still in train mode as its owner left it."""
    return wrap(_foreign(steps), "last", [OLD]).train()


def vectors(count: int, task: Task, seed: int) -> Images:
    """Float inputs [count, WIDTH] that no view changes; the class tells the mean."""
    labels = torch.arange(count) % len(task.classes)
    centres = torch.randn(len(task.classes), WIDTH, generator=torch.Generator().manual_seed(len(task.name)))
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Images(centres[labels] + noise, {task.name: labels}, tuple(map(str, range(count))))


def perceptron() -> Classifier:
    """A small network on vectors, with a BatchNorm whose statistics are not those of a new network."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        norm = nn.BatchNorm1d(8)
        nn.init.normal_(norm.running_mean, std=0.3)  # pyright: ignore[reportArgumentType]
        net = nn.Sequential(nn.Linear(WIDTH, 8), norm, nn.Tanh(), nn.Linear(8, len(OLD.classes)))
    return wrap(net, "3", [OLD])


def child_of(parent: Classifier, config: TrainingConfig = RUN) -> Classifier:
    return grow(parent, NEW, config.seed)


def keeping(text: str) -> Method:
    """The method, but what it worked with is what it leaves, so that `learn` gives it back."""
    return composition.build(text)._replace(finish=lambda classifier, memory, training_data: (classifier, memory))


def worked_with(
    text: str,
    config: TrainingConfig = RUN,
    old: Images | None = None,
    parent: Classifier | None = None,
    new: Images | None = None,
) -> Memory:
    """What a method remembered of a run on NEW images."""
    child = child_of(parent or foreign(), config)
    return learn(child, new or make_images(20, NEW, 5), method=keeping(text), config=config, old=old).memory


class Seen(NamedTuple):
    """What a spectator saw of each step: the step and memory, the response terms, the penalties' values."""

    steps: list[tuple[Step, Memory]]
    terms: list[Terms]
    penalties: list[dict[str, float]]


def watched(text: str) -> tuple[Method, Seen]:
    """The method, and a list of what it did at each step."""
    method, seen = composition.build(text), Seen([], [], [])

    def response(step: Step, memory: Memory) -> Terms:
        terms = method.response(step, memory) if method.response else {}
        seen.steps.append((step, memory))
        seen.terms.append({name: value.detach() for name, value in terms.items()})
        return terms

    def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
        result = method.weight(params, memory) if method.weight else {}
        seen.penalties.append({name: losses.quadratic(params, item).item() for name, item in result.items()})
        return result

    return method._replace(response=response, weight=weight), seen


def drift(before: Classifier, after: Classifier, images: Images) -> float:
    """The mean square change of the old task's logits."""
    one, two = (torch.from_numpy(predict(model, images).logits[OLD.name]) for model in (before, after))
    return float((one - two).square().mean())


def fisher(model: nn.Module, images: Images, task: str, weigh: Callable[[int, Tensor], Tensor]) -> Params:
    """mean_i sum_c w_c (d log p_c / d theta)^2, image by image and class by class; `weigh(i, p)` gives w [K]."""
    model = copy.deepcopy(model).eval()
    names, values = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(value) for value in values]
    count = len(images.pixels)
    for i in range(count):
        logs = model(data.normalize(images, i, i + 1))[task][0].log_softmax(0)
        for c, weight in enumerate(weigh(i, logs.detach().exp()).tolist()):
            result = torch.autograd.grad(logs[c], values, retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums, result, strict=True):
                total += 0 if gradient is None else gradient.square() * weight / count
    return dict(zip(names, sums, strict=True))


def sensitivity(model: nn.Module, images: Images, task: str) -> Params:
    """mean_i |d ||z_i||^2 / d theta|, image by image."""
    model = copy.deepcopy(model).eval()
    names, values = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(value) for value in values]
    for i in range(len(images.pixels)):
        size = model(data.normalize(images, i, i + 1))[task].square().sum()
        for total, gradient in zip(sums, torch.autograd.grad(size, values, allow_unused=True), strict=True):
            total += 0 if gradient is None else gradient.abs() / len(images.pixels)
    return dict(zip(names, sums, strict=True))


Loss = Callable[[Params, Batch, Outputs], Tensor]


def trained_by_hand(
    classifier: Classifier,
    images: Images,
    config: TrainingConfig,
    *,
    also: Loss = lambda params, batch, outputs: torch.zeros(()),
    then: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    frozen: bool = False,
) -> tuple[Params, Params]:
    """Gradient descent on the new task's cross-entropy, a penalty by autograd and a correction of each new weight.

    Returns the last weights and, of each, the sum of -(gradient of the cross-entropy) * movement.
    """
    model = copy.deepcopy(classifier).train(not frozen)
    old = inherited_parameters(model) if frozen else {}
    params: Params = {name: value for name, value in model.named_parameters() if name not in old}
    path = {name: torch.zeros_like(value) for name, value in params.items()}
    for step in range(config.steps):
        batch = data.build_batch(
            TrainingData(images, None, config.views, config.augment, config.seed), step, config.batch_size
        )
        outputs = model(batch.images)
        pure = F.cross_entropy(outputs[NEW.name], batch.labels[NEW.name])
        extra = also(params, batch, outputs)
        values = list(params.values())
        slopes = torch.autograd.grad(pure, values, retain_graph=True, allow_unused=True)
        pulls = torch.autograd.grad(extra, values, allow_unused=True) if extra.requires_grad else [None] * len(values)
        for (name, value), slope, pull in zip(params.items(), slopes, pulls, strict=True):
            before, slope = value.detach().clone(), torch.zeros_like(value) if slope is None else slope
            with torch.no_grad():
                value.copy_(then(name, value - config.lr * (slope + (0 if pull is None else pull))))
            path[name] -= slope * (value.detach() - before)
    return {name: value.detach() for name, value in model.named_parameters()}, path


def squares(anchor: Params, importance: Params | None, strength: float) -> Loss:
    """strength / 2 sum importance (theta - anchor)^2, for autograd."""

    def loss(params: Params, batch: Batch, outputs: Outputs) -> Tensor:
        parts = [
            ((params[name] - value).square() * (1 if importance is None else importance[name])).sum()
            for name, value in anchor.items()
        ]
        return torch.stack(parts).sum() * strength / 2

    return loss


def close(result: Params, expected: Params, rtol: float = 1e-4) -> None:
    """Equal names; values equal but for rounding, relative to the largest of each tensor."""
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        room = rtol * float(value.abs().max()) * 0.1 + 1e-12
        torch.testing.assert_close(result[name], value, rtol=rtol, atol=room, msg=lambda m, n=name: f"{n}: {m}")


def closed_form_path(lr: float, steps: int, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Path and displacement of W [K, D] where |W x + b - target|^2 / 2 falls by gradient descent; b is the last column.

    `start` [K] is W x + b - target before. The residual shrinks by 1 - rate (|x|^2 + 1) at each step.
    """
    x = torch.cat([x, torch.ones(1)])
    size = float(x.square().sum())
    shrink = 1 - lr * size
    path = lr * (1 - shrink ** (2 * steps)) / (1 - shrink**2) * start.square()[:, None] * x.square()
    moved = -(1 - shrink**steps) / size * start[:, None] * x
    return path, moved
