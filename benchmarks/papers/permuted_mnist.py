"""Permuted MNIST, ten tasks behind one head, no task identity: EWC with a correct Fisher, GPM, and no method.

The experiment of Kirkpatrick et al. 2017, which Avalanche's own baselines mark as not reproduced; and that of Saha et
al. 2021, whose protocol differs (`GPM`).

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/papers/permuted_mnist.py --mnist PATH [--stage search final]
        [--variants none ewc gpm] [--seeds 1 2 3]

Every finished run is written to results/permuted_mnist.json at once and not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from store import RESULTS, Digits, Store, accuracy, climb, mlp, mnist
from torch import nn

from taskgraft import Classifier, Images, Task, TrainingConfig, learn, wrap
from taskgraft.curvature.fisher import fisher_diagonal
from taskgraft.methods.protocol import Method
from taskgraft.models.inference import image_reader
from taskgraft.types import Memory, Params, Quadratic, TrainingData

MEAN, STD = 0.1307, 0.3081  # of the training pixels
TASKS, SEARCH_TASKS, SEARCH_SEED = 10, 5, 0
DIGIT = Task("digit", tuple("0123456789"))
LRS = (1e-4, 1e-3)
GRID = [1e1, 1e2, 1e3, 1e4, 1e5]
VARIANTS = ("none", "ewc", "gpm")
PUBLISHED = {
    "ewc": {"Kirkpatrick et al. 2017": 94.0, "Avalanche's baseline": 83.0},
    "gpm": {"Saha et al. 2021": [93.91, 0.16]},
}
PROTOCOL = {
    "tasks": "10 permutations of the pixels, the first one too; ten classes, one head; no task identity at test time",
    "net": "784-400-400-10, ReLU; pixels in [0, 1]",
    "run": "Adam (reset for each task), 2000 steps a task, batch 128",
    "score": "mean test accuracy over all tasks after the last one, per cent",
    "ewc": "Fisher of all 60,000 images with sampled labels, all parameters, added over tasks; anchor = latest weights",
    "gpm": "as published: 784-100-100-10 without biases, standardized pixels, SGD 0.01, 5 epochs of 54,000 images in "
    "batches of 10, 300 images for the bases, thresholds 0.95 (first layer) and 0.99; nothing searched",
    "search": "rate and strength on seed 0 and the first 5 tasks, on the test accuracy; the final seeds are others",
}


def ewc(strength: float) -> Method:
    """EWC that holds every parameter, the shared head too: the package's own leaves the newest head free."""

    def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
        if "importance" not in past:
            return {}
        anchor = {name: value.detach().clone() for name, value in classifier.named_parameters()}
        return {"anchor": anchor, "importance": past["importance"]}

    def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
        return {"ewc": Quadratic(memory["anchor"], memory["importance"], strength, False)} if memory else {}

    def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
        names = [name for name, _ in classifier.named_parameters()]
        read = image_reader(sources.new, classifier)
        fisher = fisher_diagonal(
            classifier, read, len(sources.new.pixels), names, [DIGIT.name], labels="sampled", seed=sources.seed
        )
        old = memory.get("importance", {})
        return classifier, {"importance": {name: fisher[name] + old.get(name, 0.0) for name in names}}

    return Method(remember=remember, weight=weight, finish=finish)


def train(digits: Digits, strength: float, lr: float, tasks: int, seed: int) -> list[float]:
    """Learn the permutations one after the other; the test accuracy of each in the end, per cent. Strength 0: none."""
    method: str | Method = ewc(strength) if strength else "finetune"
    memory, classifier = None, wrap(mlp(10, seed), "4", [DIGIT])
    orders = [torch.randperm(784, generator=torch.Generator().manual_seed(1000 * seed + task)) for task in range(tasks)]
    for task, order in enumerate(orders):
        config = TrainingConfig(
            steps=2000,
            batch_size=128,
            lr=lr,
            optimizer="adamw",
            weight_decay=0.0,
            schedule="constant",
            head_steps=0,
            clip_grad=0.0,
            precision="fp32",
            views=0,
            augment="none",
            log_every=2000,
            seed=1000 * seed + task,
        )
        images = Images(digits.x_train[:, order], {DIGIT.name: digits.y_train}, ("",) * len(digits.x_train))
        classifier, memory, _ = learn(classifier, images, method=method, config=config, memory=memory)
    return [accuracy(classifier, DIGIT.name, digits.x_test[:, order], digits.y_test) for order in orders]


