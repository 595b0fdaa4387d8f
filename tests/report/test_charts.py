"""Charts: one drawing for page and file, in the theme's colours, whatever things are called."""

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

from made_up import (
    HOSTILE,
    MAKES,
    Reader,
    made_up_comparison,
    made_up_record,
    made_up_search,
    made_up_sets,
    made_up_shares,
)
from taskgraft import report
from taskgraft.report import check_page, drawing, theme
from taskgraft.report.charts import Axis, Box, Chart, Curve, Panel

ODD = (
    *HOSTILE, r"$\bad{", "_hidden", "%s\\", "漢字の名前", "العربية", "a\x00b\x1b[2J\u202ec", "long " * 60, "]]>&amp;",
)  # fmt: skip
LIMIT = 1_500_000  # bytes of a page
PAGES = {
    "run": lambda: report.render_run(made_up_record(), made_up_sets()),
    "blind": lambda: report.render_run(made_up_record(with_old=False), made_up_sets(with_old=False)),
    "comparison": lambda: report.render_comparison(made_up_comparison()),
    "search": lambda: report.render_search(made_up_search()),
    "shares": lambda: report.render_shares(made_up_shares()),
}
KEYS = {
    "run": ["accuracy", "loss", "confusion0", "confusion1", "reliability-plot"],
    "blind": ["accuracy", "loss", "confusion0", "reliability-plot"],
    "comparison": ["figure1", "figure2", "figure3", "frontier-plot", *(f"loss{i}" for i in range(7))],
    "search": ["frontier-plot", "slice0", "slice1", "slice2", "importance", "curve-plot"],
    "shares": ["task0", "pair0"],
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


def drawings(page: str) -> list[Xml.Element]:
    return [Xml.fromstring(text) for text in re.findall(r"<svg class=.*?</svg>", page, re.S)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_charts(pages: dict[str, str], name: str) -> None:
    reader = Reader(pages[name])
    assert re.findall(r'<div class="plot" id="([^"]+)">', pages[name]) == KEYS[name]
    assert len(pages[name].encode()) < LIMIT
    for key in KEYS[name]:
        kinds = [one.attrib["class"] for one in reader.charts(key)]
        assert kinds in (["any"], ["broad", "slim"])
        for one in reader.charts(key):
            assert one.attrib["role"] == "img"
            assert len(one.attrib["aria-label"]) > 20
        assert reader.told(key)
        assert all(re.search(r"\d", text) for text in reader.told(key))  # a tip tells values
    ids = re.findall(r' id="([^"]+)"', pages[name])
    assert len(ids) == len(set(ids))
    for one in drawings(pages[name]):
        places = " ".join(each.attrib.get(at, "") for each in one.iter() for at in ("href", "clip-path"))
        named = set(re.findall(r"#([\w-]+)", places))
        assert {each.attrib["id"] for each in one.iter() if "id" in each.attrib} == named
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for each in one.iter():
            if each.attrib.get("class") == "tip":  # whole bars and cells, and the middle of every point
                left, top = (float(each.attrib.get(at) or each.attrib[f"c{at}"]) for at in ("x", "y"))
                right, below = (float(each.attrib.get(at, 0)) for at in ("width", "height"))
                assert 0 <= left <= left + right <= width
                assert 0 <= top <= top + below <= height


@pytest.mark.parametrize("name", PAGES)
def test_charts_have_the_colors_and_the_letters_of_the_page(pages: dict[str, str], name: str) -> None:
    for one in drawings(pages[name]):
        for each in one.iter():
            style = dict(part.split(":", 1) for part in each.attrib.get("style", "").split(";") if part)
            colors = {value for key, value in style.items() if key in ("fill", "stroke")}
            assert all(value == "none" or re.fullmatch(r"var\(--(\w+)\)", value) for value in colors), style
            assert {value[6:-1] for value in colors - {"none"}} <= theme.LIGHT.keys()
            assert "fill" not in each.attrib
            assert not {"font-family", "font"} & style.keys()
            if each.tag == "path":  # what names no colour would be black
                assert colors or each.attrib.get("id") or "clip-path" in each.attrib, each.attrib
        assert "font-size" in Xml.tostring(one, encoding="unicode")  # letters, not their outlines


def test_names_are_shown_as_they_are_and_do_nothing(tmp_path: Path) -> None:
    """On axes, in legends, titles and tips; warnings are errors."""
    curves = tuple(Curve(name, "blue", "-", "o", (0, 1), (0.2, 0.5)) for name in ODD)
    boxes = tuple(Box(0, i, 1, 0.8, "red", name=name, tip=name) for i, name in enumerate(ODD))
    axis = Axis(ODD[0], 0, len(ODD), names=tuple(enumerate(ODD)))
    panel = Panel(ODD[3], axis, curves, boxes)
    chart = Chart("odd", ODD[4], ODD[5], (panel, panel), axis, 0.5, ODD[2])
    for width in (drawing.BROAD, drawing.SLIM):
        text = drawing.svg(chart, "odd", width, ODD[1], "any")
        root = Xml.fromstring(text)
        assert {one.tag for one in root.iter()} <= {"svg", "defs", "g", "path", "use", "text", "clipPath", "rect",
                                                    "circle", "title"}  # fmt: skip
        assert all(not name.startswith("on") for one in root.iter() for name in one.attrib)
        said = [str(one.text) for one in root.iter("text")]
        assert {r"$\bad{", "_hidden", "漢字の名前", "العربية", "ab[2Jc"} <= {one.strip() for one in said}
        assert max(map(len, said)) <= 105
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    drawing.png(chart, tmp_path / "odd.png")
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")


def test_pages_with_odd_names() -> None:
    record = made_up_record()
    record = record.model_copy(
        update={"tasks": (record.tasks[0].model_copy(update={"classes": ODD}), *record.tasks[1:])}
    )
    found = (
        report.render_run(record, made_up_sets(old=ODD)),
        report.render_search(made_up_search((ODD[0], ODD[3]), ODD[3:6])),
        report.render_shares(made_up_shares(ODD)),
    )
    for page in found:
        assert not [tag for tag, _ in Reader(page).tags if tag == "script"][1:]
        assert drawings(page)
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids))


