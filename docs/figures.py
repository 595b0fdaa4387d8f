"""The figures of the page "How it works", drawn from toy data only; each for a light and for a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import taskgraft
from taskgraft.curvature import fisher

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito: the colour-blind can tell them apart
INK = {"light": "#333333", "dark": "#dddddd"}
OLD = taskgraft.Task("A", ("below", "above"))
NEW = taskgraft.Task("B", ("outside", "inside"))
RUN = taskgraft.TrainingConfig(
    steps=400, batch_size=64, lr=0.01, head_steps=0, views=1, augment="none", precision="fp32", seed=1
)
SPAN = 2.0  # points lie in [-SPAN, SPAN]²


def drawn() -> dict[str, bytes]:
    """Figure's name and ground -> SVG."""
    parent, children = _trained()
    pictures: dict[str, Callable[[str], Figure]] = {
        "boundaries": lambda ink: _boundaries(parent, children, ink),
        "fisher": lambda ink: _fisher(parent, ink),
        "temperature": _temperature,
    }
    return {f"{name}-{ground}": _svg(draw(ink), ink) for name, draw in pictures.items() for ground, ink in INK.items()}


def _points(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 * SPAN - SPAN


def _above(points: Tensor) -> Tensor:
    """Task A: is a point above a wave?"""
    return (points[:, 1] > 0.7 * torch.sin(2.2 * points[:, 0])).long()


def _inside(points: Tensor) -> Tensor:
    """Task B: is a point inside a circle that lies across the wave?"""
    return ((points - torch.tensor([0.6, 0.2])).square().sum(1) < 1.1).long()


def _trained() -> tuple[taskgraft.Classifier, dict[str, taskgraft.Classifier]]:
    """A parent of task A, and what three methods make of it with the points of task B alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = 48
        hidden = [nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)]
        net = nn.Sequential(*(layer for linear in hidden for layer in (linear, nn.Tanh())), nn.Linear(width, 2))
    first = taskgraft.wrap(net, "6", [OLD])
    points = _points(1500, 2)
    names = tuple(map(str, range(1500)))
    parent = taskgraft.learn(
        first, taskgraft.Images(points, {"A": _above(points)}, names), method="finetune", config=RUN
    ).classifier
    points = _points(1500, 3)
    images = taskgraft.Images(points, {"B": _inside(points)}, names)
    grown = taskgraft.grow(parent, NEW, seed=0)
    methods = {"finetune": "finetune", "ewc": "ewc(strength=300)", "distill": "distill(strength=4)"}
    return parent, {
        name: taskgraft.learn(grown, images, method=text, config=RUN).classifier for name, text in methods.items()
    }


def _answers(model: taskgraft.Classifier, task: str, points: Tensor) -> np.ndarray:
    """Logit of a task's second class minus that of its first [N]; its zero is the boundary."""
    with torch.inference_mode():
        logits = model(points)[task]
    return (logits[:, 1] - logits[:, 0]).numpy()


def _boundaries(parent: taskgraft.Classifier, children: dict[str, taskgraft.Classifier], ink: str) -> Figure:
    figure = Figure(figsize=(9, 4.9), layout="constrained")
    rows = figure.subplots(2, 4, sharex=True, sharey=True)
    for column, (name, model) in enumerate({"the parent": parent, **children}.items()):
        _regions(rows[0, column], model, "A", _above)
        rows[0, column].set_title(f"{name}\n{rows[0, column].get_title()}", color=ink, fontsize=10)
        if name == "the parent":
            rows[1, column].axis("off")
            rows[1, column].text(0, 0, "task B is\nnot learned yet", ha="center", va="center", color=ink)
        else:
            _regions(rows[1, column], model, "B", _inside)
            rows[1, column].set_title(rows[1, column].get_title(), color=ink, fontsize=10)
    return figure


def _regions(axes: Axes, model: taskgraft.Classifier, task: str, truth: Callable[[Tensor], Tensor]) -> None:
    """The two regions a model divides the plane into, the true boundary dashed, the accuracy as the title."""
    line = torch.linspace(-SPAN, SPAN, 90)
    grid = torch.cartesian_prod(line, line)
    found = _answers(model, task, grid).reshape(90, 90).T
    true = truth(grid).reshape(90, 90).T.numpy()
    low, high = (COLORS[0], COLORS[1]) if task == "A" else (COLORS[2], COLORS[3])
    axes.contourf(line, line, found, levels=[-1e9, 0, 1e9], colors=[low, high], alpha=0.75)
    axes.contour(line, line, true, levels=[0.5], colors="black", linestyles="dashed", linewidths=1.2)
    axes.set_title(f"task {task}: {100 * np.mean((found > 0) == (true > 0)):.0f} % right")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")


def _fisher(parent: taskgraft.Classifier, ink: str) -> Figure:
    """Quantiles of the Fisher diagonal, a line for each weight matrix and bias."""
    points = _points(400, 5)
    names = [name for name, _ in parent.named_parameters()]
    found = fisher.fisher_diagonal(parent, lambda i, j: points[i:j], 400, names, ["A"], labels="exact")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        values = found[name].flatten().numpy().clip(1e-12)
        low, quarter, middle, three, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot([low, high], [row, row], color=COLORS[0], linewidth=1.5)
        axes.plot([quarter, three], [row, row], color=COLORS[0], linewidth=7, solid_capstyle="butt")
        axes.plot([middle], [row], "o", color=COLORS[1], markersize=5)
    axes.set_yticks(range(len(names)), [name.replace("backbone.", "") for name in names])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("Fisher information of a weight: 5, 25, 50, 75, 95 % of the weights have less")
    _inked(axes, ink)
    return figure


def _temperature(ink: str) -> Figure:
    """One image's answer at three temperatures."""
    logits = np.array([6.0, 4.0, 2.5, 0.5, -1.0])
    classes = ["coupe", "sedan", "wagon", "van", "lorry"]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, temperature in zip(figure.subplots(1, 4, sharey=True), (1, 2, 4, 8), strict=True):
        powers = np.exp(logits / temperature)
        axes.bar(classes, powers / powers.sum(), color=COLORS[0])
        axes.set_title(f"T = {temperature}", color=ink, fontsize=10)
        axes.tick_params(axis="x", rotation=60)
        _inked(axes, ink)
    return figure


def _inked(axes: Axes, ink: str) -> None:
    axes.tick_params(colors=ink)
    axes.xaxis.label.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)


def _svg(figure: Figure, ink: str) -> bytes:
    with mpl.rc_context({"svg.hashsalt": "taskgraft", "text.color": ink}):
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
