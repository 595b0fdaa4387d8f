"""Layer-wise learning rates: the deeper a layer lies below the head, the smaller its steps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters

from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier

OWNER = re.compile(r"(backbone|extras\.\d+(\.net)?)\.")  # a side network that copies stages keeps their names


def compute_lr_scales(original: Classifier, names: Iterable[str], decay: float) -> dict[str, float]:
    """Compute the factor of the learning rate of parameters: decay ** (layers between them and the heads).

    timm describes each architecture's layers (`group_matcher`); heads, and what a method adds, learn at the full rate.
    Source: Clark et al. 2020 (ELECTRA); as in timm's `param_groups_layer_decay`.

    Args:
        original: The classifier before a method adapted it.
        names: Names of the parameters that are trained, after that.
        decay: Factor from each layer to the one below, in (0, 1].

    Returns:
        The factor of each parameter by name; empty for a decay of 1.

    Raises:
        InputError: The network does not say what its layers are, or all that is trained lies in one of them.
    """
    if decay == 1:
        return {}
    network = original.backbone
    if not callable(getattr(network, "group_matcher", None)):
        raise InputError(
            f"--layer-decay: {type(network).__name__} does not say which layers lie above which (timm's networks do, "
            "until a method adds a side network); leave it out"
        )
    found: Any = group_parameters(network, network.group_matcher(), reverse=True)  # pyright: ignore
    depths: dict[str, int] = dict(found)
    modules = {name.rpartition(".")[0]: depth for name, depth in depths.items()}
    top = max(modules.values(), default=0) + 1
    scales = {name: decay ** (top - _find_depth(name, depths, modules, top)) for name in names}
    if len(set(scales.values())) < 2:
        raise InputError("--layer-decay: all that this method trains lies in one layer; leave it out")
    return scales


def _find_depth(name: str, depths: dict[str, int], modules: dict[str, int], top: int) -> int:
    """Depth of a parameter, or of the module that it belongs to: a method may have put others around it."""
    owner = OWNER.match(name)
    if not owner:
        return top
    path = name[owner.end() :]
    if path in depths:
        return depths[path]
    while path:
        path = path.rpartition(".")[0]
        if path in modules:
            return modules[path]
    return top
