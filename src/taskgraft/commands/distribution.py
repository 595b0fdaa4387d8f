"""The class prevalence of images, videos or a table of images: predictions, resampling units and the estimates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft import report
from taskgraft.commands.predict import PredictOptions, Predictor, list_media
from taskgraft.data.streaming import MediaFile, StreamedImage
from taskgraft.data.tables import TABLE_SUFFIXES, is_outside, open_table
from taskgraft.errors import InputError, ResultError
from taskgraft.quantification import Distribution, Sample, estimate_joint_prevalence, estimate_prevalence
from taskgraft.quantification.prevalence import Estimator
from taskgraft.results.files import escape_surrogates, write_json, write_text
from taskgraft.results.predictions import Predictions
from taskgraft.types import Callbacks, PathLike, as_paths

NUMBERED_NAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\D*)")
MIN_CONSECUTIVE = 20  # images with consecutive numbers that look like frames of a video


class Media(NamedTuple):
    """What to predict: files, and the track or clip of each by name as a table gives it; `kind` says which of them."""

    files: tuple[MediaFile, ...]
    units: Mapping[str, str]
    kind: str  # "track", "clip" or ""

    @property
    def has_video(self) -> bool:
        """Whether any file is a video."""
        return any(file.is_video for file in self.files)


def distribution(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    *,
    tasks: Sequence[str] = (),
    joint: Sequence[tuple[str, str]] = (),
    estimator: Estimator = "auto",
    block: float = 10.0,
    out: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Distribution:
    """Estimate the prevalence of each class of each task, counted and corrected, with 95 % intervals.

    Args:
        model: A bundle, or any other model that `extend` accepts.
        paths: One or several images, folders and videos, or one table with a column `path` and a column `track` (a
            track counts once, whatever its number of frames) or `clip`. Tracks, clips, blocks of a video or else
            images are resampled for the intervals.
        tasks: Tasks to estimate; empty = all.
        joint: Pairs of tasks whose joint prevalence is estimated as well.
        estimator: "auto", "emq", "pacc" or "naive".
        block: Seconds of video that are resampled as one.
        out: Folder for distribution.json, distribution.png and distribution.html; None = none.
        callbacks: Progress callbacks.
        options: Those of `PredictOptions`.

    Raises:
        TaskgraftError: A task is unknown, or no image can be read.
    """
    settings, paths = PredictOptions(**options), as_paths(paths)
    if not block > 0:
        raise InputError(f"--block {block}: give seconds above 0")
    media = _find_media(paths, callbacks)
    predictor = Predictor(model, settings, callbacks)
    available = list(predictor.row_format.classes)
    for name in [*tasks, *(name for pair in joint for name in pair)]:
        if name not in available:
            raise InputError(f"the model has no task {name!r}; it has {', '.join(available)}")
    if any(first == second for first, second in joint):
        raise InputError("--joint takes two tasks; give different ones, as in --joint make,color")
    predictions, units, unreadable = _predict(predictor, media, block, callbacks)
    sample, cards = _build_sample(predictions, units, media, block), predictor.bundle.cards
    result = Distribution(
        model=str(model),
        sources=tuple(escape_surrogates(str(path)) for path in paths),
        tasks=tuple(estimate_prevalence(sample, task, cards.get(task), estimator) for task in tasks or available),
        pairs=tuple(estimate_joint_prevalence(sample, pair, cards, estimator) for pair in joint),
        images=len(units),
        unreadable=unreadable,
        notes=_describe_dependence(predictions.ids, media),
    )
    if out is not None:
        out = Path(out)
        write_json(out / "distribution.json", result.model_dump())
        report.write_distribution_figure(result, out / "distribution.png")
        write_text(out / "distribution.html", report.render_distribution(result))
    return result


def _find_media(paths: Sequence[Path], callbacks: Callbacks) -> Media:
    tables = [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()]
    if not tables:
        return Media(list_media(paths, callbacks), {}, "")
    if len(paths) > 1:
        raise InputError(f"a table names all its images; give {tables[0]} alone")
    return _read_table(tables[0])


def _read_table(path: Path) -> Media:
    """The images of a table, and the unit of each: its track (within its clip, if there are both) or clip."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give images, a folder, a video or a table of them")
    files: dict[str, MediaFile] = {}
    units: dict[str, str] = {}
    kind = ""
    for number, text, found, row in open_table(path).rows():
        if not text or (is_outside(text) and not found):
            raise InputError(
                f"{path} line {number}: {text!r} is blank or outside the table's folder; use paths below it"
            )
        if len(found) > 1:
            raise InputError(f"{path} line {number}: {text!r} may be {found[0]!r} or {found[1]!r}; write which")
        relative = found[0] if found else text
        file, name = path.parent / relative, escape_surrogates(relative)
        if name in files:
            raise InputError(f"{path} line {number}: {relative!r} is in the table twice; keep one row")
        files[name] = MediaFile(file, name, False)
        kind = "track" if "track" in row else "clip" if "clip" in row else ""
        clip, track = ((row.get(key) or "").strip() for key in ("clip", "track"))
        if (kind == "track" and track) or (kind == "clip" and clip):
            units[name] = f"{clip}/{track}"
    if not files:
        raise InputError(f"{path} names no image; add rows to it")
    return Media(tuple(files.values()), units, kind)


