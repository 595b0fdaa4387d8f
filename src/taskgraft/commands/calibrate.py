"""`taskgraft calibrate`: fit the temperature of a task on labeled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskgraft import distributed
from taskgraft.bundle import read_bundle
from taskgraft.bundle.format import read_json, write_card
from taskgraft.calibration import MIN_IMAGES
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
    """Fit a temperature on labeled images and write it to the task card of a bundle.

    Weights and logits do not change: `predict` divides by the temperature.

    Args:
        model: A bundle.
        data: Labeled images that the model was not trained on.
        task: The task; None = the one whose classes the images have.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: Progress callbacks.

    Returns:
        The card, with loss and calibration error before and after, two-fold cross-validated.

    Raises:
        TaskgraftError: The model is not a bundle or lacks the task, or there are fewer than MIN_IMAGES images.
    """
    data, folder = Path(data), Path(model)
    if not (folder / "config.json").is_file() or "taskgraft" not in read_json(folder / "config.json"):
        raise InputError(
            f"{model} is not a bundle, so it has no task card to update; give the OUT folder of train or extend"
        )
    bundle = read_bundle(folder)
    bundle.classifier.to(distributed.device())
    owner, dataset = measuring.open_labeled(bundle, data, task, as_path(cache), callbacks)
    count = 0 if dataset.val is None else len(dataset.val.pixels)
    if dataset.val is None or count < MIN_IMAGES:
        raise InputError(
            f"{data} has {count} images of {owner.name}, too few for a temperature; give {MIN_IMAGES} or more"
        )
    predictions = predict(bundle.classifier, dataset.val)
    train_counts = bundle.cards.get(owner.name, {}).get("train_counts", {})
    card = measuring.build_task_card(predictions, owner.name, train_counts, f"{data.name}, by calibrate")
    write_card(folder, owner.name, card)
    return card
