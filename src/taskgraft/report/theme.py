"""The colors of the light, dark and print themes, and the style sheet that all pages share."""

from __future__ import annotations

from importlib import resources

# Name -> color in the light theme, in the dark one, and on paper, where it is dark enough for a gray-scale printer.
# The color-blind-safe palette of Okabe and Ito (2008), shaded for each background. "red" and "blue" are task A and
# task B of the reference experiment. Text on "paper" and "raised" has a contrast of at least 4.5, graphics on "paper"
# of at least 3 (WCAG 2.2, 1.4.3 and 1.4.11); tests/report/test_theme.py computes them.
COLORS = {
    "ink": ("#1c1e21", "#e6e8ea", "#000000"),
    "muted": ("#5c636b", "#a3abb3", "#444444"),
    "grid": ("#e1e4e8", "#363c43", "#e1e4e8"),
    "line": ("#d9dde1", "#363c43", "#bbbbbb"),
    "paper": ("#ffffff", "#15181c", "#ffffff"),
    "raised": ("#f6f7f8", "#1d2126", "#ffffff"),
    "shade": ("#c3c9d0", "#000000", "#ffffff"),  # at the edge of what scrolls
    "tint": ("#eaf4fb", "#1b2a36", "#f0f0f0"),
    "link": ("#00629b", "#7cc4f5", "#000000"),
    "on": ("#ffffff", "#10202c", "#ffffff"),  # text on a "link" background
    "bar": ("#9cc9e6", "#2f5570", "#9cc9e6"),
    "good": ("#00785a", "#2fc79b", "#005c45"),
    "mixed": ("#8a5a00", "#f0b429", "#6b4600"),
    "poor": ("#b3261e", "#ff8a80", "#8c1d18"),
    "unknown": ("#5c636b", "#a3abb3", "#444444"),
    "red": ("#c62828", "#ff7b72", "#c62828"),
    "blue": ("#0072b2", "#58b0ea", "#0072b2"),
    "vermillion": ("#d55e00", "#ff8a3d", "#d55e00"),
    "green": ("#009e73", "#2fc79b", "#009e73"),
    "purple": ("#b8578f", "#e58fc4", "#b8578f"),
    "orange": ("#c98500", "#f0b429", "#c98500"),
    "sky": ("#2e92cf", "#8fd3ff", "#2e92cf"),
    "grey": ("#6b7280", "#9aa4af", "#6b7280"),
    "cold": ("#f3f6f8", "#1d2329", "#f3f6f8"),
    "heat": ("#4a9cd3", "#1f6a9c", "#4a9cd3"),
}
LIGHT, DARK, PRINT = ({name: colors[i] for name, colors in COLORS.items()} for i in range(3))


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
        f"@media print {{ :root {{ color-scheme: light; {_variables(PRINT)} }} }}",
        read_asset("base.css"),
        page_css,
    ))  # fmt: skip


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())
