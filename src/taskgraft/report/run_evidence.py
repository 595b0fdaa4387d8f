"""The parts of a run's report that look at single images: confusions, worst classes, changes, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskgraft.record import Record
from taskgraft.report import plots, wording
from taskgraft.report.evidence import ELSEWHERE, Bin, Change, Evidence, confusions
from taskgraft.report.page import Block, Fold, Plot, Section, Table, Text
from taskgraft.report.wording import percent, several, signed, typeset

MATRIX = 25  # classes up to which a confusion matrix can be read
WORST = 10  # classes
CONFUSIONS = 20
LISTED = 200  # images


def answers_section(record: Record, evidence: Sequence[Evidence]) -> Section:
    """Confusions and worst classes of every task with labelled images."""
    blocks: list[Block] = []
    for i, one in enumerate(evidence):
        small = len(one.classes) <= MATRIX
        blocks.append(_matrix(f"confusion{i}", one) if small else _worst_confusions(one))
        blocks.append(_worst_classes(one))
    missing = [task.name for task in record.tasks if task.name not in {one.task for one in evidence}]
    if missing and evidence:
        blocks.append(Text(f"No labelled validation images for {', '.join(missing)}: nothing to show.", "note"))
    return Section("answers", "Which answers are wrong", tuple(blocks))


def _matrix(key: str, one: Evidence) -> Plot:
    lost = bool(one.counts[:, -1].any())
    answers = (*one.classes, ELSEWHERE) if lost else one.classes
    counts = np.asarray(one.counts if lost else one.counts[:, :-1]).tolist()
    rows = tuple((name, *(str(cell) for cell in row)) for name, row in zip(one.classes, counts, strict=True))
    table = Table(f"{one.task}: images by true class and answer", ("True class", *answers), rows)
    caption = "Rows are true classes, columns the child's answers; numbers are images, shades are shares of a row."
    title = f"{one.task}: confusion matrix"
    spec = plots.confusion(counts, one.classes, answers)
    return Plot(key, title, caption, f"Heat map. {title}. {caption}", spec, (table,), "square")


def _worst_confusions(one: Evidence) -> Table:
    rows = tuple(
        (true, answer, wording.count(images), percent(share))
        for true, answer, images, share in confusions(one, CONFUSIONS)
    )
    caption = f"{one.task}: the {CONFUSIONS} most frequent confusions of {len(one.classes)} classes"
    return Table(caption, ("True class", "Answer", "Images", "Share of the class (%)"), rows, (0, 1))


def _worst_classes(one: Evidence) -> Table:
    compared = any(result.parent is not None for result in one.results)
    rows = []
    for result in one.results[:WORST]:
        row = [result.name, wording.count(result.images), percent(result.child)]
        if compared and result.parent is not None:
            row += [percent(result.parent), typeset(signed(result.child - result.parent))]
        rows.append((*row, result.mistaken or wording.NOTHING))
    extra = ("Parent (%)", "Change") if compared else ()
    head = ("Class", "Images", "Child (%)", *extra, "Mostly mistaken for")
    return Table(f"{one.task}: worst classes", head, tuple(rows), (0, len(head) - 1))


def changes_section(
    record: Record, evidence: Sequence[Evidence], differing: Sequence[tuple[str, tuple[Change, ...]]]
) -> Section:
    """Images that the parent had right and the child has wrong; without labels, whose answer changed."""
    old = {task.name for task in record.tasks if not task.new}
    blocks: list[Block] = []
    for one in evidence:
        if one.task in old:
            blocks += _lost(one)
    for name, changes in differing:
        lead = (
            f"{name}: nobody labelled the new images for it, so right and wrong are unknown. On "
            f"{wording.count(len(changes))} of the new images child and parent answer differently."
        )
        blocks.append(Text(lead, "note"))
        if changes:
            rows = tuple((one.name, one.before, one.after) for one in changes[:LISTED])
            table = Table(
                _cut(f"{name}: answers that changed", len(changes)),
                ("Image", "Parent", "Child"),
                rows,
                (0, 1, 2),
            )
            blocks.append(Fold(f"{name}: names of the images", table))
    return Section("changes", "Images whose answer changed", tuple(blocks))


def _lost(one: Evidence) -> list[Block]:
    text = (
        f"{one.task}: {several(len(one.lost), 'image')} went from right to wrong, "
        f"{several(one.gained, 'image')} from wrong to right."
    )
    if not one.lost:
        return [Text(text)]
    rows = tuple((change.name, change.truth, change.after) for change in one.lost[:LISTED])
    table = Table(
        _cut(f"{one.task}: right before, wrong now", len(one.lost)),
        ("Image", "True class and parent's answer", "Child's answer"),
        rows,
        (0, 1, 2),
    )
    return [Text(text), Fold(f"{one.task}: names of the images from right to wrong", table)]


def _cut(caption: str, total: int) -> str:
    return caption if total <= LISTED else f"{caption} (the first {LISTED} of {wording.count(total)})"


def reliability_section(evidence: Sequence[Evidence]) -> Section:
    """How far confidence can be believed."""
    if not evidence:
        return Section("reliability", "Can its confidence be believed?", ())
    tables = tuple(_bins(one.task, bins) for one in evidence for bins in (one.bins, one.calibrated) if bins)
    errors = "; ".join(f"{one.task} {percent(one.calibration)}" for one in evidence)
    caption = (
        "Accuracy of the images whose confidence is alike. On the diagonal confidence can be read as "
        "accuracy; below it the model is too sure. Large marks are many images. "
        f"Expected calibration error before (points): {errors}."
    )
    title = "Reliability diagram"
    spec = plots.reliability([(one.task, one.bins, one.calibrated) for one in evidence])
    plot = Plot("reliability-plot", title, caption, f"Line chart. {title}. {caption}", spec, tables, "square")
    return Section("reliability", "Can its confidence be believed?", (plot, *_temperatures(evidence)))


def _bins(task: str, bins: Sequence[Bin]) -> Table:
    rows = tuple((percent(b.confidence), percent(b.accuracy), wording.count(b.images)) for b in bins)
    return Table(f"{task}: accuracy by confidence", ("Confidence (%)", "Accuracy (%)", "Images"), rows, ())


def _temperatures(evidence: Sequence[Evidence]) -> tuple[Block, ...]:
    """What a temperature brings for each task."""
    rows = tuple(
        (
            one.task,
            f"{one.fitted.temperature:.3f}",
            wording.count(one.fitted.images),
            f"{one.fitted.loss_before:.3f} → {one.fitted.loss_after:.3f}",
            f"{percent(one.fitted.error_before)} → {percent(one.fitted.error_after)}",
        )
        for one in evidence
        if one.fitted
    )
    if not rows:
        return ()
    head = ("Task", "Temperature", "Images", "Log-loss", "Calibration error (points)")
    text = (
        "The task card keeps the temperature: `taskgraft predict` divides by it, and the weights stay as they are. "
        "After is measured on images that did not choose it: each half under the temperature of the other half."
    )
    return (Table("What a temperature brings, before → after", head, rows), Text(text, "note"))
