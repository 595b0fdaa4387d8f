"""The colors of the light, dark and print themes, and the style sheet that all pages share."""

from __future__ import annotations

from importlib import resources

# The color-blind-safe palette of Okabe and Ito (2008), shaded for each background. "red" and "blue" are task A and
# task B of the reference experiment. Text on "paper" and "raised" has a contrast of at least 4.5, graphics on "paper"
# of at least 3 (WCAG 2.2, 1.4.3 and 1.4.11); tests/report/test_theme.py computes them.
LIGHT = {
    "ink": "#1c1e21",
    "muted": "#5c636b",
    "grid": "#e1e4e8",
    "line": "#d9dde1",
    "paper": "#ffffff",
    "raised": "#f6f7f8",
    "tint": "#eaf4fb",
    "link": "#00629b",
    "on": "#ffffff",  # text on a "link" background
    "bar": "#9cc9e6",
    "good": "#00785a",
    "mixed": "#8a5a00",
    "poor": "#b3261e",
    "unknown": "#5c636b",
    "red": "#c62828",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#b8578f",
    "orange": "#c98500",
    "sky": "#2e92cf",
    "grey": "#6b7280",
    "cold": "#f3f6f8",
    "heat": "#4a9cd3",
}
DARK = {
    "ink": "#e6e8ea",
    "muted": "#a3abb3",
    "grid": "#363c43",
    "line": "#363c43",
    "paper": "#15181c",
    "raised": "#1d2126",
    "tint": "#1b2a36",
    "link": "#7cc4f5",
    "on": "#10202c",
    "bar": "#2f5570",
    "good": "#2fc79b",
    "mixed": "#f0b429",
    "poor": "#ff8a80",
    "unknown": "#a3abb3",
    "red": "#ff7b72",
    "blue": "#58b0ea",
    "vermillion": "#ff8a3d",
    "green": "#2fc79b",
    "purple": "#e58fc4",
    "orange": "#f0b429",
    "sky": "#8fd3ff",
    "grey": "#9aa4af",
    "cold": "#1d2329",
    "heat": "#1f6a9c",
}
# Overrides of LIGHT for paper: dark enough for a gray-scale printer, no backgrounds.
PRINT = {
    "paper": "#ffffff",
    "raised": "#ffffff",
    "ink": "#000000",
    "muted": "#444444",
    "line": "#bbbbbb",
    "link": "#000000",
    "good": "#005c45",
    "mixed": "#6b4600",
    "poor": "#8c1d18",
    "unknown": "#444444",
    "tint": "#f0f0f0",
}


def read_asset(name: str) -> str:
    """Read a file that lies beside the templates, such as a style sheet."""
    return (resources.files("taskgraft.report") / "templates" / name).read_text(encoding="utf-8")


def build_style_sheet(page_css: str) -> str:
    """Build a complete style sheet.

    Args:
        page_css: What one kind of page adds to the shared rules.

    Returns:
        The colors as CSS variables for each theme, the shared rules, then `page_css`.
    """
    return "\n".join((
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}",
        f"@media print {{ :root {{ color-scheme: light; {_variables(LIGHT | PRINT)} }} }}",
        read_asset("base.css"),
        page_css,
    ))  # fmt: skip


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())
