"""The deliberate defects of `make mutants` still fit the code: each text that one replaces stands there once."""

from __future__ import annotations

import pytest

import mutants


@pytest.mark.parametrize("mutant", mutants.ALL, ids=lambda mutant: mutant.name)
def test_the_text_is_found(mutant: mutants.Mutant) -> None:
    text = (mutants.ROOT / "src" / "taskgraft" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, mutant.file
