"""The report of a search: frontier, choices with commands, every trial, what it cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from taskgraft.report import commands, formatting, search_charts
from taskgraft.report.formatting import NOTHING, percent, typeset
from taskgraft.report.page import (
    Block,
    Card,
    Code,
    Fold,
    Page,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    chart_plot,
    pairs,
    render,
)
from taskgraft.results.files import write_text
from taskgraft.results.search import SearchResult, SelectedModel, TrialResult


class Optimum(NamedTuple):
    """The best trial of an arrangement: which methods act, at which of the rates."""

    variant: str
    best: TrialResult
    trials: int


def optima(found: SearchResult) -> list[Optimum]:
    """The best complete trial of each arrangement, as in the founding text; the lowest of several rates is "low"."""
    done = [one for one in found.trials if one.state == "complete" and one.score is not None]
    lrs = {one.config["lr"] for one in done}
    few = 1 < len(lrs) <= 3  # where the rate is a dimension like any other, there is no "low" one
    groups: dict[str, list[TrialResult]] = {}
    for one in done:
        low = few and one.config["lr"] == min(lrs)
        groups.setdefault(one.variant + (" (low rate)" if low else ""), []).append(one)
    best = {name: max(own, key=lambda one: (one.score or 0.0, -one.number)) for name, own in groups.items()}
    return [Optimum(name, best[name], len(own)) for name, own in groups.items()]


def search_markdown(found: SearchResult) -> str:
    """The optimum of each arrangement as a Markdown table, with the choices below it."""
    agreement = " (agreement)" if found.proxy else ""
    lines = [
        f"| arrangement | optimum | rate | Score | Score_A{agreement} | Score_B | step | trials |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in optima(found):
        cells = _numbers(row.best)
        lines.append(f"| {row.variant} | `{row.best.method}` | {' | '.join(cells)} | {row.trials} |")
    lines += ["", *(f"- {_said(choice)}" for choice in found.choices), ""]
    return "\n".join(lines)


def write_search(found: SearchResult, out: Path) -> None:
    """Write table.md and report.html of a search."""
    write_text(out / "table.md", search_markdown(found))
    write_text(out / "report.html", render_search(found))


def verdict_search(found: SearchResult) -> list[str]:
    """Plain lines for the terminal: the choices, what it cost, what sharing saved."""
    cost = found.cost
    share = cost["steps"] / max(1.0, cost["steps without stopping"])
    lines = [_said(choice) for choice in found.choices]
    lines.append(
        f"{_count(found, 'complete')} trials complete, {_count(found, 'stopped')} stopped early, "
        f"{_count(found, 'failed')} failed; {cost['steps']:,.0f} steps ({share:.0%} of all trials run out) in "
        f"{formatting.duration(cost['seconds'])}; sharing saved {formatting.duration(cost['seconds saved by sharing'])}"
    )
    return lines


def render_search(found: SearchResult) -> str:
    """The HTML report of a search, in one offline file."""
    sections = (
        _choices_section(found),
        _frontier_section(found),
        _optima_section(found),
        _settings_section(found),
        _curves_section(found),
        _trials_section(found),
        _cost_section(found),
    )
    best = found.choices[0]
    page = Page(
        f"Search: {found.title}",
        "taskgraft · search",
        typeset(f"{_said(best)}."),
        _cards(found),
        tuple(section for section in sections if section.blocks),
        "Every number is from validation images, which chose among the trials, unless a test split is named. "
        "This page needs no network.",
    )
    return render(page)


def _cards(found: SearchResult) -> tuple[Card, ...]:
    best = found.choices[0]
    one = best.candidate
    answer = "Nothing" if one is None else one.method
    lines = (
        ()
        if one is None
        else (f"Score {percent(one.score)}: old {percent(one.old.mean)}, new {percent(one.new.mean)}.",)
    )
    cost = found.cost
    follow = f"{cost['trials']:.0f} trials, {cost['steps']:,.0f} steps."
    saved = f"Sharing saved {formatting.duration(cost['seconds saved by sharing'])}."
    return (
        Card("What is best?", answer, lines, tone="good" if one else "unknown"),
        Card("What did it cost?", formatting.duration(cost["seconds"]), (follow, saved)),
        Card(
            "What next?",
            "Use it.",
            ("One seed chose among the trials; other seeds tell how much of it was luck.",),
            commands.predicted(best.folder) if best.folder else "",
        ),
    )


def _choices_section(found: SearchResult) -> Section:
    rows = []
    for choice in found.choices:
        one = choice.candidate
        if one is None:
            rows.append((choice.rule, "no trial fulfils it", *[NOTHING] * 6))
            continue
        test = NOTHING if choice.test is None else formatting.measured(choice.test)
        optimism = NOTHING if choice.optimism is None else formatting.signed(choice.optimism)
        rows.append((
            choice.rule, str(one.trial), one.method, percent(one.score), formatting.measured(one.old),
            formatting.measured(one.new), test, optimism,
        ))  # fmt: skip
    head = ("Choice", "Trial", "Method", "Score", "Old (%)", "New (%)", "New, test (%)", "Optimism")
    table = Table("Three choices on the frontier, with 95 % intervals", head, tuple(rows), (0, 2), code=(2,))
    proxy = "agreement with the parent, a proxy: no old validation images were given"
    said = Text(
        f"Old is {proxy if found.proxy else 'the mean accuracy of the old tasks'}. Test images chose nothing and were "
        "asked once, for the choices alone; optimism is validation minus test.",
        "note",
    )
    codes: list[Block] = [
        Code(f"{choice.rule}; its bundle is in {choice.folder}. To train it anew:", choice.command)
        for choice in found.choices
        if choice.command
    ]
    return Section("choices", "Choices", (table, said, *codes))


def _frontier_section(found: SearchResult) -> Section:
    head = ("Trial", "Method", "Rate", f"{found.tasks[0]} … (%)", f"{found.tasks[-1]} (%)", "Score")
    rows = tuple(
        (str(c.trial), c.method, f"{c.lr:g}", formatting.measured(c.old), formatting.measured(c.new), percent(c.score))
        for c in found.frontier
    )
    caption = "Up and right is better. Bars are 95 % intervals over images; hollow points were stopped early."
    chart = search_charts.frontier(found)._replace(caption=caption)
    return Section("frontier", "Frontier", (Plot(chart, (Table("The frontier", head, rows, (0, 1), code=(1,)),)),))


def _optima_section(found: SearchResult) -> Section:
    rows = tuple((row.variant, row.best.method, *_numbers(row.best), str(row.trials)) for row in optima(found))
    head = ("Arrangement", "Optimum", "Rate", "Score", "Score_A (%)", "Score_B (%)", "Step", "Trials")
    table = Table("The best trial of each arrangement", head, rows, (0, 1), code=(1,))
    return Section("optima", "Optima", (table,) if rows else ())


def _settings_section(found: SearchResult) -> Section:
    blocks: list[Block] = []
    blocks.append(
        Plots(tuple(Plot(search_charts.slice_of(found, key, i), (), "small") for i, key in enumerate(found.space)))
    )
    if any(math.isfinite(value) for own in found.importance.values() for value in own.values()):
        blocks.append(Plot(search_charts.importance(found), (), "small"))
    blocks += pairs("What was searched", ("Setting", "Values"), list(found.space.items()))
    return Section("settings", "Settings", tuple(blocks))


def _curves_section(found: SearchResult) -> Section:
    chart = search_charts.curves(found)
    return Section("curves", "Learning curves", (chart_plot(chart),) if chart.panels[0].curves else ())


def _trials_section(found: SearchResult) -> Section:
    rows = tuple(
        (str(one.number), one.state, one.method, f"{one.config.get('lr', math.nan):g}", f"{one.reached}", 
         percent(one.score), percent(one.old), percent(one.new), formatting.duration(one.seconds), one.reason or "",
         one.folder)
        for one in found.trials
    )  # fmt: skip
    head = ("Trial", "State", "Method", "Rate", "Steps", "Score", "Old (%)", "New (%)", "Time", "Reason", "Folder")
    table = Table("Every trial", head, rows, (0, 1, 2, 9, 10), code=(2,))
    return Section("trials", "Trials", (table,) if len(rows) <= 60 else (Fold(f"All {len(rows)} trials", table),))


def _cost_section(found: SearchResult) -> Section:
    saved: dict[str, float] = {}
    for one in found.trials:
        for name, seconds in one.saved.items():
            saved[name] = saved.get(name, 0.0) + seconds
    cost = found.cost
    rows = [
        (name, formatting.duration(v) if "seconds" in name or name == "this start" else f"{v:,.0f}")
        for name, v in cost.items()
    ]
    shared = [(name, formatting.duration(seconds)) for name, seconds in saved.items()]
    blocks: list[Block] = [
        *pairs("Cost", ("What", "How much"), rows),
        *pairs("What sharing saved: computed once, used by all trials", ("What", "Time"), shared),
        *pairs("Versions", ("What", "Version"), list(found.versions.items())),
        Code("The whole search:", found.command),
        *(Text(note) for note in found.notes),
    ]
    return Section("cost", "Cost, and how to repeat it", tuple(blocks))


def _numbers(one: TrialResult) -> tuple[str, ...]:
    return f"{one.config['lr']:g}", percent(one.score), percent(one.old), percent(one.new), str(one.step)


def _said(choice: SelectedModel) -> str:
    one = choice.candidate
    if one is None:
        return f"{choice.rule}: no trial fulfils it"
    test = "" if choice.test is None else f"; on {choice.test.n} test images new {percent(choice.test.mean)}"
    place = f"; {choice.folder}" if choice.folder else ""
    return (
        f"{choice.rule}: {one.method}, rate {one.lr:g}: Score {percent(one.score)} "
        f"(old {percent(one.old.mean)}, new {percent(one.new.mean)}){test}{place}"
    )


def _count(found: SearchResult, state: str) -> int:
    return sum(one.state == state for one in found.trials)
