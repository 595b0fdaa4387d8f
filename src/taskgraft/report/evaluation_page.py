"""The page of `evaluate`, and what it shares with a run's page: confusions, flips and calibration, with images."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple

from taskgraft.report import error_analysis
from taskgraft.report.charts import MARKERS, Axis, Box, Chart, Curve, Panel, Style
from taskgraft.report.error_analysis import OTHER_TASK, Bin, ErrorAnalysis, Flip
from taskgraft.report.formatting import (
    MISSING,
    format_count,
    format_delta,
    format_percent,
    pluralize,
    use_minus_signs,
)
from taskgraft.report.page import Figure, Gallery, ImageGroup, Table, Thumbnail, build_long_table, render
from taskgraft.report.thumbnails import GetThumbnail
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, TaskResult

MAX_MATRIX = 25  # classes up to which a confusion matrix is readable
MAX_NUMBERED = 12  # classes up to which its cells have numbers
MAX_CONFUSIONS = 20
MAX_WORST_CLASSES = 10
MAX_IMAGES = 60  # of a page: with the largest thumbnails it stays below 1.5 MB
MAX_GROUPS = 6  # of a gallery
MAX_GROUP_IMAGES = 3
COLORS = ("red", "blue", "green", "purple", "orange", "sky")  # of tasks in a reliability diagram


class TaskErrors(NamedTuple):
    """What a page shows of one task's wrong predictions: a matrix, or a table where there are too many classes."""

    matrix: Figure | None
    confusions: Table | None
    gallery: Gallery | None
    worst_classes: Table


class FlipList(NamedTuple):
    """Images whose prediction changed in one direction: a gallery and their full list."""

    gallery: Gallery | None
    table: Table


class Calibration(NamedTuple):
    """The reliability diagram of all tasks, and their calibration errors."""

    diagram: Figure
    errors: Table


def render_evaluation(
    model: str,
    data: str,
    predictions: Predictions,
    task: str,
    accuracy: Interval,
    excluded: Sequence[tuple[str, str]],
    get_thumbnail: GetThumbnail,
) -> str:
    """Render the page of `evaluate`.

    Args:
        model: Name of the model.
        data: Name of the images.
        predictions: The model's on the labeled images.
        task: The task that was evaluated.
        accuracy: Its accuracy with a 95 % interval.
        excluded: Name and reason of each image that could not be used.
        get_thumbnail: Returns the images of the set "new".

    Returns:
        One offline HTML page.
    """
    result = TaskResult(name=task, classes=predictions.classes[task], new=True, child=accuracy)
    analysis = error_analysis.analyze_errors(result, {"new": predictions})
    analyses = [] if analysis is None else [analysis]
    context = {
        "model": model,
        "data": data,
        "task": task,
        "accuracy": accuracy,
        "analysis": analysis,
        "errors": [build_task_errors(i, one, get_thumbnail, image_quota(1)) for i, one in enumerate(analyses)],
        "calibration": build_calibration(analyses),
        "excluded": build_long_table(pluralize(len(excluded), "image"), ("Image", "Reason"), excluded),
    }
    return render("evaluation.html.j2", context)


def image_quota(tasks: int) -> int:
    """How many images each of a task's three galleries may have."""
    return MAX_IMAGES // max(2, tasks) // 3


def build_task_errors(i: int, analysis: ErrorAnalysis, get_thumbnail: GetThumbnail, quota: int) -> TaskErrors:
    """Build what a page shows of the wrong predictions of its i-th task, with at most `quota` images."""
    readable = len(analysis.classes) <= MAX_MATRIX
    return TaskErrors(
        _build_matrix(f"confusion{i}", analysis) if readable else None,
        None if readable else _build_confusion_table(analysis),
        _build_confusion_gallery(analysis, get_thumbnail, quota),
        _build_worst_classes(analysis),
    )


