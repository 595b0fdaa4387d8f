"""Answers to images without labels: rows in order, files in parts, the same whatever stops or shares the work."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import taskgraft
from taskgraft.bundle import Bundle, open_parent, write_bundle
from taskgraft.cli import main
from taskgraft.commands.predict import Predictor, predict_files, predict_to
from taskgraft.data import Preprocessing, decode
from taskgraft.data.dataset import open_images
from taskgraft.errors import TaskgraftError
from taskgraft.metrics import probabilities
from taskgraft.models.classifier import grow
from toys import NEW, OLD, make_images, parent, write_folder
from videos import make_frames, write_video

pytestmark = pytest.mark.usefixtures("no_charts")

WANTED = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two tasks, one of which has a temperature."""
    home = tmp_path_factory.mktemp("two") / "both"
    home.mkdir()
    card = {"task": "shape", "classes": list(OLD.classes), "temperature": 2.0}
    two = grow(parent(), NEW, 0).eval()
    write_bundle(
        home, Bundle(two, WANTED, {}, "here", "0", "test_resnet", "fc", cards={"shape": card}), method="", parent={}
    )
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images in two folders, a damaged one, text, a hidden file and a link to itself."""
    root = tmp_path / "images"
    write_folder(root, OLD, 9, 1, size=20)
    (root / "round" / "5.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("text")
    (root / ".hidden.png").write_bytes(b"")
    (root / "circle").symlink_to(root)
    return root


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_picture_has_a_row_in_order(model: Path, folder: Path) -> None:
    rows = list(predict_files(model, [folder], top=2, batch_size=4))
    names = [Path(row["id"]).relative_to(folder).as_posix() for row in rows]
    assert names == sorted(names)
    assert len(names) == 10
    bad = [row for row in rows if "error" in row]
    assert [Path(row["id"]).name for row in bad] == ["5.png"]
    assert "not an image" in bad[0]["error"]
    good = next(row for row in rows if "tasks" in row)
    assert set(good["tasks"]) == {"shape", "paint"}
    answer = good["tasks"]["shape"]
    assert next(one["label"] for one in answer["top"]) == answer["label"]
    assert answer["top"][0]["probability"] >= answer["top"][1]["probability"]


def test_the_answers_are_the_models(model: Path, folder: Path) -> None:
    images = make_images(9, OLD, 1, 20)
    bundle = open_parent(str(model))
    resized = torch.stack([
        torch.from_numpy(np.array(Image.fromarray(p.numpy()).resize((32, 32), Image.Resampling.BILINEAR)))
        for p in images.pixels
    ])  # fmt: skip
    own = taskgraft.predict(bundle.classifier, images._replace(pixels=resized, mean=WANTED.mean, std=WANTED.std))
    by_name = {Path(row["id"]).stem: row for row in predict_files(model, [folder]) if "tasks" in row}
    raw = {Path(row["id"]).stem: row for row in predict_files(model, [folder], raw=True) if "tasks" in row}
    for number in by_name:
        logits = {task: values[int(number)][None] for task, values in own.logits.items()}
        for task, temperature in (("shape", 2.0), ("paint", 1.0)):
            shares = probabilities(logits[task], temperature)[0]
            assert by_name[number]["tasks"][task]["label"] == own.classes[task][shares.argmax()]
            assert by_name[number]["tasks"][task]["probability"] == pytest.approx(shares.max(), abs=1e-5)
            plain = probabilities(logits[task])[0].max()
            assert raw[number]["tasks"][task]["probability"] == pytest.approx(plain, abs=1e-5)


def test_12_bit_images_are_read_as_in_training(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(24):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), 150 * number, np.uint16)).save(path)
    config = taskgraft.TrainingConfig(steps=1, batch_size=4, head_steps=0, precision="fp32")
    taskgraft.train(root, tmp_path / "out", model="test_resnet", preprocessing="32 squash bilinear half", config=config)
    bundle = open_parent(str(tmp_path / "out"))
    assert bundle.preprocessing.to_text() == "32 squash bilinear half 12bit"
    decoded = decode.decode_file(root / "b" / "23.png", bundle.preprocessing).pixels
    assert decoded is not None
    assert decoded.max() == round(150 * 23 / 4095 * 255)
    val = open_images(root, "label", bundle.preprocessing, seed=0).val
    assert val is not None
    own = taskgraft.predict(bundle.classifier, val).logits["label"].argmax(1).tolist()
    rows = {Path(row["id"]).name: row for row in predict_files(tmp_path / "out", [root], raw=True)}
    answers = [rows[Path(name).name]["tasks"]["label"]["label"] for name in val.names]
    assert answers == [bundle.classifier.tasks[0].classes[row] for row in own]


def test_a_path_given_twice_counts_once_and_a_copy_twice(model: Path, folder: Path, tmp_path: Path) -> None:
    one = folder / "round" / "0.png"
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    rows = list(predict_files(model, [copy, one, one, copy]))
    assert [row["id"] for row in rows] == [str(copy), str(one)]
    assert rows[0]["tasks"] == rows[1]["tasks"]


def test_tables_hold_what_lines_hold(model: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        done = predict_to(model, [folder], tmp_path / f"a.{suffix}", top=2, chunk_size=4)
        assert done == (9, 1, True)
        assert not (tmp_path / f"a.{suffix}.parts").exists()
    lines = read(tmp_path / "a.jsonl")
    assert lines == list(predict_files(model, [folder], top=2))
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(lines) == len(table) == len(columns) == 10
    for line, row, values in zip(lines, table, columns, strict=True):
        assert line["id"] == row["id"] == values["id"]
        assert line.get("error", "") == row["error"] == (values["error"] or "")
        for task, answer in line.get("tasks", {}).items():
            second = answer["top"][1]
            assert answer["label"] == row[f"{task}.label"] == values[f"{task}.label"]
            assert second["label"] == row[f"{task}.2.label"] == values[f"{task}.2.label"]
            assert second["probability"] == float(row[f"{task}.2.probability"]) == values[f"{task}.2.probability"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_run_that_was_stopped_goes_on_to_the_same_file(
    model: Path, folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "chunk_size": 3}
    predict_to(model, [folder], tmp_path / f"whole.{suffix}", **options)
    out, predict_rows, chunks = tmp_path / f"a.{suffix}", Predictor.predict_rows, []

    def predict_two_chunks(*arguments: Any) -> Any:
        for number, row in enumerate(predict_rows(*arguments)):
            if len(chunks) == 2 and number == 1:
                raise KeyboardInterrupt
            yield row
        chunks.append(1)

    monkeypatch.setattr(Predictor, "predict_rows", predict_two_chunks)
    with pytest.raises(KeyboardInterrupt):
        predict_to(model, [folder], out, **options)
    monkeypatch.setattr(Predictor, "predict_rows", predict_rows)
    assert not out.exists()
    with pytest.raises(TaskgraftError, match="continue with --resume"):
        predict_to(model, [folder], out, **options)
    with pytest.raises(TaskgraftError, match="top was 1, is 2"):
        predict_to(model, [folder], out, **options, top=2, resume=True)
    assert len(list(tmp_path.glob("*.parts/*.jsonl"))) == 2
    calls: list[int] = []
    monkeypatch.setattr(Predictor, "predict_rows", lambda *arguments: calls.append(1) or predict_rows(*arguments))
    assert predict_to(model, [folder], out, **options, resume=True) == (9, 1, True)
    assert len(calls) == 2  # of four parts, two were complete
    assert out.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert predict_to(model, [folder], out, **options, resume=True).predicted == 0
    with pytest.raises(TaskgraftError, match="exists"):
        predict_to(model, [folder], out, **options)


def test_workers_share_the_work_and_the_last_one_joins(model: Path, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "chunk_size": 2}
    out = tmp_path / "a.jsonl"
    predict_to(model, [folder], tmp_path / "whole.jsonl", **options)
    first = predict_to(model, [folder], out, shard=(1, 3), **options)
    assert (first.done, out.exists()) == (False, False)
    assert not predict_to(model, [folder], out, shard=(0, 3), **options).done
    assert predict_to(model, [folder], out, shard=(2, 3), **options) == (9, 1, True)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert predict_to(model, [folder], out, shard=(0, 3), **options).done  # a worker that is late
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name or "lock" in path.name] == []


def test_videos_stand_in_line_with_pictures(model: Path, folder: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "b.mkv", make_frames(OLD, [0, 1], 5))
    rows = list(predict_files(model, [folder / "round" / "0.png", clip, folder / "thin"], every=0.25))
    names = [Path(row["id"]).name for row in rows]
    assert names == [
        "0.png",
        *(f"b.mkv@{time}s" for time in ("0.000", "0.300", "0.500", "0.800")),
        "2.png",
        "5.png",
        "8.png",
    ]


@pytest.mark.parametrize("what", ["nothing", "missing", "suffix"])
def test_what_cannot_be_done_is_said_before_anything_is_written(model: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / ("none" if what == "missing" else "empty")]
    out = tmp_path / ("a.xlsx" if what == "suffix" else "a.csv")
    expected = {"nothing": "no image or video", "missing": "does not exist", "suffix": "suffix"}[what]
    with pytest.raises(TaskgraftError, match=expected):
        predict_to(model, paths, out)
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_the_command_keeps_stdout_clean(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*words: object, given: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taskgraft", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    names = [str(folder / "round" / name) for name in ("0.png", "5.png")]
    code, out, err = command("predict", model, "-", given="\n".join(names) + "\n")
    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == names
    assert "1 of 2 images could not be read" in err
    code, out, _ = command("predict", model, names[1])
    assert code == 1
    assert "error" in json.loads(out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = command("predict", model, names[0])
    assert (code, out) == (2, "")
    assert "add --out FILE" in err
    code, out, err = command("predict", model, names[0], "--every", "0s", "--out", folder / "a.csv")
    assert (code, out) == (2, "")
    assert "--every" in err
