"""The training loop: the state before the first step, one step, all steps. A step depends on its arguments alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from taskgraft import data, distributed, losses, seeding
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import TrainingConfig, lr_at
from taskgraft.errors import InputError, TrainingError
from taskgraft.methods.protocol import Method, Project
from taskgraft.models.classifier import Classifier, newest_task, old_class_counts, set_frozen_to_eval
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.inference import cached_features, compute_once, imprint_added_classes
from taskgraft.training import penalties
from taskgraft.training.checkpoints import TrainState
from taskgraft.training.compilation import Compiler, build_compiler
from taskgraft.training.layer_decay import compute_lr_scales
from taskgraft.training.micro_batching import BatchForward, batchnorm_errors
from taskgraft.types import Batch, Memory, Outputs, Params, Step, Teacher, TrainingData, Update

OnStep = Callable[[TrainState, dict[str, float]], bool]  # (state, terms of the objective if logged) -> stop?
HEAD_BATCH, HEAD_LR = 128, 0.01  # of the head-only steps, which are a convex problem: the result hardly depends on them


def start(
    classifier: Classifier, method: Method, sources: TrainingData, past: Memory, config: TrainingConfig
) -> TrainState:
    """Build the state before the first step: adapt a copy of the classifier, train its new head, collect the memory.

    Args:
        classifier: The classifier to train; it is copied.
        method: How forgetting is prevented.
        sources: Training images.
        past: Memory that the parent's bundle stored for its next extension.
        config: Training settings.

    Raises:
        InputError: No parameter is left to train.
    """
    original = classifier
    classifier = train_head(_adapt(classifier, method, sources), sources, config)
    imprint_added_classes(classifier, sources)
    memory = method.remember(classifier, sources, past) if method.remember else {}
    return _build_state(classifier, original, memory, config)


def prepare(classifier: Classifier, method: Method, sources: TrainingData, config: TrainingConfig) -> TrainState:
    """Build a state with an empty memory, into which a checkpoint can be restored. Arguments as of `start`."""
    return _build_state(_adapt(classifier, method, sources), classifier, {}, config)


def check_batch_size(classifier: Classifier, method: Method, sources: TrainingData, config: TrainingConfig) -> None:
    """Check that BatchNorm works with the images of one pass, before anything is written. Arguments as of `start`.

    Raises:
        InputError: A pass has one image, and a BatchNorm layer in training mode needs more.
    """
    adds_images = method.mix is not None or sources.unlabeled is not None
    if config.batch_size // config.micro_batches > 1 or distributed.world_size() > 1 or adds_images:
        return
    classifier = _adapt(classifier, method, sources).train()
    set_frozen_to_eval(classifier, config.norm)
    batch = data.build_batch(sources, 0, config.batch_size, next(classifier.parameters()).device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), batchnorm_errors():
        classifier(batch.images[:1])


def fit(
    state: TrainState,
    method: Method,
    sources: TrainingData,
    config: TrainingConfig,
    on_step: OnStep | None = None,
    until: int | None = None,
) -> TrainState:
    """Train to the last step.

    Args:
        state: Where to begin; it is changed in place.
        method: How forgetting is prevented.
        sources: Training images.
        config: Training settings.
        on_step: Called after each step with the new state and, on logged steps, the terms of the objective; returns
            whether to stop.
        until: Stop after this step instead of the last one.
    """
    keep_freed_memory()
    if config.deterministic:
        use_deterministic_kernels()
    while state.step < min(config.steps, config.steps if until is None else until):
        state, terms = train_step(state, method, sources, config)
        if on_step:
            if state.step % config.save_every == 0 or state.step % config.eval_every == 0:
                check_finite(state, sources, config)  # nothing is measured or saved of a step that does not count
            if on_step(state, terms):
                break
    check_finite(state, sources, config)
    return state


def use_deterministic_kernels() -> None:
    """Choose deterministic kernels for the rest of this process; those that have none warn."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def train_step(
    state: TrainState, method: Method, sources: TrainingData, config: TrainingConfig
) -> tuple[TrainState, dict[str, float]]:
    """Take one optimizer step. Changes classifier and optimizer in place, and nothing outside the state.

    Returns:
        The state after the step, and the terms of the objective on the first, the last and every `log_every`th step
        (otherwise empty).

    Raises:
        TrainingError: Loss or gradient is not finite, of this step or, on a GPU, of the one before; nothing has been
            updated.
    """
    classifier, memory, step = state.classifier, state.memory, state.step
    classifier.train()
    set_frozen_to_eval(classifier, config.norm)
    device = next(classifier.parameters()).device
    batch = data.build_batch(sources, step, config.batch_size, device)
    rows = batch.rows
    if config.mixup or config.cutmix:
        batch = data.mix_batch(batch, config.mixup, config.cutmix, seeding.generator(state.seed, "mixup", step))
    if method.mix:
        batch = method.mix(batch, memory, seeding.generator(state.seed, "mix", step))
    images = batch.images[distributed.local_slice(len(batch.images))]  # of this process
    images = images.contiguous() if config.precision == "fp32" and images.dim() == 4 else images
    batch = batch._replace(labels={task: data.to_device(target, device) for task, target in batch.labels.items()})

    model = _choose_heads(classifier, method, batch, config, state.compiler)
    forward = BatchForward(classifier, model, images, len(batch.images), config, step)
    terms = {"data": _compute_data_loss(classifier, forward.outputs, batch.labels, sources, config)}
    if batch.partners is not None:
        partners = {task: data.to_device(target, device) for task, target in batch.partners.items()}
        of_partners = _compute_data_loss(classifier, forward.outputs, partners, sources, config)
        terms["data"] = batch.share * terms["data"] + (1 - batch.share) * of_partners
    if method.response:
        predict, teach = _build_predict(classifier, batch.images, images, config, sources.teacher)
        terms |= method.response(
            Step(batch, forward.outputs, config.softmax, predict, old_class_counts(classifier), teach), memory
        )
    loss = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad(set_to_none=True)
    forward.backward(loss)
    params: Params = {name: value for name, value in classifier.named_parameters() if value.requires_grad}

    on_weights = penalties.choose_form(method.weight(params, memory), config) if method.weight else {}
    logged = step == 0 or (step + 1) % config.log_every == 0 or step + 1 == config.steps
    if logged:
        with torch.no_grad():  # their gradient, or proximal step, is added without a graph
            terms |= {name: losses.quadratic(params, penalty) for name, penalty in on_weights.items()}
    before: Params = {}
    gradient: Params = {}
    explicit = any(penalty.strength and not penalty.implicit for penalty in on_weights.values())
    if method.observe or method.project:
        before = {name: value.detach().clone() for name, value in params.items()}
    if method.observe:  # of the objective without penalties, which are about to be added
        gradient = {name: value.grad for name, value in params.items() if value.grad is not None}
        gradient = {name: value.clone() for name, value in gradient.items()} if explicit else gradient
    penalties.add_gradients(params, on_weights.values())
    norm, scale = _clip_gradients(params, config)
    is_finite = torch.isfinite(norm) & torch.isfinite(loss)
    keep: Tensor | None = None
    lr = lr_at(config, step)
    if _must_wait(device, method):
        if not bool(is_finite):
            what = "gradient" if bool(torch.isfinite(loss)) else "loss"
            raise _explain_not_finite(step + 1, lr, sources, rows.tolist(), what)
    else:
        check_finite(state, sources, config)
        keep = _skip_if_not_finite(state.optimizer, is_finite)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    state.optimizer.step()
    penalties.step_towards(params, on_weights.values(), lr, keep, _find_lr_scales(state.optimizer, params))
    if method.project:
        _restrict(params, before, method.project, memory)
    if method.observe:
        after = {name: value.detach() for name, value in params.items()}
        memory = method.observe(memory, Update(before, after, gradient, 1.0 if explicit else scale))
    if state.average is not None:
        state.average.update(classifier, step + 1)
    values = {name: value.item() for name, value in terms.items()} if logged else {}
    return replace(state, step=step + 1, memory=memory), values


