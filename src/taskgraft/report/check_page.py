"""What `check` found in a data set, as lines for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskgraft.report import formatting as fmt
from taskgraft.report.charts import Axis, Box, Chart, Panel
from taskgraft.report.page import Figure, Table, build_long_table, render

MAX_EXAMPLES = 3  # of a finding on the terminal
MAX_NAMED_BARS = 40  # classes with their names beside the bars
MAX_TOOLTIPS = 200
PICTURED = ("conflicts", "leaks", "near_conflicts", "near_leaks", "near_duplicates")  # findings shown as images
MAX_PICTURED = 4  # groups of a finding that are shown as images, and images of a group


class Finding(NamedTuple):
    """A kind of finding: the key of its items, a sentence for one and for several, and the table that lists them."""

    key: str
    singular: str
    plural: str
    title: str
    head: tuple[str, ...] = ()


FINDINGS = (
    Finding("excluded", "1 file cannot be used or is left out", "{} files cannot be used or are left out",
            "Excluded files", ("File", "Reason")),
    Finding("not_trained", "1 class of val or test has no training images",
            "{} classes of val or test have no training images", "Classes without training images"),
    Finding("alike", "1 group of class names differs only in case, spaces or a plural",
            "{} groups of class names differ only in case, spaces or a plural", "Similar class names"),
    Finding("forms", "1 class name in two Unicode forms, merged", "{} class names in two Unicode forms, merged",
            "Class names in two Unicode forms"),
    Finding("single", "1 class has a single image, so no validation image can be split off",
            "{} classes have a single image, so no validation image can be split off", "Classes with one image"),
    Finding("few", "1 class has fewer than 10 training images", "{} classes have fewer than 10 training images",
            "Small classes"),
    Finding("conflicts", "1 image is labeled with two classes", "{} images are labeled with two classes",
            "Conflicting labels", ("Image", "Identical to")),
    Finding("leaks", "1 image is in two splits", "{} images are in two splits", "Leakage between splits",
            ("Image", "Identical to")),
    Finding("duplicates", "1 group of duplicates", "{} groups of duplicates", "Duplicates"),
    Finding("near_conflicts", "1 near-duplicate has another class", "{} near-duplicates have another class",
            "Near-duplicates with conflicting labels", ("Image", "Nearly identical to")),
    Finding("near_leaks", "1 near-duplicate is in another split", "{} near-duplicates are in another split",
            "Near-duplicates in two splits", ("Image", "Nearly identical to")),
    Finding("near_duplicates", "1 group of near-duplicates", "{} groups of near-duplicates", "Near-duplicates"),
    Finding("dropped_classes", "1 class dropped for its size", "{} classes dropped for their size", "Dropped classes",
            ("Class", "Images")),
)  # fmt: skip


def format_check(result: Mapping[str, Any]) -> list[str]:
    """Format lines for the terminal: counts per class, each finding with examples, the verdict.

    Args:
        result: What `check` returns.
    """
    classes, splits = result["classes"], list(result["images"])
    totals = ", ".join(f"{count} {split}" for split, count in result["images"].items())
    lines = [
        f"{result['data']}: {result['layout']}; {fmt.pluralize(len(classes), 'class')}; images: {totals or 'none'}"
    ]
    width = max(map(len, classes), default=0)
    for label, counts in classes.items():
        lines.append(f"  {label:<{width}}  " + "  ".join(f"{split} {counts[split]:>5}" for split in splits))
    lines += [_format_finding(finding, result[finding.key]) for finding in FINDINGS if result[finding.key]]
    lines += result["notes"]
    lines += [f"{fmt.pluralize(len(files), 'image')}: {remark}" for remark, files in result["remarks"].items()]
    lines += [*_describe_balance(result), *_describe_sizes(result), *_describe_model_match(result["against"])]
    lines += [f"manifest: {result['manifest']} (use it as DATA)"] if result["manifest"] else []
    return [*lines, f"PROBLEMS: {'; '.join(result['problems'])}" if result["problems"] else "no problems found"]


def _format_finding(finding: Finding, items: Any) -> str:
    joint = " and " if finding.head[:1] == ("Image",) or "group" in finding.singular else ": "
    rows = [[cell for cell in row if cell != fmt.MISSING] for row in _list_cells(items)]
    examples = "; ".join(joint.join(row) for row in rows[:MAX_EXAMPLES])
    return f"{_count(finding, items)}: {examples}{'; …' if len(rows) > MAX_EXAMPLES else ''}"


def _count(finding: Finding, items: Any) -> str:
    return finding.singular if len(items) == 1 else finding.plural.format(f"{len(items):,}")


def _list_cells(items: Any) -> list[tuple[str, ...]]:
    """The items of a finding, which are names, rows of cells, or a mapping, as rows of at most six cells."""
    rows = items.items() if isinstance(items, Mapping) else [(row,) if isinstance(row, str) else row for row in items]
    cells = [tuple(fmt.MISSING if cell is None else str(cell) for cell in row) for row in rows]
    return [row if len(row) <= 6 else (*row[:5], f"and {len(row) - 5} more") for row in cells]


class Tile(NamedTuple):
    """An image as a data URI, with its path and what is written below it."""

    source: str
    path: str
    text: str


def render_check(
    result: Mapping[str, Any],
    samples: Sequence[tuple[str, str]] = (),
    get_thumbnail: Callable[[str], str | None] = lambda path: None,
) -> str:
    """Render the same as a page, with images.

    Args:
        result: What `check` returns.
        samples: Class and path of the images on the contact sheet.
        get_thumbnail: Returns the image at a path of `samples` or `result` as a data URI; None = it is not shown.

    Returns:
        One offline HTML page.
    """
    against, remarks = result["against"], result["remarks"]
    groups = {finding.key: result[finding.key] if finding.key in PICTURED else [] for finding in FINDINGS}
    shown = [*groups["near_conflicts"], *groups["near_leaks"]]  # and not once more
    groups["near_duplicates"] = [group for group in groups["near_duplicates"] if group[:2] not in shown]
    sheet = [Tile(uri, path, label) for label, path in samples if (uri := get_thumbnail(path))]
    return render(
        "check.html.j2",
        result=result,
        total=sum(result["images"].values()),
        leaks=len(result["leaks"]) + len(result["near_leaks"]),
        findings=[
            (*_build_finding(finding, result[finding.key]), _build_tiles(groups[finding.key], get_thumbnail))
            for finding in FINDINGS
            if result[finding.key]
        ],
        sheet=sheet,
        sheet_classes=len({tile.text for tile in sheet}),
        class_counts=_build_class_figure(result["classes"], list(result["images"])),
        balance=_describe_balance(result),
        sizes=_describe_sizes(result),
        decoding=Table(
            "Decoding rules applied",
            ("Rule", "Images", "First image"),
            [(rule, f"{len(files):,}", files[0]) for rule, files in remarks.items()],
            (0, 2),
        ),
        match=_describe_model_match(against),
        match_tables=_build_match_tables(against) if against else [],
    )


def _build_finding(finding: Finding, items: Any) -> tuple[str, Table]:
    """A sentence and the list behind it."""
    rows = _list_cells(items)
    width = max(map(len, rows))
    head = finding.head if len(finding.head) == width else ("",) * width
    rows = [(*row, *[""] * (width - len(row))) for row in rows]
    return _count(finding, items), build_long_table(finding.title, head, rows)


def _build_tiles(groups: Sequence[Sequence[str]], get_thumbnail: Callable[[str], str | None]) -> list[list[Tile]]:
    """The first groups of similar images; those of which fewer than two can be shown are left out."""
    tiles = [
        [Tile(uri, path, path) for path in group[:MAX_PICTURED] if (uri := get_thumbnail(path))]
        for group in groups[:MAX_PICTURED]
    ]
    return [group for group in tiles if len(group) > 1]


def _build_class_figure(classes: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> Figure:
    rows = [(label, *(f"{counts[split]:,}" for split in splits)) for label, counts in classes.items()]
    table = Table("Images per class", ("Class", *splits), rows)
    caption = "Classes by number of images, the largest first."
    panel = build_class_panel(classes, splits)
    chart = Chart("bars", table.caption, caption, (panel,), Axis("images", 0, integer=True), kind="Bar chart")
    return Figure(chart, [table])


def build_class_panel(classes: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> Panel:
    """Build stacked horizontal bars, the largest class first; names only where there is room for them."""
    order = sorted(classes, key=lambda label: (-sum(classes[label].values()), label))
    named = len(order) <= MAX_NAMED_BARS
    height, boxes = (0.72 if named else 1.1), []  # more than 1: anti-aliasing would leave hairlines between bars
    for row, label in enumerate(order):
        start = 0
        for i, split in enumerate(splits):
            count, color = classes[label][split], ("blue", "vermillion", "green")[i % 3]
            tooltip = f"{label}, {split}: {count:,}" if row < MAX_TOOLTIPS else ""
            boxes.append(Box(start, row - height / 2, count, height, color, name=split, tooltip=tooltip))
            start += count
    names = tuple(enumerate(order)) if named else ()
    axis = Axis("" if named else "classes", max(len(order), 1) - 0.5, -0.5, names=names)
    return Panel("", axis, boxes=tuple(boxes), height=60 + (22 * len(order) if named else 420))


def _build_match_tables(against: Mapping[str, Any]) -> list[Table]:
    near = [tuple(map(str, row)) for row in against["near"]]
    tables = [build_long_table("Class names that nearly match", ("Data", "Model", "Difference"), near)]
    for key, title in (("unknown", "Classes unknown to the model"), ("absent", "Model classes without images")):
        names = [(name,) for name in against[key]]
        tables.append(build_long_table(f"{title}: {len(names):,}", ("Class",), names))
    return tables


def _describe_model_match(against: Mapping[str, Any] | None) -> list[str]:
    """How the class names and image sizes fit a model."""
    if not against:
        return []
    near = against["near"]
    lines = [f"{against['model']}: none of the classes are known to the model, so this is a new task"]
    if against["task"] is not None:
        lines = [
            f"{against['model']}, task {against['task']}: {fmt.pluralize(against['known'], 'class')} known, "
            f"{len(near)} nearly matching, {len(against['unknown'])} unknown, {len(against['absent'])} absent"
        ]
    lines += [f"{name!r} here, {similar!r} in the model ({how})" for name, similar, how in near[:MAX_EXAMPLES]]
    if against["smaller"]:
        images = fmt.pluralize(against["smaller"], "image")
        lines.append(f"{images} smaller than the model's input of {against['input']} pixels")
    return lines


def _describe_balance(result: Mapping[str, Any]) -> list[str]:
    imbalance = result["imbalance"]
    if imbalance["ratio"] < imbalance["noted_from"]:
        return []
    (largest, most), (smallest, fewest) = imbalance["largest"], imbalance["smallest"]
    return [f"imbalanced: {largest!r} has {most:,} training images, {smallest!r} {fewest:,}"]


def _describe_sizes(result: Mapping[str, Any]) -> list[str]:
    sizes = result["sizes"]
    if not sizes:
        return []
    sides = ", ".join(f"{name} {sizes[name][0]} × {sizes[name][1]}" for name in ("smallest", "median", "largest"))
    tiny = f"; {fmt.pluralize(sizes['tiny'], 'image')} under 32 pixels" if sizes["tiny"] else ""
    return [f"image sizes: {sides}{tiny}"]
