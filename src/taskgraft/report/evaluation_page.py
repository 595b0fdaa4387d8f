"""The page of `evaluate`: one task of a model on labeled images."""

from __future__ import annotations

from collections.abc import Sequence

from taskgraft.report import formatting
from taskgraft.report.evidence import Evidence, gather
from taskgraft.report.formatting import percent, several
from taskgraft.report.galleries import Picture
from taskgraft.report.page import Card, Fold, Page, Section, Table, render
from taskgraft.report.run_evidence import answers_section, reliability_section
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, TaskResult

LISTED = 200  # images


def render_evaluation(
    model: str,
    data: str,
    predictions: Predictions,
    task: str,
    share: Interval,
    excluded: Sequence[tuple[str, str]],
    picture: Picture,
) -> str:
    """The HTML page of one task's `predictions`, in one offline file; `image` gives what is shown of "new"."""
    result = TaskResult(name=task, classes=predictions.classes[task], new=True, child=share)
    found = gather(result, {"new": predictions})
    evidence = [] if found is None else [found]
    sections = (
        answers_section([task], evidence, picture),
        reliability_section(evidence),
        Section("excluded", "What was left out", _excluded(excluded)),
    )
    return render(
        Page(
            f"{model} on {data}",
            "taskgraft · evaluation",
            f"Task {task}, asked about {several(share.n, 'labeled picture')}.",
            _cards(share, evidence),
            tuple(section for section in sections if section.blocks),
            "Nothing was trained or changed. This page needs no network.",
        )
    )


def _cards(share: Interval, evidence: Sequence[Evidence]) -> tuple[Card, ...]:
    right = Card("How often is it right?", f"{percent(share.mean)} %", (f"95 % interval {formatting.span(share)}.",))
    if not evidence:
        return (right,)
    worst, error = evidence[0].results[0], evidence[0].calibration
    mistaken = (f"Mostly mistaken for {worst.mistaken}.",) if worst.mistaken else ()
    return (
        right,
        Card("Where is it weakest?", worst.name, (f"Right on {percent(worst.child)} % of its images.", *mistaken)),
        Card("Can its confidence be believed?", f"{percent(error)} points off", ("The expected calibration error.",)),
    )


def _excluded(excluded: Sequence[tuple[str, str]]) -> tuple[Fold, ...]:
    if not excluded:
        return ()
    caption = several(len(excluded), "image")
    rest = f" (the first {LISTED})" if len(excluded) > LISTED else ""
    return (Fold(caption, Table(caption + rest, ("Image", "Reason"), tuple(excluded[:LISTED]), (0, 1))),)
