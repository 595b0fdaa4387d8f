"""The class shares of images, a video or a table of them: answers, what is resampled, and the estimates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft import report
from taskgraft.bundle import Bundle
from taskgraft.commands.predict import Asked, asked_of, listed, opened
from taskgraft.data import streaming
from taskgraft.data.layouts import TABLE_SUFFIXES, is_outside, read_table
from taskgraft.data.streaming import MediaFile, StreamedImage
from taskgraft.errors import InputError, ResultError
from taskgraft.quantification import Distribution, Sample, estimate_joint_prevalence, estimate_prevalence
from taskgraft.quantification.prevalence import Estimator
from taskgraft.results.files import write_json, write_text
from taskgraft.results.predictions import Predictions
from taskgraft.types import Callbacks, PathLike, as_paths

BLOCK = 10.0  # seconds of video that are resampled as one
NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$")
MANY = 20  # images with consecutive numbers that look like frames
KEYS = ("path", "file_name", "filename")


class Given(NamedTuple):
    """What is to be answered: files, the unit that each belongs to by a table ({} without), and what a unit is."""

    items: tuple[MediaFile, ...]
    unit: Mapping[str, str]
    kind: str  # "track", "clip" or ""


class Answered(NamedTuple):
    """Answers to all that could be read, the unit of each image by name, and how many could not be read."""

    predictions: Predictions
    units: tuple[str, ...]
    bad: int


def distribution(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    *,
    tasks: Sequence[str] = (),
    joint: Sequence[tuple[str, str]] = (),
    estimator: Estimator = "emq",
    block: float = BLOCK,
    out: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Distribution:
    """The share of each class of each task, counted and corrected, with 95 % intervals.

    `paths` is one or several of images, folders and videos, or one table with `path` and a column `track` (each track
    counts once, whatever its number of frames) or `clip`. What is resampled is the track, the clip, `block` seconds of
    a video, or else the image. `joint` are pairs of tasks. `out` gets distribution.json, .png and .html. Further
    options are those of `Asked`. Raises TaskgraftError for unknown tasks, and where nothing could be read.
    """
    asked, paths = Asked(model, **options), as_paths(paths)
    if not block > 0:
        raise InputError(f"--block {block}: give seconds above 0")
    given = _given(paths, callbacks)
    bundle = opened(asked, callbacks)
    known = [task.name for task in bundle.classifier.tasks]
    for name in [*tasks, *(name for pair in joint for name in pair)]:
        if name not in known:
            raise InputError(f"the model has no task {name!r}; it has {', '.join(known)}")
    if any(one == two for one, two in joint):
        raise InputError("--joint takes two tasks; give different ones, as in --joint make,colour")
    answered = _ask(bundle, given, asked, block, callbacks)
    sample = sample_of(answered, given, block)
    found = Distribution(
        model=str(model),
        sources=tuple(streaming.shown(str(path)) for path in paths),
        tasks=tuple(estimate_prevalence(sample, task, bundle.cards.get(task), estimator) for task in tasks or known),
        pairs=tuple(estimate_joint_prevalence(sample, pair, bundle.cards, estimator) for pair in joint),
        images=len(answered.units),
        unreadable=answered.bad,
        notes=warnings_of(answered, given),
    )
    if out is not None:
        write(Path(out), found)
    return found


def write(out: Path, found: Distribution) -> None:
    """Write distribution.json, distribution.png and distribution.html into a folder."""
    write_json(out / "distribution.json", found.model_dump())
    report.write_distribution_figure(found, out / "distribution.png")
    write_text(out / "distribution.html", report.render_distribution(found))


def sample_of(answered: Answered, given: Given, block: float) -> Sample:
    """Answers with the number of each image's unit; the images of a track share the weight of one."""
    places: dict[str, int] = {}
    unit = np.array([places.setdefault(name, len(places)) for name in answered.units])
    weights = np.ones(len(unit))
    if given.kind == "track":
        weights = 1.0 / np.bincount(unit)[unit]
    film = any(item.is_video for item in given.items)
    kind = given.kind or (f"block of {block:g} s" if film else "image")
    return Sample(answered.predictions, unit, weights / weights.sum(), kind)


