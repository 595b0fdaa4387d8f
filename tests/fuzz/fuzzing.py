"""What a fuzzed part of the package is, and mutations for the tests; `make fuzz` mutates by coverage instead."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x2E, 0x0A)  # bytes at which parsers turn
SIZES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


class Target(NamedTuple):
    """One part: `one` takes whatever bytes and raises nothing, `seeds` are good inputs, `words` what its format knows.

    `executions` are those of a test of a second or two.
    """

    one: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    longest: int = 4096
    executions: int = 1000


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """The seeds themselves, then mutations of them without end; the same for the same seed."""
    rng = random.Random(seed)
    yield from target.seeds
    while True:
        data = bytearray(rng.choice(target.seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
            _change(data, target, rng)
        yield bytes(data[: target.longest])


def _change(data: bytearray, target: Target, rng: random.Random) -> None:
    """One change: a bit, a byte, a number, a word, a cut, a repetition, or a piece of another seed."""
    at, other = rng.randint(0, len(data)), rng.choice(target.seeds)
    match rng.randint(0, 7):
        case 0:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << rng.randint(0, 7)])
        case 1:
            data[at : at + 1] = bytes([rng.choice(ODD)])
        case 2:
            width = rng.choice((2, 4, 8))
            number = (rng.choice(SIZES) % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
            data[at : at + width] = number
        case 3 if target.words:
            data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(target.words)
        case 4:
            del data[at : at + rng.randint(1, 64)]
        case 5:
            data[at:at] = data[at : at + rng.randint(1, 64)] * rng.choice((1, 1, 2, 50))
        case 6:
            start = rng.randint(0, len(other))
            data[at:at] = other[start : start + rng.randint(1, 64)]
        case _:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
