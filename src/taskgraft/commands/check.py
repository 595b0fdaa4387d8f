"""A look at images without training: what `check` says. Nothing but what was asked for is ever written."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import report
from taskgraft.data import class_names, curation, decode, near_duplicates
from taskgraft.data.dataset import MAX_EXCLUDED
from taskgraft.data.layouts import Entry, list_images
from taskgraft.errors import InputError
from taskgraft.results.files import shown
from taskgraft.types import Callbacks, PathLike, Task, as_path

FEW = 10  # training images of a class under which nobody learns it well
LOPSIDED = 20.0  # times as many images in the largest class as in the smallest, from which it is worth a word
TINY = 32  # pixels of the shorter side under which little can be seen


class _Look(NamedTuple):
    """One file: why it cannot be used, or what it is."""

    reason: str | None
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    remarks: tuple[str, ...] = ()
    thumb: NDArray[np.uint8] | None = None


def check(
    data: PathLike,
    task: str = "label",
    *,
    group: str | None = None,
    min_images: int = 0,
    manifest: PathLike | None = None,
    drop_leaks: bool = False,
    against: PathLike | None = None,
    arch: str | None = None,
    labels: PathLike | None = None,
    html: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Open every image; count classes, splits and sizes; find what is double, contradictory or probably misspelt.

    `group` and `min_images` merge and drop classes by name; `drop_leaks` leaves training images out of `manifest`
    that stand in another split too; `against` is a model whose class names are compared.
    Returns plain values with the "lines" to print, and in "problems" what should be fixed first. Writes nothing but
    `manifest` and the page `html`. Raises TaskgraftError for data that cannot be understood at all.
    """
    data, manifest, html = Path(data), as_path(manifest), as_path(html)
    against = None if against is None else os.fspath(against)
    if drop_leaks and not manifest:
        raise InputError("--drop-leaks is of --write-manifest TABLE; give both, the images themselves stay as they are")
    known = _tasks(against, arch, labels) if against else None
    listing = list_images(data, task)
    curated = curation.group_classes(listing, task, group, min_images)
    entries = curated.entries
    looks = _looked([listing.root / entry.path for entry in entries], data, callbacks)
    good = [row for row, look in enumerate(looks) if look.reason is None]
    found: dict[str, Any] = {
        "data": shown(str(data)),
        "layout": listing.layout,
        **_counted([entries[row] for row in good], task),
        "dropped_classes": curated.dropped,
        "excluded": [[shown(where), why] for where, why in listing.skipped]
        + [[shown(entry.path), look.reason] for entry, look in zip(entries, looks, strict=True) if look.reason],
        "unreadable": len(entries) - len(good),
        **_doubles(entries, looks, good, task),
        "sizes": _sizes([looks[row] for row in good]),
        "remarks": _remarks(entries, looks),
        "forms": _forms(entries, task),
        "against": None,
    }
    if against and known:
        short = [min(looks[row].size) for row in good]
        found["against"] = _compared(against, known, set(found["classes"]), task, short)
    found["problems"] = _list_problems(found, len(entries))
    if manifest:
        rows = _apart(entries, looks) if drop_leaks else entries
        curation.write_manifest(manifest, listing.root, rows, task)
    found["manifest"] = str(manifest) if manifest else None
    if html:
        report.write_page(html, report.render_check(found))
    return {**found, "lines": report.format_check(found)}


def _looked(files: Sequence[Path], data: Path, callbacks: Callbacks) -> list[_Look]:
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
        for row, look in enumerate(pool.map(_look, files)):
            found.append(look)
            callbacks.progress(f"opening {data.name}", row + 1, len(files))
    return found


def _look(path: Path) -> _Look:
    found = decode.read_bytes(path)
    if isinstance(found, str):
        return _Look(found)
    picture = decode.decode_bytes(found, near_duplicates.THUMBNAIL)
    if picture.reason:
        return _Look(picture.reason)
    size = (picture.width, picture.height)
    digest = hashlib.sha256(found).hexdigest()
    return _Look(None, digest, size, decode.find_remarks(found, path.suffix), picture.pixels)


def _counted(entries: Sequence[Entry], task: str) -> dict[str, Any]:
    """Images by split and class, and what is remarkable about the numbers."""
    table = Counter((entry.split or "all", entry.labels[task]) for entry in entries)
    splits, classes = sorted({split for split, _ in table}), sorted({label for _, label in table})
    counts = {label: {split: table[split, label] for split in splits} for label in classes}
    learned = "train" if "train" in splits or not splits else splits[0]
    order = sorted((count[learned], label) for label, count in counts.items())
    strange = []
    for split in ("val", "test"):
        own = [label for label in classes if table[split, label] and learned == "train" and not table["train", label]]
        meant = {
            near.name: near.suggestion
            for near in class_names.find_matches(own, [label for label in classes if label not in own])
        }
        strange += [[split, label, meant.get(label)] for label in own]
    smallest, largest = (order[0], order[-1]) if order else ((0, ""), (0, ""))
    return {
        "images": {split: sum(counts[label][split] for label in classes) for split in splits},
        "classes": counts,
        "few": [label for count, label in order if count < FEW],
        "imbalance": {
            "largest": [largest[1], largest[0]],
            "smallest": [smallest[1], smallest[0]],
            "ratio": largest[0] / max(1, smallest[0]),
            "noted_from": LOPSIDED,
        },
        "not_trained": strange,
        "alike": [list(group) for group in class_names.group_variants(classes)],
    }


