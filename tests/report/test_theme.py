"""Colors: text contrast, curves that the color-blind can tell apart, one palette for all pages."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_results import fake_record
from taskgraft.report import charts, figures, theme
from taskgraft.report.evaluation_page import build_reliability_curves
from taskgraft.results.record import StepMetrics

PAPERS = {"light": theme.LIGHT, "dark": theme.DARK, "print": theme.PRINT}
TEXT = ("ink", "muted", "link", "good", "mixed", "poor", "unknown")
GRAPHICS = (*charts.SERIES, "link", "muted")
# Linear RGB under color blindness: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "normal vision": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
# Linear RGB to Oklab (Ottosson 2020).
TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                   [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                   [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
MIN_DISTANCE = 0.1  # of the range of lightness in Oklab: about that of neighbors in the palette of Okabe and Ito


def linear(color: str) -> NDArray[np.float64]:
    """#rrggbb as linear light [3] in [0, 1]."""
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, two: str) -> float:
    """The contrast ratio of WCAG, from 1 to 21."""
    dark, light = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, two))
    return (light + 0.05) / (dark + 0.05)


def distance(one: str, two: str, vision: str) -> float:
    """The distance of two colors in Oklab."""
    visible = [np.clip(VISION[vision] @ linear(color), 0, 1) for color in (one, two)]
    first, second = (TO_LAB @ np.cbrt(TO_LMS @ color) for color in visible)
    return float(np.linalg.norm(first - second))


@pytest.mark.parametrize("paper", PAPERS)
def test_text_contrast(paper: str) -> None:
    colors = PAPERS[paper]
    low = {
        (name, ground): round(contrast(colors[name], colors[ground]), 2)
        for ground in ("paper", "raised", "tint")
        for name in (TEXT if ground != "tint" else ("ink",))
        if contrast(colors[name], colors[ground]) < 4.5
    }
    assert not low
    assert contrast(colors["on"], colors["link"]) >= 4.5 or paper == "print"  # paper has no buttons


@pytest.mark.parametrize("paper", PAPERS)
def test_graphics_contrast(paper: str) -> None:
    colors = PAPERS[paper]
    assert not {name: colors[name] for name in GRAPHICS if contrast(colors[name], colors["paper"]) < 3}
    assert all(contrast(colors["ink"], colors[cell]) >= 4.5 for cell in ("cold", "heat"))  # numbers of a matrix


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("paper", ["light", "dark"])
def test_curves_do_not_differ_in_color_alone(paper: str, vision: str) -> None:
    colors = PAPERS[paper]
    assert distance(colors["red"], colors["blue"], vision) > 1.5 * MIN_DISTANCE  # task A and task B
    line = StepMetrics(step=1, terms={f"term {i}": 1.0 for i in range(len(charts.SERIES))})
    chart = figures.build_loss_chart("loss", "", [fake_record().model_copy(update={"history": (line,)})])
    assert chart
    for styles in (
        [curve.style for curve in chart.panels[0].curves],
        charts.choose_styles([f"m{i}" for i in range(8)]),
    ):
        for one, two in combinations(styles, 2):
            far = distance(colors[one.color], colors[two.color], vision) > MIN_DISTANCE
            assert far or (one.dash, one.marker) != (two.dash, two.marker), (one, two)


def test_reliability_curves_have_different_markers() -> None:
    curves = build_reliability_curves([(f"task {i}", (), ()) for i in range(6)])
    assert len({curve.style.marker for curve in curves[1:]}) == 6


def test_style_sheets_use_theme_colors_only() -> None:
    folders = (Path(theme.__file__).parent / "templates", Path(theme.__file__).parents[1] / "serving" / "page")
    sheets = {path: path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.css")}
    assert len(sheets) == 3
    for path, text in sheets.items():
        assert not re.findall(r"#[0-9a-f]{3,8}\b(?=[^{]*;)", text), path
        unknown = set(re.findall(r"var\(--([a-z]+)", text)) - {*theme.LIGHT, "serif", "sans", "mono", "fraction"}
        assert not unknown, path
