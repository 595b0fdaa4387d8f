"""Which class names are probably meant to be one."""

from __future__ import annotations

import pytest

from taskgraft.data import class_names

ACUTE = ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
SAME = [
    ("Ford", "ford"), ("sports car", "sports_car"), ("sports car", " Sports-Car "), ("van", "vans"), ("1", "1.0"),
    ("\N{LATIN SMALL LIGATURE FI}at", "fiat"), ("bus\N{ZERO WIDTH SPACE}", "bus"), ACUTE,
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), SAME)
def test_written_otherwise(one: str, two: str) -> None:
    assert class_names.normalize_name(one) == class_names.normalize_name(two)
    assert class_names.group_variants([one, two, "lorry"]) == [tuple(sorted((one, two)))]
    assert class_names.find_matches([one], [two, "lorry"]) == [class_names.Match(one, two, True)]


@pytest.mark.parametrize(
    ("one", "two"), [("class 1", "class 2"), ("bus", "bu"), ("A4", "A5"), ("1", "10"), ("red", "green")]
)
def test_others_are_others(one: str, two: str) -> None:
    assert class_names.group_variants([one, two]) == []
    assert class_names.find_matches([one], [two]) == []


def test_one_typo_is_spelt_otherwise() -> None:
    assert class_names.find_matches(["Volkswagon Golf"], ["Volkswagen Golf", "Opel"]) == [
        class_names.Match("Volkswagon Golf", "Volkswagen Golf", False)
    ]
    assert class_names.find_matches(["Opel"], ["Opel"]) == []