def _build_matrix(key: str, analysis: ErrorAnalysis) -> Figure:
    """Rows are true classes, columns predictions; a cell without images is not drawn."""
    classes, counts = analysis.classes, analysis.counts
    other_task = bool(counts[:, -1].any())
    predicted = (*classes, OTHER_TASK) if other_task else classes
    cells = (counts if other_task else counts[:, :-1]).tolist()
    boxes = [Box(-0.5, -0.5, len(predicted), len(classes), "cold")]
    for y, row in enumerate(cells):
        for x, images in enumerate(row):
            if images:
                fraction = images / sum(row)
                tooltip = (
                    f"true {classes[y]}, predicted {predicted[x]}: {pluralize(images, 'image')} "
                    f"({format_percent(fraction)} %)"
                )
                number = str(images) if len(classes) <= MAX_NUMBERED else ""
                boxes.append(Box(x - 0.47, y - 0.47, 0.94, 0.94, "heat", fraction, text=number, tooltip=tooltip))
    # names at positions: two classes that are shortened to the same name stay two
    y_axis = Axis("true class", len(classes) - 0.5, -0.5, names=tuple(enumerate(classes)))
    x_axis = Axis("predicted class", -0.5, len(predicted) - 0.5, names=tuple(enumerate(predicted)))
    panel = Panel("", y_axis, boxes=tuple(boxes), height=60 + max(24 * len(classes), 120))
    title = f"{analysis.task}: confusion matrix"
    caption = "Rows: true class. Columns: predicted class. Numbers: images. Shade: fraction of the row."
    rows = tuple((name, *map(str, row)) for name, row in zip(classes, cells, strict=True))
    table = Table(f"{analysis.task}: images by true and predicted class", ("True class", *predicted), rows)
    return Figure(Chart(key, title, caption, (panel,), x_axis, kind="Heat map"), (table,), "square")


def _build_confusion_table(analysis: ErrorAnalysis) -> Table:
    rows = tuple(
        (case.truth, case.predicted, format_count(case.images), format_percent(case.fraction))
        for case in error_analysis.find_confusions(analysis, MAX_CONFUSIONS)
    )
    caption = f"{analysis.task}: the {MAX_CONFUSIONS} most frequent confusions of {len(analysis.classes)} classes"
    return Table(caption, ("True class", "Predicted", "Images", "Fraction of the class (%)"), rows, (0, 1))


def _build_worst_classes(analysis: ErrorAnalysis) -> Table:
    compared = any(result.parent is not None for result in analysis.class_results)
    rows = []
    for result in analysis.class_results[:MAX_WORST_CLASSES]:
        row = [result.name, format_count(result.images), format_percent(result.child)]
        if compared and result.parent is not None:
            row += [format_percent(result.parent), use_minus_signs(format_delta(result.child - result.parent))]
        rows.append((*row, result.confused_with or MISSING))
    columns = ("Child (%)", "Parent (%)", "Change") if compared else ("Accuracy (%)",)
    head = ("Class", "Images", *columns, "Most often confused with")
    return Table(f"{analysis.task}: lowest class accuracies", head, tuple(rows), (0, len(head) - 1))


def _build_confusion_gallery(analysis: ErrorAnalysis, get_thumbnail: GetThumbnail, quota: int) -> Gallery | None:
    groups = []
    for case in error_analysis.find_confusions(analysis, MAX_GROUPS):
        note = f"{pluralize(case.images, 'image')}, {format_percent(case.fraction)} % of the class"
        names = (("true", case.truth), ("predicted", case.predicted))
        images = [(analysis.ids[row], row, float(analysis.confidence[row])) for row in case.rows]
        groups.append(_build_group(names, note, images, analysis.set_name, get_thumbnail, quota))
        quota -= len(groups[-1].images)
    return _build_gallery(f"{analysis.task}: most frequent confusions", groups)


def build_flips(
    title: str,
    set_name: str,
    flips: Sequence[Flip],
    labels: tuple[str, str],
    head: tuple[str, str, str],
    get_thumbnail: GetThumbnail,
    quota: int,
) -> FlipList | None:
    """Build the images whose prediction changed, grouped by both predictions.

    Args:
        title: What they have in common.
        set_name: The set of images that they are in.
        flips: The changes.
        labels: What the predictions before and after are called below images, such as ("true", "now").
        head: The header of the full list.
        get_thumbnail: Returns their images.
        quota: How many images to show.

    Returns:
        None without flips.
    """
    if not flips:
        return None
    cases: dict[tuple[str, str], list[Flip]] = {}
    for flip in sorted(flips, key=lambda flip: -flip.confidence):
        cases.setdefault((flip.before, flip.after), []).append(flip)
    groups = []
    for (before, after), members in sorted(cases.items(), key=lambda case: -len(case[1]))[:MAX_GROUPS]:
        names = (labels[0], before), (labels[1], after)
        images = [(flip.name, flip.row, flip.confidence) for flip in members]
        note = pluralize(len(members), "image")
        groups.append(_build_group(names, note, images, set_name, get_thumbnail, quota))
        quota -= len(groups[-1].images)
    table = build_long_table(title, head, [(flip.name, flip.before, flip.after) for flip in flips])
    return FlipList(_build_gallery(title, groups), table)