def train_gpm(digits: Digits, seed: int) -> list[float]:
    """Learn the permutations by the published protocol of GPM; the test accuracy of each in the end, per cent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, bias=False) for a, b in ((784, 100), (100, 100), (100, 10))]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    memory, classifier = None, wrap(net, "4", [DIGIT])
    x_train, x_test = ((pixels - MEAN) / STD for pixels in (digits.x_train[6000:], digits.x_test))
    orders = [torch.randperm(784, generator=torch.Generator().manual_seed(1000 * seed + task)) for task in range(TASKS)]
    for task, order in enumerate(orders):
        config = TrainingConfig(
            steps=27000,
            batch_size=10,
            lr=0.01,
            optimizer="sgd",
            momentum=0.0,
            weight_decay=0.0,
            schedule="constant",
            head_steps=0,
            clip_grad=0.0,
            precision="fp32",
            views=0,
            augment="none",
            log_every=27000,
            seed=1000 * seed + task,
        )
        images = Images(x_train[:, order], {DIGIT.name: digits.y_train[6000:]}, ("",) * len(x_train))
        classifier, memory, _ = learn(
            classifier, images, method="gpm(threshold=0.99, first=0.95)", config=config, memory=memory
        )
    return [accuracy(classifier, DIGIT.name, x_test[:, order], digits.y_test) for order in orders]


def search(store: Store, digits: Digits, lrs: list[float], grid: list[float]) -> None:
    """Strengths by decades for each rate, with fewer tasks."""
    for lr in lrs:

        def measure(strength: float, lr: float = lr) -> float:
            settings = {
                "stage": "search", "variant": "ewc", "strength": strength, "lr": lr, "tasks": SEARCH_TASKS,
                "seed": SEARCH_SEED,
            }  # fmt: skip
            return store.run(settings, lambda: train(digits, strength, lr, SEARCH_TASKS, SEARCH_SEED))["accuracy"]

        climb(grid, measure)


def final(store: Store, digits: Digits, variant: str, seeds: list[int]) -> None:
    if variant == "gpm":
        for seed in seeds:
            settings = {
                "stage": "final",
                "variant": variant,
                "strength": 0.0,
                "lr": 0.01,
                "tasks": TASKS,
                "seed": seed,
            }
            store.run(settings, lambda seed=seed: train_gpm(digits, seed))
        return
    best = store.best(variant="ewc")
    if best is None:
        raise SystemExit("no strength was searched yet: --stage search")
    strength, lr = best["strength"] if variant == "ewc" else 0.0, best["lr"]
    for seed in seeds:
        settings = {
            "stage": "final", "variant": variant, "strength": strength, "lr": lr, "tasks": TASKS, "seed": seed
        }  # fmt: skip
        store.run(settings, lambda seed=seed: train(digits, strength, lr, TASKS, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--stage", nargs="+", choices=("search", "final"), default=["search", "final"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ewc", "none", "gpm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lrs", nargs="+", type=float, default=LRS)
    parser.add_argument("--grid", nargs="+", type=float, default=GRID)
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = mnist(given.mnist)
    store = Store(RESULTS / "permuted_mnist.json", PROTOCOL, PUBLISHED, ("variant", "strength", "lr"))
    if "search" in given.stage:
        search(store, digits, given.lrs, given.grid)
    for variant in given.variants if "final" in given.stage else ():
        final(store, digits, variant, given.seeds)
    store.write()


if __name__ == "__main__":
    main()
