"""Which images a run's page shows: examples of confusions and of changed answers, grouped, and few enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from taskgraft.errors import InputError
from taskgraft.report import formatting
from taskgraft.report.evidence import Change, Evidence, confusions
from taskgraft.report.formatting import percent
from taskgraft.report.page import Gallery, Group, Shot

FILE = "thumbnails.json"
MOST = 60  # images of a page: with the largest that are written it stays below 1.5 MB
GROUPS = 6  # of a gallery: two rows of three on a wide screen
SHOTS = 3  # of a group

Picture = Callable[[str, int], str | None]  # (set of predictions, row): a data URI, or None for no image
Thumbnails = dict[str, dict[int, str]]
_Uri = Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+=*$")]
_SHAPE = TypeAdapter(dict[str, dict[int, _Uri]])

ORDER = "Examples of each, those first of which the model is surest; below each how sure it is."


def no_picture(key: str, row: int) -> str | None:
    """For a page without images."""
    return None


def stored(folder: Path) -> Picture:
    """The images that a run kept for its page; none where it kept none. Raises TaskgraftError for a damaged file."""
    file = folder / FILE
    if not file.is_file():
        return no_picture
    try:
        found: Thumbnails = _SHAPE.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{file} is damaged; delete it for a report without images") from error
    return lambda key, row: found.get(key, {}).get(row)


def quota(tasks: int) -> int:
    """How many images each of a task's three galleries may have."""
    return MOST // max(2, tasks) // 3


def confused(one: Evidence, picture: Picture, most: int) -> tuple[Gallery, ...]:
    """Examples of the most frequent confusions; nothing without images."""
    groups = []
    for case in confusions(one, GROUPS):
        images = formatting.several(case.images, "image")
        line = f"{images}, {percent(case.share)} % of the class"
        shots = [
            _shot(picture, one.key, row, one.ids[row], f"true {case.truth}, answer {case.answer}", one.sure[row])
            for row in case.rows[: _room(groups, most)]
        ]
        groups.append(_group((("true", case.truth), ("answer", case.answer)), line, shots))
    return _gallery(f"{one.task}: the most frequent confusions", ORDER, groups)


def moved(
    title: str, key: str, changes: Sequence[Change], labels: tuple[str, str], picture: Picture, most: int
) -> tuple[Gallery, ...]:
    """Examples of images whose answer changed, by what it was and what it is; nothing without images."""
    cases: dict[tuple[str, str], list[Change]] = {}
    for change in sorted(changes, key=lambda change: -change.sure):
        cases.setdefault((change.before, change.after), []).append(change)
    groups = []
    for (before, after), images in sorted(cases.items(), key=lambda case: -len(case[1]))[:GROUPS]:
        shots = [
            _shot(picture, key, one.row, one.name, f"{labels[0]} {before}, {labels[1]} {after}", one.sure)
            for one in images[: _room(groups, most)]
        ]
        names = (labels[0], before), (labels[1], after)
        groups.append(_group(names, formatting.several(len(images), "image"), shots))
    return _gallery(title, ORDER, groups)


def _room(groups: Sequence[Group], most: int) -> int:
    return min(SHOTS, most - sum(len(group.shots) for group in groups))


def _shot(picture: Picture, key: str, row: int, name: str, said: str, sure: float) -> Shot | None:
    source = picture(key, row)
    line = "" if isnan(sure) else f"{percent(sure)} %"
    return None if source is None else Shot(source, f"{name}: {said}", line)


def _group(names: tuple[tuple[str, str], ...], line: str, shots: Sequence[Shot | None]) -> Group:
    return Group(names, line, tuple(shot for shot in shots if shot is not None))


def _gallery(title: str, caption: str, groups: Sequence[Group]) -> tuple[Gallery, ...]:
    shown = tuple(group for group in groups if group.shots)
    return (Gallery(title, caption, shown),) if shown else ()