def _restrict(params: Params, before: Params, project: Project, memory: Memory) -> None:
    """Replace the step from `before` to `params` by the part of it that the method allows."""
    with torch.no_grad():
        movement = {name: value - before[name] for name, value in params.items()}
        for name, allowed in project(movement, memory).items():
            if allowed is not movement[name]:
                params[name].copy_(before[name] + allowed)


def train_head(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> Classifier:
    """Train the newest head alone for `config.head_steps` steps of AdamW on features of the frozen backbone.

    Linear probing before fine-tuning (Kumar et al. 2022, LP-FT). The classifier is changed in place, and returned.
    """
    if not config.head_steps:
        return classifier
    name = "features in bf16" if config.precision == "bf16" else "features"
    features = compute_once(
        sources,
        name,
        lambda: {
            "features": cached_features(classifier, sources.new, cache=sources.tensor_cache, precision=config.precision)
        },
    )["features"]
    head, task = classifier.heads[-1], newest_task(classifier)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_LR, weight_decay=0.0)
    size = min(HEAD_BATCH, len(features))
    for step in range(config.head_steps):
        rows = torch.from_numpy(seeding.generator(config.seed, "warmup", step).integers(0, len(features), size))
        labels = {task: sources.new.labels[task][rows].to(features.device)}
        outputs = classifier.logits(features[rows.to(features.device)])
        loss = _compute_data_loss(classifier, outputs, labels, sources, config)
        optimizer.zero_grad()
        loss.backward(inputs=list(head.parameters()))
        optimizer.step()
    return classifier


