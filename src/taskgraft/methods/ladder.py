"""Ladder: a small network beside the backbone, for the new task alone, that reads its stages."""

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
from taskgraft.models.features import attach, image_reader, sample_evenly
from taskgraft.types import Images, Params, TrainingData

IMAGES = 64  # from which the norms' first statistics are taken


@dataclass(frozen=True)
class Ladder(Settings):
    """Train a small side network on the stages of the frozen backbone (Sung et al. 2022): one backbone, one pass.

    A rung stands at the last stage of each of the `rungs` smallest sizes of the image, or evenly where sizes are
    equal. `width` is the first rung's channels; they grow as the image shrinks, by a root of 2 each time it halves.
    """

    rungs: Annotated[int, Range(2, 12, at_least=1)] = 5
    width: Annotated[int, Range(8, 256, log=True, at_least=1, at_most=4096)] = 56
    dropout: Annotated[float, Range(0.0, 0.5, at_least=0, at_most=0.95)] = 0.5

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(freezes_old=True, attaches=True)

    def build(self) -> Method:
        """Uses `adapt`: the side network is attached, everything older is frozen."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            maps = _maps(classifier, sources.new)
            places = {point: value[0, 0].numel() for point, value in maps.items()}
            at = _rungs(places, self.rungs)
            widths = [round(self.width * (places[at[0]] / places[point]) ** 0.25) for point in at]
            classifier.backbone = feature_points.expose_points(classifier.backbone, at)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.derive(sources.seed, "ladder"))
                own = side_networks.Ladder(at, [maps[point].shape[1] for point in at], widths, self.dropout)
            attach(classifier, own, sources.new)
            if len(sources.new.pixels) > 1:  # one image has no statistics
                _settle(classifier, own, sample_evenly(sources.new, IMAGES))
            return freeze(classifier)

        return Method(adapt=adapt)


def _maps(classifier: Classifier, images: Images) -> Params:
    """What every stage shows of a few images, as maps [B, C, H, W]."""
    known = feature_points.find_points(classifier.backbone)
    if not known:
        raise InputError(f"{type(classifier.backbone).__name__} has one stage only and carries no ladder; use taps")
    whole = feature_points.expose_points(classifier.backbone, known)
    few = image_reader(sample_evenly(images, 2), classifier)(0, 2)
    with eval_mode(whole), torch.inference_mode():
        seen = whole(few)[1]
    return {point: side_networks.to_map(seen[point], few.dim() == 4) for point in known}


def _settle(classifier: Classifier, own: side_networks.Ladder, images: Images) -> None:
    """Give the side network's norms the statistics of these images: the warm-up already reads them in eval mode."""
    norms = [layer for layer in own.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    usual = [layer.momentum for layer in norms]
    with eval_mode(classifier), torch.no_grad(), torch.random.fork_rng(devices=[]):
        own.train()
        for layer in norms:
            layer.momentum = 1.0
        classifier.features(image_reader(images, classifier)(0, len(images.pixels)))
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum


def _rungs(places: Mapping[str, int], count: int) -> list[str]:
    """Of stages with so many places each: the last one of each of the smallest sizes, or evenly spread ones."""
    known = list(places)
    last_of = {size: point for point, size in places.items()}
    if len(last_of) >= count:
        return sorted(last_of.values(), key=known.index)[-count:]
    chosen = torch.linspace(0, len(known) - 1, min(count + 1, len(known))).round().long().tolist()
    return [known[place] for place in chosen[-count:]]