def _predict(
    predictor: Predictor, media: Media, block: float, callbacks: Callbacks
) -> tuple[Predictions, list[str], int]:
    """Predictions for all readable images, the resampling unit of each, and the number of unreadable images."""
    batches: list[Predictions] = []
    units: list[str] = []
    unreadable = 0
    for batch, predictions in predictor.predict(predictor.stream(media.files)):
        for image in batch:
            if image.pixels is None:
                unreadable += 1
                callbacks.info(f"{image.name}: {image.reason}")
            else:
                units.append(_name_unit(image, media, block))
        if predictions is not None:
            batches.append(predictions)
        callbacks.progress("reading", min(len(units) + unreadable, len(media.files)), len(media.files))
    if not batches:
        raise ResultError("no image or frame could be read; fix the files named above")
    predictions = batches[0]._replace(
        ids=tuple(name for batch in batches for name in batch.ids),
        logits={task: np.concatenate([batch.logits[task] for batch in batches]) for task in batches[0].logits},
    )
    return predictions, units, unreadable


def _name_unit(image: StreamedImage, media: Media, block: float) -> str:
    if image.seconds is not None:
        video = image.name.rpartition("@")[0]
        return f"{video}@{int(image.seconds // block)}"
    return f"unit {media.units[image.name]}" if image.name in media.units else image.name


def _build_sample(predictions: Predictions, units: list[str], media: Media, block: float) -> Sample:
    """Predictions with the number of each image's unit; the images of a track share the weight of one."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(units))}
    unit = np.array([numbers[name] for name in units])
    weights = 1.0 / np.bincount(unit)[unit] if media.kind == "track" else np.ones(len(unit))
    kind = media.kind or (f"block of {block:g} s" if media.has_video else "image")
    return Sample(predictions, unit, weights / weights.sum(), kind)


def _describe_dependence(ids: Sequence[str], media: Media) -> tuple[str, ...]:
    """Warn where frames of a video are counted as independent images."""
    if media.kind == "track":
        return ()
    advice = "crops of vehicles in a table with a column 'track' let each vehicle count once"
    if media.has_video:
        return (f"frames are counted, not vehicles: what stays in view longer counts more; {advice}",)
    consecutive = sum(_is_next(first, second) for first, second in pairwise(ids))
    if media.kind or consecutive < max(MIN_CONSECUTIVE, len(ids) / 2):
        return ()
    return (
        f"{consecutive} images have the number after that of the image before them; if they are frames of a video, "
        f"the intervals are too narrow and frames are counted, not vehicles: {advice}",
    )


def _is_next(first: str, second: str) -> bool:
    """Whether two names differ only in their last number, which is one higher in the second."""
    match, next_match = NUMBERED_NAME.fullmatch(first), NUMBERED_NAME.fullmatch(second)
    if not match or not next_match:
        return False
    same_prefix = match["prefix"].rstrip("0") == next_match["prefix"].rstrip("0")
    follows = int(next_match["number"]) == int(match["number"]) + 1
    return same_prefix and match["suffix"] == next_match["suffix"] and follows
