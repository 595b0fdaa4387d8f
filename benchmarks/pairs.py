"""Three pairs of tasks on real images, as folders and tables that `taskgraft train` and `extend` read.

    .venv/bin/python benchmarks/pairs.py OUT [--shared ../shared]

makes-colours: Stanford Cars; a = make, b = colour; no image and no car model stands in both tables.
fashion: Fashion-MNIST; a = classes 0 to 4, b = classes 5 to 9.
digits: scikit-learn's 8 × 8 digits; a = the even ones, b = the odd ones.

taskgraft reads no file outside its table's folder, so the cars' images are copied below OUT, outside the project.

Every choice of images is a hash of a name and SEED, or the order of the source: a second run writes the same files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SEED = 0
SPLITS = ("train", "val", "test")
LEAST = 30  # training images of a make or colour; those with fewer are dropped
CONFIDENCE = 0.8  # colours are another model's answers, about 95 % right from here on
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts its files
FASHION = ("t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
FASHION_TRAIN, FASHION_HELD = 1000, 400  # images of each class: training; validation and test each


class Count(NamedTuple):
    """One task of a pair: how many classes, and how many images of each split."""

    pair: str
    task: str
    classes: int
    pictures: Counter[str]


class Picture(NamedTuple):
    """One image to write, named by its row in the source."""

    split: str
    label: str
    name: str
    pixels: np.ndarray


def key(text: str) -> int:
    """A number that depends on SEED and the text alone."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{text}".encode()).digest())


# ---- makes-colours -------------------------------------------------------------------------------------------


def makes_colors(out: Path, cars: Path, confidence: float) -> list[Count]:
    """Write a.csv (make) and b.csv (colour), each on the car models of one half; images stay where they are."""
    manifest = cars / "manifest.csv"
    if not manifest.is_file():
        raise SystemExit(f"{manifest} does not exist; give --shared, the folder that holds data/cars")
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = once(sorted(csv.DictReader(file), key=lambda row: row["path"]), cars)
    halves: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for row in rows:
        halves[key(row["model"]) % 2].append(row)
    sure = [row for row in halves[1] if row["colour"] and float(row["colour_confidence"]) >= confidence]
    print(f"makes-colours: {len(halves[1]) - len(sure)} of b have no colour or one below confidence {confidence:g}")
    makes, colors = frequent(halves[0], "make", rows), frequent(sure, "colour", rows)
    out.mkdir(parents=True, exist_ok=True)
    place([row["path"] for row in (*makes, *colors)], cars, out / "cars")
    return [table(out / "a.csv", makes, "make"), table(out / "b.csv", colors, "colour")]


def once(rows: list[dict[str, str]], cars: Path) -> list[dict[str, str]]:
    """Rows whose file's bytes no earlier row has: some cars stand under two models."""
    seen: dict[str, dict[str, str]] = {}
    for row in rows:
        seen.setdefault(hashlib.sha256((cars / row["path"]).read_bytes()).hexdigest(), row)
    print(f"makes-colours: {len(rows) - len(seen)} of {len(rows)} images are copies of another and left out")
    return list(seen.values())


