"""Charts: one drawing for page and file, in the theme's colors, whatever things are called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import matplotlib as mpl
import pytest

from fake_results import (
    HOSTILE,
    MAKES,
    PageReader,
    fake_comparison,
    fake_distribution,
    fake_record,
    fake_search,
    fake_sets,
)
from taskgraft import report
from taskgraft.report import charts, check_page, figures, theme
from taskgraft.report.charts import Axis, Box, Chart, Curve, Panel, Style
from taskgraft.results.record import StepMetrics

ODD_NAMES = (
    *HOSTILE, r"$\bad{", "_hidden", "%s\\", "漢字の名前", "العربية", "a\x00b\x1b[2J\u202ec", "long " * 60, "]]>&amp;",
)  # fmt: skip
MAX_BYTES = 1_500_000
KEYS = {
    "run": ["accuracy", "loss", "confusion0", "confusion1", "reliability-plot"],
    "blind": ["accuracy", "loss", "confusion0", "reliability-plot"],
    "comparison": ["figure1", "figure2", "figure3", "tradeoff-plot", *(f"loss{i}" for i in range(7))],
    "search": ["front-plot", "slice0", "slice1", "slice2", "importance", "curve-plot"],
    "distribution": ["task0", "pair0"],
}


def drawings(page: str) -> list[Xml.Element]:
    return [Xml.fromstring(text) for text in re.findall(r"<svg class=.*?</svg>", page, re.S)]


def ids(page: str) -> list[str]:
    return re.findall(r' id="([^"]+)"', page)


@pytest.mark.parametrize("name", KEYS)
def test_page_has_all_charts(pages: dict[str, str], name: str) -> None:
    reader = PageReader(pages[name])
    assert sorted(re.findall(r'<div class="plot" id="([^"]+)">', pages[name])) == sorted(KEYS[name])
    assert len(pages[name].encode()) < MAX_BYTES
    assert len(ids(pages[name])) == len(set(ids(pages[name])))
    for key in KEYS[name]:
        assert [one.attrib["class"] for one in reader.charts(key)] in (["any"], ["broad", "slim"])
        assert all(one.attrib["role"] == "img" for one in reader.charts(key))
        assert all(len(one.attrib["aria-label"]) > 20 for one in reader.charts(key))
        assert reader.tooltips(key)
        assert all(re.search(r"\d", text) for text in reader.tooltips(key))


@pytest.mark.parametrize("name", KEYS)
def test_drawings_are_closed_and_tooltips_inside(pages: dict[str, str], name: str) -> None:
    for one in drawings(pages[name]):
        references = " ".join(each.attrib.get(key, "") for each in one.iter() for key in ("href", "clip-path"))
        assert {each.attrib["id"] for each in one.iter() if "id" in each.attrib} == set(
            re.findall(r"#([\w-]+)", references)
        )
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for tip in (each for each in one.iter() if each.attrib.get("class") == "tip"):
            left, top = (float(tip.attrib.get(key) or tip.attrib[f"c{key}"]) for key in ("x", "y"))
            right, bottom = (float(tip.attrib.get(key, 0)) for key in ("width", "height"))
            assert 0 <= left <= left + right <= width
            assert 0 <= top <= top + bottom <= height


@pytest.mark.parametrize("name", KEYS)
def test_drawings_use_theme_colors_and_page_fonts(pages: dict[str, str], name: str) -> None:
    for one in drawings(pages[name]):
        for each in one.iter():
            style = dict(part.split(":", 1) for part in each.attrib.get("style", "").split(";") if part)
            colors = {value for key, value in style.items() if key in ("fill", "stroke")} - {"none"}
            assert all(re.fullmatch(r"var\(--(\w+)\)", value) for value in colors), style
            assert {value[6:-1] for value in colors} <= theme.LIGHT.keys()
            assert "fill" not in each.attrib
            assert not {"font-family", "font"} & style.keys()
            if each.tag == "path" and not (each.attrib.get("id") or "clip-path" in each.attrib):
                assert {"fill", "stroke"} & style.keys(), each.attrib  # it would be black
        assert "font-size" in Xml.tostring(one, encoding="unicode")  # text, not outlines


def test_odd_names_are_drawn_literally(tmp_path: Path) -> None:
    """On axes, in legends, titles and tooltips; warnings are errors."""
    curves = tuple(Curve(name, Style("blue", "-", "o"), (0, 1), (0.2, 0.5)) for name in ODD_NAMES)
    boxes = tuple(Box(0, i, 1, 0.8, "red", name=name, tooltip=name) for i, name in enumerate(ODD_NAMES))
    axis = Axis(ODD_NAMES[0], 0, len(ODD_NAMES), names=tuple(enumerate(ODD_NAMES)))
    panel = Panel(ODD_NAMES[3], axis, curves, boxes)
    chart = Chart("odd", ODD_NAMES[4], ODD_NAMES[5], (panel, panel), axis, 0.5, ODD_NAMES[2])
    for width in (charts.WIDE, charts.NARROW):
        text = charts.render_svg(chart, "odd", width, ODD_NAMES[1], "any")
        root = Xml.fromstring(text)
        assert {one.tag for one in root.iter()} <= {"svg", "defs", "g", "path", "use", "text", "clipPath", "rect",
                                                    "circle", "title"}  # fmt: skip
        assert all(not name.startswith("on") for one in root.iter() for name in one.attrib)
        texts = [str(one.text).strip() for one in root.iter("text")]
        assert {r"$\bad{", "_hidden", "漢字の名前", "العربية", "ab[2Jc"} <= set(texts)
        assert max(map(len, texts)) <= 105
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    charts.write_png(chart, tmp_path / "odd.png")
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")


def test_pages_with_odd_names() -> None:
    record = fake_record()
    odd = record.tasks[0].model_copy(update={"classes": ODD_NAMES})
    for page in (
        report.render_run(record.model_copy(update={"tasks": (odd, *record.tasks[1:])}), fake_sets(old=ODD_NAMES)),
        report.render_search(fake_search((ODD_NAMES[0], ODD_NAMES[3]), ODD_NAMES[3:6])),
        report.render_distribution(fake_distribution(ODD_NAMES)),
    ):
        assert len(PageReader(page).scripts) == 1
        assert drawings(page)
        assert len(ids(page)) == len(set(ids(page)))


def test_charts_of_almost_nothing(tmp_path: Path) -> None:
    """One step, no trial, no class, one class; warnings are errors."""
    record, comparison, search = fake_record(), fake_comparison(1), fake_search()
    record = record.model_copy(update={"history": record.history[:1], "parent_history": (), "step": 0})
    variant = comparison.variants[0].model_copy(update={"records": (record,)})
    choices = tuple(choice.model_copy(update={"candidate": None}) for choice in search.choices)
    nothing = {"trials": (), "frontier": (), "choices": choices, "importance": {}}
    assert drawings(report.render_run(record, {}))
    assert drawings(report.render_comparison(comparison.model_copy(update={"variants": (variant,)})))
    assert drawings(report.render_search(search.model_copy(update=nothing)))
    report.write_distribution_figure(fake_distribution(()), tmp_path / "distribution.png")
    for classes in ({}, {"a": {"train": 0, "val": 0}}, {f"class {i}": {"train": i, "val": 1} for i in range(300)}):
        panel = check_page.build_class_panel(classes, ("train", "val"))
        assert charts.render_svg(Chart("bars", "", "", (panel,), Axis("images", 0)), "bars", charts.NARROW, "", "any")


@pytest.mark.slow
def test_pages_and_figures_are_reproducible_across_processes(
    compared: Path, pages: dict[str, str], tmp_path: Path
) -> None:
    """In a process with another order of sets, and without pyplot, which would look for a screen."""
    code = (
        "import sys, pathlib, fake_results; from taskgraft import report\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "report.write_comparison_report(fake_results.fake_comparison(), out)\n"
        "distribution = fake_results.fake_distribution()\n"
        "(out / 'distribution.html').write_text(report.render_distribution(distribution), encoding='utf-8')\n"
        "report.write_distribution_figure(distribution, out / 'distribution.png')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout == "False\n"
    assert (tmp_path / "distribution.html").read_text(encoding="utf-8") == pages["distribution"]
    report.write_distribution_figure(fake_distribution(), tmp_path / "here.png")
    assert (tmp_path / "distribution.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    names = sorted(path.name for path in compared.iterdir())
    assert {"report.html", "figure1.png", "figure2.png", "figure3.png"} <= set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (compared / name).read_bytes(), name


def test_matplotlib_settings_are_ignored_and_unchanged(pages: dict[str, str]) -> None:
    settings: Any = {
        "font.size": 30.0,
        "axes.grid": False,
        "svg.fonttype": "path",
        "text.usetex": True,
        "lines.linewidth": 9.0,
    }
    with mpl.rc_context(settings):
        before = dict(mpl.rcParams)
        assert report.render_distribution(fake_distribution()) == pages["distribution"]
        assert dict(mpl.rcParams) == before


def test_confusion_matrix_tooltips_match_its_table(pages: dict[str, str]) -> None:
    reader = PageReader(pages["run"])
    head, *rows = reader.table("make: images by true and predicted class")
    expected = {
        f"true {row[0]}, predicted {predicted}: {count} image{'' if count == '1' else 's'}"
        for row in rows
        for predicted, count in zip(head[1:], row[1:], strict=True)
        if count != "0"
    }
    assert {text.split(" (")[0] for text in reader.tooltips("confusion0")} == expected
    assert set(MAKES) <= set(reader.chart_texts("confusion0"))


def test_a_logarithmic_loss_chart_joins_the_points_beside_a_step_without_labels() -> None:
    terms = [{"data": 2.0, "distill": 0.001}, {"data": 0.0, "distill": 0.002}, {"data": 1.0, "distill": 0.003}]
    history = tuple(StepMetrics(step=step, terms=values) for step, values in enumerate(terms))
    none = tuple(line.model_copy(update={"terms": {**line.terms, "empty": 0.0}}) for line in history)
    chart = figures.build_loss_chart("loss", "Loss", [fake_record().model_copy(update={"history": none})])
    assert chart
    curves = {curve.name: (list(curve.x), list(curve.y)) for curve in chart.panels[0].curves}
    assert curves == {"data": ([0, 2], [2.0, 1.0]), "distill": ([0, 1, 2], [0.001, 0.002, 0.003])}
