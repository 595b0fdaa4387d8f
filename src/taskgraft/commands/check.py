"""`taskgraft check`: inspects images without training. Writes only what is requested."""

from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskgraft import report
from taskgraft.data import class_names, decode, near_duplicates
from taskgraft.data.dataset import MAX_EXCLUDED
from taskgraft.data.layouts import Entry, list_images, write_manifest
from taskgraft.data.transforms import Preprocessing, find_bits
from taskgraft.errors import InputError
from taskgraft.results.files import escape_surrogates
from taskgraft.types import Callbacks, PathLike, Task, as_path

MIN_CLASS_SIZE = 10  # training images of a class under which nobody learns it well
MAX_IMBALANCE = 20.0  # times as many images in the largest class as in the smallest, from which it is reported
MAX_SAMPLES, THUMBNAIL_SIDE = 24, 128  # images on the page's contact sheet; pixels that JPEGs are decoded to at least
MIN_SIDE = 32  # pixels of the shorter side under which little can be seen


class _CheckedImage(NamedTuple):
    path: str
    split: str | None
    label: str
    reason: str | None  # why it cannot be used; then the rest is empty
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    remarks: tuple[str, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None
    peak: int = 0  # the largest value of an image of 16 bits


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
    """Open every image; count classes, splits and sizes; find duplicates, conflicting labels and misspelled classes.

    Args:
        data: folder, tar archive or table.
        task: name of the labels.
        group: a pattern that merges classes by name.
        min_images: classes with fewer training images are dropped.
        manifest: a CSV table to write the remaining images to.
        drop_leaks: leave training images that are in another split too out of `manifest`.
        against: a model whose class names and input size are compared.
        arch: the architecture of `against`, as in `open_parent`.
        labels: the class names of `against`, as in `open_parent`.
        html: a page to write.
        callbacks: progress.

    Returns:
        Plain values, with the "lines" to print, and in "problems" what should be fixed before training.

    Raises:
        TaskgraftError: the data cannot be understood at all.
    """
    data, manifest, html = Path(data), as_path(manifest), as_path(html)
    if drop_leaks and not manifest:
        raise InputError("--drop-leaks is of --write-manifest TABLE; give both, the images themselves stay as they are")
    model = _open_model(os.fspath(against), arch, labels) if against else None
    listing = list_images(data, task)
    entries, _, dropped = class_names.merge_classes(listing.entries, task, group, min_images)
    images, bits = _check_images(listing.root, entries, task, data, callbacks)
    peak = [f"16-bit images are read as {bits} bits, from their largest value"] if bits not in (None, 16) else []
    readable = [image for image in images if not image.reason]
    unreadable = [image for image in images if image.reason]
    result: dict[str, Any] = {
        "data": escape_surrogates(str(data)),
        "layout": listing.layout,
        **_count_classes(readable),
        "dropped_classes": dropped,
        "excluded": [
            *([escape_surrogates(path), reason] for path, reason in (*listing.skipped, *listing.missing)),
            *([escape_surrogates(image.path), image.reason] for image in unreadable),
        ],
        "unreadable": len(unreadable) + len(listing.missing),
        "notes": [*listing.notes, *peak],
        **_find_duplicates(readable),
        "single": _find_single_images(readable),
        "sizes": _summarize_sizes(readable),
        "remarks": _collect_remarks(readable),
        "forms": _find_unicode_forms(images),
        "against": _compare_with_model(model, readable, task) if model else None,
        "manifest": str(manifest) if manifest else None,
    }
    result["problems"] = _list_problems(result, len(images) + len(listing.missing))
    if manifest:
        write_manifest(manifest, listing.root, _without_leaks(entries, images) if drop_leaks else entries, task)
    if html:
        picture = _make_thumbnails(listing.root, readable, bits)
        report.write_page(html, report.render_check(result, _sample_images(readable), picture))
    return {**result, "lines": report.format_check(result)}


def _check_images(
    root: Path, entries: Sequence[Entry], task: str, data: Path, callbacks: Callbacks, bits: int | None = None
) -> tuple[list[_CheckedImage], int | None]:
    """Open every image; how many bits those of 16 bits use decides how bright their thumbnails are."""

    def check_image(entry: Entry) -> _CheckedImage:
        fields = entry.path, entry.split, entry.labels[task]
        content = decode.read_bytes(root / entry.path)
        if isinstance(content, str):
            return _CheckedImage(*fields, content)
        image = decode.decode_bytes(content, near_duplicates.THUMBNAIL._replace(bits=bits))
        if image.reason:
            return _CheckedImage(*fields, image.reason)
        remarks = decode.find_remarks(content, PurePosixPath(entry.path).suffix)
        size, digest = (image.width, image.height), hashlib.sha256(content).hexdigest()
        return _CheckedImage(*fields, None, digest, size, remarks, image.pixels, image.peak)

    images = []
    with decode.thread_pool() as pool:
        for image in pool.map(check_image, entries):
            images.append(image)
            callbacks.progress(f"opening {data.name}", len(images), len(entries))
    found = find_bits(max((image.peak for image in images), default=0))
    if bits is None and found not in (None, 16):
        return _check_images(root, entries, task, data, callbacks, found)
    return images, found


def _sample_images(images: Sequence[_CheckedImage]) -> list[tuple[str, str]]:
    """Class and path of MAX_SAMPLES images at even intervals in each class, of some classes where there are more."""
    paths: dict[str, list[str]] = defaultdict(list)
    for image in images:
        paths[image.label].append(escape_surrogates(image.path))
    labels = _spread(sorted(paths), MAX_SAMPLES)
    each = MAX_SAMPLES // max(1, len(labels))
    return [(label, path) for label in labels for path in _spread(paths[label], each)]


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` items, at even intervals."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _make_thumbnails(root: Path, images: Sequence[_CheckedImage], bits: int | None) -> Callable[[str], str | None]:
    """Return a function from an image's path, as findings give it, to its thumbnail, in its own proportions."""
    paths = {escape_surrogates(image.path): root / image.path for image in images}

    def make(path: str) -> str | None:
        content = decode.read_bytes(paths[path])
        if isinstance(content, str):
            return None
        try:
            with Image.open(io.BytesIO(content), formats=decode.FORMATS) as image:
                image.draft(None, (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))
                rgb = decode.convert_to_rgb(image, Preprocessing(bits=bits).white())
        except Exception:  # it was read a moment ago, so it has been changed since; the page goes without it
            return None
        return report.encode_thumbnail(np.asarray(rgb))

    return make


def _count_classes(images: Sequence[_CheckedImage]) -> dict[str, Any]:
    """Images by split and class; small, imbalanced, untrained and similarly named classes."""
    table = Counter((image.split or "all", image.label) for image in images)
    splits, classes = sorted({split for split, _ in table}), sorted({label for _, label in table})
    counts = {label: {split: table[split, label] for split in splits} for label in classes}
    train = "train" if "train" in splits or not splits else splits[0]
    by_size = sorted((count[train], label) for label, count in counts.items())
    not_trained = []
    for split in ("val", "test") if train == "train" else ():
        missing = [label for label in classes if table[split, label] and not table["train", label]]
        matches = class_names.find_matches(missing, [label for label in classes if label not in missing])
        suggestions = {match.name: match.suggestion for match in matches}
        not_trained += [[split, label, suggestions.get(label)] for label in missing]
    smallest, largest = (by_size[0], by_size[-1]) if by_size else ((0, ""), (0, ""))
    return {
        "images": {split: sum(counts[label][split] for label in classes) for split in splits},
        "classes": counts,
        "few": [label for count, label in by_size if count < MIN_CLASS_SIZE],
        "imbalance": {
            "largest": [largest[1], largest[0]],
            "smallest": [smallest[1], smallest[0]],
            "ratio": largest[0] / max(1, smallest[0]),
            "noted_from": MAX_IMBALANCE,
        },
        "not_trained": not_trained,
        "alike": [list(group) for group in class_names.group_variants(classes)],
    }


def _find_duplicates(images: Sequence[_CheckedImage]) -> dict[str, Any]:
    """Equal and nearly equal images: inside a split, across splits, under two classes."""
    by_content: dict[str, list[_CheckedImage]] = defaultdict(list)
    for image in images:
        by_content[image.digest].append(image)
    duplicates = [group for group in by_content.values() if len(group) > 1]
    unique = [group[0] for group in by_content.values()]
    thumbnails = np.array([image.thumbnail for image in unique], np.uint8)
    found = near_duplicates.find_near_duplicates(thumbnails.reshape(len(unique), *near_duplicates.SHAPE))
    near = [[unique[row] for row in group] for group in near_duplicates.group_pairs(found.pairs)]

    def differing(groups: list[list[_CheckedImage]], field: str) -> list[list[str]]:
        """Each group's first image with those of another split or label."""
        return [
            [escape_surrogates(group[0].path), escape_surrogates(image.path)]
            for group in groups
            for image in group[1:]
            if getattr(image, field) != getattr(group[0], field)
        ]

    return {
        "duplicates": [[escape_surrogates(image.path) for image in group] for group in duplicates],
        "leaks": differing(duplicates, "split"),
        "conflicts": differing(duplicates, "label"),
        "near_duplicates": [[escape_surrogates(image.path) for image in group] for group in near],
        "near_leaks": differing(near, "split"),
        "near_conflicts": differing(near, "label"),
        "too_even_to_compare": found.skipped,
    }


def _without_leaks(entries: Sequence[Entry], images: Sequence[_CheckedImage]) -> list[Entry]:
    """The entries without training images whose content is in validation or test too."""
    evaluated = {image.digest for image in images if image.digest and image.split in ("val", "test")}
    pairs = zip(entries, images, strict=True)
    return [entry for entry, image in pairs if image.split != "train" or image.digest not in evaluated]


def _find_single_images(images: Sequence[_CheckedImage]) -> list[str]:
    """Classes that cannot be split into training and validation, where there are no validation images."""
    if any(image.split == "val" for image in images):
        return []
    contents: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image.split in (None, "train"):
            contents[image.label].add(image.digest)
    return sorted(label for label, digests in contents.items() if len(digests) < 2)


def _summarize_sizes(images: Sequence[_CheckedImage]) -> dict[str, Any]:
    if not images:
        return {}
    sizes = sorted((image.size for image in images), key=lambda size: (size[0] * size[1], size))
    return {
        "smallest": list(sizes[0]),
        "median": list(sizes[len(sizes) // 2]),
        "largest": list(sizes[-1]),
        "tiny": sum(min(size) < MIN_SIDE for size in sizes),
    }


def _collect_remarks(images: Sequence[_CheckedImage]) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for remark in image.remarks:
            paths[remark].append(escape_surrogates(image.path))
    return dict(sorted(paths.items()))


def _find_unicode_forms(images: Sequence[_CheckedImage]) -> list[str]:
    """Classes whose folders have their name in more than one Unicode form: they look alike and are one class."""
    folders: dict[str, set[str]] = defaultdict(set)
    for image in images:
        folder = PurePosixPath(image.path).parent.name
        if unicodedata.normalize("NFC", folder) == image.label:
            folders[image.label].add(folder)
    return sorted(label for label, names in folders.items() if len(names) > 1)


class _Model(NamedTuple):
    source: str
    tasks: tuple[Task, ...]
    input_size: int


def _open_model(source: str, arch: str | None, labels: PathLike | None) -> _Model:
    from taskgraft.bundle import open_parent

    bundle = open_parent(source, arch=arch, labels=labels)
    return _Model(source, bundle.classifier.tasks, bundle.preprocessing.size)


def _compare_with_model(model: _Model, images: Sequence[_CheckedImage], task: str) -> dict[str, Any]:
    """The class names next to those of the task that shares most of them; the shorter sides next to the input size."""
    classes = {image.label for image in images}
    normalized = {class_names.normalize_name(name) for name in classes}
    overlap = {old: len(normalized & {class_names.normalize_name(name) for name in old.classes}) for old in model.tasks}
    same_name = next((old for old in model.tasks if old.name == task), None)
    old = same_name or max(overlap, key=lambda old: overlap[old])
    is_same_task = same_name is not None or overlap[old] > 0
    matches = class_names.find_matches(classes, old.classes) if is_same_task else []
    new = classes - set(old.classes) - {match.name for match in matches}
    absent = set(old.classes) - classes - {match.suggestion for match in matches}
    return {
        "model": model.source,
        "task": old.name if is_same_task else None,
        "known": len(classes & set(old.classes)),
        "near": [
            [match.name, match.suggestion, "written otherwise" if match.is_variant else "spelt otherwise"]
            for match in matches
        ],
        "unknown": sorted(new if is_same_task else classes),
        "absent": sorted(absent) if is_same_task else [],
        "input": model.input_size,
        "smaller": sum(min(image.size) < model.input_size for image in images),
    }


def _list_problems(result: Mapping[str, Any], total: int) -> list[str]:
    """What should be fixed before training; empty where nothing has to be."""
    unreadable, against = result["unreadable"], result["against"]
    limit = f"training skips at most {MAX_EXCLUDED:.0%}"
    problems = [
        (len(result["classes"]) < 2, "a classifier needs at least two classes"),
        (unreadable > MAX_EXCLUDED * total, f"{unreadable} of {total} images cannot be used; {limit}"),
        (result["conflicts"], "identical images have two classes"),
        (result["leaks"], "identical images are in two splits"),
        (result["not_trained"], "classes without training images"),
        (result["single"], "classes with a single image cannot be split; provide val/ or more images"),
        (result["alike"], "class names that differ only in case, spaces or a plural"),
        (against and against["near"], "class names that the model spells differently"),
    ]
    return [text for found, text in problems if found]
