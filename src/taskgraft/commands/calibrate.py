"""A task's temperature, fitted on labeled images; only the task card of a bundle changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskgraft.bundle import read_bundle
from taskgraft.bundle.format import read_json, write_card
from taskgraft.calibration import FEWEST
from taskgraft.errors import InputError
from taskgraft.models.inference import predict
from taskgraft.pipeline import measuring
from taskgraft.types import Callbacks, PathLike, as_path


def calibrate(
    model: PathLike,
    data: PathLike,
    *,
    task: str | None = None,
    cache: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Update one task card of the bundle `model` from labeled images, with a fitted temperature.

    Weights and logits do not change: `predict` divides by the temperature. Returns the card, with loss and
    calibration error before and after (two-fold: no image is judged under a temperature that it chose). Raises
    TaskgraftError for a model that is not a bundle, an unknown task, and fewer than FEWEST images.
    """
    data = Path(data)
    home = Path(model)
    if not (home / "config.json").is_file() or "taskgraft" not in read_json(home / "config.json"):
        raise InputError(
            f"{model} is not a bundle, so it has no task card to update; give the OUT folder of train or extend"
        )
    bundle = read_bundle(home)
    owner, found = measuring.open_labeled(bundle, data, task, as_path(cache), callbacks)
    if found.val is None or len(found.val.pixels) < FEWEST:
        count = 0 if found.val is None else len(found.val.pixels)
        raise InputError(f"{data} has {count} images of {owner.name}, too few for a temperature; give {FEWEST} or more")
    predictions = predict(bundle.classifier, found.val)
    trained = bundle.cards.get(owner.name, {}).get("train_counts", {})
    card = measuring.build_task_card(predictions, owner.name, trained, f"{data.name}, by calibrate")
    write_card(home, owner.name, card)
    return card
