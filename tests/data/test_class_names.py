"""Class names: read from files in any of their forms, and which are probably meant to be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskgraft.data import class_names
from taskgraft.errors import InputError

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


NAMES = ("tench, Tinca tinca", "dog", "eel")
PAIRS = dict(enumerate(NAMES))
INDICES = {name: index for index, name in reversed(PAIRS.items())}


@pytest.mark.parametrize(
    "text",
    [
        "\ufefftench, Tinca tinca\r\n dog \n\neel\n",
        "0: tench, Tinca tinca\n2: eel\n1: dog",
        "0\ttench, Tinca tinca\n1\tdog\n2\teel",
        "0 tench, Tinca tinca\n1 dog\n2 eel",
        "eel,2\ndog,1\ntench, Tinca tinca,0",
        "- tench, Tinca tinca\n- dog\n- eel",
        json.dumps(NAMES),
        json.dumps(PAIRS),
        json.dumps(INDICES, indent=1),
        json.dumps({"model_type": "vit", "id2label": PAIRS, "label2id": INDICES}),
        str(PAIRS),
        'id,name\n2,eel\n1,dog\n0,"tench, Tinca tinca"',
        "Class Name;images;Class_ID\neel;12;2\ndog;3;1\ntench, Tinca tinca;40;0",
    ],
)
def test_labels_are_read_in_any_form(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    names, form = class_names.read_labels(tmp_path / "labels.txt")
    assert names == NAMES
    assert form.startswith("class names from --labels labels.txt") == (text[0] != "\ufeff")


def test_a_line_of_any_length_is_a_name(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "labels.txt").write_text(f"cat\n{long}\n")
    assert class_names.read_labels(tmp_path / "labels.txt") == (("cat", long), "")


@pytest.mark.parametrize("names", ["  0: cat\n  1: dog", "  - cat\n  - dog", " [cat, dog]"])
def test_labels_are_read_from_the_yaml_of_a_data_set(names: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"path: ../pets\ntrain: images/train\nnc: 2\nnames:\n{names}\n")
    assert class_names.read_labels(tmp_path / "data.yaml") == (
        ("cat", "dog"),
        "class names from --labels data.yaml, its entry 'names'",
    )


def test_yaml_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.yml").write_text("names: [cat, dog\n")
    with pytest.raises(InputError, match=r"data\.yml: it is not valid YAML \("):
        class_names.read_labels(tmp_path / "data.yml")


@pytest.mark.parametrize("text", ["2012 Audi A4\n2011 Audi A4", "Audi A4, 2012\nAudi A5, 2012", "0 - zero\n1 - one"])
def test_numbers_that_are_no_indices_belong_to_the_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert class_names.read_labels(tmp_path / "labels.txt") == (tuple(text.splitlines()), "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: cat\n2: dog", "its indices are not 0 to 1, each once"),
        ("0: cat\n0: dog", "an index is there twice"),
        ("no,name\n0,cat\n1,dog", "most lines begin with an index, but not all: 'no,name'"),
        ("id,name\n0,cat\n1,dog\n1,eel", "an index is there twice"),
        ("id,name\n0,cat\nn2,dog", "its column 'id' has no index in the row 'n2,dog'"),
        ("id,name\n1,cat\n2,dog", "its indices are not 0 to 1, each once"),
        ("names:\n 0: cat\n 1: dog\n", "not all: 'names:'"),
        ('["cat", "dog"', "it is not valid JSON"),
        ('["cat", "cat"]', "it lists 'cat' twice; class names must differ"),
        ('{"0": ["n1", "cat"], "1": ["n2", "dog"]}', "not all of its names are texts"),
        ('{"cat": "Felis", "dog": "Canis"}', "neither {index: name} nor {name: index}"),
        ('["cat", null]', "not all of its names are texts"),
        ("[]", "it is not a list of names"),
        (" \n", "it is empty"),
    ],
)
def test_unclear_labels_are_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text) if text[:1] in "[{" else (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        class_names.read_labels(next(tmp_path.iterdir()))
    assert message in str(caught.value)
    assert str(caught.value).endswith("give one name per line, in index order")
