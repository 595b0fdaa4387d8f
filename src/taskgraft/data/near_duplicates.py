"""Images that are nearly the same: difference hashes of small thumbnails, compared without looking at all pairs.

A hash has a bit for each pair of neighbours in a 9 x 9 grey thumbnail, across and down: 144 bits (the difference
hash of N. Krawetz, 2013, in both directions). Copies that were scaled, compressed again or touched up differ in few
bits. The colours of the thumbnails are compared too, since the hash sees none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.data.transforms import Preprocessing

SIDE = 9
SHAPE = (SIDE, SIDE, 3)
THUMBNAIL = Preprocessing(SIDE, "squash", 0.875, "bilinear")
BITS = 8  # of 144 that may differ: with nine bands of 16 bits, one band at least is then equal
COLOR = 10.0  # grey levels by which thumbnails may differ, on average over pixels and channels
EVEN = 12.0  # grey levels between the darkest and the brightest cell below which a hash is noise
CROWD = 4000  # a band that more images than this have in common tells nothing, and all pairs would take for ever
BLOCK = 256


class NearDuplicates(NamedTuple):
    """Pairs of rows [P, 2] that look the same, the lower row first; `skipped` images were not compared."""

    pairs: NDArray[np.int64]
    skipped: int


def find_near_duplicates(thumbs: NDArray[np.uint8]) -> NearDuplicates:
    """Pairs among thumbnails [N, 9, 9, 3]."""
    gray = thumbs.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    spread = gray.max((1, 2), initial=0) - gray.min((1, 2), initial=255)
    rows = np.flatnonzero(spread >= EVEN)
    bands = _hashes(gray[rows]).view(np.uint16)  # [N, 9]
    found = [pair for band in range(bands.shape[1]) for pair in _within(bands, band)]
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)
    pairs = rows[pairs]
    near = [
        np.abs(thumbs[part[:, 0]].astype(np.int16) - thumbs[part[:, 1]]).mean((1, 2, 3)) <= COLOR
        for part in np.array_split(pairs, len(pairs) // 10_000 + 1)
    ]
    return NearDuplicates(pairs[np.concatenate(near)], len(thumbs) - len(rows))


def group_pairs(pairs: NDArray[np.int64]) -> list[list[int]]:
    """What hangs together through pairs: rows of each group in order, groups by their first row."""
    owner: dict[int, int] = {}

    def root(row: int) -> int:
        while owner.setdefault(row, row) != row:
            owner[row] = row = owner[owner[row]]
        return row

    for one, two in pairs.tolist():
        low, high = sorted((root(one), root(two)))
        owner[high] = low
    members: dict[int, list[int]] = {}
    for row in sorted(owner):
        members.setdefault(root(row), []).append(row)
    return [members[first] for first in sorted(members)]


def _hashes(gray: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Hashes [N, 18] of grey thumbnails [N, 9, 9]."""
    shape = (len(gray), SIDE * (SIDE - 1))
    across = (gray[:, :, 1:] > gray[:, :, :-1]).reshape(shape)
    down = (gray[:, 1:] > gray[:, :-1]).reshape(shape)
    return np.packbits(np.concatenate([across, down], axis=1), axis=1)


def _within(bands: NDArray[np.uint16], band: int) -> Iterator[NDArray[np.int64]]:
    """Pairs [P, 2] of rows that have one band in common and differ in few bits over all."""
    order = np.argsort(bands[:, band], kind="stable")
    values = bands[order, band]
    edges = np.r_[0, np.flatnonzero(values[1:] != values[:-1]) + 1, len(values)]
    for start, stop in itertools.pairwise(edges.tolist()):
        if not 2 <= stop - start <= CROWD:
            continue
        rows = np.sort(order[start:stop])
        for at in range(0, len(rows), BLOCK):
            block = rows[at : at + BLOCK]
            distance = np.bitwise_count(bands[block][:, None] ^ bands[rows][None]).sum(-1)
            one, two = np.nonzero(distance <= BITS)
            pairs = np.stack([block[one], rows[two]], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]
