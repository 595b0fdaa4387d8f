"""The page of `evaluate`, and what it shares with a run's page: confusions, worst classes and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taskgraft import metrics
from taskgraft.report import formatting as fmt
from taskgraft.report.charts import MARKERS, Axis, Box, Chart, Curve, Panel, Style
from taskgraft.report.error_analysis import OTHER_TASK, Bin, ErrorAnalysis, analyze_errors, group_examples
from taskgraft.report.page import Figure, Table, build_long_table, render
from taskgraft.report.run_summary import PARENT_AND_CHILD, Roles
from taskgraft.report.thumbnails import Gallery, GalleryBuilder, GetThumbnail
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, TaskResult

MAX_MATRIX = 25  # classes up to which a confusion matrix is readable
MAX_NUMBERED = 12  # classes up to which its cells have numbers
MAX_CONFUSIONS = 20
MAX_WORST_CLASSES = 10
COLORS = ("red", "blue", "green", "purple", "orange", "sky")  # of tasks in a reliability diagram


class TaskErrors(NamedTuple):
    """What a page shows of one task's wrong predictions: a matrix, or a table where there are too many classes."""

    matrix: Figure | None
    confusions: Table | None
    gallery: Gallery | None
    worst_classes: Table


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
    analysis = analyze_errors(result, {"new": predictions})
    analyses = [] if analysis is None else [analysis]
    return render(
        "evaluation.html.j2",
        model=model,
        data=data,
        task=task,
        accuracy=accuracy,
        macro_f1=metrics.macro_f1(predictions, task),
        top_5=metrics.top_5(predictions, task),
        analysis=analysis,
        errors=[build_task_errors(0, analysis, GalleryBuilder(get_thumbnail, 1))] if analysis else [],
        calibration=build_calibration(analyses),
        excluded=build_long_table(fmt.pluralize(len(excluded), "image"), ("Image", "Reason"), excluded),
    )


def build_task_errors(
    i: int, analysis: ErrorAnalysis, galleries: GalleryBuilder, roles: Roles = PARENT_AND_CHILD
) -> TaskErrors:
    """Build what a page shows of the wrong predictions of its i-th task."""
    readable = len(analysis.classes) <= MAX_MATRIX
    title = f"{analysis.task}: most frequent confusions"
    sizes = analysis.class_sizes
    return TaskErrors(
        _build_matrix(f"confusion{i}", analysis) if readable else None,
        None if readable else _build_confusion_table(analysis),
        galleries.build(title, ("true", "predicted"), analysis.set_name, analysis.errors, sizes),
        _build_worst_classes(analysis, roles),
    )


def _build_matrix(key: str, analysis: ErrorAnalysis) -> Figure:
    """Rows are true classes, columns predictions; a cell without images is not drawn."""
    classes, counts, predicted = analysis.classes, analysis.counts, (*analysis.classes, OTHER_TASK)
    if not counts[:, -1].any():
        counts, predicted = counts[:, :-1], classes
    boxes = [Box(-0.5, -0.5, len(predicted), len(classes), "cold")]
    for y, row in enumerate(counts.tolist()):
        for x, images in enumerate(row):
            if images:
                fraction = images / sum(row)
                tooltip = (
                    f"true {classes[y]}, predicted {predicted[x]}: {fmt.pluralize(images, 'image')} "
                    f"({fmt.percent(fraction)} %)"
                )
                number = str(images) if len(classes) <= MAX_NUMBERED else ""
                boxes.append(Box(x - 0.47, y - 0.47, 0.94, 0.94, "heat", fraction, text=number, tooltip=tooltip))
    # names at positions: two classes that are shortened to the same name stay two
    y_axis = Axis("true class", len(classes) - 0.5, -0.5, names=tuple(enumerate(classes)))
    x_axis = Axis("predicted class", -0.5, len(predicted) - 0.5, names=tuple(enumerate(predicted)))
    panel = Panel("", y_axis, boxes=tuple(boxes), height=60 + max(24 * len(classes), 120))
    title = f"{analysis.task}: confusion matrix"
    caption = "Rows: true class. Columns: predicted class. Numbers: images. Shade: fraction of the row."
    rows = [(name, *map(str, row)) for name, row in zip(classes, counts.tolist(), strict=True)]
    table = Table(f"{analysis.task}: images by true and predicted class", ("True class", *predicted), rows)
    return Figure(Chart(key, title, caption, (panel,), x_axis, kind="Heat map"), [table], "square")


