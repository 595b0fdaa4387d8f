"""What a step costs, in counts that do not depend on the machine's speed: a regression shows here, not on a clock.

Every bound is what was counted when the line was written, with a little room; a change that needs more must say why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskgraft import pytree
from taskgraft.models import inference
from taskgraft.models.classifier import Classifier
from taskgraft.training import loop
from toys import NEW, OLD, RUN, make_images, start_run

QUIET = replace(RUN, steps=1000, log_every=1000, views=1)  # nothing is logged in the steps that are looked at
VIEWS = 20 // 8 + 1  # steps after which every image's only view has been seen


class Counted(TorchDispatchMode):
    """Operator calls, and bytes of results that lie in new memory."""

    calls, fresh = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        known = {value.untyped_storage().data_ptr() for value in _tensors((args, kwargs or {}))}
        self.fresh += sum(
            value.untyped_storage().nbytes()
            for value in _tensors(result)
            if value.untyped_storage().data_ptr() not in known
        )
        return result


def _tensors(tree_of: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree_of) if isinstance(leaf, torch.Tensor)]


def cost_of(notation: str, after: int = VIEWS) -> tuple[int, int, int]:
    """Operator calls and new bytes of one step in the steady state, and the number of learning tensors."""
    state, method, data = start_run(notation, QUIET)
    for _ in range(after):
        state, _ = loop.train_step(state, method, data, QUIET)
    with Counted() as counted:
        state, terms = loop.train_step(state, method, data, QUIET)
    assert terms == {}
    return counted.calls, counted.fresh, sum(value.requires_grad for value in state.classifier.parameters())


@pytest.fixture(scope="module")
def plain() -> tuple[int, int, int]:
    return cost_of("finetune")


def test_penalty_takes_few_calls_per_tensor(plain: tuple[int, int, int]) -> None:
    calls, fresh, learning = cost_of("ewc(images=20)")
    assert calls - plain[0] <= 5 * learning
    assert fresh - plain[1] <= 2 * largest_bytes() + 4 * 10_000  # scratch of one block at a time, never of all weights


def largest_bytes() -> int:
    state, *_ = start_run("finetune", QUIET)
    return sum(value.nbytes for value in state.classifier.parameters())


def test_recorded_logits_need_no_pass_of_the_parent(plain: tuple[int, int, int]) -> None:
    calls, _, _ = cost_of("distill")
    live, _, _ = cost_of("distill(teacher=live)")
    assert calls - plain[0] <= 60
    assert live - calls >= 30, "the parent's pass is in the live teacher's count"


def test_plain_step_makes_no_needless_call(plain: tuple[int, int, int]) -> None:
    """Of a bare loop: forward, loss, backward, optimizer. The rest is picking views and looking for overflow."""
    state, _, _ = start_run("finetune", QUIET)
    model, optimizer = state.classifier.train(), torch.optim.SGD(state.classifier.parameters(), 0.1, fused=True)
    images, target = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    with Counted() as bare:
        torch.nn.functional.cross_entropy(model.newest_logits(images)[:, :4], target).backward()
        optimizer.step()
    assert plain[0] - bare.calls <= 120


@pytest.mark.parametrize(
    ("notation", "times"),
    [("finetune", 0.0), ("l2sp", 1.0), ("ewc(images=20)", 2.0), ("mas(images=20)", 2.0), ("si", 4.0), ("lwf", 1.01)],
)
def test_memory_held_by_methods(notation: str, times: float) -> None:
    """Bytes of its memory, as a multiple of the weights'."""
    state, *_ = start_run(notation, QUIET)
    held = sum(value.nbytes for _, value in pytree.flatten(state.memory))
    weights = sum(value.nbytes for value in state.classifier.state_dict().values())
    assert held <= times * weights + 1000


def passes_of(model: Classifier, work: Callable[[], object]) -> int:
    """Images that go through the first layer while `work` lasts."""
    first = next(module for module in model.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    seen: list[int] = []
    hook = first.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    work()
    hook.remove()
    return sum(seen)


def test_one_pass_computes_every_task() -> None:
    model, images = start_run("finetune", QUIET)[0].classifier, make_images(11, OLD, 3)
    assert passes_of(model, lambda: inference.predict(model, images, 4)) == 11


def test_step_passes_each_image_once() -> None:
    for notation in ("finetune", "ewc(images=20)", "si", "distill"):
        state, method, data = start_run(notation, QUIET)
        for _ in range(VIEWS):
            state, _ = loop.train_step(state, method, data, QUIET)
        now = state
        assert passes_of(now.classifier, lambda now=now, m=method, s=data: loop.train_step(now, m, s, QUIET)) == 8
    assert NEW.classes
