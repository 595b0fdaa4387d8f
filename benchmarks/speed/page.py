"""The speed part of benchmarks/README.md, made from the JSON; what stands outside its two markers is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import claims, plots
from benchmarks.speed.plots import heading

BEGIN, END = "<!-- speed: made by python -m benchmarks.speed -->", "<!-- end of speed -->"
Report = Mapping[str, Any]
Table = Mapping[str, Any]


def written(results: Path, readme: Path) -> str:
    """Write plots beside the JSON and the tables into the README; says what was done."""
    reports = {
        path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json")) if path.stem in TITLES
    }
    reports = {name: report for name, report in reports.items() if report.get("part") and not report["quick"]}
    if not reports:
        return f"no figures in {results}; nothing was written"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{readme} lacks the lines {BEGIN!r} and {END!r}: put them where the tables shall stand")
    body = "\n\n".join([_machine(reports), claims.table(reports), *(_part(name, reports[name], results)
                       for name in TITLES if name in reports)])  # fmt: skip
    readme.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    return f"{readme}: {', '.join(reports)}"


def _machine(reports: Mapping[str, Report]) -> str:
    report = next(iter(reports.values()))
    its, versions = report["machine"], report["versions"]
    units = f" with {', '.join(its['units'])}" if its["units"] else ""
    peers = ", ".join(f"{name} {text}" for name, text in report["peers"].items())
    return (
        f"`make bench`, {report['day']}: {its['cpu']}{units}, {its['cores']} cores, {its['memory_gib']:.0f} GiB; "
        f"torch {versions['torch']}, timm {versions['timm']}; {peers or 'no peers'}.\n"
        f"A large matrix product reaches {its['fp32_flops'] / 1e9:.0f} GFLOP/s in fp32 and "
        f"{its['bf16_flops'] / 1e9:.0f} in bf16, memory {its['bytes'] / 1e9:.1f} GB/s: the two floors. "
        "Every rival has a turn a round; medians, in brackets the lowest and the highest turn; shares are medians of "
        "the ratios within a round."
    )


def _part(name: str, report: Report, results: Path) -> str:
    title, words, table, draw = TITLES[name]
    file = results / f"{name}.png"
    draw(file, report["cases"], title)
    load = report["machine"]["load_before"]
    warning = f" The machine was not idle (load {load})." if load > 0.5 else ""
    parts = [f"### {title}", f"{words}{warning}", *table(report["cases"])]
    return "\n\n".join([*parts, f"![{title}](results/{file.name})"])


def _rates(cases: Sequence[Table]) -> list[str]:
    return [f"**{heading(case['case'])}**\n\n{_rows(case)}" for case in cases]


def _rows(case: Table) -> str:
    columns = ["images/s", "share"]
    extra = [
        (key, words)
        for key, words in (("note", "how"), ("peak", "peak memory"), ("trace", "trace"))
        if any(key in {**row, **row.get("chose", {})} for row in case["rows"])
    ]
    lines = [_line(["rival", *columns, *(words for _, words in extra)]), _rule(len(columns), len(extra))]
    for row in case["rows"]:
        told = {**row, **row.get("chose", {})}
        if "error" in row:
            lines.append(_line([row["rival"], "–", "–", f"cannot: {row['error']}", *["–"] * (len(extra) - 1)]))
        elif "median" in row:
            lines.append(_line([row["rival"], _spread(row), _share(row), *(_cell(key, told) for key, _ in extra)]))
    return "\n".join([*lines, *_floors(case)])


def _floors(case: Table) -> list[str]:
    if "floors" not in case:
        return []
    floor = case["floors"]
    own = next((row for row in case["rows"] if row["rival"] in ("finetune", "taskgraft") and "median" in row), None)
    shares = {name: f"{own['median'] / floor[name]:.0%}" if own else "–" for name in ("arithmetic", "bytes")}
    training = case.get("training_peak")
    return [
        "",
        f"Floors ({floor['precision']}): {floor['gflop_per_image']} GFLOP an image at the matrix peak would be "
        f"{floor['arithmetic']:,.0f} images/s ({shares['arithmetic']} of it reached), {floor['mbyte_per_image']} MB an "
        f"image at the memory's rate {floor['bytes']:,.0f} ({shares['bytes']})."
        + (f" Peak of training at this batch in fp32: {_mib(training)}." if training else ""),
    ]


def _seconds(cases: Sequence[Table]) -> list[str]:
    found = []
    for case in cases:
        timed = [row for row in case["rows"] if row.get("unit") == "s"]
        if not timed:
            found += _rates([{**case, "rows": [row for row in case["rows"] if "median" in row]}])
            counts = [f"{row['rival']}: {row['decoded']:,}" for row in case["rows"] if "decoded" in row]
            found.append("Images " + "; ".join(counts) + ".")
            continue
        lines = [_line(["", "seconds", "peak memory"]), "|---|---:|---:|"]
        lines += [_line([row["rival"], _spread(row), _mib(row.get("peak"))]) for row in timed]
        found.append(f"**{heading(case['case'])}**\n\n" + "\n".join(lines))
    return found


def _bytes(cases: Sequence[Table]) -> list[str]:
    lines = [
        _line(["", "weights", "optimizer", "method", "method / weights", "peak"]),
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in cases[0]["rows"]:
        held = [_mib(row.get(key)) for key in ("weights", "optimizer", "method")]
        ratio = f"{row['method_over_weights']:.2f}" if "method_over_weights" in row else "–"
        lines.append(_line([row["rival"], *held, ratio, _mib(row.get("peak")) if "error" not in row else row["error"]]))
    return [f"**{heading(cases[0]['case'])}**\n\n" + "\n".join(lines)]


def _shared(cases: Sequence[Table]) -> list[str]:
    lines = [_line(["", "shared files", "bytes", "peak memory", "seconds"]), "|---|---:|---:|---:|---:|"]
    for row in cases[0]["rows"]:
        told = [row["shared_files"], _mib(row["shared_bytes"]), _mib(row["peak"]), f"{row['seconds']:.0f}"]
        lines.append(_line([row["rival"], *told]))
    return [f"**{heading(cases[0]['case'])}**\n\n" + "\n".join(lines)]


def _whole(cases: Sequence[Table]) -> list[str]:
    lines = [_line(["", "seconds to that Score", "seconds in all", "best Score"]), "|---|---:|---:|---:|"]
    for row in cases[0]["rows"]:
        told = [_spread(row) if "median" in row else "never", _spread(row["whole"]), row["score"]]
        lines.append(_line([row["rival"], *told]))
    return [f"**{heading(cases[0]['case'])}**\n\n" + "\n".join(lines)]


def _growth(cases: Sequence[Table]) -> list[str]:
    found = []
    for axis in dict.fromkeys(case["case"]["axis"] for case in cases):
        own = [case for case in cases if case["case"]["axis"] == axis]
        names = [row["rival"] for row in own[0]["rows"]]
        lines = [_line([f"{axis}, images/s", *names]), _rule(len(names), 0)]
        for case in own:
            point = case["case"]["point"]
            lrs = {row["rival"]: row.get("median") for row in case["rows"]}
            cells = [f"{lrs[name]:,.0f}" if lrs.get(name) else "–" for name in names]
            lines.append(_line([f"{point:,}" if isinstance(point, int) else point, *cells]))
        found.append("\n".join(lines))
    return found


def _spread(row: Mapping[str, Any]) -> str:
    return f"{_short(row['median'])} ({_short(row['low'])} to {_short(row['high'])})"


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['share']:.2f}" if "share" in row else "–"


def _cell(key: str, told: Mapping[str, Any]) -> str:
    if key == "peak":
        return _mib(told.get(key))
    if key == "trace":
        return f"{told[key]:.3g}" if key in told else "–"
    return str(told.get(key, "")) or "–"


def _mib(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _rule(numbers: int, words: int) -> str:
    return "|---|" + "---:|" * numbers + "---|" * words


Draw = Callable[[Path, Sequence[Table], str], None]


def _draw_peaks(file: Path, tables: Sequence[Table], title: str) -> None:
    """The memory's bars: peaks in MiB in place of rates."""
    rows = [
        {"rival": row["rival"], "house": "taskgraft" if {"weights", "trials"} & row.keys() else "others", "unit": "MiB",
         **dict.fromkeys(("median", "low", "high"), row["peak"] / 2**20)}
        for row in tables[0]["rows"] if "peak" in row
    ]  # fmt: skip
    plots.bars(file, [{"case": tables[0]["case"], "rows": rows}], title)


