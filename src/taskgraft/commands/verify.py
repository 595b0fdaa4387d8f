"""A finished bundle beside its own evidence: its digests, the numbers of its record, and its stored predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskgraft.bundle import Bundle, digests, read_bundle
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.task_images import concat_images
from taskgraft.errors import TaskgraftError
from taskgraft.models.inference import predict
from taskgraft.pipeline import evidence
from taskgraft.pipeline.extend import load
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
    """Whether a bundle is what it was when it was finished.

    Files are compared with digests.json, the record's results with those that follow from predictions.npz, and the
    stored logits with what the model answers now, on the validation images that the record names (`data`: where
    those of the newest task lie now). Returns plain values with the "lines" to print, and "sound". Raises TaskgraftError for
    what is no finished bundle.
    """
    home = Path(str(model).removeprefix("local-dir:"))
    files = digests.compare(home)
    done = load(home)
    wrong = [f"{name} has changed" for name in files.changed] + [f"{name} is missing" for name in files.missing]
    wrong += [f"{name} is not listed" for name in files.added]
    numbers = _numbers(done.record, done.predictions)
    answers = _answers(read_bundle(home), done.record, done.predictions, data, cache, callbacks)
    sound = not wrong and not numbers and all(part["same"] is not False for part in answers)
    return {
        "model": str(model),
        "files": {"same": files.unchanged, "changed": files.changed, "missing": files.missing, "unknown": files.added},
        "numbers": numbers,
        "answers": answers,
        "sound": sound,
        "lines": _lines(home, files.unchanged, wrong, numbers, answers, sound),
    }


def _numbers(record: Record, sets: dict[str, Predictions]) -> list[str]:
    """Results of the record that do not follow from the stored predictions."""
    newest = record.tasks[-1].added_to or record.tasks[-1].name
    again = {result.name: result for result in evidence.task_results(sets, newest)}
    found = []
    for task in record.tasks:
        for key in ("parent", "child", "forgetting", "agreement", "test"):
            told, is_now = getattr(task, key), getattr(again.get(task.name), key, None)
            one, two = (None if value is None else value.mean for value in (told, is_now))
            if one != two and (one is None or two is None or abs(one - two) > 1e-9):
                found.append(f"{task.name}, {key}: the record says {one}, the predictions {two}")
    return found


def _answers(
    bundle: Bundle,
    record: Record,
    sets: dict[str, Predictions],
    data: Path | None,
    cache: Path | None,
    callbacks: Callbacks,
) -> list[dict[str, Any]]:
    """For each stored set of predictions: whether the model answers so now, or why that cannot be told."""
    parts = {name: part for name, part in record.data.items() if name == "new" or name.startswith("old val")}
    opened: dict[str, Dataset | str] = {}
    for name, part in parts.items():
        path = data if name == "new" and data else Path(str(part["source"]))
        opened[name] = _opened(bundle, path, name, part, record.seed, cache, callbacks)
    new = opened["new"]
    found = [_compared(bundle, "new", new if isinstance(new, str) else new.val, sets.get("new"))]
    if "test" in sets:
        found.append(_compared(bundle, "test", new if isinstance(new, str) else new.test, sets["test"]))
    if "old" in sets:
        old = [one for name, one in opened.items() if name != "new"]
        reason = next((one for one in old if isinstance(one, str)), None)
        images = concat_images([one.val for one in old if not isinstance(one, str) and one.val is not None])
        found.append(_compared(bundle, "old", reason or images, sets["old"]))
    return found


def _opened(
    bundle: Bundle, path: Path, name: str, part: dict[str, Any], seed: int, cache: Path | None, callbacks: Callbacks
) -> Dataset | str:
    """The images of the record, as the run split them; or why they are not at hand."""
    tasks = {task.name: task for task in bundle.classifier.tasks}
    owner, old = tasks.get(str(part["task"])), name != "new"
    if owner is None:
        return f"the model has no task {part['task']}"
    if not path.exists():
        return f"{path} is not there"
    try:
        return open_images(
            path, owner.name, bundle.preprocessing, seed=0 if old else seed, classes=owner.classes, cache_folder=cache,
            as_split="val" if old else None,
            progress=lambda done, total: callbacks.progress(f"reading {path.name}", done, total),
        )  # fmt: skip
    except TaskgraftError as error:
        return str(error)


def _compared(bundle: Bundle, name: str, images: Images | str | None, stored: Predictions | None) -> dict[str, Any]:
    """`same` is None where nothing can be compared."""
    if stored is None or images is None or isinstance(images, str):
        reason = images if isinstance(images, str) else "there are no such images"
        return {"set": name, "images": 0, "same": None, "reason": reason}
    if tuple(images.names) != tuple(stored.ids):
        return {
            "set": name,
            "images": 0,
            "same": False,
            "reason": "these are other images than those of the record",
        }
    now = predict(bundle.classifier, images)
    scale = max([1.0, *(float(np.abs(logits).max(initial=0)) for logits in stored.logits.values())])
    gaps = [float(np.abs(logits - now.logits[task]).max(initial=0)) for task, logits in stored.logits.items()]
    equal = [(logits.argmax(1) == now.logits[task].argmax(1)).mean() for task, logits in stored.logits.items()]
    same = max(gaps) <= TOLERANCE * scale
    reason = "" if same else "the answers differ"
    found = {"largest_difference": max(gaps), "equal_answers": float(min(equal)), "reason": reason}
    return {"set": name, "images": len(stored.ids), "same": same, **found}


def _lines(
    home: Path, same: int, wrong: list[str], numbers: list[str], answers: list[dict[str, Any]], sound: bool
) -> list[str]:
    lines = [f"files: {same} as they were written", *(f"  {line}" for line in wrong)]
    lines.append("record: its results follow from predictions.npz" if not numbers else "record: other results")
    lines += [f"  {line}" for line in numbers]
    for part in answers:
        if part["same"] is None:
            lines.append(f"answers ({part['set']}): not compared: {part['reason']}")
        elif "largest_difference" not in part:
            lines.append(f"answers ({part['set']}): {part['reason']}")
        else:
            gap, equal = part["largest_difference"], part["equal_answers"]
            what = f"{part['pictures']} images, {equal:.1%} answered as before, logits differ by {gap:.2g} at most"
            lines.append(f"answers ({part['set']}): {what}")
    return [*lines, f"{home} is what it was" if sound else f"CHANGED: {home} is not what it was"]
