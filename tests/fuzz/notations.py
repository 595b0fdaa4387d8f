"""The lines that people write: a method, a line of preprocessing, what a search leaves open."""

from __future__ import annotations

from pathlib import Path

from fuzz.fuzzing import Target
from taskgraft.config import TrainingConfig
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.methods import notation, registry
from taskgraft.tuning import space

SEEDS = (
    b"mewc(strength=30) + distill(temperature=2, teacher=live)",
    b"mbranch", b"mtaps(backbone=trained) + distill", b"msi(strength=1e2, implicit=False)", b"mlora(rank=4) + distill",
    b"mreplay(share=0.5, keep=true) + wise(weight=0.3)", b"mbaseline",
    b"p96 squash bilinear imagenet",
    b"p224 center:0.9 bicubic mean=0.5,0.4,0.3 std=0.1,0.2,0.3", b"p32 border nearest none",
    b"sewc(strength=10..1000) + distill\nrate=1e-4..1e-2, head_steps=[0, 200]",
    b"sdistill(temperature=[1, 2, 4])\n", b"smas\nsteps=300",
    # what has been a crash once
    b"mewc(strength=" + b"-" * 1500 + b"1)", b"sewc(strength=1" + b"+1" * 490 + b")\n", b"p" + b"9" * 4500,
)  # fmt: skip
WORDS = (
    *(name.encode() for name in registry.METHODS), b"strength=", b"temperature=", b"labels=exact", b"1e999", b"-", b"~",
    b"not ", b"9" * 40, b"[", b"(", b"..", b"lambda:", b"**x", b"*x", b"f'{x}'", b"'\\d'", b"nan", b"inf", b"1j",
    b"center:",
    b"mean=", b"std=", b"squash", "\uff12".encode(), "\ufb01".encode(), b"\xed\xa0\x80", b"\0", b"lr=", b"0x1",
    b"1_0", b"# ", b"\\\n",
)  # fmt: skip


def target(folder: Path) -> Target:
    return Target(one, SEEDS, WORDS, longest=3000, executions=4000)


def one(data: bytes) -> None:
    """The first byte says what follows."""
    kind, text = data[:1], data[1:].decode("utf-8", "surrogateescape")
    try:
        if kind == b"m":
            plan = notation.parse(text)
            assert notation.parse(notation.show(plan)) == plan
        elif kind == b"p":
            preprocessing = transforms.parse_preprocessing(text, Preprocessing())
            assert (
                transforms.parse_preprocessing(preprocessing.to_text(), Preprocessing()).to_text()
                == preprocessing.to_text()
            )
        else:
            method, _, settings = text.partition("\n")
            result = space.parse(method, settings, TrainingConfig())
            assert space.describe(result)
    except TaskgraftError:
        return