def _doubles(entries: Sequence[Entry], looks: Sequence[_Look], good: Sequence[int], task: str) -> dict[str, Any]:
    """Equal and nearly equal images: inside a split, across splits, under two classes."""
    same: dict[str, list[int]] = defaultdict(list)
    for row in good:
        same[looks[row].digest].append(row)
    equal = [rows for rows in same.values() if len(rows) > 1]
    first = [rows[0] for rows in same.values()]  # of each content one
    thumbs = np.array([looks[row].thumb for row in first], np.uint8).reshape(len(first), *near_duplicates.SHAPE)
    found = near_duplicates.find_near_duplicates(thumbs)
    near = [[first[row] for row in group] for group in near_duplicates.group_pairs(found.pairs)]

    def apart(groups: list[list[int]], what: Any) -> list[list[str]]:
        """Each group's first image with those that differ from it in `what`."""
        pairs = [(rows[0], row) for rows in groups for row in rows[1:] if what(rows[0]) != what(row)]
        return [[shown(entries[one].path), shown(entries[two].path)] for one, two in pairs]

    def listed(groups: list[list[int]]) -> list[list[str]]:
        return [[shown(entries[row].path) for row in rows] for rows in groups]

    return {
        "duplicates": listed(equal),
        "leaks": apart(equal, lambda row: entries[row].split),
        "conflicts": apart(equal, lambda row: entries[row].labels[task]),
        "near_duplicates": listed(near),
        "near_leaks": apart(near, lambda row: entries[row].split),
        "near_conflicts": apart(near, lambda row: entries[row].labels[task]),
        "too_even_to_compare": found.skipped,
        "single": _single(entries, looks, good, task),
    }


def _apart(entries: Sequence[Entry], looks: Sequence[_Look]) -> tuple[Entry, ...]:
    """The entries without training images whose content stands in validation or test too."""
    rows = list(zip(entries, looks, strict=True))
    held = {look.digest for entry, look in rows if look.digest and entry.split in ("val", "test")}
    return tuple(entry for entry, look in rows if entry.split != "train" or look.digest not in held)


def _single(entries: Sequence[Entry], looks: Sequence[_Look], good: Sequence[int], task: str) -> list[str]:
    """Classes that cannot be split into training and validation, where no validation images are given."""
    if any(entry.split == "val" for entry in entries):
        return []
    contents: dict[str, set[str]] = defaultdict(set)
    for row in good:
        if entries[row].split in (None, "train"):
            contents[entries[row].labels[task]].add(looks[row].digest)
    return sorted(label for label, digests in contents.items() if len(digests) < 2)


def _sizes(looks: Sequence[_Look]) -> dict[str, Any]:
    if not looks:
        return {}
    order = sorted((look.size for look in looks), key=lambda size: (size[0] * size[1], size))
    ends = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return {**{name: list(size) for name, size in ends.items()}, "tiny": sum(min(size) < TINY for size in order)}


def _remarks(entries: Sequence[Entry], looks: Sequence[_Look]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for entry, look in zip(entries, looks, strict=True):
        for remark in look.remarks:
            found[remark].append(shown(entry.path))
    return dict(sorted(found.items()))


def _forms(entries: Sequence[Entry], task: str) -> list[str]:
    """Classes whose folders bear their name in more than one Unicode form: they look alike and are taken as one."""
    folders: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        folder = PurePosixPath(entry.path).parent.name
        if unicodedata.normalize("NFC", folder) == entry.labels[task]:
            folders[entry.labels[task]].add(folder)
    return sorted(label for label, names in folders.items() if len(names) > 1)


def _tasks(against: str, arch: str | None, labels: PathLike | None) -> tuple[tuple[Task, ...], int]:
    """The tasks of a model, and the size of its input in pixels."""
    from taskgraft.bundle import open_parent

    bundle = open_parent(against, arch=arch, labels=labels)
    return bundle.classifier.tasks, bundle.preprocessing.size


def _compared(
    against: str, known: tuple[tuple[Task, ...], int], classes: set[str], task: str, short: Sequence[int]
) -> dict[str, Any]:
    """The class names beside those of the task that has most of them; the shorter sides beside the input's size."""
    tasks, size = known
    plain = {class_names.normalize_name(name) for name in classes}
    overlap = {one: len(plain & {class_names.normalize_name(name) for name in one.classes}) for one in tasks}
    own = next((one for one in tasks if one.name == task), None)
    owner = own or max(overlap, key=lambda one: overlap[one])
    shared = own is not None or overlap[owner] > 0
    near = class_names.find_matches(classes, owner.classes) if shared else []
    spelt = {one.name for one in near}
    return {
        "model": against,
        "task": owner.name if shared else None,
        "known": len(classes & set(owner.classes)),
        "near": [
            [one.name, one.suggestion, "written otherwise" if one.is_variant else "spelt otherwise"] for one in near
        ],
        "unknown": sorted(classes - set(owner.classes) - spelt) if shared else sorted(classes),
        "absent": sorted(set(owner.classes) - classes - {one.suggestion for one in near}) if shared else [],
        "input": size,
        "smaller": sum(side < size for side in short),
    }


def _list_problems(found: dict[str, Any], total: int) -> list[str]:
    """What should be fixed before training; empty where nothing has to be."""
    bad, against = found["unreadable"], found["against"]
    said = [
        (len(found["classes"]) < 2, "a classifier needs at least two classes"),
        (bad > MAX_EXCLUDED * total, f"{bad} of {total} images cannot be used; training skips at most 5%"),
        (found["conflicts"], "identical images have two classes"),
        (found["leaks"], "identical images are in two splits"),
        (found["not_trained"], "classes without training images"),
        (found["single"], "classes with a single image cannot be split; provide val/ or more images"),
        (found["alike"], "class names that differ only in case, spaces or a plural"),
        (against and against["near"], "class names that the model spells differently"),
    ]
    return [text for wrong, text in said if wrong]
