"""Rows of answers: what a row holds, and files of rows as JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft import metrics
from taskgraft.errors import InputError, require
from taskgraft.results.files import atomic
from taskgraft.results.predictions import Predictions

KINDS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
DIGITS = 7  # of a probability
GROUP = 8192  # rows of a Parquet row group


class Shape(NamedTuple):
    """What decides the columns: class names by task, how many answers each, and how they are calibrated."""

    classes: Mapping[str, tuple[str, ...]]
    softmax: str
    top: int
    temperatures: Mapping[str, float]


Row = dict[str, Any]  # {"id": …, "tasks": {task: {"label", "probability", "top"}}} or {"id": …, "error": …}
Write = Callable[[Row], None]


def answer_rows(predictions: Predictions, shape: Shape) -> list[Row]:
    """A row for each image: label, probability and, for `top` > 1, the best few of every task.

    A label is the task's own best class. Under a joint softmax `elsewhere` says that another task's output is higher:
    then the model does not answer this task at all.
    """
    rows: list[Row] = [{"id": name, "tasks": {}} for name in predictions.ids]
    for task, logits in predictions.logits.items():
        names = predictions.classes[task]
        shares = metrics.probabilities(logits, shape.temperatures.get(task, 1.0))
        best = np.argsort(-shares, axis=1, kind="stable")[:, : max(shape.top, 1)]
        values = np.round(np.take_along_axis(shares, best, axis=1), DIGITS).tolist()
        lost = metrics.predicted_classes(predictions, task) < 0 if shape.softmax == "joint" else None
        for i, row in enumerate(rows):
            found = [{"label": names[k], "probability": p} for k, p in zip(best[i], values[i], strict=True)]
            row["tasks"][task] = dict(found[0]) | ({"top": found} if shape.top > 1 else {})
            if lost is not None:
                row["tasks"][task]["elsewhere"] = bool(lost[i])
    return rows


def kind_of(path: Path) -> str:
    """What a file is by its suffix. Raises TaskgraftError for one that cannot be written."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"--out {path}: its suffix says how it is written; give one of {', '.join(KINDS)}")
    if kind == "parquet":
        _parquet()
    return kind


@contextmanager
def writing(path: Path, shape: Shape) -> Iterator[Write]:
    """Give a function that adds a row to a file; the file appears, whole, when the block ends well."""
    kind = kind_of(path)
    with atomic(path) as aside:
        if kind == "parquet":
            with _parquet_rows(aside, shape) as write_group:
                yield write_group
            return
        with aside.open("w", encoding="utf-8", newline="") as file:
            if kind == "jsonl":

                def write_line(row: Row) -> None:
                    file.write(line(row) + "\n")

                yield write_line
                return
            table = csv.DictWriter(file, list(columns(shape)), lineterminator="\n")
            table.writeheader()

            def write(row: Row) -> None:
                table.writerow(flat(row))

            yield write


def line(row: Row) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False)


def columns(shape: Shape) -> dict[str, str]:
    """Columns of a table of rows and their types, in order."""
    found = {"id": "string", "error": "string"}
    for task, classes in shape.classes.items():
        for number in range(1, min(max(shape.top, 1), len(classes)) + 1):
            key = _key(task, number)
            found |= {f"{key}.label": "string", f"{key}.probability": "double"}
        if shape.softmax == "joint":
            found[f"{task}.elsewhere"] = "bool"
    return found


def flat(row: Row) -> Row:
    """A row as values by column."""
    found = {"id": row["id"], **({"error": row["error"]} if "error" in row else {})}
    for task, answer in row.get("tasks", {}).items():
        for number, one in enumerate(answer.get("top", [answer]), start=1):
            key = _key(task, number)
            found |= {f"{key}.label": one["label"], f"{key}.probability": one["probability"]}
        if "elsewhere" in answer:
            found[f"{task}.elsewhere"] = answer["elsewhere"]
    return found


def merge(parts: Sequence[Path], out: Path) -> None:
    """Join part files, in order, into one; atomically. A reader cannot tell that there were parts."""
    kind = kind_of(out)
    with atomic(out) as aside:
        if kind == "parquet":
            _merge_parquet(parts, aside)
            return
        with aside.open("wb") as file:
            for number, part in enumerate(parts):
                with part.open("rb") as given:
                    if kind == "csv" and number:
                        given.readline()  # one header is enough; names of columns hold no line break
                    shutil.copyfileobj(given, file)


def _key(task: str, number: int) -> str:
    return task if number == 1 else f"{task}.{number}"


def _parquet() -> tuple[Any, Any]:
    require("parquet", "pyarrow", what="a Parquet file")
    import pyarrow
    import pyarrow.parquet as parquet

    return pyarrow, parquet


@contextmanager
def _parquet_rows(path: Path, shape: Shape) -> Iterator[Write]:
    arrow, parquet = _parquet()
    types = {"string": arrow.string(), "double": arrow.float64(), "bool": arrow.bool_()}
    schema = arrow.schema([(name, types[kind]) for name, kind in columns(shape).items()])
    waiting: list[Row] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(row: Row) -> None:
            waiting.append(flat(row))
            if len(waiting) >= GROUP:
                flush()

        yield write
        flush()


def _merge_parquet(parts: Sequence[Path], path: Path) -> None:
    _, parquet = _parquet()
    with parquet.ParquetWriter(path, parquet.read_schema(parts[0])) as writer:
        for part in parts:
            with parquet.ParquetFile(part) as given:
                for group in given.iter_batches(GROUP):
                    writer.write_batch(group)
