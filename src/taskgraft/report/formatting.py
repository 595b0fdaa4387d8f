"""Numbers and settings as words: percentages with one decimal, intervals, durations, flat rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from taskgraft.results.record import Interval

NOTHING = "–"
HEXADECIMAL = re.compile(r"[0-9a-f]{40,}")


def percent(value: float | None) -> str:
    """A share as a percentage without its sign: 0.741 -> 74.1."""
    if value is None or not isfinite(value):
        return NOTHING
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def signed(value: float | None) -> str:
    """A difference of shares in points, with its sign: -0.007 -> -0.7."""
    text = percent(value)
    return text if text in (NOTHING, "0.0") or text.startswith("-") else f"+{text}"


def span(interval: Interval) -> str:
    """The 95 % interval of a share."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def change(forgetting: Interval) -> Interval:
    """Child minus parent from parent minus child."""
    return Interval(mean=-forgetting.mean, low=-forgetting.high, high=-forgetting.low, n=forgetting.n)


def measured(interval: Interval | None) -> str:
    """A share with its 95 % interval, or a dash where nothing was measured."""
    return NOTHING if interval is None else f"{percent(interval.mean)} ({span(interval)})"


def moved(forgetting: Interval | None) -> str:
    """A change from parent to child with its 95 % interval, signed."""
    if forgetting is None:
        return NOTHING
    delta = change(forgetting)
    return f"{signed(delta.mean)} ({signed(delta.low)} to {signed(delta.high)})"


def count(value: int) -> str:
    """A whole number with its thousands apart: 5130 -> 5,130."""
    return f"{value:,}"


def several(value: int, noun: str) -> str:
    """A count with its noun: 1 image, 2 images."""
    return f"{count(value)} {noun}" + ("" if value == 1 else "s")


def part(value: int, whole: int) -> str:
    """A share of parameters, most of which are small."""
    share = 100 * value / whole
    return "under 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def typeset(text: str) -> str:
    """Hyphens before a digit become minus signs, which line up with plus in a column."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\N{MINUS SIGN}", text)


def value_text(value: Any) -> str:
    """One setting as text; long digests are cut, since nobody reads them."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(part) for part in value) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {value_text(part)}" for key, part in value.items()) or NOTHING
    text = str(value)
    return f"{text[:16]}…" if HEXADECIMAL.fullmatch(text) else text


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of name and text, in their order: {"a": {"b": 1}} -> [("a · b", "1")]."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix} · {key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            rows += flat(value, name)
        else:
            rows.append((name, value_text(value)))
    return rows
