"""How many channels a network takes: three of RGB images, or one of gray ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from taskgraft.bundle.weights import Weights, sort_naturally
from taskgraft.data.transforms import CHANNELS
from taskgraft.errors import CheckpointError

RGB = 3


def count_channels(config: Mapping[str, Any], model_args: Mapping[str, Any]) -> Any:
    """Return how many channels timm builds a network for: an argument says it, or else the input size.

    Args:
        config: the `pretrained_cfg` of the network.
        model_args: arguments of `timm.create_model`.
    """
    sides = config.get("input_size")
    return model_args.get("in_chans") or (sides[0] if isinstance(sides, list | tuple) and len(sides) == 3 else RGB)


def require_channels(source: object, channels: Any) -> int:
    """Return a number of channels that images are opened with.

    Raises:
        CheckpointError: it is another one.
    """
    if not isinstance(channels, int) or channels not in CHANNELS:
        raise CheckpointError(
            f"{source}: its network takes {str(channels)[:20]} channels, but images are opened with {RGB} (RGB) or 1 "
            "(gray); in Python, taskgraft.learn takes inputs of any shape"
        )
    return int(channels)


def find_channels(weights: Weights, net: nn.Module) -> int:
    """Find for how many channels the first convolution of a checkpoint is; RGB where none is like that of a network.

    Args:
        weights: the checkpoint.
        net: a timm network of its architecture for RGB images; only its first convolution is read.
    """
    config: Any = net.pretrained_cfg
    names = config.get("first_conv") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    layer = dict(net.named_modules()).get(name)
    if not isinstance(layer, nn.Conv2d):
        return RGB
    expected = layer.weight
    for value in _list_first(weights, f"{name}.weight"):
        same = value.dim() == 4 and len(value) == len(expected) and value.shape[2:] == expected.shape[2:]
        channels, rest = (
            divmod(RGB * value.shape[1], expected.shape[1]) if same else (0, 1)
        )  # stems may unshuffle pixels
        if not rest:
            return channels
    return RGB


def _list_first(weights: Weights, name: str) -> Iterator[Tensor]:
    """The weights of each entry's first convolution: by its name, below the shortest prefix, or the first of all."""
    for tensors in weights.entries.values():
        named = sorted((key for key in tensors if f".{key}".endswith(f".{name}")), key=len)
        first = named or sorted((key for key, value in tensors.items() if value.dim() == 4), key=sort_naturally)
        yield from (tensors[key] for key in first[:1])
