"""Train and validation by content hash: a duplicate cannot straddle, another run finds the same split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from taskgraft import seeding
from taskgraft.errors import DataError


def by_content(digests: Sequence[str], labels: Sequence[str], share: float, seed: int) -> list[str]:
    """Place each image in "train" or "val", stratified: about `share` of each class goes to val.

    Equal contents get equal answers. Raises TaskgraftError when a class has fewer than two different images.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for digest, label in zip(digests, labels, strict=True):
        members[label].add(digest)
    held: set[str] = set()
    taken: set[str] = set()  # contents that stand in several classes follow the first class that places them
    for label in sorted(members):
        ordered = sorted(members[label], key=lambda digest: seeding.derive(seed, "split", digest))
        if len(ordered) < 2:
            raise DataError(
                f"class {label!r} has one image, and a validation split needs two; add some, "
                "or give train/ and val/ folders"
            )
        count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
        held.update(digest for digest in ordered[:count] if digest not in taken)
        taken.update(ordered)
    return ["val" if digest in held else "train" for digest in digests]