def _build_confusion_table(analysis: ErrorAnalysis) -> Table:
    rows, sizes = [], analysis.class_sizes
    for members in group_examples(analysis.errors)[:MAX_CONFUSIONS]:
        truth, images = members[0].first, len(members)
        rows.append((truth, members[0].second, f"{images:,}", fmt.percent(images / sizes[truth])))
    caption = f"{analysis.task}: the {MAX_CONFUSIONS} most frequent confusions of {len(analysis.classes)} classes"
    return Table(caption, ("True class", "Predicted", "Images", "Fraction of the class (%)"), rows, (0, 1))


def _build_worst_classes(analysis: ErrorAnalysis, roles: Roles) -> Table:
    rows = []
    for result in analysis.class_results[:MAX_WORST_CLASSES]:
        accuracies = [fmt.percent(result.child)]
        if result.parent is not None:
            accuracies += [fmt.percent(result.parent), fmt.use_minus_signs(fmt.delta(result.child - result.parent))]
        rows.append((result.name, f"{result.images:,}", *accuracies, result.confused_with or fmt.MISSING))
    compared = analysis.parent_ece is not None
    before, after = (name.capitalize() for name in roles)
    columns = (f"{after} (%)", f"{before} (%)", "Change") if compared else ("Accuracy (%)",)
    head = ("Class", "Images", *columns, "Most often confused with")
    return Table(f"{analysis.task}: lowest class accuracies", head, rows, (0, len(head) - 1))


def build_calibration(
    analyses: Sequence[ErrorAnalysis], roles: Roles = PARENT_AND_CHILD
) -> tuple[Figure, Table] | None:
    """Build the reliability diagram (Guo et al., 2017) and the expected calibration errors; None without tasks."""
    if not analyses:
        return None
    caption = (
        "Accuracy of images of similar confidence. On the diagonal, confidence equals accuracy; below it, the model "
        "is overconfident. Larger markers stand for more images."
    )
    curves = build_reliability_curves(
        [(analysis.task, analysis.bins, analysis.calibrated_bins) for analysis in analyses]
    )
    panel = Panel("", Axis("accuracy (%)", 0, 102), curves, height=480)
    x = Axis("confidence (%)", 0, 102)
    chart = Chart("reliability-plot", "Reliability diagram", caption, (panel,), x)
    tables = [
        Table(
            f"{analysis.task}{suffix}: accuracy by confidence",
            ("Confidence (%)", "Accuracy (%)", "Images"),
            [(fmt.percent(b.confidence), fmt.percent(b.accuracy), f"{b.images:,}") for b in bins],
            (),
        )
        for analysis in analyses
        for bins, suffix in ((analysis.bins, ""), (analysis.calibrated_bins, ", calibrated"))
        if bins
    ]
    return Figure(chart, tables, "square"), _build_error_table(analyses, roles)


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
    largest = max((b.images for b in bins), default=1)
    return Curve(
        name, style, [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins],
        hollow=style.dash != "-", sizes=[3.5 + 9 * (b.images / largest) ** 0.5 for b in bins],
        tooltips=[f"{name}: {fmt.pluralize(b.images, 'image')} at {fmt.percent(b.confidence)} % confidence, "
                  f"{fmt.percent(b.accuracy)} % correct" for b in bins],
    )  # fmt: skip


def _build_error_table(analyses: Sequence[ErrorAnalysis], roles: Roles) -> Table:
    compared = any(analysis.parent_ece is not None for analysis in analyses)
    rows = []
    for analysis in analyses:
        parent = [fmt.percent(analysis.parent_ece)] if compared else []
        calibrated = [fmt.MISSING] * 3
        if fitted := analysis.calibration:
            losses = f"{fitted.loss_before:.3f} → {fitted.loss_after:.3f}"
            calibrated = [fmt.percent(fitted.error_after), f"{fitted.temperature:.3f}", losses]
        rows.append((analysis.task, f"{analysis.counts.sum():,}", *parent, fmt.percent(analysis.ece), *calibrated))
    columns = tuple(f"{name.capitalize()} (points)" for name in roles) if compared else ("Uncalibrated (points)",)
    head = ("Task", "Images", *columns, "Calibrated (points)", "Temperature", "Log loss")
    return Table("Expected calibration error, before and after temperature scaling", head, rows)