TITLES: dict[str, tuple[str, str, Callable[[Sequence[Table]], list[str]], Draw]] = {
    "steps": (
        "The training step",
        "Images in memory, no augmentation (but for the row that says so), AdamW for all; shares are of taskgraft's "
        "fine-tuning. taskgraft chooses its arithmetic itself; the recorded teacher is measured after its views are "
        "known. The careful loop is channels-last, bf16 where faster, with a fused optimizer, clipping as taskgraft's "
        "and freed memory kept. Avalanche gets images that are normalized already.",
        _rates,
        plots.bars,
    ),
    "fisher": (
        "The Fisher diagonal",
        "Labels drawn from the model, eval mode, fp32; shares are of plain forward and backward over the same images. "
        "Peak memory is how far a process of its own is lifted by 64 images. Traces agree within the noise of the "
        "draws where two ways compute the same.",
        _rates,
        plots.bars,
    ),
    "start": (
        "Before the first step",
        "Seconds from the start of the process; drawn JPEG files of 360 pixels, brought to 128. A cold `extend` "
        "decodes, a warm one maps what was kept; both then warm the new head on the features of all images, unless "
        "told not to. The plain loop decodes one batch before its first step, and every image again in every epoch.",
        _seconds,
        plots.bars,
    ),
    "start-large": ("Before the first step, 50,000 images", "As above.", _seconds, plots.bars),
    "answering": (
        "Evaluation and prediction",
        "Evaluation on decoded pixels in fp32, shares of taskgraft's rate; prediction from JPEG files.",
        _rates,
        plots.bars,
    ),
    "memory": (
        "Memory",
        "What is held between steps, counted by storage; and how far a process of its own is lifted by two steps.",
        _bytes,
        _draw_peaks,
    ),
    "sharing": (
        "What the trials of a search share",
        "`tune` with ewc and distill: Fisher, anchor and the parent's answers are files that all trials map. `python "
        "benchmarks/search.py` has what sharing saves.",
        _shared,
        _draw_peaks,
    ),
    "whole": (
        "A whole extension, to a given Score",
        "From the call of `extend` on 1,000 drawn paints and a parent of drawn makes, 150 steps of 32, evaluated every "
        "15: decoding, head warm-up, what the method remembers and every evaluation are in it. The Score is one run's.",
        _whole,
        plots.bars,
    ),
    "growth": (
        "Growth",
        "One thing grows, the rest stays: ResNet-18 at 32 px, batch 32, fp32, 196 old and 9 new classes (10 for each "
        "old task where tasks grow; old and new alike where classes grow).",
        _growth,
        plots.lines,
    ),
}
