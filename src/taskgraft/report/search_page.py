"""The page of a search: the Pareto front, the selected models, every trial, what it all cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from taskgraft.report import charts, commands
from taskgraft.report import formatting as fmt
from taskgraft.report.charts import Axis, Box, Chart, Curve, Panel, Style, clean_text
from taskgraft.report.page import Figure, Table, build_line_figure, build_pairs_table, render
from taskgraft.results.files import write_text
from taskgraft.results.record import StepMetrics
from taskgraft.results.search import Candidate, SearchResult, SelectedModel, TrialResult

LOG_RATIO = 20  # values further apart than this are drawn on a logarithmic axis
MAX_CURVES = 12  # learning curves, those of the best trials
SYMBOLS = {"score": "*", "new": "s", "old": "^"}  # markers of the selected models by their goal
OPTIMA_HEAD = ("Configuration", "Optimum", "Learning rate", "Score", "Old", "New", "Step", "Trials")


def _list_optima(search: SearchResult) -> list[tuple[str, ...]]:
    """Cells of OPTIMA_HEAD for the best complete trial of each set of active methods at each of a few rates."""
    complete = [trial for trial in search.trials if trial.state == "complete"]
    lrs = {trial.config["lr"] for trial in complete}
    groups: dict[str, list[TrialResult]] = {}
    for trial in complete:
        low = 1 < len(lrs) <= 3 and trial.config["lr"] == min(lrs)  # more: a range, in which none is "low"
        groups.setdefault(trial.variant + (" (low rate)" if low else ""), []).append(trial)
    rows = []
    for name, trials in groups.items():
        best = max(trials, key=lambda trial: (trial.score or 0.0, -trial.number))
        accuracies = map(fmt.percent, (best.score, best.old, best.new))
        rows.append((name, best.method, f"{best.config['lr']:g}", *accuracies, str(best.step), str(len(trials))))
    return rows


def format_search_table(search: SearchResult) -> str:
    """Format the optimum of each configuration as a Markdown table, followed by the selected models."""
    head = " | ".join(OPTIMA_HEAD).replace("Old", "Old (agreement)" if search.proxy else "Old")
    lines = [f"| {head} |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for name, method, *numbers in _list_optima(search):
        lines.append(f"| {name} | `{method}` | {' | '.join(numbers)} |")
    lines += ["", *(f"- {_describe_selected(choice)}" for choice in search.choices), ""]
    return "\n".join(lines)


def write_search_report(search: SearchResult, out: Path) -> None:
    """Write table.md and report.html of a search to its folder."""
    write_text(out / "table.md", format_search_table(search))
    write_text(out / "report.html", render_search(search))


def summarize_search(search: SearchResult) -> list[str]:
    """Summarize a search in lines for the terminal: the selected models, the trials, the cost."""
    cost, states = search.cost, Counter(trial.state for trial in search.trials)
    fraction = cost["steps"] / max(1.0, cost["steps without stopping"])
    return [
        *map(_describe_selected, search.choices),
        f"{states['complete']} trials complete, {states['stopped']} stopped early, {states['failed']} failed; "
        f"{cost['steps']:,.0f} steps ({fraction:.0%} of the full budget) in {fmt.duration(cost['seconds'])}; "
        f"reuse between trials saved {fmt.duration(cost['seconds saved by sharing'])}",
    ]


def _describe_selected(choice: SelectedModel) -> str:
    candidate = choice.candidate
    if candidate is None:
        return f"{choice.rule}: no trial qualifies"
    test = f"; new {fmt.percent(choice.test.mean)} on {choice.test.n} test images" if choice.test else ""
    folder = f"; {choice.folder}" if choice.folder else ""
    return (
        f"{choice.rule}: {candidate.method} at learning rate {candidate.lr:g}: Score {fmt.percent(candidate.score)} "
        f"(old {fmt.percent(candidate.old.mean)}, new {fmt.percent(candidate.new.mean)}){test}{folder}"
    )


def render_search(search: SearchResult) -> str:
    """Render the report of a search.

    Args:
        search: The search with all of its trials.

    Returns:
        One offline HTML page.
    """
    best = search.choices[0]
    optima_head = [f"{name} (%)" if name in ("Old", "New") else name for name in OPTIMA_HEAD]
    return render(
        "search.html.j2",
        search=search,
        best=best,
        lead=_describe_selected(best),
        next_command=commands.predict(best.folder) if best.folder else "",
        selected=_build_selected_table(search),
        front=Figure(_build_front_chart(search), [_build_front_table(search)]),
        optima=Table("The best trial of each configuration", optima_head, _list_optima(search), (0, 1), (1,)),
        slices=[Figure(_build_slice_chart(search, key, i), size="small") for i, key in enumerate(search.space)],
        importance=_build_importance_figure(search),
        space=build_pairs_table("Search space", ("Setting", "Values"), search.space.items()),
        learning_curves=build_line_figure(_build_learning_curves(search)),
        trials=_build_trials_table(search),
        costs=_build_cost_tables(search),
    )


def _build_selected_table(search: SearchResult) -> Table:
    rows = []
    for choice in search.choices:
        candidate = choice.candidate
        if candidate is None:
            rows.append((choice.rule, "no trial qualifies", *[fmt.MISSING] * 6))
            continue
        rows.append((
            choice.rule, str(candidate.trial), candidate.method, fmt.percent(candidate.score),
            fmt.estimate(candidate.old), fmt.estimate(candidate.new), fmt.estimate(choice.test),
            fmt.delta(choice.optimism),
        ))  # fmt: skip
    head = ("Rule", "Trial", "Method", "Score", "Old (%)", "New (%)", "New, test (%)", "Validation − test")
    return Table("Models selected from the Pareto front, with 95 % confidence intervals", head, rows, (0, 2), (2,))


def _build_front_table(search: SearchResult) -> Table:
    head = ("Trial", "Method", "Learning rate", f"{_old_names(search)} (%)", f"{search.tasks[-1]} (%)", "Score")
    rows = [
        (str(c.trial), c.method, f"{c.lr:g}", fmt.estimate(c.old), fmt.estimate(c.new), fmt.percent(c.score))
        for c in search.frontier
    ]
    return Table("The Pareto front", head, rows, (0, 1), (1,))


def _old_names(search: SearchResult) -> str:
    return ", ".join(search.tasks[:-1])


def _build_trials_table(search: SearchResult) -> Table:
    rows = [
        (str(trial.number), trial.state, trial.method, f"{trial.config.get('lr', math.nan):g}", str(trial.reached),
         *map(fmt.percent, (trial.score, trial.old, trial.new)), fmt.duration(trial.seconds), trial.reason or "",
         trial.folder)
        for trial in search.trials
    ]  # fmt: skip
    head = (
        "Trial", "State", "Method", "Learning rate", "Steps", "Score", "Old (%)", "New (%)", "Time", "Reason", "Folder",
    )  # fmt: skip
    return Table("All trials", head, rows, (0, 1, 2, 9, 10), (2,))


def _build_cost_tables(search: SearchResult) -> list[Table]:
    saved: Counter[str] = Counter()
    for trial in search.trials:
        saved.update(trial.saved)
    cost = [
        (name, fmt.duration(amount) if "seconds" in name or name == "this start" else f"{amount:,.0f}")
        for name, amount in search.cost.items()
    ]
    reused = [(name, fmt.duration(seconds)) for name, seconds in saved.items()]
    return [
        build_pairs_table("Cost", ("Item", "Amount"), cost),
        build_pairs_table("Time saved by computing once for all trials", ("Result", "Time"), reused),
        build_pairs_table("Versions", ("Package", "Version"), search.versions.items()),
    ]


# ---- charts ----------------------------------------------------------------------------------------------------


def _build_front_chart(search: SearchResult) -> Chart:
    """Old against new accuracy: every trial, the front with its intervals, the selected models."""
    front = _candidate_curve("Pareto front", search.frontier, Style("vermillion", "-", "D"))
    curves = [
        _trial_curve("stopped early", "stopped", search.trials, "muted"),
        _trial_curve("complete", "complete", search.trials, "blue"),
        front._replace(
            stepped=True,
            x_bars=[(100 * c.old.low, 100 * c.old.high) for c in search.frontier],
            y_bars=[(100 * c.new.low, 100 * c.new.high) for c in search.frontier],
        ),
    ]
    for choice in search.choices:
        if choice.candidate:
            curve = _candidate_curve(choice.rule, [choice.candidate], Style("green", "", SYMBOLS[choice.goal]))
            curves.append(curve._replace(hollow=True, size=15))
    y = Axis(f"{search.tasks[-1]}: accuracy (%)")
    x = Axis(f"{_old_names(search)}: {'agreement with the parent' if search.proxy else 'accuracy'} (%)")
    caption = (
        "Up and to the right is better. Bars are 95 % confidence intervals over images; trials stopped early are "
        "hollow."
    )
    panel = Panel("", y, tuple(curve for curve in curves if curve.x), height=480)
    return Chart("front-plot", "Old vs new accuracy of every trial", caption, (panel,), x, kind="Scatter plot")


def _trial_curve(name: str, state: str, trials: Iterable[TrialResult], color: str) -> Curve:
    trials = [trial for trial in trials if trial.state == state and trial.old is not None]
    return Curve(
        name, Style(color, "", "o"), [_percent(trial.old) for trial in trials],
        [_percent(trial.new) for trial in trials], hollow=state != "complete",
        tooltips=[_tooltip(f"trial {trial.number}: {trial.method}", trial.old, trial.new) for trial in trials],
    )  # fmt: skip


def _candidate_curve(name: str, candidates: Sequence[Candidate], style: Style) -> Curve:
    return Curve(
        name, style, [100 * c.old.mean for c in candidates], [100 * c.new.mean for c in candidates],
        tooltips=[_tooltip(f"trial {c.trial}: {c.method}, learning rate {c.lr:g}", c.old.mean, c.new.mean)
                  for c in candidates],
    )  # fmt: skip


def _tooltip(text: str, old: float | None, new: float | None) -> str:
    return f"{clean_text(text, 80)}: {fmt.percent(old)} % old, {fmt.percent(new)} % new"


def _percent(fraction: float | None) -> float:
    return math.nan if fraction is None else 100 * fraction


def _build_slice_chart(search: SearchResult, key: str, number: int) -> Chart:
    """Old and new accuracy over one setting."""
    measured = [trial for trial in search.trials if trial.old is not None and key in trial.params]
    values = [trial.params[key] for trial in measured]
    categorical = any(isinstance(value, str) for value in values)
    names = list(dict.fromkeys(map(str, values))) if categorical else []
    log = not categorical and min(values, default=0) > 0 and max(values) / min(values) > LOG_RATIO
    curves = []
    for name, color, marker in (("old", "red", "o"), ("new", "blue", "s")):
        for complete in (True, False):
            trials = [trial for trial in measured if (trial.state == "complete") == complete]
            accuracies = [getattr(trial, name) for trial in trials]
            settings = [trial.params[key] for trial in trials]
            curves.append(Curve(
                name, Style(color, "", marker), [names.index(str(x)) for x in settings] if categorical else settings,
                [_percent(y) for y in accuracies], hollow=not complete,
                tooltips=[f"trial {trial.number}, {trial.state}: {fmt.percent(y)} % {name}"
                          for trial, y in zip(trials, accuracies, strict=True)],
            ))  # fmt: skip
    axis = Axis(key, -0.5, len(names) - 0.5, names=tuple(enumerate(names))) if categorical else Axis(key, log=log)
    panel = Panel("", Axis("accuracy (%)"), tuple(curve for curve in curves if curve.x))
    caption = "Circles: old accuracy. Squares: new accuracy. Hollow: stopped early."
    return Chart(f"slice{number}", key, caption, (panel,), axis, kind="Scatter plot")


def _build_importance_figure(search: SearchResult) -> Figure | None:
    """The fraction of the variance of each accuracy that a setting explains; None where it could not be computed."""
    names = list(dict.fromkeys(key for values in search.importance.values() for key in values))
    boxes = tuple(
        Box(0, names.index(key) + offset, 100 * value, 0.36, color, name=name,
            tooltip=f"{key}, {name}: {fmt.percent(value)} %")
        for name, color, offset in (("old", "red", -0.38), ("new", "blue", 0.02))
        for key, value in search.importance.get(name, {}).items()
        if math.isfinite(value)
    )  # fmt: skip
    if not boxes:
        return None
    caption = "Variance between trials that a setting explains (PED-ANOVA); a rough estimate with few trials."
    y = Axis("", len(names) - 0.5, -0.5, names=tuple(enumerate(names)))
    panel = Panel("", y, boxes=boxes, height=60 + 34 * len(names))
    x = Axis("explained variance (%)", 0)
    return Figure(Chart("importance", "Importance", caption, (panel,), x, kind="Bar chart"), size="small")


def _build_learning_curves(search: SearchResult) -> Chart | None:
    """Mean of old and new accuracy over the steps, of the best trials; None without any."""
    scored = [trial for trial in search.trials if trial.score is not None]
    best = sorted(scored, key=lambda trial: -(trial.score or 0))[:MAX_CURVES]
    curves = []
    for trial, style in zip(best, charts.choose_styles([str(trial.number) for trial in best]), strict=True):
        points = [(line.step, _mean_accuracy(line, search.tasks)) for line in trial.history if line.accuracy]
        if points:
            steps, accuracies = zip(*points, strict=True)
            curves.append(Curve(f"trial {trial.number}", style, steps, accuracies))
    if not curves:
        return None
    caption = (
        f"Mean of old and new accuracy of the best {len(best)} trials. Trials are compared at "
        f"step {', '.join(map(str, search.rungs))}."
    )
    panel = Panel("", Axis("mean accuracy (%)", -2, 102), tuple(curves), percent=True)
    x = charts.step_axis(0, max(trial.reached for trial in search.trials))
    return Chart("curve-plot", "Mean accuracy of the best trials", caption, (panel,), x)


def _mean_accuracy(line: StepMetrics, tasks: Sequence[str]) -> float:
    """Of the mean over old tasks, or agreement where they could not be measured, and the new task."""
    old_tasks = tasks[:-1]
    old = [line.accuracy.get(task, line.agreement.get(task, 0.0)) for task in old_tasks]
    new = next(value for task, value in line.accuracy.items() if task not in old_tasks)
    return (sum(old) / max(1, len(old)) + new) / 2