def frequent(rows: list[dict[str, str]], column: str, everything: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of classes with at least LEAST training images; prints what is dropped."""
    count = Counter(row[column] for row in rows if row["split"] == "train")
    names = sorted({row[column] for row in everything if row[column]})
    dropped = [f"{name} ({count[name]})" for name in names if count[name] < LEAST]
    print(f"makes-colours: {column}: dropped for fewer than {LEAST} training images: {', '.join(dropped) or 'none'}")
    return [row for row in rows if count[row[column]] >= LEAST]


def place(paths: list[str], cars: Path, folder: Path) -> None:
    """Copy the tables' images below them."""
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(cars / path, target)


def table(path: Path, rows: list[dict[str, str]], column: str) -> Count:
    """Write path, label and split of the rows, sorted by path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", column, "split"))
    writer.writerows((f"cars/{row['path']}", row[column], row["split"]) for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return Count(path.parent.name, path.stem, len({row[column] for row in rows}), Counter(row["split"] for row in rows))


# ---- fashion -------------------------------------------------------------------------------------------------


def fashion(out: Path, source: Path) -> list[Count]:
    """Write classes 0 to 4 below a, 5 to 9 below b; validation is cut from the end of the official train file."""
    pixels, labels = idx(source / "train-images-idx3-ubyte.gz"), idx(source / "train-labels-idx1-ubyte.gz")
    tested, answers = idx(source / "t10k-images-idx3-ubyte.gz"), idx(source / "t10k-labels-idx1-ubyte.gz")
    pictures: tuple[list[Picture], list[Picture]] = ([], [])
    for digit, label in enumerate(FASHION):
        rows, test = np.flatnonzero(labels == digit), np.flatnonzero(answers == digit)
        parts = {
            "train": (pixels, rows[:FASHION_TRAIN]),
            "val": (pixels, rows[-FASHION_HELD:]),
            "test": (tested, test[:FASHION_HELD]),
        }
        for split, (found, chosen) in parts.items():
            pictures[digit // 5].extend(Picture(split, label, f"{row:05d}", found[row]) for row in chosen)
    return [write(out / "a", pictures[0]), write(out / "b", pictures[1])]


def idx(path: Path) -> np.ndarray:
    """The bytes of a gzipped IDX file, in its shape."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; apt-get install dataset-fashion-mnist, or give --fashion, its folder")
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


# ---- digits --------------------------------------------------------------------------------------------------


def digits(out: Path) -> list[Count]:
    """Write even digits below a, odd ones below b; of every digit 60 % train, 20 % val, 20 % test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("digits needs scikit-learn: pip install scikit-learn") from error
    values, target = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pictures: tuple[list[Picture], list[Picture]] = ([], [])
    for digit in range(10):
        rows = sorted(np.flatnonzero(target == digit).tolist(), key=lambda row: key(f"digits/{row}"))
        held = round(len(rows) / 5)
        parts = {"train": rows[2 * held :], "val": rows[:held], "test": rows[held : 2 * held]}
        for split, chosen in parts.items():
            pictures[digit % 2].extend(Picture(split, str(digit), f"{row:04d}", pixels[row]) for row in chosen)
    return [write(out / "a", pictures[0]), write(out / "b", pictures[1])]


# ---- both ----------------------------------------------------------------------------------------------------


def write(root: Path, pictures: Iterable[Picture]) -> Count:
    """Save root/<split>/<class>/<name>.png; stops at images there that this run does not write."""
    files = {root / item.split / item.label / f"{item.name}.png": item for item in pictures}
    strays = sorted(set(root.rglob("*.png")) - set(files))
    if strays:
        raise SystemExit(f"{strays[0]} and {len(strays) - 1} more are of another run; remove {root} first")
    for path, item in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(item.pixels).save(path)
    labels = {item.label for item in files.values()}
    return Count(root.parent.name, root.name, len(labels), Counter(item.split for item in files.values()))


def show(counts: list[Count]) -> None:
    """Print the pairs as a table."""
    rows = [("pair", "task", "classes", *SPLITS)]
    rows += [(c.pair, c.task, str(c.classes), *(str(c.pictures[split]) for split in SPLITS)) for c in counts]
    print()
    for row in rows:
        print(f"{row[0]:<15}{row[1]:<6}" + "".join(f"{cell:>9}" for cell in row[2:]))


def main() -> None:
    """Read the arguments, write the pairs, print their counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the pairs")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="root of the local data (data/cars)")
    parser.add_argument("--fashion", type=Path, default=FASHION_DEBIAN, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help="least confidence of a colour")
    parser.add_argument("--only", choices=("makes-colours", "fashion", "digits"), help="write this pair alone")
    args = parser.parse_args()
    pairs: dict[str, Callable[[Path], list[Count]]] = {
        "makes-colours": lambda out: makes_colors(out, args.shared / "data" / "cars", args.confidence),
        "fashion": lambda out: fashion(out, args.fashion),
        "digits": digits,
    }
    show([count for name, make in pairs.items() if args.only in (None, name) for count in make(args.out / name)])


if __name__ == "__main__":
    main()
