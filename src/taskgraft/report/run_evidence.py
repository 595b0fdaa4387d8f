"""The parts of a run's report that look at single images: confusions, worst classes, changes, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskgraft.calibration import Calibration
from taskgraft.report import formatting, galleries
from taskgraft.report.charts import MARKERS, Axis, Box, Chart, Curve, Panel
from taskgraft.report.evidence import ELSEWHERE, Bin, Change, Evidence, confusions
from taskgraft.report.formatting import percent, several, signed, typeset
from taskgraft.report.galleries import Picture
from taskgraft.report.page import Block, Fold, Plot, Section, Table, Text
from taskgraft.results.record import TaskResult

MATRIX = 25  # classes up to which a confusion matrix can be read
NUMBERED = 12  # classes up to which its cells have numbers
WORST = 10  # classes
CONFUSIONS = 20
LISTED = 200  # images


def answers_section(tasks: Sequence[str], evidence: Sequence[Evidence], picture: Picture) -> Section:
    """Confusions, with images where there are any, and worst classes of every task with labeled images."""
    blocks: list[Block] = []
    most = galleries.quota(len(tasks))
    for i, one in enumerate(evidence):
        shown = galleries.confused(one, picture, most)
        if len(one.classes) <= MATRIX:
            blocks += [_matrix(f"confusion{i}", one), *shown]
        else:
            table = _worst_confusions(one)
            blocks += [*shown, Fold(f"{table.caption}, as a table", table)] if shown else [table]
        blocks.append(_worst_classes(one))
    missing = [task for task in tasks if task not in {one.task for one in evidence}]
    if missing and evidence:
        blocks.append(Text(f"No labeled validation images for {', '.join(missing)}: nothing to show.", "note"))
    return Section("answers", "Which answers are wrong", tuple(blocks))


def _matrix(key: str, one: Evidence) -> Plot:
    lost = bool(one.counts[:, -1].any())
    answers = (*one.classes, ELSEWHERE) if lost else one.classes
    counts = np.asarray(one.counts if lost else one.counts[:, :-1]).tolist()
    rows = tuple((name, *(str(cell) for cell in row)) for name, row in zip(one.classes, counts, strict=True))
    table = Table(f"{one.task}: images by true class and answer", ("True class", *answers), rows)
    caption = "Rows are true classes, columns the answers; numbers are images, shades are shares of a row."
    title = f"{one.task}: confusion matrix"
    chart = Chart(
        key, title, caption, (_cells(counts, one.classes, answers),), _names("answer", answers), kind="Heat map"
    )
    return Plot(chart, (table,), "square")


def _cells(counts: Sequence[Sequence[int]], classes: Sequence[str], answers: Sequence[str]) -> Panel:
    """Rows are true classes, columns answers, shades shares of the row; nothing is drawn where there is no image."""
    boxes = [Box(-0.5, -0.5, len(answers), len(classes), "cold")]
    for y, row in enumerate(counts):
        for x, images in enumerate(row):
            if images:
                share = images / sum(row)
                tip = f"true {classes[y]}, answered {answers[x]}: {several(images, 'image')} ({percent(share)} %)"
                number = str(images) if len(classes) <= NUMBERED else ""
                boxes.append(Box(x - 0.47, y - 0.47, 0.94, 0.94, "heat", share, text=number, tip=tip))
    axis = _names("true class", classes)
    return Panel(
        "", axis._replace(low=axis.high, high=axis.low), boxes=tuple(boxes), height=60 + max(24 * len(classes), 120)
    )


def _names(title: str, names: Sequence[str]) -> Axis:
    """Names at positions: two classes that are cut to the same name stay two."""
    return Axis(title, -0.5, len(names) - 0.5, names=tuple(enumerate(names)))


def _worst_confusions(one: Evidence) -> Table:
    rows = tuple(
        (case.truth, case.answer, formatting.count(case.images), percent(case.share))
        for case in confusions(one, CONFUSIONS)
    )
    caption = f"{one.task}: the {CONFUSIONS} most frequent confusions of {len(one.classes)} classes"
    return Table(caption, ("True class", "Answer", "Images", "Share of the class (%)"), rows, (0, 1))


def _worst_classes(one: Evidence) -> Table:
    compared = any(result.parent is not None for result in one.results)
    rows = []
    for result in one.results[:WORST]:
        row = [result.name, formatting.count(result.images), percent(result.child)]
        if compared and result.parent is not None:
            row += [percent(result.parent), typeset(signed(result.child - result.parent))]
        rows.append((*row, result.mistaken or formatting.NOTHING))
    extra = ("Parent (%)", "Change") if compared else ()
    own = "Child (%)" if compared else "Accuracy (%)"
    head = ("Class", "Images", own, *extra, "Mostly mistaken for")
    return Table(f"{one.task}: worst classes", head, tuple(rows), (0, len(head) - 1))


def changes_section(
    tasks: Sequence[TaskResult],
    evidence: Sequence[Evidence],
    differing: Sequence[tuple[str, tuple[Change, ...]]],
    picture: Picture,
) -> Section:
    """Images that went from right to wrong, and from wrong to right; without labels, whose answer changed."""
    old = {task.name for task in tasks if not task.new}
    most = galleries.quota(len(tasks))
    blocks: list[Block] = []
    for one in evidence:
        if one.task in old:
            blocks += _moved(one, picture, most)
    for name, changes in differing:
        lead = (
            f"{name}: nobody labeled the new images for it, so right and wrong are unknown. On "
            f"{formatting.count(len(changes))} of the new images child and parent answer differently."
        )
        blocks.append(Text(lead, "note"))
        if changes:
            title = f"{name}: answers that changed"
            blocks += galleries.moved(title, "new", changes, ("parent", "child"), picture, most)
            rows = tuple((one.name, one.before, one.after) for one in changes[:LISTED])
            table = Table(_cut(title, len(changes)), ("Image", "Parent", "Child"), rows, (0, 1, 2))
            blocks.append(Fold(f"{name}: names of the images", table))
    return Section("changes", "Images whose answer changed", tuple(blocks))


def _moved(one: Evidence, picture: Picture, most: int) -> list[Block]:
    text = (
        f"{one.task}: {several(len(one.lost), 'image')} went from right to wrong, "
        f"{several(len(one.gained), 'image')} from wrong to right."
    )
    if not one.lost and not one.gained:
        return [Text(text)]
    blocks: list[Block] = [Text(text)]
    if one.lost:
        title = f"{one.task}: right before, wrong now"
        blocks += galleries.moved(title, one.key, one.lost, ("true", "now"), picture, most)
        rows = tuple((change.name, change.truth, change.after) for change in one.lost[:LISTED])
        head = ("Image", "True class and parent's answer", "Child's answer")
        table = Table(_cut(title, len(one.lost)), head, rows, (0, 1, 2))
        blocks.append(Fold(f"{one.task}: names of the images from right to wrong", table))
    if one.gained:
        title = f"{one.task}: wrong before, right now"
        blocks += galleries.moved(title, one.key, one.gained, ("before", "true"), picture, most)
        rows = tuple((change.name, change.before, change.truth) for change in one.gained[:LISTED])
        head = ("Image", "Parent's answer", "True class and child's answer")
        table = Table(_cut(title, len(one.gained)), head, rows, (0, 1, 2))
        blocks.append(Fold(f"{one.task}: names of the images from wrong to right", table))
    return blocks


def _cut(caption: str, total: int) -> str:
    return caption if total <= LISTED else f"{caption} (the first {LISTED} of {formatting.count(total)})"


def reliability_section(evidence: Sequence[Evidence]) -> Section:
    """How far confidence can be believed: the parent's, the child's, and what a temperature brings."""
    if not evidence:
        return Section("reliability", "Can its confidence be believed?", ())
    tables = tuple(_bins(one.task, bins) for one in evidence for bins in (one.bins, one.calibrated) if bins)
    caption = (
        "Accuracy of the images whose confidence is alike. On the diagonal confidence can be read as "
        "accuracy; below it the model is too sure. Large marks are many images."
    )
    panel = Panel(
        "", Axis("accuracy (%)", 0, 102), reliability([(e.task, e.bins, e.calibrated) for e in evidence]), height=480
    )
    chart = Chart("reliability-plot", "Reliability diagram", caption, (panel,), Axis("confidence (%)", 0, 102))
    plot = Plot(chart, tables, "square")
    return Section("reliability", "Can its confidence be believed?", (plot, *_errors(evidence)))


def reliability(tasks: Sequence[tuple[str, Sequence[Bin], Sequence[Bin]]]) -> tuple[Curve, ...]:
    """Accuracy over confidence of each task, before and after its temperature, with the diagonal of a calibrated model.

    After is the solid line; it may be empty.
    """
    found = [Curve("calibrated", "muted", "--", "", (0, 100), (0, 100))]
    for i, (name, before, after) in enumerate(tasks):
        look = ("red", "blue", "green", "purple", "orange", "sky")[i % 6], MARKERS[i % len(MARKERS)]
        if after:
            found.append(_bin_curve(f"{name}, before", before, *look, ":"))
            found.append(_bin_curve(f"{name}, calibrated", after, *look, "-"))
        else:
            found.append(_bin_curve(name, before, *look, "-"))
    return tuple(found)


def _bin_curve(name: str, bins: Sequence[Bin], color: str, marker: str, dash: str) -> Curve:
    most = max((one.images for one in bins), default=1)
    return Curve(
        name, color, dash, marker, [100 * one.confidence for one in bins], [100 * one.accuracy for one in bins],
        hollow=dash != "-", sizes=[3.5 + 9 * (one.images / most) ** 0.5 for one in bins],
        tips=[f"{name}: {several(one.images, 'image')} at {percent(one.confidence)} % confidence, "
              f"{percent(one.accuracy)} % right" for one in bins],
    )  # fmt: skip


def _bins(task: str, bins: Sequence[Bin]) -> Table:
    rows = tuple((percent(b.confidence), percent(b.accuracy), formatting.count(b.images)) for b in bins)
    return Table(f"{task}: accuracy by confidence", ("Confidence (%)", "Accuracy (%)", "Images"), rows, ())


def _errors(evidence: Sequence[Evidence]) -> tuple[Block, ...]:
    """The calibration error, the parent's too where there is one, and what a temperature brings for each task."""
    compared = any(one.calibration_before is not None for one in evidence)
    rows = tuple(
        (
            one.task,
            formatting.count(int((one.labels >= 0).sum())),
            *((percent(one.calibration_before),) if compared else ()),
            percent(one.calibration),
            *_fitted(one.fitted),
        )
        for one in evidence
    )
    own = ("Parent (points)", "Child (points)") if compared else ("Error (points)",)
    head = ("Task", "Images", *own, "Calibrated (points)", "Temperature", "Log-loss")
    text = (
        "The expected calibration error is the mean distance of confidence from accuracy. Dividing by the temperature "
        "calibrates; a task card keeps it for predict, distribution and serve, and the weights stay as they are. What "
        "is called calibrated is measured on images that did not choose it: each half under the temperature of the "
        "other half."
    )
    table = Table("Expected calibration error, and what a temperature brings", head, rows)
    return (table, Text(text, "note"))


def _fitted(found: Calibration | None) -> tuple[str, str, str]:
    if found is None:
        return formatting.NOTHING, formatting.NOTHING, formatting.NOTHING
    losses = f"{found.loss_before:.3f} → {found.loss_after:.3f}"
    return percent(found.error_after), f"{found.temperature:.3f}", losses
