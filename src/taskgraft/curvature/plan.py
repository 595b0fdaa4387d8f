"""Looks at a model before it is measured: is it deterministic, and which parameters have a fast rule?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taskgraft.curvature.tape import Call, Tape
from taskgraft.types import Outputs, Params

PROBE = 3  # images: one to change, two to stay, and another number to tell a batch from any other dimension
ALIKE = 1e-4  # largest difference, relative to the largest entry, that is taken for rounding

Read = Callable[[int, int], Tensor]


class Plan(NamedTuple):
    """What the look has shown.

    `fast` have a rule, `loose` take the generic path; the sums of `taps_first` are best laid out [k, k, O, C];
    `images` are those looked at; `bytes_per_image` counts activations.
    """

    fast: Params
    loose: Params
    taps_first: set[str]
    images: Tensor
    bytes_per_image: int


def look(model: nn.Module, read: Read, count: int, params: Params, tasks: Sequence[str]) -> Plan:
    """Run a few images through the model in eval mode.

    Raises ValueError if the images, the logits or the tasks are not what per-sample gradients need.
    """
    few = min(count, PROBE)
    images = read(0, few)
    if len(images) != few:
        raise ValueError(f"read(0, {few}) gave {len(images)} images: it must give the images start to stop")
    if not torch.equal(images, read(0, few)):
        raise ValueError(f"read(0, {few}) gave other images the second time: turn random augmentation off")
    images = images[torch.arange(PROBE) % few]
    changed = images.clone()
    ramp = torch.arange(changed[0].numel(), device=images.device).reshape(changed[0].shape)
    changed[0] = changed[0] / 2 + images.abs().max() * torch.cos(ramp.to(images.dtype))

    tape, outputs = _run(model, images, params)
    _check_tasks(outputs, tasks, PROBE)
    _, again = _run(model, images, {})
    altered, others = _run(model, changed, params)
    short, _ = _run(model, images[: PROBE - 1], params)
    for task in tasks:
        if _differ(outputs[task], again[task]).any():
            raise ValueError(
                f"the logits of task {task!r} differ between two passes over the same images in eval mode: the model "
                "draws random numbers (dropout that ignores eval?); turn that off"
            )
        if _differ(outputs[task], others[task])[1:].any():
            raise ValueError(
                f"the logits of task {task!r} of an image depend on the other images of the batch, so no image has a "
                "gradient of its own: normalize by running statistics"
            )
    fast = _fast_names(tape, altered, short)
    activations = sum(_bytes(call) for call in tape.calls)
    return Plan(
        {name: value for name, value in params.items() if name in fast},
        {name: value for name, value in params.items() if name not in fast},
        {call.names["weight"] for call in tape.calls if call.reading.taps_first and "weight" in call.names},
        images,
        max(1, activations // PROBE),
    )


def _run(model: nn.Module, images: Tensor, params: Params) -> tuple[Tape, Outputs]:
    with Tape(params) as tape:
        outputs = model(images)
    return tape, outputs


def _check_tasks(outputs: Outputs, tasks: Sequence[str], rows: int) -> None:
    for task in tasks:
        if task not in outputs:
            raise ValueError(f"the model has no task {task!r}; it answers {', '.join(map(repr, outputs))}")
        if outputs[task].dim() != 2 or len(outputs[task]) != rows:
            raise ValueError(
                f"task {task!r} gives {list(outputs[task].shape)} for {rows} images: need [{rows}, classes]"
            )


def _fast_names(tape: Tape, altered: Tape, short: Tape) -> set[str]:
    """Name the parameters that exactly one understood call reads, with the samples outermost in its input."""
    orders = [[call.names for call in one.calls] for one in (tape, altered, short)]
    if not orders[0] == orders[1] == orders[2]:
        return set()  # the control flow depends on the data
    uses = Counter(name for call in tape.calls for name in call.names.values())
    calls = zip(tape.calls, altered.calls, short.calls, strict=True)
    good = {name for three in calls if _sample_major(*three) for name in three[0].names.values()}
    return {name for name in good if uses[name] == 1} - tape.unknown - altered.unknown - short.unknown


def _sample_major(call: Call, altered: Call, short: Call) -> bool:
    """Say whether rows [i·m, (i + 1)·m) belong to sample i: a change of the first image moves only the first m."""
    per, rest = divmod(call.rows, PROBE)
    if rest or short.rows != per * (PROBE - 1) or (per != 1 and not call.reading.folded):
        return False
    before, after = call.reading.input, altered.reading.input
    if before is None or after is None:
        return True
    if before._version != call.version or len(before) != call.rows or before.shape != after.shape:
        return False  # changed in place since, or broadcast
    moved = _differ(before, after)
    return bool(moved[:per].any()) and not bool(moved[per:].any())


def _differ(one: Tensor, two: Tensor) -> Tensor:
    """Say for each row [B] whether more than rounding lies between the two."""
    return ((one - two).abs() > ALIKE * one.abs().max()).flatten(1).any(1)


def _bytes(call: Call) -> int:
    """Count the input and an output of the same size."""
    given = call.reading.input
    return 0 if given is None else 2 * given.numel() * given.element_size()
