"""Columns that are mapped from a file: what goes in comes out, and what is no whole file is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskgraft.data import file_index


@given(st.lists(st.text(st.characters(exclude_categories=[])), max_size=20))
@settings(deadline=None, max_examples=100)
def test_names_are_a_tuple_of_any_strings(names: list[str]) -> None:
    names = [name.encode("utf-8", "replace").decode() for name in names] + [
        "\udcff.png"
    ]  # a file's name may not be UTF-8
    packed = file_index.pack_names(names)
    assert len(packed) == len(names)
    assert list(packed) == names
    assert [packed[row] for row in range(len(names))] == names
    for row in (-1, len(names)):
        with pytest.raises(IndexError):
            packed[row]


def test_many_names_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_index, "CHUNK", 3)
    names = [str(number) * (number % 4) for number in range(10)]
    assert list(file_index.pack_names(names)) == names


def test_columns_come_back_and_the_file_cannot_be_written_through_them(tmp_path: Path) -> None:
    path, table = tmp_path / "x", {"a": torch.arange(5), "b": torch.zeros(0, 3), "c": torch.tensor([True, False])}
    file_index.save_columns(path, table, {"one": [1, None, "é"]})
    for _ in range(2):
        result = file_index.load_columns(path)
        assert result is not None
        assert result[1] == {"one": [1, None, "é"]}
        assert result[0].keys() == table.keys()
        assert all(torch.equal(result[0][name], value) for name, value in table.items())
        result[0]["a"].zero_()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_half_a_file_is_none(tmp_path: Path, keep: float) -> None:
    file_index.save_columns(tmp_path / "x", {"a": torch.arange(500)}, {})
    os.truncate(tmp_path / "x", int(keep * (tmp_path / "x").stat().st_size))
    assert file_index.load_columns(tmp_path / "x") is None
    assert file_index.load_columns(tmp_path / "gone") is None
