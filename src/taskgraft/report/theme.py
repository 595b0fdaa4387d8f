"""The colours of light and dark paper, and the start of the style sheet that every page shares."""

from __future__ import annotations

from importlib import resources

# Okabe and Ito's colours, which colour-blind readers tell apart, in shades for light and for dark paper.
# "red" and "blue" are the founding text's colours of task A and task B. Text on "paper" and on "raised" has a contrast
# of 4.5 at least, what is drawn on "paper" one of 3 (WCAG 2.2, 1.4.3 and 1.4.11); a test computes them.
LIGHT = {
    "ink": "#1c1e21",
    "muted": "#5c636b",
    "grid": "#e1e4e8",
    "line": "#d9dde1",
    "paper": "#ffffff",
    "raised": "#f6f7f8",
    "tint": "#eaf4fb",
    "link": "#00629b",
    "on": "#ffffff",  # text on the colour of links
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
# Paper that is printed on: colours dark enough for a grey printer, and no ground.
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


def part(name: str) -> str:
    """The text of a file beside the templates."""
    return (resources.files("taskgraft.report") / "templates" / name).read_text(encoding="utf-8")


def sheet(own: str) -> str:
    """A whole style sheet: the colours as variables, what all pages share, and what a page has of its own."""
    dark, paper = _variables(DARK), _variables(LIGHT | PRINT)
    return "\n".join((
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        f"@media print {{ :root {{ color-scheme: light; {paper} }} }}",
        part("base.css"),
        own,
    ))  # fmt: skip


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())
