"""Probe a model before it is measured: is it deterministic, and which parameters have a rule?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taskgraft.curvature.tape import Call, Tape
from taskgraft.types import Outputs, Params

PROBE_IMAGES = 3  # images: one to change, two to stay, and another number to tell a batch from any other dimension
ROUNDING = 1e-4  # largest difference, relative to the largest entry, that is taken for rounding

ReadImages = Callable[[int, int], Tensor]


class Probe(NamedTuple):
    """What a probe of a model found.

    Sums of the parameters `kernel_first` are best laid out [k, k, O, C]; `images` are those of the probe;
    `bytes_per_image` counts activations.
    """

    with_rule: Params
    without_rule: Params
    kernel_first: set[str]
    images: Tensor
    bytes_per_image: int


def probe_model(model: nn.Module, read: ReadImages, count: int, params: Params, tasks: Sequence[str]) -> Probe:
    """Run a few images through the model in eval mode and find out which parameters have a rule.

    Args:
        model: Maps images [B, ...] to {task: logits [B, K]}.
        read: `read(start, stop)` returns those images.
        count: Number of images.
        params: The parameters to measure.
        tasks: The outputs that count.

    Raises:
        ValueError: The images, the logits or the tasks are not what per-sample gradients need.
    """
    size = min(count, PROBE_IMAGES)
    images = read(0, size)
    if len(images) != size:
        raise ValueError(f"read(0, {size}) gave {len(images)} images: it must give the images start to stop")
    if not torch.equal(images, read(0, size)):
        raise ValueError(f"read(0, {size}) gave other images the second time: turn random augmentation off")
    images = images[torch.arange(PROBE_IMAGES) % size]
    changed = images.clone()
    ramp = torch.arange(changed[0].numel(), device=images.device).reshape(changed[0].shape)
    changed[0] = changed[0] / 2 + images.abs().max() * torch.cos(ramp.to(images.dtype))

    tape, outputs = _record(model, images, params)
    _check_tasks(outputs, tasks, PROBE_IMAGES)
    _, repeated = _record(model, images, {})
    altered, altered_outputs = _record(model, changed, params)
    smaller, _ = _record(model, images[: PROBE_IMAGES - 1], params)
    for task in tasks:
        if _rows_differ(outputs[task], repeated[task]).any():
            raise ValueError(
                f"the logits of task {task!r} differ between two passes over the same images in eval mode: the model "
                "draws random numbers (dropout that ignores eval?); turn that off"
            )
        if _rows_differ(outputs[task], altered_outputs[task])[1:].any():
            raise ValueError(
                f"the logits of task {task!r} of an image depend on the other images of the batch, so no image has a "
                "gradient of its own: normalize by running statistics"
            )
    fast = _names_with_rule(tape, altered, smaller)
    activations = sum(_activation_bytes(call) for call in tape.calls)
    return Probe(
        {name: value for name, value in params.items() if name in fast},
        {name: value for name, value in params.items() if name not in fast},
        {call.names["weight"] for call in tape.calls if call.use.kernel_first and "weight" in call.names},
        images,
        max(1, activations // PROBE_IMAGES),
    )


def _record(model: nn.Module, images: Tensor, params: Params) -> tuple[Tape, Outputs]:
    with Tape(params) as tape:
        outputs = model(images)
    return tape, outputs


def _check_tasks(outputs: Outputs, tasks: Sequence[str], rows: int) -> None:
    for task in tasks:
        if task not in outputs:
            raise ValueError(f"the model has no task {task!r}; it has {', '.join(map(repr, outputs))}")
        if outputs[task].dim() != 2 or len(outputs[task]) != rows:
            raise ValueError(
                f"task {task!r} gives {list(outputs[task].shape)} for {rows} images: need [{rows}, classes]"
            )


def _names_with_rule(tape: Tape, altered: Tape, smaller: Tape) -> set[str]:
    """Return the parameters that exactly one known call reads, with the samples outermost in its input."""
    orders = [[call.names for call in recording.calls] for recording in (tape, altered, smaller)]
    if not orders[0] == orders[1] == orders[2]:
        return set()  # the control flow depends on the data
    uses = Counter(name for call in tape.calls for name in call.names.values())
    calls = zip(tape.calls, altered.calls, smaller.calls, strict=True)
    candidates = {name for group in calls if _samples_outermost(*group) for name in group[0].names.values()}
    return {name for name in candidates if uses[name] == 1} - tape.unknown - altered.unknown - smaller.unknown


def _samples_outermost(call: Call, altered: Call, smaller: Call) -> bool:
    """Return whether rows [i·m, (i + 1)·m) belong to sample i: a change of the first image moves only the first m."""
    per_sample, rest = divmod(call.rows, PROBE_IMAGES)
    if rest or smaller.rows != per_sample * (PROBE_IMAGES - 1) or (per_sample != 1 and not call.use.folded):
        return False
    before, after = call.use.input, altered.use.input
    if before is None or after is None:
        return True
    if before._version != call.version or len(before) != call.rows or before.shape != after.shape:
        return False  # changed in place since, or broadcast
    moved = _rows_differ(before, after)
    return bool(moved[:per_sample].any()) and not bool(moved[per_sample:].any())


def _rows_differ(first: Tensor, second: Tensor) -> Tensor:
    """Return for each row [B] whether the two differ by more than rounding."""
    return ((first - second).abs() > ROUNDING * first.abs().max()).flatten(1).any(1)


def _activation_bytes(call: Call) -> int:
    """Count the bytes of the input and of an output of the same size."""
    input = call.use.input
    return 0 if input is None else 2 * input.numel() * input.element_size()
