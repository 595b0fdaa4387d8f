"""`taskgraft evaluate --verify`: compares a finished bundle with its digests, its record and its stored predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskgraft import distributed
from taskgraft.bundle import Bundle, digests, read_bundle
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.task_images import concat_images
from taskgraft.errors import TaskgraftError
from taskgraft.models.inference import predict
from taskgraft.pipeline import measuring
from taskgraft.pipeline.run import load
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Record
from taskgraft.types import Callbacks, Images

TOLERANCE = 1e-3  # relative to the largest logit: processors and numbers of threads differ in the order of summation


def verify(
    model: str | Path,
    data: Path | None = None,
    *,
    cache: Path | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Check that a bundle is what it was when it was finished.

    Files are compared with digests.json, the record's results with those computed from predictions.npz, and the stored
    logits with what the model computes now on the record's validation images.

    Args:
        model: A bundle.
        data: Where the images of the newest task are now; None = where the record says.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: Progress callbacks.

    Returns:
        "model", "files", "results" that differ, "predictions" by set, "intact", and "lines" to print.

    Raises:
        TaskgraftError: It is not a finished bundle.
    """
    folder = Path(str(model).removeprefix("local-dir:"))
    files, run = digests.compare(folder), load(folder)
    results = _compare_results(run.record, run.predictions)
    bundle = read_bundle(folder)
    bundle.classifier.to(distributed.device())
    predictions = _compare_predictions(bundle, run.record, run.predictions, data, cache, callbacks)
    changed = [f"{name} has changed" for name in files.changed] + [f"{name} is missing" for name in files.missing]
    changed += [f"{name} is not listed" for name in files.added]
    intact = not changed and not results and all(entry["same"] is not False for entry in predictions)
    lines = [
        f"files: {files.unchanged} unchanged",
        *(f"  {line}" for line in changed),
        f"record: results {'differ from' if results else 'match'} predictions.npz",
        *(f"  {line}" for line in results),
        *(_format_comparison(entry) for entry in predictions),
        f"{folder}: verified, unchanged" if intact else f"CHANGED: {folder} is not what it was",
    ]
    return {
        "model": str(model),
        "files": {"same": files.unchanged, "changed": files.changed, "missing": files.missing, "unknown": files.added},
        "results": results,
        "predictions": predictions,
        "intact": intact,
        "lines": lines,
    }


def _compare_results(record: Record, predictions: dict[str, Predictions]) -> list[str]:
    """Describe the results of the record that differ from those of the stored predictions."""
    last = record.tasks[-1]
    results = measuring.compute_task_results(
        predictions, last.refreshes or last.added_to or last.name, refreshed=bool(last.refreshes)
    )
    computed = {result.name: result for result in results}
    differences = []
    for task in record.tasks:
        for field in ("parent", "child", "forgetting", "agreement", "test"):
            estimates = (getattr(result, field, None) for result in (task, computed.get(task.name)))
            stored, now = (None if estimate is None else estimate.mean for estimate in estimates)
            if stored != now and (stored is None or now is None or abs(stored - now) > 1e-9):
                differences.append(f"{task.name}, {field}: {stored} in the record, {now} from the predictions")
    return differences


def _compare_predictions(
    bundle: Bundle,
    record: Record,
    stored: dict[str, Predictions],
    data: Path | None,
    cache: Path | None,
    callbacks: Callbacks,
) -> list[dict[str, Any]]:
    """Compare each stored set of predictions with what the model computes now, or say why that is impossible."""
    datasets: dict[str, Dataset | str] = {}
    for name, entry in record.data.items():
        if name == "new" or name.startswith("old val"):
            path = data if name == "new" and data else Path(str(entry["source"]))
            datasets[name] = _open(bundle, path, name, entry, record.seed, cache, callbacks)
    new = datasets.pop("new")
    images: dict[str, Images | str | None] = {
        "new": new if isinstance(new, str) else new.val,
        "test": new if isinstance(new, str) else new.test,
        "old": next((reason for reason in datasets.values() if isinstance(reason, str)), None)
        or concat_images([old.val for old in datasets.values() if not isinstance(old, str) and old.val is not None]),
    }
    return [_compare_set(bundle, name, images[name], stored[name]) for name in ("new", "test", "old") if name in stored]


def _open(
    bundle: Bundle, path: Path, name: str, entry: dict[str, Any], seed: int, cache: Path | None, callbacks: Callbacks
) -> Dataset | str:
    """The images of the record, split as in the run; or why they are not available."""
    task = next((task for task in bundle.classifier.tasks if task.name == entry["task"]), None)
    if task is None:
        return f"the model has no task {entry['task']}"
    if not path.exists():
        return f"{path} does not exist"
    is_old = name != "new"
    try:
        return open_images(
            path, task.name, bundle.preprocessing, seed=0 if is_old else seed, classes=task.classes,
            cache_folder=cache, as_split="val" if is_old else None,
            progress=lambda done, total: callbacks.progress(f"reading {path.name}", done, total),
        )  # fmt: skip
    except TaskgraftError as error:
        return str(error)


def _compare_set(bundle: Bundle, name: str, images: Images | str | None, stored: Predictions) -> dict[str, Any]:
    """Compare one set; "same" is None where nothing can be compared."""
    if images is None or isinstance(images, str):
        return {"set": name, "images": 0, "same": None, "reason": images or "there are no such images"}
    if tuple(images.names) != tuple(stored.ids):
        return {"set": name, "images": 0, "same": False, "reason": "these are not the images of the record"}
    current = predict(bundle.classifier, images).logits
    scale = max([1.0, *(float(np.abs(logits).max(initial=0)) for logits in stored.logits.values())])
    difference = max(float(np.abs(z - current[task]).max(initial=0)) for task, z in stored.logits.items())
    same = difference <= TOLERANCE * scale
    return {
        "set": name,
        "images": len(stored.ids),
        "same": same,
        "largest_difference": difference,
        "equal_predictions": min(
            float((z.argmax(1) == current[task].argmax(1)).mean()) for task, z in stored.logits.items()
        ),
        "reason": "" if same else "the predictions differ",
    }


def _format_comparison(entry: dict[str, Any]) -> str:
    text = entry["reason"]
    if "largest_difference" in entry:
        text = (
            f"{entry['images']} images, {entry['equal_predictions']:.1%} with the same class, logits differ by at most "
            f"{entry['largest_difference']:.2g}"
        )
    elif entry["same"] is None:
        text = f"not compared: {text}"
    return f"predictions ({entry['set']}): {text}"