def _compute_data_loss(
    classifier: Classifier, outputs: Outputs, labels: dict[str, Tensor], sources: TrainingData, config: TrainingConfig
) -> Tensor:
    task, weights = newest_task(classifier), None
    if config.class_weights == "balanced":
        weights = {task: losses.balanced_weights(sources.new.labels[task], outputs[task].shape[1])}
    outputs, labels = losses.restrict_to_added(outputs, labels, task, old_class_counts(classifier).get(task, 0))
    return losses.cross_entropy(outputs, labels, config.softmax, smoothing=config.label_smoothing, weights=weights)


def _adapt(classifier: Classifier, method: Method, sources: TrainingData) -> Classifier:
    classifier = copy.deepcopy(classifier)
    return method.adapt(classifier, sources) if method.adapt else classifier


def _build_state(classifier: Classifier, original: Classifier, memory: Memory, config: TrainingConfig) -> TrainState:
    if config.precision != "fp32":
        classifier = classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    params: Params = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    if not params:
        raise InputError("no trainable parameters: all are frozen; choose a method that trains some")
    trainable: list[Any] = list(params.values())
    lr_scales = compute_lr_scales(original, params, config.layer_decay)
    if lr_scales:
        trainable = [
            {"params": [params[name] for name in params if lr_scales[name] == scale], "lr_scale": scale}
            for scale in sorted(set(lr_scales.values()))
        ]
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            trainable, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(trainable, config.lr, weight_decay=config.weight_decay, fused=True)
    average, compiler = _build_average(classifier, config), build_compiler(config)
    return TrainState(config.seed, 0, classifier, optimizer, memory, average, compiler)


def _build_average(classifier: Classifier, config: TrainingConfig) -> ModelEmaV3 | None:
    """Build the moving average of the weights, whose decay rises to its value in the first steps; None without."""
    if not config.ema:
        return None
    average = ModelEmaV3(classifier, decay=config.ema, use_warmup=True)
    for mine, theirs in zip(average.module.parameters(), classifier.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)  # by which evaluations know what training cannot change
    return average


def keep_average(state: TrainState) -> None:
    """Replace the weights of the classifier by their average, if there is one, in place: training has ended."""
    if state.average is not None:
        state.classifier.load_state_dict(state.average.module.state_dict())


