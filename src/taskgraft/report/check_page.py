"""What `check` found, as lines for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskgraft.report.charts import Axis, Box, Chart, Panel
from taskgraft.report.formatting import count, several
from taskgraft.report.page import Block, Card, Fold, Page, Plot, Section, Table, Text, render

SHOWN = 3  # examples of a line
LISTED = 200  # rows of a table on the page
DRAWN = 40  # classes with their names beside the bars
TOLD = 200  # classes whose bars say their number
FINDINGS = (
    ("excluded", "file{s} cannot be used or {are} left out", "What is left out", ("File", "Reason")),
    ("not_trained", "class{es} of val or test without a training image", "Classes without training images", ()),
    ("alike", "group{s} of class names that differ in case, spaces or a plural alone", "Names that are alike", ()),
    ("forms", "class{es} written in two Unicode forms, taken as one", "Two Unicode forms", ()),
    ("single", "class{es} with one image: no validation can be split off", "Classes with one image", ()),
    ("few", "class{es} with under 10 training images", "Small classes", ()),
    ("conflicts", "image{s} stand{v} in two classes", "Equal images under two classes", ("Image", "Equal to")),
    ("leaks", "image{s} stand{v} in two splits", "Equal images in two splits", ("Image", "Equal to")),
    ("duplicates", "group{s} of equal images", "Equal images", ()),
    ("near_conflicts", "image{s} {are} nearly equal to one of another class", "Nearly equal, other class",
     ("Image", "Nearly equal to")),
    ("near_leaks", "image{s} {are} nearly equal to one of another split", "Nearly equal, other split",
     ("Image", "Nearly equal to")),
    ("near_duplicates", "group{s} of nearly equal images", "Nearly equal images", ()),
    ("dropped_classes", "class{es} dropped as too small", "Dropped classes", ("Class", "Images")),
)  # fmt: skip


def table_check(found: Mapping[str, Any]) -> list[str]:
    """Lines: what it is, a row for each class, then each finding with its first examples, and the verdict."""
    classes, splits = found["classes"], list(found["images"])
    totals = ", ".join(f"{number} {split}" for split, number in found["images"].items())
    lines = [f"{found['data']}: {found['layout']}; {_classes(len(classes))}; images: {totals or 'none'}"]
    width = max((len(label) for label in classes), default=0)
    for label, counts in classes.items():
        lines.append(f"  {label:<{width}}  " + "  ".join(f"{split} {counts[split]:>5}" for split in splits))
    lines += [_sentence(words, found[key]) for key, words, _, _ in FINDINGS if found[key]]
    lines += [f"{several(len(files), 'picture')}: {remark}" for remark, files in found["remarks"].items()]
    lines += _about(found)
    lines += _beside(found["against"]) if found["against"] else []
    if found["manifest"]:
        lines.append(f"manifest: {found['manifest']} (use it as DATA)")
    verdict = "; ".join(found["wanting"])
    return [*lines, f"WANTING: {verdict}" if verdict else "nothing has to be mended"]


def render_check(found: Mapping[str, Any]) -> str:
    """The same as one offline page."""
    findings = [block for finding in FINDINGS for block in _finding(found[finding[0]], *finding[1:])]
    sections = [
        Section("findings", "What was found", tuple(findings or [Text("Nothing out of the ordinary.", "note")])),
        Section("classes", "Classes", tuple(_class_blocks(found))),
        Section("images", "The images themselves", tuple(_picture_blocks(found))),
    ]
    if found["against"]:
        sections.insert(1, Section("against", "Beside the model", tuple(_against_blocks(found["against"]))))
    total, names = sum(found["images"].values()), _classes(len(found["classes"]))
    return render(
        Page(
            f"Check of {found['data']}",
            "taskgraft · check",
            f"{several(total, 'picture')}, {names}; {found['layout']}. No image was changed.",
            _cards(found),
            tuple(sections),
            "This page needs no network.",
        )
    )


def _cards(found: Mapping[str, Any]) -> tuple[Card, ...]:
    wanting = found["wanting"]
    ready = Card(
        "Can it be trained on?",
        "Not before something is mended" if wanting else "Yes",
        tuple(text[:1].upper() + text[1:] + "." for text in wanting) or ("Nothing has to be mended.",),
        tone="poor" if wanting else "good",
    )
    left = len(found["excluded"])
    readable = Card(
        "Can every file be read?",
        f"{several(found['unreadable'], 'picture')} cannot" if found["unreadable"] else "Yes",
        (f"{several(left, 'file')} {'is' if left == 1 else 'are'} left out, each with its reason.",) if left else (),
        tone="mixed" if found["unreadable"] else "good",
    )
    double = len(found["leaks"]) + len(found["near_leaks"])
    apart = Card(
        "Are the splits apart?",
        f"{several(double, 'picture')} too many" if double else "Yes",
        (f"{count(len(found['leaks']))} equal to one of another split, {count(len(found['near_leaks']))} nearly.",)
        if double
        else (),
        tone="poor" if found["leaks"] else "mixed" if double else "good",
    )
    return (ready, readable, apart)


def _finding(items: Any, words: str, title: str, head: Sequence[str]) -> list[Block]:
    """One finding: its sentence, and the table of what it is about, closed."""
    if not items:
        return []
    rows = [(str(name), str(value)) for name, value in items.items()] if isinstance(items, Mapping) else items
    cells = [_cells(row) for row in rows[:LISTED]]
    wide = max(map(len, cells))
    names = tuple(head) if len(head) == wide else ("", *[""] * (wide - 1))
    filled = tuple((*row, *[""] * (wide - len(row))) for row in cells)
    more = f" (the first {LISTED} of {count(len(rows))})" if len(rows) > LISTED else ""
    table = Table(f"{title}{more}", names, filled, tuple(range(wide)))
    return [Text(_sentence(words, items, examples=False) + "."), Fold("Which", table)]


def _cells(row: Any) -> tuple[str, ...]:
    if isinstance(row, str):
        return (row,)
    cells = tuple("–" if cell is None else str(cell) for cell in row)
    return cells if len(cells) <= 6 else (*cells[:5], f"and {len(cells) - 5} more")


def _class_blocks(found: Mapping[str, Any]) -> list[Block]:
    classes, splits = found["classes"], list(found["images"])
    rows = tuple((label, *(count(counts[split]) for split in splits)) for label, counts in classes.items())
    table = Table("Images of each class", ("Class", *splits), rows)
    caption = "Classes by their number of images, the most frequent first."
    chart = Chart(
        "bars", table.caption, caption, (_bars(classes, splits),), Axis("images", 0, whole=True), kind="Bar chart"
    )
    plot = Plot(chart, (table,))
    return [plot, *(Text(line[:1].upper() + line[1:] + ".", "note") for line in _uneven(found))]


def _bars(classes: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> Panel:
    """Horizontal bars, most images first; names only where there is room for them."""
    order = sorted(classes, key=lambda label: (-sum(classes[label].values()), label))
    named = len(order) <= DRAWN
    thick, boxes = (0.72 if named else 1.1), []  # without a gap there would be hairs of paper between bars
    for row, label in enumerate(order):
        start = 0
        for place, split in enumerate(splits):
            number, color = classes[label][split], ("blue", "vermillion", "green")[place % 3]
            tip = f"{label}, {split}: {count(number)}" if row < TOLD else ""
            boxes.append(Box(start, row - thick / 2, number, thick, color, name=split, tip=tip))
            start += number
    names = tuple(enumerate(order)) if named else ()
    axis = Axis("" if named else "classes", max(len(order), 1) - 0.5, -0.5, names=names)
    return Panel("", axis, boxes=tuple(boxes), height=60 + (22 * len(order) if named else 420))


def _picture_blocks(found: Mapping[str, Any]) -> list[Block]:
    rows = [(remark, count(len(files)), files[0]) for remark, files in found["remarks"].items()]
    blocks: list[Block] = [Text(line[:1].upper() + line[1:] + ".") for line in _size_lines(found)]
    if rows:
        blocks.append(Table("What the decoding rules did", ("Rule", "Images", "First of them"), tuple(rows), (0, 2)))
    if found["too_even_to_compare"]:
        even = found["too_even_to_compare"]
        blocks.append(Text(f"{several(even, 'picture')} of almost one tone could not be compared with others.", "note"))
    return blocks or [Text("There is none that can be used.", "warning")]


def _against_blocks(against: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(line[:1].upper() + line[1:] + ".") for line in _beside(against)]
    if against["near"]:
        rows = tuple(tuple(map(str, row)) for row in against["near"])
        blocks.append(Table("Names that nearly match", ("Here", "In the model", "How they differ"), rows, (0, 1, 2)))
    for key, title in (("unknown", "Classes that the model does not have"), ("absent", "Classes without an image")):
        if against[key]:
            rows = tuple((name,) for name in against[key][:LISTED])
            blocks.append(Fold(f"{title}: {count(len(against[key]))}", Table(title, ("Class",), rows)))
    return blocks


def _beside(against: Mapping[str, Any]) -> list[str]:
    """The comparison with a model in sentences."""
    if against["task"] is None:
        first = f"{against['model']}: none of the classes is known to it, so this is a new task"
    else:
        first = (
            f"{against['model']}, task {against['task']}: {_classes(against['known'])} known, "
            f"{len(against['near'])} nearly, {len(against['unknown'])} unknown, {len(against['absent'])} not here"
        )
    near = [f"{name!r} here is {meant!r} in the model ({how})" for name, meant, how in against["near"][:SHOWN]]
    small = f"{several(against['smaller'], 'picture')} smaller than the model's input of {against['input']} pixels"
    return [first, *near, *([small] if against["smaller"] else [])]


def _about(found: Mapping[str, Any]) -> list[str]:
    return [*_uneven(found), *_size_lines(found)]


def _uneven(found: Mapping[str, Any]) -> list[str]:
    (most, large), (least, small) = found["imbalance"]["largest"], found["imbalance"]["smallest"]
    if found["imbalance"]["ratio"] < found["imbalance"]["noted_from"]:
        return []
    return [f"unbalanced: {most!r} has {count(large)} training images, {least!r} {count(small)}"]


def _size_lines(found: Mapping[str, Any]) -> list[str]:
    sizes = found["sizes"]
    if not sizes:
        return []
    ends = ", ".join(f"{name} {sizes[name][0]} × {sizes[name][1]}" for name in ("smallest", "median", "largest"))
    tiny = f"; {several(sizes['tiny'], 'picture')} under 32 pixels" if sizes["tiny"] else ""
    return [f"sizes: {ends}{tiny}"]


def _sentence(words: str, items: Any, *, examples: bool = True) -> str:
    """A finding with its number, and its first examples."""
    one = len(items) == 1
    forms = {"s": "" if one else "s", "es": "" if one else "es", "are": "is" if one else "are", "v": "s" if one else ""}
    text = f"{count(len(items))} {words.format(**forms)}"
    if not examples:
        return text
    rows = list(items.items()) if isinstance(items, Mapping) else list(items)
    joint = " and " if words.startswith(("image", "group")) else ": "
    first = "; ".join(_example(row, joint) for row in rows[:SHOWN])
    return f"{text}: {first}{'; …' if len(rows) > SHOWN else ''}"


def _example(row: Any, joint: str) -> str:
    return row if isinstance(row, str) else joint.join(_cells([cell for cell in row if cell is not None]))


def _classes(number: int) -> str:
    return f"{count(number)} class{'' if number == 1 else 'es'}"
