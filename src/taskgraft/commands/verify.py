"""`taskgraft evaluate --verify`: compares a finished bundle with its digests, its record and its stored predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

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

TOLERANCE = 1e-3  # of the largest logit: other processors and numbers of threads add up in another order


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
        callbacks: Told of progress.

    Returns:
        Plain values: "model", "files", "results" that differ, "predictions" by set, "intact", and "lines" to print.

    Raises:
        TaskgraftError: It is not a finished bundle.
    """
    home = Path(str(model).removeprefix("local-dir:"))
    files, done = digests.compare(home), load(home)
    results = _compare_results(done.record, done.predictions)
    predictions = _compare_predictions(read_bundle(home), done.record, done.predictions, data, cache, callbacks)
    changed = [f"{name} has changed" for name in files.changed] + [f"{name} is missing" for name in files.missing]
    changed += [f"{name} is not listed" for name in files.added]
    intact = not changed and not results and all(part["same"] is not False for part in predictions)
    lines = [f"files: {files.unchanged} unchanged", *(f"  {line}" for line in changed)]
    lines.append("record: results differ from predictions.npz" if results else "record: results match predictions.npz")
    lines += [f"  {line}" for line in results]
    lines += [_format_comparison(part) for part in predictions]
    lines.append(f"{home}: verified, unchanged" if intact else f"CHANGED: {home} is not what it was")
    return {
        "model": str(model),
        "files": {"same": files.unchanged, "changed": files.changed, "missing": files.missing, "unknown": files.added},
        "results": results,
        "predictions": predictions,
        "intact": intact,
        "lines": lines,
    }


def _compare_results(record: Record, sets: dict[str, Predictions]) -> list[str]:
    """Results of the record that differ from those of the stored predictions."""
    newest = record.tasks[-1].added_to or record.tasks[-1].name
    computed = {result.name: result for result in measuring.compute_task_results(sets, newest)}
    wrong = []
    for task in record.tasks:
        for key in ("parent", "child", "forgetting", "agreement", "test"):
            stored, now = (getattr(one, key, None) for one in (task, computed.get(task.name)))
            stored, now = (None if value is None else value.mean for value in (stored, now))
            if stored != now and (stored is None or now is None or abs(stored - now) > 1e-9):
                wrong.append(f"{task.name}, {key}: {stored} in the record, {now} from the predictions")
    return wrong


def _compare_predictions(
    bundle: Bundle,
    record: Record,
    sets: dict[str, Predictions],
    data: Path | None,
    cache: Path | None,
    callbacks: Callbacks,
) -> list[dict[str, Any]]:
    """For each stored set of predictions: whether the model still computes them, or why that is unknown."""
    opened: dict[str, Dataset | str] = {}
    for name, part in record.data.items():
        if name == "new" or name.startswith("old val"):
            path = data if name == "new" and data else Path(str(part["source"]))
            opened[name] = _open(bundle, path, name, part, record.seed, cache, callbacks)
    new = opened.pop("new")
    compared = [_compare_set(bundle, "new", new if isinstance(new, str) else new.val, sets.get("new"))]
    if "test" in sets:
        compared.append(_compare_set(bundle, "test", new if isinstance(new, str) else new.test, sets["test"]))
    if "old" in sets:
        reason = next((one for one in opened.values() if isinstance(one, str)), None)
        images = concat_images([one.val for one in opened.values() if not isinstance(one, str) and one.val is not None])
        compared.append(_compare_set(bundle, "old", reason or images, sets["old"]))
    return compared


def _open(
    bundle: Bundle, path: Path, name: str, part: dict[str, Any], seed: int, cache: Path | None, callbacks: Callbacks
) -> Dataset | str:
    """The images of the record, split as in the run; or why they are not available."""
    tasks, old = {task.name: task for task in bundle.classifier.tasks}, name != "new"
    task = tasks.get(str(part["task"]))
    if task is None:
        return f"the model has no task {part['task']}"
    if not path.exists():
        return f"{path} does not exist"
    try:
        return open_images(
            path, task.name, bundle.preprocessing, seed=0 if old else seed, classes=task.classes, cache_folder=cache,
            as_split="val" if old else None,
            progress=lambda done, total: callbacks.progress(f"reading {path.name}", done, total),
        )  # fmt: skip
    except TaskgraftError as error:
        return str(error)


def _compare_set(bundle: Bundle, name: str, images: Images | str | None, stored: Predictions | None) -> dict[str, Any]:
    """Compare one set; "same" is None where nothing can be compared."""
    if stored is None or images is None or isinstance(images, str):
        reason = images if isinstance(images, str) else "there are no such images"
        return {"set": name, "images": 0, "same": None, "reason": reason}
    if tuple(images.names) != tuple(stored.ids):
        return {"set": name, "images": 0, "same": False, "reason": "these are not the images of the record"}
    now = predict(bundle.classifier, images)
    scale = max([1.0, *(float(np.abs(logits).max(initial=0)) for logits in stored.logits.values())])
    gaps = [float(np.abs(logits - now.logits[task]).max(initial=0)) for task, logits in stored.logits.items()]
    equal = [(logits.argmax(1) == now.logits[task].argmax(1)).mean() for task, logits in stored.logits.items()]
    same = max(gaps) <= TOLERANCE * scale
    return {
        "set": name,
        "images": len(stored.ids),
        "same": same,
        "largest_difference": max(gaps),
        "equal_predictions": float(min(equal)),
        "reason": "" if same else "the predictions differ",
    }


def _format_comparison(part: dict[str, Any]) -> str:
    if "largest_difference" in part:
        text = (
            f"{part['images']} images, {part['equal_predictions']:.1%} with the same class, logits differ by at most "
            f"{part['largest_difference']:.2g}"
        )
    else:
        text = f"not compared: {part['reason']}" if part["same"] is None else part["reason"]
    return f"predictions ({part['set']}): {text}"
