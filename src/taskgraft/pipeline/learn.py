"""Training in memory, from Python: any module with a final linear layer, any tensors; nothing is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from taskgraft.bundle import Bundle
from taskgraft.bundle.format import compute_digest
from taskgraft.config import TrainingConfig, lr_at, resolve_steps, validate
from taskgraft.data.dataset import open_images
from taskgraft.data.in_memory import Examples, as_images
from taskgraft.data.labeled_images import as_source
from taskgraft.data.task_images import describe_exclusions
from taskgraft.errors import InputError
from taskgraft.methods import composition
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import Method, MethodLike
from taskgraft.models.classifier import Classifier, grow, newest_task
from taskgraft.models.inference import check_inputs, imprint_added_classes
from taskgraft.pipeline.request import DataLike
from taskgraft.pipeline.run import Extension
from taskgraft.results.record import StepMetrics
from taskgraft.training import loop
from taskgraft.training.checkpoints import TrainState
from taskgraft.training.compilation import check_compiler
from taskgraft.types import Callbacks, Images, TrainingData


@dataclass(frozen=True, repr=False)
class Learned:
    """A trained classifier; it unpacks into classifier, memory and history.

    Attributes:
        classifier: The classifier, in eval mode.
        memory: What to pass to the next `learn`.
        history: Learning rate and terms of the loss at each logged step; "data" is that of the new task.
        bundle: The classifier as a Bundle, which predicts images and can be saved; None where none was given.
    """

    classifier: Classifier
    memory: dict[str, Any]
    history: tuple[StepMetrics, ...]
    bundle: Bundle | None = None

    def __iter__(self) -> Iterator[Any]:
        """Iterate over classifier, memory and history."""
        return iter((self.classifier, self.memory, self.history))

    def __repr__(self) -> str:
        """Name the tasks and how the loss went; the network would fill pages."""
        tasks = ", ".join(f"{task.name} ({len(task.classes)})" for task in self.classifier.tasks)
        losses = [sum(line.terms.values()) for line in (self.history[0], self.history[-1])]
        went = " -> ".join(f"{value:.3f}" for value in losses)
        return f"Learned(tasks: {tasks}; {self.history[-1].step} steps, loss {went})"


def learn(
    classifier: Classifier | Bundle | Extension,
    images: Examples | DataLike,
    *,
    task: str = "",
    method: MethodLike | Method = DEFAULT_METHOD,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    memory: Mapping[str, Any] | None = None,
    old: Images | None = None,
    score: Callable[[Classifier], float] | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Learned:
    """Train the newest task of a classifier on labeled images.

    `wrap` makes a classifier of a module, and `grow` adds a task to it. A Bundle, such as `open_parent` gives, gets
    its new task here, with the classes of the images, which its own preprocessing brings to size: those may be anything
    that `extend` takes.

    Args:
        classifier: The classifier or Bundle, or a run, whose child is meant; it is not changed.
        images: Labeled images of its newest task: `Images`, a pair (inputs, class indices), a Dataset of pairs, or a
            DataLoader of batches; the last two are read into memory once. uint8 pixels [N, H, W, C] are scaled to
            [0, 1] (`Images` has a mean and a standard deviation too), float inputs [N, ...] are used as they are.
        task: For a Bundle: the name of the new task. Empty = its newest task, which has not been trained yet.
        method: How forgetting of the older tasks is prevented: in the notation, as objects, or composed.
        config: Training settings; "auto" is fp32 for the precision, and off for compile, here.
        memory: What the last `learn` returned; that of a Bundle is used without it.
        old: Sample of old images, for the methods that use one.
        score: Validation Score of a classifier, for methods that select by one.
        callbacks: For a Bundle: `info` is called with what was assumed of the images, `progress` while they are read.

    Returns:
        The trained classifier in eval mode, the memory for the next task, and the logged steps.

    Raises:
        InputError: A setting is not allowed, the method lacks what it needs, or the images have another form
            or do not fit the classifier.
        DataError: For a Bundle: images cannot be used.
    """
    composed = method if isinstance(method, Method) else composition.build(method)
    if isinstance(classifier, Extension):
        classifier = classifier.bundle
    if isinstance(classifier, Bundle):
        bundle, past = classifier, dict(classifier.memory if memory is None else memory)
        grown, images = _add_task(bundle, images, task, config, callbacks)
    elif task:
        raise InputError(f"task={task!r} is for a Bundle; a Classifier gets its new task by taskgraft.grow")
    else:
        bundle, past, grown = None, dict(memory or {}), classifier
    newest = next(task for task in grown.tasks if task.name == newest_task(grown))
    examples = as_images(images, newest)
    check_inputs(grown, examples)
    sources = TrainingData(
        examples, old, config.views, config.augment, config.seed, score, fisher_precision=config.fisher_precision
    )
    config = resolve_steps(validate(config), len(examples.pixels), config.batch_size)
    config = replace(
        config,
        precision="fp32" if config.precision == "auto" else config.precision,
        compile="off" if config.compile == "auto" else config.compile,
    )
    check_compiler(config, next(grown.parameters()).device)
    grown = copy.deepcopy(grown)
    grown.softmax = config.softmax
    history: list[StepMetrics] = []

    def log(state: TrainState, terms: dict[str, float]) -> bool:
        if terms:
            history.append(StepMetrics(step=state.step, lr=lr_at(config, state.step - 1), terms=terms))
        return False

    state = loop.fit(loop.start(grown, composed, sources, past, config), composed, sources, config, log)
    loop.keep_average(state)
    child, new_memory = state.classifier, {}
    if composed.finish:
        child, new_memory = composed.finish(child, state.memory, sources)
    imprint_added_classes(child, sources)
    memories = {**past, **{name: tensors for name, tensors in new_memory.items() if tensors}}
    child.eval()
    return Learned(child, memories, tuple(history), bundle and _rebundle(bundle, child, memories))


def _add_task(
    bundle: Bundle, images: Any, name: str, config: TrainingConfig, callbacks: Callbacks
) -> tuple[Classifier, Images]:
    """Return a bundle's classifier with the task of the images, and the images by the bundle's preprocessing."""
    classifier = bundle.classifier
    known = next((task for task in classifier.tasks if task.name == (name or newest_task(classifier))), None)
    if known and known.name != newest_task(classifier):
        raise InputError(f"task {known.name!r} is not the newest of the bundle, and only that one is trained; "
                         "choose another name for a new one")  # fmt: skip
    if isinstance(images, Images):
        if known is None:
            raise InputError(f"task {name!r} is new, and Images have no class names; add it by taskgraft.grow first, "
                             "or give a Dataset or a pair (images, labels)")  # fmt: skip
        return classifier, images
    source = as_source(images, "images")
    dataset = open_images(
        source, known.name if known else name, bundle.preprocessing, seed=config.seed,
        classes=known and known.classes, as_split="train", find_bits=False,
        progress=partial(callbacks.progress, f"reading {source.name}"),
    )  # fmt: skip
    for line in describe_exclusions(dataset):
        callbacks.info(line)
    assert dataset.train is not None
    return (classifier if known else grow(classifier, dataset.tasks[0], config.seed)), dataset.train


def _rebundle(bundle: Bundle, classifier: Classifier, memory: dict[str, Any]) -> Bundle:
    """Return the bundle of a trained child."""
    child = replace(
        bundle, classifier=classifier, memory=memory, folder=None, source=f"{bundle.source}, extended in memory",
        notes=(),
    )  # fmt: skip
    return replace(child, digest=compute_digest(child))
