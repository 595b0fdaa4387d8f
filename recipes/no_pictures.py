"""Two models that see no picture: methods and loop do not care what an example is.

First 64 numbers, scikit-learn's handwritten digits as vectors: a network knows 0 to 4 and learns 5 to 9. Then word
counts: a network that tells what a sentence is about learns whether it is friendly. Everything stays in memory: `wrap`
takes any module that ends in a linear layer, `grow` adds a task to it, `learn` trains the newest one. Needs
scikit-learn.

    python recipes/no_pictures.py
"""

from __future__ import annotations

import itertools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import taskgraft
from taskgraft import Images, Task, TrainingConfig, metrics

RUN = TrainingConfig(steps=200, batch_size=64, lr=0.01, head_steps=20, augment="none", views=1)
ABOUT = {"cars": ["engine", "wheel", "road", "motor"], "food": ["soup", "bread", "kitchen", "spoon"]}
TONE = {"friendly": ["lovely", "good", "thanks"], "cross": ["awful", "bad", "never"]}


def examples(task: Task, inputs: Tensor, labels: Tensor) -> Images:
    """Inputs [N, D] with labels [N] of one task."""
    return Images(inputs, {task.name: labels}, tuple(map(str, range(len(inputs)))))


def held_out(images: Images) -> tuple[Images, Images]:
    """Two thirds of the examples to learn from, the others to measure on."""
    order = torch.randperm(len(images.pixels), generator=torch.Generator().manual_seed(0))
    third = len(order) // 3
    ((name, labels),) = images.labels.items()
    parts = [examples(Task(name, ()), images.pixels[rows], labels[rows]) for rows in (order[third:], order[:third])]
    return parts[0], parts[1]


def two_tasks(
    old: Task, seen: Images, new: Task, given: Images, config: TrainingConfig, method: str
) -> dict[str, float]:
    """Train a small network on the old task, extend it with the new one, and measure both afterwards."""
    (seen, asked), (given, later) = held_out(seen), held_out(given)
    torch.manual_seed(config.seed)
    net = nn.Sequential(nn.Linear(seen.pixels.shape[1], 64), nn.ReLU(), nn.Linear(64, len(old.classes)))
    parent = taskgraft.learn(taskgraft.wrap(net, "2", [old]), seen, method="finetune", config=config).classifier
    child = taskgraft.learn(taskgraft.grow(parent, new, config.seed), given, method=method, config=config).classifier
    sets = {"old, before": (parent, asked, old), "old": (child, asked, old), "new": (child, later, new)}
    return {name: metrics.accuracy(taskgraft.predict(model, of), task.name) for name, (model, of, task) in sets.items()}


def digits(config: TrainingConfig = RUN, method: str = "distill(strength=4)") -> dict[str, float]:
    """0 to 4 first, then 5 to 9, as vectors of 64 grey values."""
    vectors, values = (torch.from_numpy(found) for found in load_digits(return_X_y=True))
    low, high = Task("low", tuple("01234")), Task("high", tuple("56789"))
    parts = [examples(task, vectors[at].float() / 16, values[at] - first)
             for task, first in ((low, 0), (high, 5)) for at in [(values >= first) & (values < first + 5)]]  # fmt: skip
    return two_tasks(low, parts[0], high, parts[1], config, method)


def words(config: TrainingConfig = RUN, method: str = "distill + ewc") -> dict[str, float]:
    """What a sentence is about, then its tone; a sentence is how often each word occurs in it."""
    known = [word for group in (*ABOUT.values(), *TONE.values()) for word in group]
    groups = itertools.product(enumerate(ABOUT.values()), enumerate(TONE.values()))
    pairs = [(a, t, *chosen) for (a, nouns), (t, tones) in groups for chosen in itertools.product(nouns, nouns, tones)]
    counts = torch.tensor([[float(chosen.count(word)) for word in known] for _, _, *chosen in pairs])
    about, tone = Task("about", tuple(ABOUT)), Task("tone", tuple(TONE))
    seen = examples(about, counts, torch.tensor([pair[0] for pair in pairs]))
    return two_tasks(
        about, seen, tone, examples(tone, counts, torch.tensor([pair[1] for pair in pairs])), config, method
    )


if __name__ == "__main__":
    print("digits, plain fine-tuning:", digits(method="finetune"))
    print("digits, distilled:        ", digits())
    print("words, distill + ewc:     ", words())