def test_charts_of_almost_nothing(tmp_path: Path) -> None:
    """One step, no trial, no class, one class: warnings are errors."""
    record, made = made_up_record(), made_up_comparison(1)
    record = record.model_copy(update={"history": record.history[:1], "parent_history": (), "step": 0})
    one = made.variants[0].model_copy(update={"records": (record,)})
    assert drawings(report.render_run(record, {}))
    assert drawings(report.render_comparison(made.model_copy(update={"arrangements": (one,)})))
    choices = tuple(one.model_copy(update={"candidate": None}) for one in made_up_search().choices)
    nothing = {"trials": (), "frontier": (), "choices": choices, "importance": {}}
    assert drawings(report.render_search(made_up_search().model_copy(update=nothing)))
    report.write_shares(made_up_shares(()), tmp_path / "shares.png")
    classes = {"a": {"train": 0, "val": 0}}
    for found in ({}, classes, {f"class {i}": {"train": i, "val": 1} for i in range(300)}):
        chart = Chart("bars", "", "", (check_page._bars(found, ("train", "val")),), Axis("images", 0))
        assert drawing.svg(chart, "bars", drawing.SLIM, "", "any")


def test_equal_records_give_equal_pages_and_files_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib, pathlib, made_up; from taskgraft import report\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "runs, shares = made_up.made_up_comparison(1), made_up.made_up_shares()\n"
        "pages = [report.render_comparison(runs), report.render_shares(shares)]\n"
        "report.write_figures(runs, out)\n"
        "report.write_shares(shares, out / 'shares.png')\n"
        "data = [page.encode() for page in pages] + [file.read_bytes() for file in sorted(out.glob('*.png'))]\n"
        "print([hashlib.sha256(one).hexdigest() for one in data], 'matplotlib.pyplot' in sys.modules)"
    )
    said = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        where = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        said.add(subprocess.run(command, capture_output=True, text=True, check=True, env=where).stdout)
    assert len(said) == 1
    assert said.pop().endswith("False\n")


def test_nobodys_settings_are_used_or_changed(pages: dict[str, str]) -> None:
    mine: Any = {
        "font.size": 30.0,
        "axes.grid": False,
        "svg.fonttype": "path",
        "text.usetex": True,
        "lines.linewidth": 9.0,
    }
    with mpl.rc_context(mine):
        before = dict(mpl.rcParams)
        assert PAGES["shares"]() == pages["shares"]
        assert dict(mpl.rcParams) == before


def test_a_matrix_tells_its_cells(pages: dict[str, str]) -> None:
    reader = Reader(pages["run"])
    head, *rows = reader.table("make: images by true class and answer")
    expected = {
        f"true {row[0]}, answered {answer}: {count} image{'' if count == '1' else 's'}"
        for row in rows
        for answer, count in zip(head[1:], row[1:], strict=True)
        if count != "0"
    }
    assert {text.split(" (")[0] for text in reader.told("confusion0")} == expected
    assert set(MAKES) <= set(reader.words("confusion0"))
