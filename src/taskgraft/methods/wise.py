"""WiSE-FT: after training, interpolate part-way back to the parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft import pytree
from taskgraft.config import Range
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier
from taskgraft.types import Memory, TrainingData


@dataclass(frozen=True)
class Wise(Settings):
    """Interpolate all weights between the parent with its new head and the child (WiSE-FT, Wortsman et al. 2022).

    `weight` 1 is the child; 0 = choose among `points` weights by validation Score, where agreement with the parent
    stands in for old accuracy that cannot be measured. Needs no training.
    """

    traits = Traits(uses_weights=True)

    weight: Annotated[float, Range(0.1, 1.0, at_least=0, at_most=1, searched=False)] = 0.0
    points: Annotated[int, Range(2, 20, at_least=1, searched=False)] = 5

    def note(self, finished: Memory, past: Memory, has_old: bool) -> str | None:
        """State the weight that was used."""
        if "weight" not in finished:
            return None
        return f"wise went {float(finished['weight']):.0%} of the way from the parent to the trained child"

    def interpolations(self) -> dict[float, Wise]:
        """Return one for each of `points` weights, unless one is set."""
        return {} if self.weight else {weight: Wise(weight) for weight in self._path()}

    def build(self) -> Method:
        """Use `remember` (the weights at the start) and `finish`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            return {"start": pytree.state(classifier)}

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            end = pytree.state(classifier)

            def at(weight: float) -> Classifier:
                classifier.load_state_dict(pytree.lerp(memory["start"], end, weight))
                return classifier

            if self.weight:
                return at(self.weight), {"weight": torch.tensor(self.weight)}
            if sources.score is None:
                raise InputError(
                    "wise chooses its weight on validation images, but there are none; set wise(weight=0.5)"
                )
            path = self._path()
            scores = [sources.score(at(weight)) for weight in path]
            best = path[max(range(len(path)), key=lambda i: scores[i])]
            return at(best), {"weight": torch.tensor(best), "path": torch.tensor([path, scores])}

        return Method(remember=remember, finish=finish)

    def _path(self) -> list[float]:
        return [step / self.points for step in range(1, self.points + 1)]
