"""A look at pictures without training: what `check` says."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from taskgraft.data import curate, decode
from taskgraft.data.formats import list_images
from taskgraft.types import Watch

FEW = 10  # training pictures of a class under which nobody learns it well


def check(
    data: Path,
    task: str = "label",
    *,
    group: str | None = None,
    min_images: int = 0,
    manifest: Path | None = None,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Open every picture, count classes and splits, find duplicates; optionally merge and drop classes by name.

    Returns plain values with the "lines" to print, and "wanting" = whether something should be mended first.
    Writes nothing but `manifest`. Raises Problem for data that cannot be understood at all.
    """
    listing = list_images(data, task)
    curated = curate.group(listing, task, group, min_images)
    entries = curated.entries
    files = [listing.root / entry.path for entry in entries]
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
        digests = [digest for digest, _ in pool.map(decode.content, files)]
        reasons = []
        for row, found in enumerate(pool.map(lambda file: decode.decode(file, None).reason, files)):
            reasons.append(found)
            watch.progress(f"opening {data.name}", row + 1, len(files))
    excluded = [*listing.skipped, *((entries[row].path, why) for row, why in enumerate(reasons) if why)]
    table = Counter(
        (entry.split or "all", entry.labels[task]) for entry, why in zip(entries, reasons, strict=True) if not why
    )
    seen: dict[str, int] = {}
    leaks, conflicts = [], []
    for row, digest in enumerate(digests):
        first = seen.setdefault(digest, row)
        if digest and first != row:
            pair = [entries[first].path, entries[row].path]
            if entries[first].split != entries[row].split:
                leaks.append(pair)
            if entries[first].labels[task] != entries[row].labels[task]:
                conflicts.append(pair)
    if manifest:
        curate.write_manifest(manifest, listing.root, entries, task)
    splits = sorted({split for split, _ in table})
    classes = sorted({label for _, label in table})
    counts = {label: {split: table[split, label] for split in splits} for label in classes}
    found = {
        "data": str(data),
        "layout": listing.kind,
        "pictures": {split: sum(counts[label][split] for label in classes) for split in splits},
        "classes": counts,
        "dropped_classes": curated.dropped,
        "excluded": [list(pair) for pair in excluded],
        "leaks": leaks,
        "conflicts": conflicts,
        "few": [label for label in classes if counts[label][_learnt(splits)] < FEW],
        "manifest": str(manifest) if manifest else None,
    }
    bad = sum(1 for why in reasons if why)
    return {**found, "wanting": bool(conflicts) or bad > 0.05 * len(entries), "lines": _lines(found)}


def _learnt(splits: list[str]) -> str:
    return "train" if "train" in splits else splits[0]


def _lines(found: dict[str, Any]) -> list[str]:
    splits = list(found["pictures"])
    width = max(len(label) for label in found["classes"])
    totals = ", ".join(f"{count} {split}" for split, count in found["pictures"].items())
    lines = [f"{found['data']}: {found['layout']}; {len(found['classes'])} classes; pictures: {totals}"]
    for label, counts in found["classes"].items():
        lines.append(f"  {label:<{width}}  " + "  ".join(f"{split} {counts[split]:>5}" for split in splits))
    for name, what in (
        ("excluded", "file(s) cannot be used"),
        ("leaks", "picture(s) stand in two splits"),
        ("conflicts", "picture(s) stand in two classes"),
        ("few", f"class(es) have under {FEW} training pictures"),
        ("dropped_classes", "class(es) dropped as too small"),
    ):
        items = list(found[name].items()) if isinstance(found[name], dict) else found[name]
        if items:
            first = "; ".join(
                ": ".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in items[:3]
            )
            lines.append(f"{len(items)} {what}: {first}{'; …' if len(items) > 3 else ''}")
    if found["manifest"]:
        lines.append(f"manifest: {found['manifest']} (use it as DATA)")
    return lines