def _build_group(
    names: tuple[tuple[str, str], ...],
    note: str,
    images: Sequence[tuple[str, int, float]],
    set_name: str,
    get_thumbnail: GetThumbnail,
    quota: int,
) -> ImageGroup:
    """The first of `images`, each a name, a row and a confidence."""
    shown = []
    text = ", ".join(f"{label} {name}" for label, name in names)
    for name, row, confidence in images[: min(MAX_GROUP_IMAGES, quota)]:
        source = get_thumbnail(set_name, row)
        if source is not None:
            line = "" if isnan(confidence) else f"{format_percent(confidence)} %"
            shown.append(Thumbnail(source, f"{name}: {text}", line))
    return ImageGroup(names, note, tuple(shown))


def _build_gallery(title: str, groups: Sequence[ImageGroup]) -> Gallery | None:
    shown = tuple(group for group in groups if group.images)
    return Gallery(title, shown) if shown else None


def build_calibration(analyses: Sequence[ErrorAnalysis]) -> Calibration | None:
    """Build the reliability diagram (Guo et al., 2017) and the expected calibration errors; None without tasks."""
    if not analyses:
        return None
    caption = (
        "Accuracy of images of similar confidence. On the diagonal, confidence equals accuracy; below it, the model "
        "is overconfident. Larger markers stand for more images."
    )
    curves = build_reliability_curves([(one.task, one.bins, one.calibrated_bins) for one in analyses])
    panel = Panel("", Axis("accuracy (%)", 0, 102), curves, height=480)
    x = Axis("confidence (%)", 0, 102)
    chart = Chart("reliability-plot", "Reliability diagram", caption, (panel,), x)
    tables = []
    for analysis in analyses:
        for bins, state in ((analysis.bins, ""), (analysis.calibrated_bins, ", calibrated")):
            rows = tuple(
                (format_percent(b.confidence), format_percent(b.accuracy), format_count(b.images)) for b in bins
            )
            head = ("Confidence (%)", "Accuracy (%)", "Images")
            tables += [Table(f"{analysis.task}{state}: accuracy by confidence", head, rows, ())] if rows else []
    return Calibration(Figure(chart, tuple(tables), "square"), _build_error_table(analyses))


def build_reliability_curves(tasks: Sequence[tuple[str, Sequence[Bin], Sequence[Bin]]]) -> tuple[Curve, ...]:
    """Build accuracy over confidence, with the diagonal of a calibrated model.

    Args:
        tasks: Name, bins before and bins after temperature scaling of each task; the last may be empty.
    """
    curves = [Curve("perfectly calibrated", Style("muted", "--", ""), (0, 100), (0, 100))]
    for i, (name, before, after) in enumerate(tasks):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        if after:
            curves.append(_build_bin_curve(f"{name}, uncalibrated", before, Style(color, ":", marker)))
            curves.append(_build_bin_curve(f"{name}, calibrated", after, Style(color, "-", marker)))
        else:
            curves.append(_build_bin_curve(name, before, Style(color, "-", marker)))
    return tuple(curves)


def _build_bin_curve(name: str, bins: Sequence[Bin], style: Style) -> Curve:
    largest = max((one.images for one in bins), default=1)
    return Curve(
        name, style, [100 * one.confidence for one in bins], [100 * one.accuracy for one in bins],
        hollow=style.dash != "-", sizes=[3.5 + 9 * (one.images / largest) ** 0.5 for one in bins],
        tooltips=[f"{name}: {pluralize(one.images, 'image')} at {format_percent(one.confidence)} % confidence, "
                  f"{format_percent(one.accuracy)} % correct" for one in bins],
    )  # fmt: skip


def _build_error_table(analyses: Sequence[ErrorAnalysis]) -> Table:
    compared = any(one.parent_ece is not None for one in analyses)
    rows = []
    for one in analyses:
        parent = [format_percent(one.parent_ece)] if compared else []
        fitted = [MISSING] * 3
        if one.calibration is not None:
            losses = f"{one.calibration.loss_before:.3f} → {one.calibration.loss_after:.3f}"
            fitted = [format_percent(one.calibration.error_after), f"{one.calibration.temperature:.3f}", losses]
        images = format_count(int((one.labels >= 0).sum()))
        rows.append((one.task, images, *parent, format_percent(one.ece), *fitted))
    columns = ("Parent (points)", "Child (points)") if compared else ("Uncalibrated (points)",)
    head = ("Task", "Images", *columns, "Calibrated (points)", "Temperature", "Log loss")
    return Table("Expected calibration error, before and after temperature scaling", head, tuple(rows))
