"""Weights of torchvision's networks as those of timm's: paired by shape and order, accepted if the outputs agree."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn
from torchvision.models import get_model as build

from taskgraft.models.eval_mode import eval_mode
from taskgraft.types import Params

# timm's name -> torchvision's. ResNets, DenseNets, RegNets and VGGs have the same names of tensors in both.
TWINS = {
    **{f"efficientnet_b{number}": f"efficientnet_b{number}" for number in range(5)},
    **{f"tf_efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    "mnasnet_100": "mnasnet1_0",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b",
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
}
COMPUTED = ("relative_position_index", "relative_coords_table")  # buffers that follow from the sizes
TOLERANCE = 1e-3  # of the outputs' standard deviation; rounding makes a tenth of it in the deepest networks


def convert(tensors: Params, net: nn.Module, arch: str, head: str) -> Params | None:
    """Convert weights of torchvision's network to timm's; None where they are not such weights.

    Both networks hold their tensors in the same order, but for those of different shapes. That this order is right is
    not taken for granted: both compute an image, and their outputs must be equal to rounding.

    Args:
        tensors: The file's tensors.
        net: timm's network; only copied.
        arch: Its name.
        head: The name of its classifier layer.
    """
    twin = TWINS.get(arch.partition(".")[0])
    if twin is None:
        return None
    with torch.device("meta"):  # whose weights are replaced, so none are drawn
        names = [name for name, value in build(twin).state_dict().items() if value.dim() == 2]
    classifier = tensors.get(names[-1])  # the last linear layer
    if classifier is None or classifier.dim() != 2:
        return None
    net = copy.deepcopy(net)
    net.set_submodule(head, nn.Linear(classifier.shape[1], len(classifier)))
    try:
        with torch.device("meta"):
            other = build(twin, num_classes=len(classifier))
            _adapt_stem(other, tensors)
        other.load_state_dict(tensors, strict=True, assign=True)
        converted = _pair(other.state_dict(), net.state_dict())  # a file need not keep their order
        net.load_state_dict({**net.state_dict(), **converted})
        return converted if _agree(net, other) else None
    except (RuntimeError, KeyError, ValueError, NotImplementedError):
        return None


def _adapt_stem(net: nn.Module, tensors: Params) -> None:
    """Give the first convolution as many channels as in a file, which may be for gray images."""
    name, stem = next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    stored = tensors.get(f"{name}.weight")
    if stored is not None and stored.dim() == 4:
        stem.in_channels = stored.shape[1]
        stem.weight = nn.Parameter(torch.empty_like(stem.weight[:, :1]).expand(-1, stored.shape[1], -1, -1))


def _pair(tensors: Params, names: Params) -> Params:
    """Give each name the next tensor of its shape, in which sides of 1 do not count; raises KeyError or ValueError."""
    waiting: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for name, value in tensors.items():
        if not name.endswith(COMPUTED):
            waiting[_form(value)].append(value)
    found: Params = {}
    for name, value in names.items():
        if name.endswith(COMPUTED):
            continue
        if not waiting[_form(value)]:
            raise KeyError(name)
        found[name] = waiting[_form(value)].pop(0).reshape(value.shape)
    if any(waiting.values()):
        raise ValueError("tensors are left over")
    return found


def _form(value: Tensor) -> tuple[int, ...]:
    return tuple(side for side in value.shape if side != 1)


def _agree(net: nn.Module, other: nn.Module) -> bool:
    size = int(net.pretrained_cfg["input_size"][-1])  # pyright: ignore
    channels = next(layer.in_channels for layer in other.modules() if isinstance(layer, nn.Conv2d))
    images = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), eval_mode(net, other):
        left, right = net(images).float(), other(images).float()
    return bool(((left - right).abs() <= TOLERANCE * (right.std(correction=0) + 1e-6)).all())
