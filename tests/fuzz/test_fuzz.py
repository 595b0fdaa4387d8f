"""A fixed number of mutated inputs for each part; `make fuzz` looks for more, guided by coverage, for as long as one
likes. What it found stands here as a seed.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest

from fuzz.fuzzing import inputs
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_a_crash(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and torch warn of damage, which is not at stake here
        for data in itertools.islice(inputs(target, 1), target.executions):
            try:
                target.one(data)
            except BaseException:
                print(f"{name}: {data!r}")
                raise
