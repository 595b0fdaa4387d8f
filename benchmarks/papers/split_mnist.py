"""Split MNIST, five tasks of two classes, task-incremental: EWC with five Fishers, SI, LwF, and no method.

Repeats the table of the ICLR 2025 blog post on the Fisher in EWC, and two rows of van de Ven et al. 2022.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/papers/split_mnist.py --mnist PATH [--stage search final]
        [--variants none exact …] [--seeds 1 2 3 4 5] [--grid 1e5 1e6 …]

Every finished run is written to results/split_mnist.json at once and not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from store import RESULTS, Digits, Store, accuracy, climb, mlp, mnist

from taskgraft import Classifier, Images, Task, TrainingConfig, grow, learn, wrap
from taskgraft.methods import anchored
from taskgraft.methods.protocol import Method
from taskgraft.types import Memory, Params, Quadratic, TrainingData

TASKS, BATCH, SEARCH_SEED = 5, 128, 0
FISHERS = {
    "exact": "labels=exact, images=65536",
    "exact-500": "labels=exact, images=500",
    "sampled": "labels=sampled, images=65536",
    "empirical": "labels=empirical, images=65536",
}
FIXED = {
    "none": 0.0,
    "plain": 0.0,
    "lwf": 1.0,
    "si": 20.0,
}  # taken from the papers; si's paper writes c = strength / 2 = 10
GRIDS = {"exact": [1e2, 1e3, 1e4, 1e5, 1e6], "batched": [1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12]}
VARIANTS = ("none", "plain", "exact", "batched", "lwf", "si", "exact-500", "sampled", "empirical")
PUBLISHED = {
    "none": [85.41, 0.88, "blog post"],
    "plain": [85.41, 0.88, "blog post"],
    "exact": [99.12, 0.16, "blog post"],
    "exact-500": [98.93, 0.15, "blog post"],
    "sampled": [99.12, 0.12, "blog post"],
    "empirical": [99.12, 0.12, "blog post"],
    "batched": [99.11, 0.16, "blog post"],
    "si": [99.20, 0.11, "van de Ven et al. 2022"],
    "lwf": [99.60, 0.03, "van de Ven et al. 2022"],
}  # mean, standard error over 30 (blog post) or 20 seeds
PROTOCOL = {
    "tasks": "5 of 2 classes, order of the classes permuted by the seed; the task is known at test time",
    "net": "784-400-400-2 a task, ReLU; pixels in [0, 1]",
    "run": "Adam 1e-3 (reset for each task), 2000 steps a task, batch 128",
    "score": "mean test accuracy over the five tasks after the last one, per cent",
    "search": "strength by decades on seed 0, on the test accuracy as published; the final seeds are others",
}


def batched(strength: float) -> Method:
    """EWC with the widespread defect: the square of a batch's mean gradient, averaged over the batches."""

    def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
        return anchored.anchor_weights(classifier, sources, past, _measure(classifier), "batched")

    def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
        return {"ewc": Quadratic(*anchored.anchor_and_importance(memory), strength, False)}

    def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
        return classifier, anchored.accumulate_importance(classifier, memory, sources, _measure(classifier))

    return Method(remember=remember, weight=weight, finish=finish)


def _measure(classifier: Classifier) -> anchored.Measure:
    def measure(images: Images, names: list[str], tasks: list[str]) -> Params:
        (task,) = tasks
        classifier.eval()
        params = {name: value for name, value in classifier.named_parameters() if name in names}
        sums = {name: torch.zeros_like(value) for name, value in params.items()}
        batches = list(zip(images.pixels.split(BATCH), images.labels[task].split(BATCH), strict=True))
        for pixels, labels in batches:
            loss = F.cross_entropy(classifier(pixels)[task], labels)
            found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)  # old heads have no part in it
            for name, gradient in zip(params, found, strict=True):
                sums[name] += 0 if gradient is None else gradient.square()
        return {name: total / len(batches) for name, total in sums.items()}

    return measure


def method_of(variant: str, strength: float) -> str | Method:
    if variant == "batched":
        return batched(strength)
    if variant in FISHERS:
        return f"ewc(strength={strength!r}, implicit=False, {FISHERS[variant]})"
    return {
        "none": "finetune",
        "lwf": f"lwf(strength={strength!r}, temperature=2)",
        "si": f"si(strength={strength!r}, damping=0.1, implicit=False)",
    }[variant]


