"""The loop: `start`, `advance`, `fit`. What a step does depends on its arguments alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from taskgraft import data, distributed, losses, seeding
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import TrainingConfig, lr_at
from taskgraft.errors import InputError, TrainingError
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, newest_task, old_class_counts, set_frozen_to_eval
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.features import balance_added_classes, compute_once, recall_features
from taskgraft.training import penalties
from taskgraft.training.checkpoints import TrainState
from taskgraft.training.micro_batching import forward
from taskgraft.types import Batch, Memory, Outputs, Params, Quadratic, Step, TrainingData, Update


def start(
    classifier: Classifier, method: Method, sources: TrainingData, past: Memory, config: TrainingConfig
) -> TrainState:
    """A run before its first step: adapt, warm the new head, remember.

    `past` is what the parent's bundle kept for its next extension.
    """
    classifier = warm(_adapted(classifier, method, sources), sources, config)
    balance_added_classes(classifier, sources)
    memory = method.remember(classifier, sources, past) if method.remember else {}
    return _begun(classifier, memory, config)


def prepare(classifier: Classifier, method: Method, sources: TrainingData, config: TrainingConfig) -> TrainState:
    """A state whose memory is still empty: what a checkpoint is restored into."""
    return _begun(_adapted(classifier, method, sources), {}, config)


def fit(
    state: TrainState,
    method: Method,
    sources: TrainingData,
    config: TrainingConfig,
    on_step: Callable[[TrainState, dict[str, float]], None] | None = None,
    until: int | None = None,
) -> TrainState:
    """Advance to the last step, or to the step `until`.

    `on_step` sees each new state and, on logged steps, the terms of the objective.
    """
    keep_freed_memory()
    while state.step < min(config.steps, config.steps if until is None else until):
        state, terms = advance(state, method, sources, config)
        if on_step:
            on_step(state, terms)
    return state


def advance(
    state: TrainState, method: Method, sources: TrainingData, config: TrainingConfig
) -> tuple[TrainState, dict[str, float]]:
    """One step. Changes the classifier and optimizer in place, and nothing outside the state.

    Returns the terms of the objective on every `log_every`th step, else nothing. Raises TaskgraftError (code 4) before
    the update when loss or gradient is not finite.
    """
    classifier, memory, seed, step = state.classifier, state.memory, state.seed, state.step
    classifier.train()
    set_frozen_to_eval(classifier, config.norm)
    device = next(classifier.parameters()).device
    batch = data.build_batch(sources, step, config.batch_size)
    if method.mix:
        batch = method.mix(batch, memory, seeding.generator(seed, "mix", step))
    own = batch.images[distributed.local_slice(len(batch.images))]
    own = (own.contiguous() if config.precision == "fp32" and own.dim() == 4 else own).to(device)
    batch = batch._replace(labels={task: target.to(device) for task, target in batch.labels.items()})
    forward_heads = _needed(classifier, method, batch, config)
    outputs, back = forward(classifier, forward_heads, own, len(batch.images), config, step)
    terms = {"data": _data_loss(classifier, outputs, batch.labels, config)}
    if method.response:
        seen = Step(
            batch,
            outputs,
            config.softmax,
            _answerer(classifier, batch.images, own, config),
            old_class_counts(classifier),
        )
        terms |= method.response(seen, memory)
    total = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    back()
    params: Params = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    distributed.all_reduce(value.grad for value in params.values() if value.grad is not None)
    terms_on_weights = penalties.settled(method.weight(params, memory), config) if method.weight else {}
    logged = step == 0 or (step + 1) % config.log_every == 0 or step + 1 == config.steps
    if logged:
        terms |= {name: losses.quadratic(params, item) for name, item in terms_on_weights.items()}
    pure = _gradients(params, terms_on_weights.values()) if method.observe else None
    penalties.add_gradients(params, terms_on_weights.values())
    scale = _guard(total, params, config, state, sources, batch.rows)
    before = {name: value.detach().clone() for name, value in params.items()} if method.observe else {}
    lr = lr_at(config, step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    penalties.step_towards(params, terms_on_weights.values(), lr)
    if method.observe and pure:
        after = {name: value.detach() for name, value in params.items()}
        memory = method.observe(memory, Update(before, after, *pure(scale)))
    values = {name: value.item() for name, value in terms.items()} if logged else {}
    return replace(state, step=step + 1, memory=memory), values


def warm(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> Classifier:
    """Let the newest head alone learn for `run.warmup` steps on features of the frozen backbone.

    AdamW at rate 0.01 in batches of 128: the problem is convex, so its result hardly depends on these.
    """
    if not config.head_steps:
        return classifier
    columns = {"recall": sources.tensor_cache, "precision": config.precision}
    name = "features in bf16" if config.precision == "bf16" else "features"
    kept = compute_once(sources, name, lambda: {"columns": recall_features(classifier, sources.new, **columns)})
    features = kept["columns"]
    head = classifier.heads[-1]
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.0)
    size = min(128, len(features))
    for step in range(config.head_steps):
        rows = torch.from_numpy(seeding.generator(config.seed, "warmup", step).integers(0, len(features), size))
        labels = {task: target[rows].to(features.device) for task, target in sources.new.labels.items()}
        own = {newest_task(classifier): labels[newest_task(classifier)]}
        loss = _data_loss(classifier, classifier.logits(features[rows.to(features.device)]), own, config)
        optimizer.zero_grad()
        loss.backward(inputs=list(head.parameters()))
        optimizer.step()
    return classifier


def _data_loss(classifier: Classifier, outputs: Outputs, labels: dict[str, Tensor], config: TrainingConfig) -> Tensor:
    added = newest_task(classifier)
    competing, own = losses.restrict_to_added(outputs, labels, added, old_class_counts(classifier).get(added, 0))
    return losses.cross_entropy(competing, own, config.softmax)


def _adapted(classifier: Classifier, method: Method, sources: TrainingData) -> Classifier:
    classifier = copy.deepcopy(classifier)
    return method.adapt(classifier, sources) if method.adapt else classifier


def _begun(classifier: Classifier, memory: Memory, config: TrainingConfig) -> TrainState:
    if config.precision != "fp32":
        classifier = classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    learning = [value for value in classifier.parameters() if value.requires_grad]
    if not learning:
        raise InputError("no parameter is left to learn: every one is frozen; choose a method that trains some")
    return TrainState(config.seed, 0, classifier, _optimizer(learning, config), memory)


def _needed(
    classifier: Classifier, method: Method, batch: Batch, config: TrainingConfig
) -> Callable[[Tensor], Outputs]:
    """The whole classifier, or its newest head where nothing in the objective reads the older ones."""
    task = newest_task(classifier)
    if (
        method.response
        or config.softmax == "joint"
        or set(batch.labels) != {task}
        or task in old_class_counts(classifier)
    ):
        return classifier
    return lambda images: {task: classifier.newest_logits(images)}


def _answerer(
    classifier: Classifier, images: Tensor, own: Tensor, config: TrainingConfig
) -> Callable[[Params, Tensor], Outputs]:
    """A function that answers with other weights, in eval mode and the run's arithmetic, on some of a batch's images.

    `images` [B, ...] lie on the CPU; `own` are this process's, ready for the classifier.
    """

    def answer(params: Params, chosen: Tensor) -> Outputs:
        count = int(chosen.sum())
        rows = own if count == len(images) else images[chosen][distributed.local_slice(count)].to(own.device)
        arithmetic = torch.autocast(own.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with eval_mode(classifier), torch.no_grad(), arithmetic:
            outputs: Outputs = torch.func.functional_call(classifier, params, (rows,))
        return {task: distributed.all_gather(logits, count) for task, logits in outputs.items()}

    return answer


def _optimizer(params: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            params, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.AdamW(params, config.lr, weight_decay=config.weight_decay, fused=True)


def _gradients(
    params: Params, penalties: Collection[Quadratic]
) -> Callable[[Tensor | float], tuple[Params, Tensor | float]]:
    """The gradients as they are now and by what they were shortened, to be asked for after the step.

    Copied only where an explicit penalty is about to be added to them.
    """
    now = {name: value.grad for name, value in params.items() if value.grad is not None}
    if any(item.strength and not item.implicit for item in penalties):
        copied = {name: value.clone() for name, value in now.items()}
        return lambda scale: (copied, 1.0)
    return lambda scale: (now, scale)


def _guard(
    total: Tensor, params: Params, config: TrainingConfig, state: TrainState, sources: TrainingData, index: Tensor
) -> Tensor | float:
    """Refuse what is not finite, and clip; returns by what the gradients were shortened."""
    gradients = [value.grad for value in params.values() if value.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if not bool(torch.isfinite(norm) & torch.isfinite(total)):
        first = [sources.new.names[row] for row in index[index >= 0].tolist()[:3]]
        raise TrainingError(
            f"step {state.step + 1}: the {'loss' if not bool(torch.isfinite(total)) else 'gradient'} is not finite at "
            f"rate {lr_at(config, state.step):g} (images {', '.join(first)}, …); nothing was updated; "
            "lower --lr, or set --clip-grad 1",
        )
    if not config.clip_grad:
        return 1.0
    scale = torch.clamp(config.clip_grad / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return scale