def warnings_of(answered: Answered, given: Given) -> tuple[str, ...]:
    """What a reader must know of what was counted."""
    if given.kind == "track":
        return ()
    advice = "crops of vehicles in a table with a column 'track' let each vehicle count once"
    if any(item.is_video for item in given.items):
        return (f"frames are counted, not vehicles: what stays in view longer counts more; {advice}",)
    steps = sum(_follows(one, two) for one, two in zip(answered.predictions.ids, answered.predictions.ids[1:]))  # noqa: B905
    if given.kind or steps < max(MANY, len(answered.units) / 2):
        return ()
    return (
        f"{steps} images bear the number after that of the image before them; if they are frames of a video, the "
        f"intervals are too narrow and frames are counted, not vehicles: {advice}",
    )


def _follows(one: str, two: str) -> bool:
    first, second = NUMBER.match(one), NUMBER.match(two)
    if not first or not second:
        return False
    same = first[1].rstrip("0") == second[1].rstrip("0") and first[3] == second[3]
    return same and int(second[2]) == int(first[2]) + 1


def _given(paths: Sequence[Path], callbacks: Callbacks) -> Given:
    tables = [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()]
    if not tables:
        return Given(listed(paths, callbacks), {}, "")
    if len(paths) > 1:
        raise InputError(f"a table names all its images; give {tables[0]} alone")
    return _table(tables[0])


def _table(path: Path) -> Given:
    """The images of a table, and the unit of each: its track (within its clip, where there are both) or clip."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give images, a folder, a video or a table of them")
    items: dict[str, MediaFile] = {}
    unit: dict[str, str] = {}
    kind = ""
    for number, row in read_table(path):
        key = next((name for name in KEYS if name in row), None)
        if key is None:
            raise InputError(f"{path}: there is no column 'path' among {', '.join(row) or 'none at all'}; add it")
        where, file = row[key].strip(), path.parent / row[key].strip()
        if not where or is_outside(path.parent, file):
            raise InputError(
                f"{path} line {number}: {where!r} is blank or outside the table's folder; use paths below it"
            )
        name = streaming.shown(where)
        if name in items:
            raise InputError(f"{path} line {number}: {where!r} is in the table twice; keep one row")
        items[name] = MediaFile(file, name, False)
        kind = "track" if "track" in row else "clip" if "clip" in row else ""
        named = [(row.get(column) or "").strip() for column in ("clip", "track")]
        if kind and named[-1 if kind == "track" else 0]:
            unit[name] = "/".join(named)
    if not items:
        raise InputError(f"{path} names no image; add rows to it")
    return Given(tuple(items.values()), unit, kind)


def _ask(bundle: Bundle, given: Given, asked: Asked, block: float, callbacks: Callbacks) -> Answered:
    pictures = streaming.stream_images(given.items, bundle.preprocessing, asked.every)
    found: list[Predictions] = []
    units: list[str] = []
    bad = seen = 0
    name_of = _units(given, block)
    for batch, predictions in asked_of(bundle.classifier, pictures, bundle.preprocessing, asked.batch_size):
        seen += len(batch)
        callbacks.progress("reading", min(seen, len(given.items)), len(given.items))
        for picture in batch:
            if picture.pixels is None:
                bad += 1
                callbacks.info(f"{picture.name}: {picture.reason}")
            else:
                units.append(name_of(picture))
        if predictions is not None:
            found.append(predictions)
    if not found:
        raise ResultError("no image or frame could be read; fix the files named above")
    first = found[0]
    return Answered(
        first._replace(
            ids=tuple(name for one in found for name in one.ids),
            logits={task: np.concatenate([one.logits[task] for one in found]) for task in first.logits},
        ),
        tuple(units),
        bad,
    )


def _units(given: Given, block: float) -> Callable[[StreamedImage], str]:
    """What the unit of an image is called."""

    def name_of(picture: StreamedImage) -> str:
        if picture.seconds is not None:
            film = picture.name.rpartition("@")[0]
            return f"{film}@{int(picture.seconds // block)}"
        return f"unit {given.unit[picture.name]}" if picture.name in given.unit else picture.name

    return name_of
