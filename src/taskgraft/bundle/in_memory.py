"""A network in memory as a bundle: what it has to be rebuilt from, found out and checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from taskgraft.bundle.channels import count_channels
from taskgraft.bundle.format import Bundle, compute_digest
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError
from taskgraft.models.classifier import Classifier
from taskgraft.models.eval_mode import eval_mode

SOURCE = "a wrapped network"
INSTEAD = "use taskgraft.learn, which keeps everything in memory, or give its file of weights with arch="


def describe_classifier(classifier: Classifier) -> Bundle:
    """Describe a wrapped timm network as a bundle, which can be extended, written and opened again.

    timm rebuilds the network by name, and the result is compared with it: the same tensors, and the same outputs.

    Args:
        classifier: A classifier that `wrap` made of a timm model; it is copied.

    Raises:
        CheckpointError: It is not a network of timm, or timm rebuilds another one.
    """
    backbone = classifier.backbone
    config = getattr(backbone, "pretrained_cfg", None)
    arch = str(config.get("architecture", "")) if isinstance(config, Mapping) else ""
    if len(classifier.extras) or not arch or not isinstance(config, Mapping) or not timm.is_model(arch):
        what = "has side networks" if len(classifier.extras) else f"is a {type(backbone).__name__}, not a model of timm"
        raise CheckpointError(
            f"the wrapped network {what}, and a bundle is rebuilt by timm from a name; give the Bundle or folder that "
            f"it is from, or {INSTEAD}"
        )
    head = str(config.get("classifier"))
    if not isinstance(dict(backbone.named_modules()).get(head), nn.Identity):
        raise CheckpointError(f"the wrapped {arch} does not end in its layer {head!r}; wrap it by that name")
    preprocessing = transforms.from_timm(config, f"the wrapped {arch}")
    side = _find_image_size(backbone)
    preprocessing = preprocessing._replace(size=side or preprocessing.size)
    rows = sum(len(task.classes) for task in classifier.tasks)
    sizes = [{}, *([{"img_size": side}] if side else [])]
    for model_args in [{**size, **channels} for channels in ({}, {"in_chans": 1}) for size in sizes]:
        preprocessing = preprocessing.with_channels(count_channels(config, model_args))
        if _rebuilds(classifier, arch, head, rows, model_args, preprocessing):
            break
    else:
        raise CheckpointError(
            f"the wrapped network is not what timm builds as {arch} (its layers were changed, or it was created with "
            f"arguments); {INSTEAD}"
        )
    bundle = Bundle(
        classifier, preprocessing, {}, SOURCE, "", arch, head, model_args=model_args,
        preprocessing_source="from its pretrained_cfg",
    )  # fmt: skip
    return copy_bundle(bundle)


def copy_bundle(bundle: Bundle) -> Bundle:
    """Copy a bundle whose classifier may have changed since it was opened; the digest is that of its weights now."""
    digest = compute_digest(bundle)
    folder = bundle.folder if digest == bundle.digest else None
    notes = (f"a {bundle.arch} in memory, from {bundle.source}",)
    return replace(bundle, classifier=copy.deepcopy(bundle.classifier), digest=digest, folder=folder, notes=notes)


def _find_image_size(backbone: nn.Module) -> int | None:
    """Return the image size that a network was built for; None for networks of any size."""
    sides: Any = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return int(sides[0]) if isinstance(sides, tuple) and len(set(sides)) == 1 else None


def _rebuilds(
    classifier: Classifier,
    arch: str,
    head: str,
    rows: int,
    model_args: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> bool:
    """Whether timm builds a network with the same tensors and the same outputs, bit for bit."""
    backbone = classifier.backbone
    try:
        net = timm.create_model(arch, num_classes=rows, **model_args)
        net.set_submodule(head, nn.Identity())
        net.load_state_dict(backbone.state_dict(), strict=True)
        net.to(next(backbone.parameters()))
        return all(torch.equal(left, right) for left, right in _compare(net, backbone, preprocessing))
    except (RuntimeError, TypeError, AttributeError, AssertionError):
        return False


def _compare(left: nn.Module, right: nn.Module, preprocessing: Preprocessing) -> Iterator[tuple[Tensor, Tensor]]:
    generator, size = torch.Generator().manual_seed(0), preprocessing.size
    images = torch.rand(1, preprocessing.channels, size, size, generator=generator).to(next(right.parameters()))
    with torch.inference_mode(), eval_mode(left), eval_mode(right):
        yield left(images), right(images)
