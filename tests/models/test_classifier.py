"""Growing changes no old bit; wrapping takes any network that ends in a linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taskgraft import pytree
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import grow, inherited_parameters, merge_heads, set_frozen_to_eval, wrap
from taskgraft.types import Task
from toys import NEW, OLD, equal, parent

ARCHS = ["test_resnet", "test_vit", "test_efficientnet"]


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))


def plain(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 7, bias=bias))


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_grow_keeps_old_logits_bit_identical(arch: str) -> None:
    old = parent(arch, **({"img_size": 32} if arch == "test_vit" else {}))
    before, state = old(images()), pytree.state(old)
    new = grow(grow(old, NEW, 3), Task("size", ("a", "b")), 4).eval()
    after = new(images())
    assert torch.equal(after[OLD.name], before[OLD.name])
    assert list(after) == ["shape", "paint", "size"]
    assert [tuple(logits.shape) for logits in after.values()] == [(5, 3), (5, 4), (5, 2)]
    assert equal({name: value for name, value in pytree.state(new).items() if name in state}, state)
    assert equal(pytree.state(old), state)
    assert [task.name for task in old.tasks] == ["shape"]


def test_new_head_depends_on_seed_and_task_only() -> None:
    one, two = (grow(parent(), NEW, 3).linears()[-1] for _ in range(2))
    torch.manual_seed(8)
    assert equal(pytree.state(one), pytree.state(two))
    assert not torch.equal(grow(parent(), NEW, 4).linears()[-1].weight, one.weight)
    assert not torch.equal(grow(parent(), NEW._replace(name="x"), 3).linears()[-1].weight, one.weight)
    bound = one.in_features**-0.5
    assert 0.9 * bound < float(one.weight.detach().abs().max()) <= bound
    assert float(one.bias.detach().abs().max()) > 0


def test_grow_copies() -> None:
    old = parent()
    state = pytree.state(old)
    with torch.no_grad():
        for value in grow(old, NEW, 3).parameters():
            value.zero_()
    assert equal(pytree.state(old), state)


def test_duplicate_task_is_refused() -> None:
    with pytest.raises(TaskgraftError, match=r"already has a task 'shape' \(tasks: shape, paint\); choose another"):
        grow(grow(parent(), NEW, 0), Task("shape", ("x", "y")), 0)
    with pytest.raises(TaskgraftError, match="has 1 class, but at least two are needed"):
        grow(parent(), Task("mono", ("x",)), 0)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_wrap_any_network(bias: bool) -> None:
    net, pixels = plain(bias), images(2)
    wrapped = wrap(net, "3", [OLD, NEW])
    full = net(pixels)
    torch.testing.assert_close(wrapped(pixels), {"shape": full[:, :3], "paint": full[:, 3:]})
    weight, added = merge_heads(wrapped)
    last = net.get_submodule("3")
    assert isinstance(last, nn.Linear)
    assert torch.equal(weight, last.weight)
    assert torch.equal(added, last.bias if bias else torch.zeros(7))
    wrapped.backbone.get_submodule("1").weight.data.zero_()  # pyright: ignore
    assert torch.equal(net(pixels), full)  # the network itself was not changed


def test_wrap_refuses_wrong_layer() -> None:
    with pytest.raises(TaskgraftError, match="'fc' is not a linear layer of Sequential; choose one of 1, 3"):
        wrap(plain(), "fc", [OLD, NEW])
    with pytest.raises(TaskgraftError, match="'2' is not a linear layer"):
        wrap(plain(), "2", [OLD, NEW])
    with pytest.raises(TaskgraftError, match="'3' has 7 outputs, but 3 class names were given"):
        wrap(plain(), "3", [OLD])


def test_inherited_parameters() -> None:
    grown = grow(parent(), NEW, 0)
    names = {name for name, _ in grown.named_parameters()}
    assert names - inherited_parameters(grown).keys() == {"heads.1.weight", "heads.1.bias"}


def test_frozen_norm_keeps_statistics() -> None:
    grown = grow(parent(), NEW, 0).train()
    buffers = {name: value.clone() for name, value in grown.named_buffers()}
    set_frozen_to_eval(grown, "frozen")
    grown(images() * 5 + 3)
    assert equal(dict(grown.named_buffers()), buffers)
    grown.train()
    grown(images() * 5 + 3)
    assert not equal(dict(grown.named_buffers()), buffers)