def train(digits: Digits, variant: str, strength: float, seed: int) -> list[float]:
    """Learn the tasks one after the other; the test accuracy of each in the end, per cent."""
    if variant == "plain":
        return train_plain(digits, seed)
    config = TrainingConfig(
        steps=2000,
        batch_size=BATCH,
        lr=1e-3,
        optimizer="adamw",
        weight_decay=0.0,
        schedule="constant",
        head_steps=0,
        clip_grad=0.0,
        precision="fp32",
        views=0,
        augment="none",
        log_every=2000,
        seed=seed,
    )
    order = order_of(seed)
    method, memory, classifier = method_of(variant, strength), None, None
    for number, classes in enumerate(order):
        task = Task(f"task{number}", tuple(str(int(label)) for label in classes))
        classifier = grow(classifier, task, seed) if classifier else wrap(mlp(2, seed), "4", [task])
        pixels, labels = part(digits.x_train, digits.y_train, classes)
        images = Images(pixels, {task.name: labels}, ("",) * len(pixels))
        classifier, memory, _ = learn(classifier, images, method=method, config=config, memory=memory)
    assert classifier is not None
    tests = [part(digits.x_test, digits.y_test, classes) for classes in order]
    return [accuracy(classifier, f"task{number}", *test) for number, test in enumerate(tests)]


def train_plain(digits: Digits, seed: int) -> list[float]:
    """No method and no taskgraft: a plain loop that keeps Adam's state from task to task, as the published one does."""
    order, net, draw = order_of(seed), mlp(2 * TASKS, seed), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    for number, classes in enumerate(order):
        pixels, labels = part(digits.x_train, digits.y_train, classes)
        epochs = 2000 * BATCH // len(pixels) + 1
        rows = torch.cat([torch.randperm(len(pixels), generator=draw) for _ in range(epochs)])
        for batch in rows.split(BATCH)[:2000]:
            adam.zero_grad(set_to_none=False)  # a gradient of zero, so that old momentum goes on as there
            F.cross_entropy(net(pixels[batch])[:, 2 * number : 2 * number + 2], labels[batch]).backward()
            adam.step()
    tests = [part(digits.x_test, digits.y_test, classes) for classes in order]
    with torch.inference_mode():
        found = [(net(x)[:, 2 * i : 2 * i + 2].argmax(1) == y).double().mean() for i, (x, y) in enumerate(tests)]
    return [100 * share.item() for share in found]


def order_of(seed: int) -> torch.Tensor:
    """The classes of each task [5, 2]."""
    return torch.randperm(10, generator=torch.Generator().manual_seed(seed)).view(TASKS, 2)


def part(pixels: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of two classes, labeled 0 and 1."""
    chosen = (labels[:, None] == classes).any(1)
    return pixels[chosen], (labels[chosen] == classes[1]).long()


def search(store: Store, digits: Digits, variant: str, grid: list[float] | None) -> None:
    """Strengths by decades on one seed; variants without a grid look around the exact Fisher's best."""

    def measure(strength: float) -> float:
        settings = {"stage": "search", "variant": variant, "strength": strength, "seed": SEARCH_SEED}
        return store.run(settings, lambda: train(digits, variant, strength, SEARCH_SEED))["accuracy"]

    if variant in FIXED:
        return
    if grid or variant in GRIDS:
        climb(grid or GRIDS[variant], measure)
        return
    center = store.best(variant="exact")
    if center is None:
        raise SystemExit("search the strength of the exact Fisher first: --stage search --variants exact")
    for factor in (1.0, 0.1, 10.0):
        measure(center["strength"] * factor)


def final(store: Store, digits: Digits, variant: str, seeds: list[int]) -> None:
    best = None if variant in FIXED else store.best(variant=variant)
    if best is None and variant not in FIXED:
        raise SystemExit(f"no strength of {variant} was searched yet: --stage search --variants {variant}")
    strength = FIXED[variant] if best is None else best["strength"]
    for seed in seeds:
        settings = {"stage": "final", "variant": variant, "strength": strength, "seed": seed}
        store.run(settings, lambda seed=seed: train(digits, variant, strength, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--stage", nargs="+", choices=("search", "final"), default=["search", "final"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--grid", nargs="+", type=float, help="strengths to search, instead of the variant's own")
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = mnist(given.mnist)
    store = Store(RESULTS / "split_mnist.json", PROTOCOL, PUBLISHED, ("variant", "strength"))
    for variant in given.variants:
        if "search" in given.stage:
            search(store, digits, variant, given.grid)
        if "final" in given.stage:
            final(store, digits, variant, given.seeds)
    store.write()


if __name__ == "__main__":
    main()
