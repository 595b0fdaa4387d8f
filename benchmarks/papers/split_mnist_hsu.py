"""Split MNIST as in Hsu et al. 2018, task-incremental: L2, EWC online, SI, MAS, LwF, and no method.

Repeats rows of table 2 of "Re-evaluating continual learning scenarios" (code: GT-RIPL/Continual-Learning-Benchmark).

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/papers/split_mnist_hsu.py --mnist PATH [--stage search final]
        [--variants none l2 …] [--seeds 1 2 3]

Every finished run is written to results/split_mnist_hsu.json at once and not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from split_mnist import part
from store import RESULTS, Digits, Store, accuracy, climb, mnist
from torch import nn

from taskgraft import Images, Task, TrainingConfig, grow, learn, wrap

TASKS, BATCH, EPOCHS, SEARCH_SEED = 5, 128, 4, 0
METHODS = {
    "none": "finetune",
    "l2": "l2sp(strength={}, implicit=False)",
    "ewc": "ewc(strength={}, implicit=False, labels=empirical, images=65536)",
    "si": "si(strength={}, damping=0.1, implicit=False)",
    "mas": "mas(strength={}, implicit=False, images=65536)",
    "lwf": "lwf(strength={}, temperature=2)",
}
# Ours is twice theirs: their penalty has no factor 1/2. MAS and the Fisher differ in definition, so they are searched.
FIXED = {"none": 0.0, "plain": 0.0, "l2": 0.02, "si": 600.0, "lwf": 1.0}
GRIDS = {"ewc": [8e1, 8e2, 8e3, 8e4, 8e5, 8e6], "mas": [2e-2, 2e-1, 2.0, 2e1, 2e2, 2e3]}
PUBLISHED = {
    "none": [93.46, 2.01, "Hsu et al. 2018, Adam"],
    "plain": [93.46, 2.01, "Hsu et al. 2018, Adam"],
    "l2": [98.18, 0.96, "Hsu et al. 2018"],
    "ewc": [98.04, 1.10, "Hsu et al. 2018, online EWC"],
    "si": [98.56, 0.49, "Hsu et al. 2018"],
    "mas": [99.22, 0.21, "Hsu et al. 2018"],
    "lwf": [99.60, 0.03, "Hsu et al. 2018"],
}  # mean, standard deviation over 10 runs
PROTOCOL = {
    "tasks": "0 and 1, 2 and 3, …, 8 and 9, in this order; the task is known at test time",
    "net": "1024-400-400-2 a task, ReLU; images padded to 32 x 32 and normalized with mean 0.1 and deviation 0.2752",
    "run": "Adam 1e-3, 4 epochs a task, batch 128",
    "score": "mean test accuracy over the five tasks after the last one, per cent",
    "search": "EWC and MAS: strength by decades on seed 0; the final seeds are others",
}


def padded(digits: Digits) -> Digits:
    """The images as in the published code."""

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        return (F.pad(pixels.view(-1, 28, 28), (2, 2, 2, 2)).flatten(1) - 0.1) / 0.2752

    return digits._replace(x_train=prepare(digits.x_train), x_test=prepare(digits.x_test))


def mlp(outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1024, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, outputs))


def train(digits: Digits, variant: str, strength: float, seed: int) -> list[float]:
    """Learn the tasks one after the other; the test accuracy of each in the end, per cent."""
    if variant == "plain":
        return train_plain(digits, seed)
    memory, classifier = None, None
    for number in range(TASKS):
        classes = torch.tensor([2 * number, 2 * number + 1])
        pixels, labels = part(digits.x_train, digits.y_train, classes)
        config = TrainingConfig(
            steps=EPOCHS * -(-len(pixels) // BATCH), batch_size=BATCH, lr=1e-3, optimizer="adamw", weight_decay=0.0,
            schedule="constant", head_steps=0, clip_grad=0.0, precision="fp32", views=0, augment="none",
            log_every=2000, seed=seed,
        )  # fmt: skip
        task = Task(f"task{number}", tuple(str(int(label)) for label in classes))
        classifier = grow(classifier, task, seed) if classifier else wrap(mlp(2, seed), "4", [task])
        images = Images(pixels, {task.name: labels}, ("",) * len(pixels))
        classifier, memory, _ = learn(
            classifier, images, method=METHODS[variant].format(repr(strength)), config=config, memory=memory
        )
    assert classifier is not None
    tests = [part(digits.x_test, digits.y_test, torch.tensor([2 * i, 2 * i + 1])) for i in range(TASKS)]
    return [accuracy(classifier, f"task{number}", *test) for number, test in enumerate(tests)]


def train_plain(digits: Digits, seed: int) -> list[float]:
    """No method and no taskgraft: a plain loop that keeps Adam's state from task to task, as the published one does."""
    net, draw = mlp(2 * TASKS, seed), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    for number in range(TASKS):
        pixels, labels = part(digits.x_train, digits.y_train, torch.tensor([2 * number, 2 * number + 1]))
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(pixels), generator=draw).split(BATCH):
                adam.zero_grad()
                F.cross_entropy(net(pixels[batch])[:, 2 * number : 2 * number + 2], labels[batch]).backward()
                adam.step()
    tests = [part(digits.x_test, digits.y_test, torch.tensor([2 * i, 2 * i + 1])) for i in range(TASKS)]
    with torch.inference_mode():
        rates = [(net(x)[:, 2 * i : 2 * i + 2].argmax(1) == y).double().mean() for i, (x, y) in enumerate(tests)]
    return [100 * rate.item() for rate in rates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--stage", nargs="+", choices=("search", "final"), default=["search", "final"])
    parser.add_argument("--variants", nargs="+", choices=[*METHODS, "plain"], default=[*METHODS, "plain"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 11)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = padded(mnist(args.mnist))
    store = Store(RESULTS / "split_mnist_hsu.json", PROTOCOL, PUBLISHED, ("variant", "strength"))

    def run(stage: str, variant: str, strength: float, seed: int) -> float:
        settings = {"stage": stage, "variant": variant, "strength": strength, "seed": seed}
        return store.run(settings, lambda: train(digits, variant, strength, seed))["accuracy"]

    for variant in args.variants:
        if "search" in args.stage and variant in GRIDS:
            climb(GRIDS[variant], lambda strength, variant=variant: run("search", variant, strength, SEARCH_SEED))
        best = store.best(variant=variant) if variant in GRIDS else None
        for seed in args.seeds if "final" in args.stage else ():
            run("final", variant, best["strength"] if best else FIXED[variant], seed)
    store.write()


if __name__ == "__main__":
    main()
