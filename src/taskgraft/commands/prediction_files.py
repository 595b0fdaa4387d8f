"""Predictions as rows, and rows as JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft import metrics
from taskgraft.errors import InputError, require
from taskgraft.results.files import atomic
from taskgraft.results.predictions import Predictions

SUFFIXES = (".jsonl", ".csv", ".parquet")
PROBABILITY_DIGITS = 7
ROW_GROUP = 8192  # rows of a Parquet row group

Row = dict[str, Any]  # {"id": …, "tasks": {task: {"label", "probability", "top"}}} or {"id": …, "error": …}


class RowFormat(NamedTuple):
    """What decides the content of a row: classes and temperature of each task, kind of softmax, classes to list."""

    classes: Mapping[str, tuple[str, ...]]
    temperatures: Mapping[str, float]
    softmax: str
    top: int

    def rows(self, predictions: Predictions) -> list[Row]:
        """Return a row for each image: label, probability and, for `top` > 1, the `top` best classes of every task.

        A label is the task's own best class. Under a joint softmax `elsewhere` says that another task's output is
        higher: then the model makes no prediction for this task.
        """
        rows: list[Row] = [{"id": name, "tasks": {}} for name in predictions.ids]
        for task, logits in predictions.logits.items():
            classes = self.classes[task]
            probabilities = metrics.probabilities(logits, self.temperatures[task])
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
            values = np.round(np.take_along_axis(probabilities, order, axis=1), PROBABILITY_DIGITS).tolist()
            predicted = metrics.predicted_classes(predictions, task)
            for i, row in enumerate(rows):
                top = [{"label": classes[k], "probability": p} for k, p in zip(order[i], values[i], strict=True)]
                row["tasks"][task] = {**top[0], "top": top} if self.top > 1 else top[0]
                if self.softmax == "joint":
                    row["tasks"][task]["elsewhere"] = bool(predicted[i] < 0)
        return rows

    def columns(self) -> dict[str, str]:
        """Return the columns of a table of rows, and their types."""
        columns = {"id": "string", "error": "string"}
        for task, classes in self.classes.items():
            for rank in range(1, min(self.top, len(classes)) + 1):
                prefix = _column_prefix(task, rank)
                columns |= {f"{prefix}.label": "string", f"{prefix}.probability": "double"}
            if self.softmax == "joint":
                columns[f"{task}.elsewhere"] = "bool"
        return columns


def check_suffix(path: Path) -> None:
    """Raise InputError if the suffix of a file is not in `SUFFIXES`, or MissingDependency if there is no pyarrow."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}: the suffix selects the format; use {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        require("parquet", "pyarrow", what="a Parquet file")


def write_rows(path: Path, rows: Iterable[Row], row_format: RowFormat) -> None:
    """Write rows in the format that the suffix selects; the file appears once it is complete."""
    with atomic(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(temporary, rows, row_format.columns())
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                table = csv.DictWriter(file, row_format.columns(), lineterminator="\n")
                table.writeheader()
                table.writerows(map(_flatten, rows))
            else:
                file.writelines(to_json(row) + "\n" for row in rows)


def to_json(row: Row) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False)


def _write_parquet(path: Path, rows: Iterable[Row], columns: Mapping[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {"string": pyarrow.string(), "double": pyarrow.float64(), "bool": pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    flat_rows = map(_flatten, rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(flat_rows, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _flatten(row: Row) -> Row:
    """The values of a row by column."""
    values = {key: value for key, value in row.items() if key != "tasks"}
    for task, prediction in row.get("tasks", {}).items():
        for rank, entry in enumerate(prediction.get("top", [prediction]), start=1):
            prefix = _column_prefix(task, rank)
            values |= {f"{prefix}.label": entry["label"], f"{prefix}.probability": entry["probability"]}
        if "elsewhere" in prediction:
            values[f"{task}.elsewhere"] = prediction["elsewhere"]
    return values


def _column_prefix(task: str, rank: int) -> str:
    return task if rank == 1 else f"{task}.{rank}"
