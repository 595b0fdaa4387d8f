"""Class names that are probably meant to be the same: other case, spaces, Unicode form or plural, or one typo."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """A name and the known name that it probably stands for; a variant differs in writing alone, else in spelling."""

    name: str
    suggestion: str
    is_variant: bool


def normalize_name(name: str) -> str:
    """Remove case, invisible characters, kinds of separators, a plural s, and the .0 of a number."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(char for char in text if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf"))
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return re.sub(r"(?<=[^\Ws]{3})s$", "", text)


def group_variants(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group names that differ in writing alone; groups of two or more."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(normalize_name(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def find_matches(names: Iterable[str], known: Sequence[str]) -> list[Match]:
    """Find, for names that are not known, the known name that each probably stands for; no match, no entry."""
    normalized = {normalize_name(name): name for name in known}
    matches = []
    for name in sorted(set(names) - set(known)):
        plain = normalize_name(name)
        if plain in normalized:
            matches.append(Match(name, normalized[plain], True))
            continue
        close = difflib.get_close_matches(plain, list(normalized), n=1, cutoff=0.85)
        # models and years differ by a digit, typos by a letter
        if close and re.findall(r"\d+", close[0]) == re.findall(r"\d+", name):
            matches.append(Match(name, normalized[close[0]], False))
    return matches
