"""The parts of a run's report that say what it was made from: settings, data, lineage, commands to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from taskgraft.report import commands, formatting, summary
from taskgraft.report.formatting import percent
from taskgraft.report.page import Block, Chain, Code, Fold, Link, Section, Table, pairs
from taskgraft.results.record import Record

FOLDED = ("counts", "excluded", "notes")  # shown elsewhere
LISTED = 200  # images


def lineage_section(record: Record) -> Section:
    """Every model from the first to this one: what it learnt, how, and what each task reached then."""
    before = list(record.parent.get("lineage", ()))
    models = [*(dict(entry.get("parent", {})) for entry in before), record.parent]
    known = {task.name: task.child.mean for task in record.tasks if task.child}
    learned = [(entry.get("task"), entry.get("method"), entry.get("accuracy", {})) for entry in before]
    learned.append((", ".join(task.name for task in summary.new_tasks(record)), record.method, known))
    links = [_first(models[0])]
    for i, (task, method, accuracy) in enumerate(learned):
        model = models[i + 1] if i + 1 < len(models) else None
        links.append(_learned(str(task), str(method), accuracy, model))
    blocks: list[Block] = [Chain(tuple(links))]
    if before:
        blocks.append(_accuracies(learned))
    rows = _digests(record)
    if rows:
        table = Table("SHA-256 of everything that this run was made from", ("What", "SHA-256"), rows, (0, 1), code=(1,))
        blocks.append(Fold("Digests of what went in", table))
    return Section("lineage", "Where this model comes from", tuple(blocks))


def _first(model: Mapping[str, Any]) -> Link:
    tasks = ", ".join(map(str, model.get("tasks", ())))
    lines = [f"{model.get('architecture', 'a classifier')}; {f'it answers {tasks}' if tasks else 'no task yet'}"]
    return Link(_name(model), (*lines, *_mark(model)))


def _learned(task: str, method: str, accuracy: Mapping[str, float], model: Mapping[str, Any] | None) -> Link:
    """A step; `model` is what came of it, None for this run, whose digest nobody can write into itself."""
    shares = ", ".join(f"{name} {percent(value)} %" for name, value in accuracy.items())
    how = "trained" if method == "train" else f"by {method}"
    own = () if model is None else (f"kept as {_name(model)}", *_mark(model))
    return Link(f"learnt {task}{', this run' if model is None else ''}", (f"{how}: {shares or 'not measured'}", *own))


def _name(model: Mapping[str, Any]) -> str:
    source = str(model.get("source", "unknown"))
    return PurePath(source).name or source


def _mark(model: Mapping[str, Any]) -> tuple[str, ...]:
    digest = model.get("digest")
    return (f"SHA-256 {formatting.value_text(digest)}",) if digest else ()


def _accuracies(learned: Sequence[tuple[Any, Any, Mapping[str, float]]]) -> Table:
    """What became of each task along the chain."""
    names = list(dict.fromkeys(name for _, _, accuracy in learned for name in accuracy))
    rows = tuple((name, *(percent(accuracy.get(name)) for _, _, accuracy in learned)) for name in names)
    head = ("Task", *(f"after {task}" for task, _, _ in learned))
    return Table("Accuracy (%) of each task after each step, where it was measured", head, rows)


def _digests(record: Record) -> tuple[tuple[str, str], ...]:
    parent = record.parent
    found = {"parent": parent.get("digest")}
    found |= {f"parent / {name}": mark for name, mark in dict(parent.get("files", {})).items()}
    found |= {"labels of the parent": parent.get("labels")}
    found |= {
        f"images / {name}": part.get("fingerprint") for name, part in record.data.items() if isinstance(part, Mapping)
    }
    return tuple((name, str(mark)) for name, mark in found.items() if mark)


def settings_section(record: Record) -> Section:
    """Each setting with its value and why it has it; those that nobody touched are folded away."""
    said = {name for name, _, _ in record.settings}
    usual = [(name, value) for name, value, why in record.settings if why == "default"]
    chosen = [choice for choice in record.settings if choice[2] != "default"]
    if "method" not in said:
        chosen.insert(0, ("method", record.method, ""))
    rest = [(name, text) for name, text in formatting.flat(record.config) if name not in said]
    blocks: list[Block] = [
        Table("Settings and why", ("Setting", "Value", "Reason"), tuple(chosen), (0, 1, 2), code=(1,)),
        *pairs("Other settings", ("Setting", "Value"), rest),
    ]
    if usual:
        caption = f"{formatting.several(len(usual), 'setting')} as usual"
        blocks.append(Fold(caption, Table(caption, ("Setting", "Default"), tuple(usual), (0, 1), code=(1,))))
    return Section("settings", "Settings", tuple(blocks), dense=True)


def data_section(record: Record) -> Section:
    """The images and the parent."""
    blocks: list[Block] = []
    folds: list[Block] = []
    for name, part in record.data.items():
        if isinstance(part, Mapping):
            shown = {key.replace("_", " "): value for key, value in part.items() if key not in FOLDED}
            rows = formatting.flat(shown)
            blocks += pairs(f"Data: {name}", ("What", "Value"), rows)
            folds += _folds(name, part)
    rest = {name: part for name, part in record.data.items() if not isinstance(part, Mapping)}
    blocks += pairs("Data", ("What", "Value"), formatting.flat(rest))
    parent = {name: value for name, value in record.parent.items() if name not in ("lineage", "files")}
    blocks += pairs("Parent", ("What", "Value"), formatting.flat(parent))
    return Section("data", "Data and parent", (*blocks, *folds), dense=True)


def _folds(name: str, part: Mapping[str, Any]) -> list[Block]:
    """Images of each class, and what was left out and why: too long to stand open."""
    found: list[Block] = []
    counts = part.get("counts")
    if isinstance(counts, Mapping) and counts:
        rows = tuple((str(label), formatting.value_text(number)) for label, number in counts.items())
        table = Table(f"{name}: images of each class", ("Class", "Images"), rows)
        found.append(Fold(f"{name}: images of each class", table))
    excluded = part.get("excluded")
    if isinstance(excluded, list | tuple) and excluded:
        total = int(part.get("excluded_count", len(excluded)))
        caption = f"{name}: {formatting.several(total, 'excluded image')}"
        rows = tuple(_excluded(one) for one in excluded[:LISTED])
        shown = f" (the first {LISTED})" if len(rows) < total else ""
        found.append(Fold(caption, Table(caption + shown, ("Image", "Reason"), rows, (0, 1))))
    return found


def _excluded(one: object) -> tuple[str, str]:
    if isinstance(one, list | tuple) and len(one) == 2:
        return str(one[0]), str(one[1])
    if isinstance(one, Mapping) and len(one) == 2:
        name, reason = one.values()
        return str(name), str(reason)
    return formatting.value_text(one), ""


def repeat_section(record: Record) -> Section:
    """The command of this run, those that check and use it, and what it took."""
    numbers = [(name, formatting.count(value)) for name, value in record.parameters.items()]
    times = [(name, formatting.duration(value)) for name, value in record.seconds.items()]
    passes = [(name, f"{1000 * value:.1f} ms") for name, value in record.latency.items()]
    return Section(
        "repeat",
        "To repeat this run, to check it, to go on",
        (
            Code(f"What was run (seed {record.seed}); given once more it reads the finished run:", record.command),
            *(Code(lead, text) for lead, text in commands.following(record)),
            *pairs("Parameters", ("Part", "Parameters"), numbers),
            *pairs("Time", ("Part", "Time"), times),
            *pairs("One image alone, where it was trained", ("Model", "Time"), passes),
            *pairs("Versions", ("What", "Version"), list(record.versions.items())),
        ),
        dense=True,
    )
