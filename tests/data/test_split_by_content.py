"""The split by content: stratified, never astride a duplicate, the same in any order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskgraft.data.dataset import split_by_content
from taskgraft.errors import TaskgraftError

ROWS = st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from("abc")), min_size=1, max_size=60)


@given(rows=ROWS, seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.2, 0.5]))
@settings(deadline=None, max_examples=200)
def test_duplicates_never_straddle_and_order_does_not_matter(
    rows: list[tuple[str, str]], seed: int, share: float
) -> None:
    contents = {label: {digest for digest, other in rows if other == label} for _, label in rows}
    digests, labels = [row[0] for row in rows], [row[1] for row in rows]
    if min(map(len, contents.values())) < 2:
        with pytest.raises(TaskgraftError, match="has one image"):
            split_by_content(digests, labels, share, seed)
        return
    parts = split_by_content(digests, labels, share, seed)
    placed: dict[str, set[str]] = {}
    for digest, part in zip(digests, parts, strict=True):
        placed.setdefault(digest, set()).add(part)
    assert all(len(where) == 1 for where in placed.values())
    assert set(parts) <= {"train", "val"}
    backwards = split_by_content(digests[::-1], labels[::-1], share, seed)
    assert backwards[::-1] == parts


def test_every_class_gives_its_share() -> None:
    sizes = {"a": 100, "b": 50, "c": 2, "d": 3}
    rows = [(f"{label}{number}", label) for label, size in sizes.items() for number in range(size)]
    parts = split_by_content([digest for digest, _ in rows], [label for _, label in rows], 0.2, 7)
    held = Counter(label for (_, label), part in zip(rows, parts, strict=True) if part == "val")
    assert held == {"a": 20, "b": 10, "c": 1, "d": 1}


def test_another_seed_gives_another_split() -> None:
    digests, labels = [str(number) for number in range(100)], ["a", "b"] * 50
    assert split_by_content(digests, labels, 0.2, 1) == split_by_content(digests, labels, 0.2, 1)
    assert split_by_content(digests, labels, 0.2, 1) != split_by_content(digests, labels, 0.2, 2)


def test_more_pictures_do_not_reshuffle_the_others() -> None:
    digests = [str(number) for number in range(100)]
    before = split_by_content(digests, ["a"] * 100, 0.2, 0)
    after = split_by_content([*digests, "new"], ["a"] * 101, 0.2, 0)
    assert sum(one != other for one, other in zip(before, after, strict=False)) <= 1


def test_two_copies_of_one_picture_are_one_picture() -> None:
    with pytest.raises(TaskgraftError, match="class 'b' has one image"):
        split_by_content(["1", "2", "3", "3"], ["a", "a", "b", "b"], 0.2, 0)


def test_pictures_of_two_classes_follow_the_first() -> None:
    digests = [str(number) for number in range(100)]
    alone = split_by_content(digests, ["a"] * 100, 0.2, 0)
    shared = [digest for digest, part in zip(digests, alone, strict=True) if part == "train"]
    parts = split_by_content(digests + shared, ["a"] * 100 + ["b"] * 80, 0.2, 0)
    assert parts == alone + ["train"] * 80
