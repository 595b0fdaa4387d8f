"""Images that are nearly the same: difference hashes of small thumbnails, compared without looking at all pairs.

A hash has a bit for each pair of neighbors in a 9 x 9 gray thumbnail, across and down: 144 bits (the difference
hash of N. Krawetz, 2013, in both directions). Copies that were scaled, compressed again or touched up differ in few
bits. The colors of the thumbnails are compared too, since the hash is blind to them.
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
COLOR = 10.0  # gray levels by which thumbnails may differ, on average over pixels and channels
MIN_CONTRAST = 12.0  # gray levels between the darkest and the brightest cell below which a hash is noise
MAX_GROUP = 4000  # a band that more images than this share carries no information, and all pairs would take forever
BLOCK = 256


class NearDuplicates(NamedTuple):
    """Pairs of rows [P, 2] that look the same, the lower row first; `skipped` images have too little contrast."""

    pairs: NDArray[np.int64]
    skipped: int


def find_near_duplicates(thumbnails: NDArray[np.uint8]) -> NearDuplicates:
    """Find pairs of images that are nearly the same, from thumbnails [N, 9, 9, 3] uint8 decoded with THUMBNAIL."""
    gray = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    spread = gray.max((1, 2), initial=0) - gray.min((1, 2), initial=255)
    rows = np.flatnonzero(spread >= MIN_CONTRAST)
    bands = _hashes(gray[rows]).view(np.uint16)  # [N, 9]
    candidates = [pairs for band in range(bands.shape[1]) for pairs in _pairs_of_band(bands, band)]
    pairs = rows[np.unique(np.concatenate([np.empty((0, 2), np.int64), *candidates]), axis=0)]
    similar = [
        np.abs(thumbnails[chunk[:, 0]].astype(np.int16) - thumbnails[chunk[:, 1]]).mean((1, 2, 3)) <= COLOR
        for chunk in np.array_split(pairs, len(pairs) // 10_000 + 1)
    ]
    return NearDuplicates(pairs[np.concatenate(similar)], len(thumbnails) - len(rows))


def group_pairs(pairs: NDArray[np.int64]) -> list[list[int]]:
    """Group rows that are connected through pairs [P, 2]; rows in order, groups by their first row."""
    parents: dict[int, int] = {}  # union-find

    def root(row: int) -> int:
        while parents.setdefault(row, row) != row:
            parents[row] = row = parents[parents[row]]
        return row

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parents[high] = low
    members: dict[int, list[int]] = {}
    for row in sorted(parents):
        members.setdefault(root(row), []).append(row)
    return [members[first] for first in sorted(members)]


def _hashes(gray: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Hashes [N, 18] of gray thumbnails [N, 9, 9]."""
    shape = (len(gray), SIDE * (SIDE - 1))
    across = (gray[:, :, 1:] > gray[:, :, :-1]).reshape(shape)
    down = (gray[:, 1:] > gray[:, :-1]).reshape(shape)
    return np.packbits(np.concatenate([across, down], axis=1), axis=1)


def _pairs_of_band(bands: NDArray[np.uint16], band: int) -> Iterator[NDArray[np.int64]]:
    """Pairs [P, 2] of rows that have one band in common and differ in few bits over all."""
    order = np.argsort(bands[:, band], kind="stable")
    values = bands[order, band]
    edges = np.r_[0, np.flatnonzero(values[1:] != values[:-1]) + 1, len(values)]
    for start, stop in itertools.pairwise(edges.tolist()):
        if not 2 <= stop - start <= MAX_GROUP:
            continue
        rows = np.sort(order[start:stop])
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            distance = np.bitwise_count(bands[block][:, None] ^ bands[rows][None]).sum(-1)
            left, right = np.nonzero(distance <= BITS)
            pairs = np.stack([block[left], rows[right]], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]