def _find_lr_scales(optimizer: torch.optim.Optimizer, params: Params) -> dict[str, float] | None:
    """Return the factor of the learning rate of each parameter by name; None where all have the same."""
    if len(optimizer.param_groups) == 1:
        return None
    scales = {id(value): group["lr_scale"] for group in optimizer.param_groups for value in group["params"]}
    return {name: scales[id(value)] for name, value in params.items()}


def _choose_heads(
    classifier: Classifier, method: Method, batch: Batch, config: TrainingConfig, compiler: Compiler | None
) -> Callable[[Tensor], Outputs]:
    """Return the whole classifier, or only its newest head where nothing in the objective uses the older ones."""
    task = newest_task(classifier)
    if (
        method.response
        or config.softmax == "joint"
        or set(batch.labels) != {task}
        or task in old_class_counts(classifier)
    ):
        return compiler.compile("all", classifier.forward) if compiler else classifier
    newest = compiler.compile("newest", classifier.newest_logits) if compiler else classifier.newest_logits
    return lambda images: {task: newest(images)}


def _build_predict(
    classifier: Classifier, images: Tensor, local: Tensor, config: TrainingConfig, teacher: Teacher | None
) -> tuple[Callable[[Params, Tensor], Outputs], Callable[[Tensor], Outputs] | None]:
    """Build `Step.predict` and `Step.teach`.

    `images` [B, ...] are those of the batch, `local` [b, ...] those of this process.
    """

    def answer(mask: Tensor, network: Teacher) -> Outputs:
        count = int(mask.sum())
        rows = local if count == len(images) else data.take(images, mask)[distributed.local_slice(count)]
        autocast = torch.autocast(local.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with torch.no_grad(), autocast:
            outputs = network(rows)
        return {task: distributed.all_gather(logits, count) for task, logits in outputs.items()}

    def predict(params: Params, mask: Tensor) -> Outputs:
        with eval_mode(classifier):
            return answer(mask, lambda rows: torch.func.functional_call(classifier, params, (rows,)))

    return predict, (lambda mask: answer(mask, teacher)) if teacher else None


def _clip_gradients(params: Params, config: TrainingConfig) -> tuple[Tensor, Tensor | float]:
    """Clip the gradients; return their norm before, and the factor that they were multiplied by."""
    gradients = [value.grad for value in params.values() if value.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if not config.clip_grad:
        return norm, 1.0
    scale = torch.clamp(config.clip_grad / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm, scale


def _must_wait(device: torch.device, method: Method) -> bool:
    """Whether a step is checked at once: on a CPU nothing runs ahead, and some methods look at every update."""
    return device.type == "cpu" or bool(method.observe or method.project)


def _skip_if_not_finite(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> Tensor | None:
    """Let the optimizer skip this step on the device unless loss and gradient are finite; the host need not know yet.

    Returns:
        1.0 or 0.0: whether the step counts.
    """
    found_inf = (~is_finite).float()
    optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue] - as torch's GradScaler does
    return 1 - found_inf


def check_finite(state: TrainState, sources: TrainingData, config: TrainingConfig) -> None:
    """Check the step before, which the device has long finished.

    Raises:
        TrainingError: Its loss or gradient was not finite; the weights were not updated since.
    """
    skipped: Tensor | None = getattr(state.optimizer, "found_inf", None)
    if skipped is not None and bool(skipped):
        rows = data.batch_indices(sources, state.step - 1, config.batch_size)[0]
        raise _explain_not_finite(state.step, lr_at(config, state.step - 1), sources, rows.tolist(), "loss or gradient")


def _explain_not_finite(step: int, lr: float, sources: TrainingData, rows: Sequence[int], what: str) -> TrainingError:
    names = [sources.new.names[row] for row in rows if row >= 0][:3]
    return TrainingError(
        f"step {step}: the {what} is not finite at learning rate {lr:g} (images {', '.join(names)}, …); the weights "
        "were not updated; lower --lr, or set --clip-grad 1"
    )
