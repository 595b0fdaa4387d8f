"""Class names that are probably suggestion to be one: they differ in case, spaces, accents' encoding, plural or one
typo.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """A name, the name that it may stand for, and whether the two differ in writing alone (else in spelling)."""

    name: str
    suggestion: str
    is_variant: bool


def normalize_name(name: str) -> str:
    """A name without case, invisible characters, kinds of separators, a plural s, and the .0 of a number."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(sign for sign in text if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf"))
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return re.sub(r"(?<=[^\Ws]{3})s$", "", text)


def group_variants(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of two or more of the names that differ in writing alone."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        found.setdefault(normalize_name(name), []).append(name)
    return [tuple(group) for group in found.values() if len(group) > 1]


def find_matches(names: Iterable[str], known: Sequence[str]) -> list[Match]:
    """For each name that is not known, the known one that it probably stands for, if there is one."""
    written = {normalize_name(name): name for name in known}
    found = []
    for name in sorted(set(names) - set(known)):
        if normalize_name(name) in written:
            found.append(Match(name, written[normalize_name(name)], True))
            continue
        close = difflib.get_close_matches(normalize_name(name), list(written), n=1, cutoff=0.85)
        if close and _numbers(close[0]) == _numbers(name):  # models and years differ by a digit, typos by a letter
            found.append(Match(name, written[close[0]], False))
    return found


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)
