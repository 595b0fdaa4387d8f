"""Ladder side-tuning: a small side network for the new task that reads the stages of the frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from taskgraft import seeding
from taskgraft.config import Range
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models import feature_points, side_networks
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.inference import attach, image_reader, sample_evenly
from taskgraft.types import Images, Params, TrainingData

IMAGES = 64  # from which the initial BatchNorm statistics are taken


@dataclass(frozen=True)
class Ladder(Settings):
    """Train a small side network on the stages of the frozen backbone (Sung et al. 2022): one backbone, one pass.

    There is a rung at the last stage of each of the `rungs` smallest feature-map sizes, or evenly where sizes are
    equal. `width` is the number of channels of the first rung; it grows by a factor of sqrt(2) when the size halves.
    """

    traits = Traits(freezes_old=True, attaches=True)

    rungs: Annotated[int, Range(2, 12, at_least=1)] = 5
    width: Annotated[int, Range(8, 256, log=True, at_least=1, at_most=4096)] = 56
    dropout: Annotated[float, Range(0.0, 0.5, at_least=0, at_most=0.95)] = 0.5

    def build(self) -> Method:
        """Use `adapt`: attach the side network, freeze everything inherited."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            maps = _feature_maps(classifier, sources.new)
            sizes = {point: value[0, 0].numel() for point, value in maps.items()}
            points = _select_points(sizes, self.rungs)
            widths = [round(self.width * (sizes[points[0]] / sizes[point]) ** 0.25) for point in points]
            classifier.backbone = feature_points.expose_points(classifier.backbone, points)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.derive(sources.seed, "ladder"))
                channels = [maps[point].shape[1] for point in points]
                side = side_networks.Ladder(points, channels, widths, self.dropout)
            attach(classifier, side, sources.new)
            if len(sources.new.pixels) > 1:  # one image has no statistics
                _initialize_norms(classifier, side, sample_evenly(sources.new, IMAGES))
            return freeze(classifier)

        return Method(adapt=adapt)


def _feature_maps(classifier: Classifier, images: Images) -> Params:
    """Return the output of every stage for two images, as maps [B, C, H, W]."""
    points = feature_points.find_points(classifier.backbone)
    if not points:
        raise InputError(f"{type(classifier.backbone).__name__} has only one stage and cannot carry a ladder; use taps")
    network = feature_points.expose_points(classifier.backbone, points)
    batch = image_reader(sample_evenly(images, 2), classifier)(0, 2)
    with eval_mode(network), torch.inference_mode():
        outputs = network(batch)[1]
    return {point: side_networks.to_map(outputs[point], batch.dim() == 4) for point in points}


def _initialize_norms(classifier: Classifier, side: side_networks.Ladder, images: Images) -> None:
    """Set the BatchNorm statistics of the side network from images: head-only steps already read them in eval mode."""
    norms = [layer for layer in side.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    with eval_mode(classifier), torch.no_grad(), torch.random.fork_rng(devices=[]):
        side.train()
        for layer in norms:
            layer.momentum = 1.0
        classifier.features(image_reader(images, classifier)(0, len(images.pixels)))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _select_points(sizes: Mapping[str, int], count: int) -> list[str]:
    """Return the last stage of each of the `count` smallest sizes (positions per map), or evenly spaced stages."""
    points = list(sizes)
    last_of_size = {size: point for point, size in sizes.items()}
    if len(last_of_size) >= count:
        return sorted(last_of_size.values(), key=points.index)[-count:]
    spaced = torch.linspace(0, len(points) - 1, min(count + 1, len(points))).round().long().tolist()
    return [points[i] for i in spaced[-count:]]
