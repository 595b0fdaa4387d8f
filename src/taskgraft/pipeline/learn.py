"""Training in memory, from Python: any module with a final linear layer, any tensors; nothing is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig, lr_at, resolve_steps, validate
from taskgraft.data.in_memory import Examples, as_images
from taskgraft.methods import composition
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, newest_task
from taskgraft.models.inference import check_inputs, imprint_added_classes
from taskgraft.results.record import StepMetrics
from taskgraft.training import loop
from taskgraft.training.checkpoints import TrainState
from taskgraft.types import Images, TrainingData


class Learned(NamedTuple):
    """A trained classifier.

    Attributes:
        classifier: The classifier, in eval mode.
        memory: What to pass to the next `learn`.
        history: Learning rate and terms of the loss at each logged step; "data" is that of the new task.
    """

    classifier: Classifier
    memory: dict[str, Any]
    history: tuple[StepMetrics, ...]

    def __repr__(self) -> str:
        """Name the tasks and how the loss went; the network would fill pages."""
        tasks = ", ".join(f"{task.name} ({len(task.classes)})" for task in self.classifier.tasks)
        losses = [sum(line.terms.values()) for line in (self.history[0], self.history[-1])]
        went = " -> ".join(f"{value:.3f}" for value in losses)
        return f"Learned(tasks: {tasks}; {self.history[-1].step} steps, loss {went})"


def learn(
    classifier: Classifier,
    images: Examples,
    *,
    method: str | Method = DEFAULT_METHOD,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    memory: Mapping[str, Any] | None = None,
    old: Images | None = None,
    score: Callable[[Classifier], float] | None = None,
) -> Learned:
    """Train the newest task of a classifier on labeled images.

    `wrap` makes a classifier of a module, and `grow` adds a task to it.

    Args:
        classifier: The classifier; it is not changed.
        images: Labeled images of its newest task: `Images`, a pair (inputs, class indices), a Dataset of pairs, or a
            DataLoader of batches; the last two are read into memory once. uint8 pixels [N, H, W, C] are scaled to
            [0, 1] (`Images` has a mean and a standard deviation too), float inputs [N, ...] are used as they are.
        method: How forgetting of the older tasks is prevented: in the notation, or composed.
        config: Training settings; precision "auto" is fp32 here.
        memory: What the last `learn` returned.
        old: Sample of old images, for the methods that use one.
        score: Validation Score of a classifier, for methods that select by one.

    Returns:
        The trained classifier in eval mode, the memory for the next task, and the logged steps.

    Raises:
        InputError: A setting is not allowed, the method lacks what it needs, or the images have another form
            or do not fit the classifier.
    """
    composed = composition.build(method) if isinstance(method, str) else method
    task = next(task for task in classifier.tasks if task.name == newest_task(classifier))
    examples = as_images(images, task)
    check_inputs(classifier, examples)
    sources = TrainingData(examples, old, config.views, config.augment, config.seed, score)
    config = resolve_steps(validate(config), len(examples.pixels), config.batch_size)
    config = replace(config, precision="fp32" if config.precision == "auto" else config.precision)
    past = dict(memory or {})
    classifier = copy.deepcopy(classifier)
    classifier.softmax = config.softmax
    history: list[StepMetrics] = []

    def log(state: TrainState, terms: dict[str, float]) -> bool:
        if terms:
            history.append(StepMetrics(step=state.step, lr=lr_at(config, state.step - 1), terms=terms))
        return False

    state = loop.fit(loop.start(classifier, composed, sources, past, config), composed, sources, config, log)
    loop.keep_average(state)
    classifier, new_memory = state.classifier, {}
    if composed.finish:
        classifier, new_memory = composed.finish(classifier, state.memory, sources)
    imprint_added_classes(classifier, sources)
    memories = {**past, **{name: tensors for name, tensors in new_memory.items() if tensors}}
    return Learned(classifier.eval(), memories, tuple(history))
