"""Class shares of images, tables and videos, by a trained model with its own task card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import taskgraft
from taskgraft import report
from taskgraft.bundle import read_bundle
from taskgraft.cli import main
from taskgraft.commands import distribution as job
from taskgraft.errors import TaskgraftError
from taskgraft.quantification import Distribution
from taskgraft.types import Callbacks
from toys import OLD, make_images
from videos import make_frames, truncate, write_video

TRACKS = [0, 0, 1, 0, 2, 0, 0, 1, 0, 0, 1, 0]  # 8 of 12 round, 3 square, 1 thin
FRAMES = 10  # of a track: one second


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "camera.mp4", make_frames(OLD, TRACKS, FRAMES))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A table of frames of tracks: one long track of class 0, ten short ones of class 1."""
    images = make_images(300, OLD, 21)
    labels = images.labels["shape"].numpy()
    lines = ["path,track"]
    for track, (k, count) in enumerate([(0, 40)] + [(1, 2)] * 10):
        for number, row in enumerate(np.flatnonzero(labels == k)[track * 3 : track * 3 + count]):
            name = f"{track}-{number}.png"
            Image.fromarray(images.pixels[row].numpy()).save(tmp_path / name)
            lines.append(f"{name},t{track}")
    (tmp_path / "frames.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "frames.csv"


def shares(result: Distribution) -> dict[str, tuple[float, float, float]]:
    return {one.name: (one.low, one.prevalence, one.high) for one in result.tasks[0].classes}


def test_training_leaves_a_card_that_corrects(alice: Path) -> None:
    card = read_bundle(alice).cards["shape"]
    assert 0 < card["temperature"] < 20
    assert card["calibration"]["images"] == card["images"] == 24
    assert np.allclose(np.sum(card["mean_posterior"], axis=1), 1, atol=1e-3)


def test_a_video_of_known_tracks_has_their_shares(alice: Path, clip: Path) -> None:
    result = taskgraft.distribution(alice, [clip], every=0.1, block=1.0)
    (task,) = result.tasks
    assert (task.images, task.units, task.unit) == (120, 12, "block of 1 s")
    for name, expected in zip(OLD.classes, (8 / 12, 3 / 12, 1 / 12), strict=True):
        low, share, high = shares(result)[name]
        assert share == pytest.approx(expected, abs=0.06)
        assert low <= expected <= high
        assert high - low > 0.1  # of 12 tracks, not of 120 frames
    assert 6 < task.effective_size < 30
    assert "frames are counted, not vehicles" in result.notes[0]
    assert result.unreadable == 0


def test_a_video_cut_in_the_middle_keeps_what_was_read_and_says_so(alice: Path, clip: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    half = truncate(clip, 0.5, tmp_path / "half.mp4")
    result = taskgraft.distribution(alice, [half], every=0.1, block=1.0, callbacks=Callbacks(info=messages.append))
    (task,) = result.tasks
    assert 40 <= task.images <= 80
    assert result.unreadable == 1
    assert any("half.mp4: " in line and "cut off at" in line for line in messages)
    seen = TRACKS[: task.units]
    assert shares(result)["round"][1] == pytest.approx(seen.count(0) / len(seen), abs=0.12)
    messages.clear()
    rows = list(taskgraft.predict_files(alice, [half], every=0.5, callbacks=Callbacks(info=messages.append)))
    assert any("cut off at" in line for line in messages)
    assert "tasks" in rows[0]
    assert "cut off at" in rows[-1]["error"]


def test_a_track_column_counts_vehicles(alice: Path, frames: Path) -> None:
    result = taskgraft.distribution(alice, [frames])
    assert (result.tasks[0].unit, result.tasks[0].units, result.tasks[0].images) == ("track", 11, 60)
    low, share, high = shares(result)["square"]
    assert share == pytest.approx(10 / 11, abs=0.06)
    assert low <= 10 / 11 <= high
    assert result.notes == ()
    plain = frames.with_name("plain.csv")
    plain.write_text("\n".join(line.split(",")[0] for line in frames.read_text().splitlines()))
    assert shares(taskgraft.distribution(alice, [plain]))["square"][1] == pytest.approx(1 / 3, abs=0.06)


def test_numbered_frames_without_tracks_are_noticed(alice: Path, tmp_path: Path, old_folder: Path) -> None:
    file = next((old_folder / "val").rglob("*.png"))
    for number in range(30):
        (tmp_path / f"frame_{number:04d}.png").write_bytes(file.read_bytes())
    result = taskgraft.distribution(alice, [tmp_path])
    assert "the number after that of the image before" in result.notes[0]
    assert taskgraft.distribution(alice, [old_folder / "val"]).notes == ()


def test_the_folder_holds_page_figure_and_numbers(alice: Path, old_folder: Path, tmp_path: Path) -> None:
    result = taskgraft.distribution(alice, [old_folder / "val"], out=tmp_path / "shares")
    assert json.loads((tmp_path / "shares/distribution.json").read_text()) == json.loads(result.model_dump_json())
    with Image.open(tmp_path / "shares/distribution.png") as image_path:
        assert image_path.size[0] > 1000
    page = (tmp_path / "shares/distribution.html").read_text()
    assert "Prevalence of shape" in page
    assert 'src="http' not in page
    lines = report.format_distribution(result)
    assert [line for line in lines if line.startswith("  round ")]
    for name, (_, share, _) in shares(result).items():
        assert share == pytest.approx(1 / 3, abs=0.08), name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,track\n../a.png,1\n", "line 2: '../a.png' is blank or outside"),
        ("picture,track\nb.png,1\n", "no column 'path' among picture, track"),
        ("path,track\na.png,1\na.png,1\n", "line 3: 'a.png' is in the table twice"),
        ("path,track\n", "names no image"),
    ],
)
def test_bad_tables_are_refused(alice: Path, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(TaskgraftError, match=reason.replace("(", r"\(")):
        job.distribution(alice, [tmp_path / "a.csv"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--task", "colour"], "no task 'colour'; it has shape"),
        (["--joint", "shape"], "give two tasks separated by a comma"),
        (["--joint", "shape,shape"], "give different ones"),
        (["--estimator", "best"], 'Choose from: "auto", "emq", "pacc", "naive"'),
        (["--block", "0"], "seconds above 0"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    alice: Path, old_folder: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["taskgraft", "distribution", str(alice), str(old_folder / "val"), *words])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    assert (end.value.code, output.out, len(output.err.splitlines())) == (2, "", 1)
    assert reason in output.err


def test_nothing_readable_is_not_a_share_of_nothing(alice: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(TaskgraftError, match="could be read") as error:
        job.distribution(alice, [tmp_path])
    assert error.value.exit_code == 1
