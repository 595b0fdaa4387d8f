"""Numbers and settings as text: percentages, intervals, counts, durations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from taskgraft.results.record import Interval

MISSING = "–"
DIGEST = re.compile(r"[0-9a-f]{40,}")


def percent(value: float | None) -> str:
    """Format a fraction in [0, 1] as a percentage without the sign: 0.741 -> "74.1"; "–" for None and NaN."""
    if value is None or not isfinite(value):
        return MISSING
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def delta(value: float | None) -> str:
    """Format a difference of fractions as signed percentage points: -0.007 -> "-0.7"."""
    text = percent(value)
    return text if text in (MISSING, "0.0") or text.startswith("-") else f"+{text}"


def bounds(interval: Interval) -> str:
    """Format the bounds of a 95 % interval in percent: "70.2 to 77.9"."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def estimate(interval: Interval | None) -> str:
    """Format a fraction with its 95 % interval in percent: "74.1 (70.2 to 77.9)"."""
    return MISSING if interval is None else f"{percent(interval.mean)} ({bounds(interval)})"


def change(forgetting: Interval | None) -> str:
    """Format the change from parent to child, the negative of forgetting, as signed points with its 95 % interval."""
    if forgetting is None:
        return MISSING
    mean, low, high = (delta(-value) for value in (forgetting.mean, forgetting.high, forgetting.low))
    return f"{mean} ({low} to {high})"


def pluralize(value: int, noun: str) -> str:
    """Format a count with its noun: "1 image", "2 images", "3 classes"."""
    ending = "" if value == 1 else "es" if noun.endswith("s") else "s"
    return f"{value:,} {noun}{ending}"


def fraction(part: int, total: int) -> str:
    """Format a part of a total as a percentage with its sign; tiny ones as "under 0.1 %"."""
    return "under 0.1 %" if 0 < part / total < 0.001 else f"{percent(part / total)} %"


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def use_minus_signs(text: str) -> str:
    """Replace hyphens before a digit by minus signs, which align with plus signs in a column."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\N{MINUS SIGN}", text)


def to_sentence(text: str) -> str:
    """Capitalize a message and end it with a period, with true minus signs."""
    ending = "" if text.endswith((".", "!", "?")) else "."
    return use_minus_signs(text[:1].upper() + text[1:] + ending)


def escape_markdown(text: str) -> str:
    """Escape a name so that it can neither end its cell of a Markdown table nor be read as markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for sign in "|*`[":
        text = text.replace(sign, f"\\{sign}")
    return text


def setting(value: Any) -> str:
    """Format one setting; long digests are shortened."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) or MISSING
    text = str(value)
    return f"{text[:16]}…" if DIGEST.fullmatch(text) else text


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings into rows of name and text: {"a": {"b": 1}} -> [("a · b", "1")]."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix} · {key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            rows += flatten(value, name)
        else:
            rows.append((name, setting(value)))
    return rows
