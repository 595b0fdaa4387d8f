"""What `check` finds in images, what it says beside a model, and that it changes nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fake_results import PageReader
from taskgraft.commands.check import check
from taskgraft.errors import TaskgraftError
from taskgraft.report.check_page import FINDINGS
from toys import NEW, write_folder


def noise(seed: int, size: int = 48) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def saved(root: Path, name: str, seed: int, **options: int) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for at, name in enumerate(("train/bus", "train/van", "val/bus", "val/van")):
        for number in range(12 if at < 2 else 3):
            saved(root, f"{name}/{number}.png", 100 * at + number)
    return root


def test_good_pictures_want_nothing(data: Path) -> None:
    result = check(data)
    assert result["images"] == {"train": 24, "val": 6}
    assert result["classes"]["bus"] == {"train": 12, "val": 3}
    assert result["sizes"] == {"smallest": [48, 48], "median": [48, 48], "largest": [48, 48], "tiny": 0}
    assert not any(result[key] for key in (*(key for key, *_ in FINDINGS), "problems", "remarks", "against"))
    assert result["lines"][-1] == "no problems found"


def test_doubles_inside_and_across(data: Path) -> None:
    shutil.copy(data / "train/bus/0.png", data / "train/bus/same.png")
    shutil.copy(data / "train/bus/1.png", data / "val/bus/leak.png")
    shutil.copy(data / "train/bus/2.png", data / "train/van/conflict.png")
    saved(data, "val/van/again.jpg", 103, quality=40)  # 103 is train/van/3.png
    noise(104).resize((30, 70)).save(data / "train/van/squeezed.png")
    result = check(data)
    assert len(result["duplicates"]) == 3
    assert result["leaks"] == [["train/bus/1.png", "val/bus/leak.png"]]
    assert result["conflicts"] == [["train/bus/2.png", "train/van/conflict.png"]]
    assert result["near_leaks"] == [["train/van/3.png", "val/van/again.jpg"]]
    assert ["train/van/4.png", "train/van/squeezed.png"] in result["near_duplicates"]
    assert result["near_conflicts"] == []
    assert result["problems"] == ["identical images have two classes", "identical images are in two splits"]
    assert any("1 image is in two splits: train/bus/1.png and val/bus/leak.png" in one for one in result["lines"])


def test_another_color_is_another_picture(data: Path) -> None:
    red, green = (Image.merge("RGB", [noise(9).convert("L").point(lambda v, k=k: v * k) for k in kept])
                  for kept in ((1, 0, 0), (0, 1, 0)))  # fmt: skip
    red.save(data / "train/bus/red.png")
    green.save(data / "train/bus/green.png")
    assert check(data)["near_duplicates"] == []


def test_pictures_of_one_tone_are_not_compared(data: Path) -> None:
    for gray in (90, 91, 92):
        Image.new("RGB", (40, 40), (gray,) * 3).save(data / f"train/bus/flat{gray}.png")
    result = check(data)
    assert (result["near_duplicates"], result["too_even_to_compare"]) == ([], 3)


def test_classes_of_validation_without_training(data: Path) -> None:
    (data / "val/van").rename(data / "val/Vans")
    saved(data, "val/lorry/0.png", 900)
    result = check(data)
    assert result["not_trained"] == [["val", "Vans", "van"], ["val", "lorry", None]]
    assert result["alike"] == [["Vans", "van"]]
    assert "classes without training images" in result["problems"]


def test_what_cannot_be_read_is_listed_with_its_reason(data: Path) -> None:
    (data / "train/bus/empty.png").write_bytes(b"")
    (data / "stray.txt").write_text("x")
    result = check(data)
    assert result["excluded"] == [["train/bus/empty.png", "empty"]]
    assert (result["unreadable"], result["problems"]) == (1, [])
    for number in range(3):
        (data / f"train/van/bad{number}.png").write_bytes(b"x")
    assert check(data)["problems"] == ["4 of 34 images cannot be used; training skips at most 5%"]


def test_few_uneven_and_tiny(tmp_path: Path) -> None:
    for number in range(100):
        saved(tmp_path, f"many/{number}.png", number)
    saved(tmp_path, "one/0.png", 1000)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 40, 3), np.uint8)).save(tmp_path / "many/thin.png")
    result = check(tmp_path)
    assert (result["few"], result["single"]) == (["one"], ["one"])
    assert result["imbalance"]["largest"] == ["many", 101]
    assert result["sizes"]["tiny"] == 1
    assert any("imbalanced: 'many' has 101 training images, 'one' 1" in line for line in result["lines"])


def test_beside_a_model(alice: Path, tmp_path: Path) -> None:
    for at, name in enumerate(("Round", "squares", "thin", "oval")):
        for number in range(3):
            saved(tmp_path / "data", f"{name}/{number}.png", 100 * at + number)
    noise(7, 20).save(tmp_path / "data/thin/small.png")
    result = check(tmp_path / "data", against=str(alice))
    beside = result["against"]
    assert (beside["task"], beside["known"], beside["unknown"], beside["absent"]) == ("shape", 1, ["oval"], [])
    assert beside["near"] == [["Round", "round", "written otherwise"], ["squares", "square", "written otherwise"]]
    assert (beside["input"], beside["smaller"]) == (32, 1)
    assert result["problems"] == ["class names that the model spells differently"]


def test_a_new_task_beside_a_model(alice: Path, new_folder: Path) -> None:
    result = check(new_folder, against=str(alice))
    assert result["against"]["task"] is None
    assert result["against"]["unknown"] == sorted(NEW.classes)
    assert not result["problems"]
    with pytest.raises(TaskgraftError, match="not a file, folder or timm model"):
        check(new_folder, against="nothing")


def state(root: Path) -> dict[str, tuple[str, int, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_mode)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_nothing_is_changed_in_a_folder_that_nobody_may_write(data: Path, tmp_path: Path) -> None:
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, listed = state(data), sorted(os.walk(data))
    check(data, html=tmp_path / "page.html")
    check(data, manifest=tmp_path / "table.csv")
    assert (state(data), sorted(os.walk(data))) == (before, listed)
    for path in (data, *(path for path in data.rglob("*") if path.is_dir())):
        path.chmod(0o755)


def test_the_page_holds_what_was_found(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "train/bus/1.png", data / "val/bus/<i>leak.png")
    saved(data, "val/van/again.jpg", 103, quality=40)  # 103 is train/van/3.png
    page = tmp_path / "pages" / "check.html"
    check(data, html=page)
    text = page.read_text(encoding="utf-8")
    assert "Identical images are in two splits" in text
    assert "val/bus/&lt;i&gt;leak.png" in text
    assert "<i>leak" not in text
    shown = PageReader(text).images()
    assert [attrs["alt"] for attrs in shown[:4]] == [
        "train/bus/1.png", "val/bus/<i>leak.png", "train/van/3.png", "val/van/again.jpg",
    ]  # fmt: skip
    assert [attrs["alt"].split("/")[1] for attrs in shown[4:]] == ["bus"] * 12 + ["van"] * 12  # the contact sheet
    for attrs in shown:
        small = Image.open(io.BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/jpeg;base64,"))))
        difference = np.asarray(small, float) - np.asarray(Image.open(data / attrs["alt"]).convert("RGB"), float)
        assert np.abs(difference.mean((0, 1))).max() < 4, attrs["alt"]  # JPEG is slightly off
    check(data, html=page)  # a page of ours is made anew
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(TaskgraftError, match="is not a taskgraft page"):
        check(data, html=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine"


def test_a_table_replaces_no_other_file(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("mine")
    with pytest.raises(TaskgraftError, match="already exists with other content"):
        check(data, manifest=table)
    assert table.read_text() == "mine"
    table.unlink()
    check(data, manifest=table)
    check(data, manifest=table)  # the same again


def test_the_result_is_plain_json(data: Path) -> None:
    result = check(data)
    assert json.loads(json.dumps(result)) == result


def test_animations_and_strange_names_are_counted(data: Path) -> None:
    file = io.BytesIO()
    noise(500).save(file, "GIF", save_all=True, append_images=[noise(501), noise(502)])
    (data / "train/bus/moving.png").write_bytes(file.getvalue())
    assert check(data)["remarks"] == {
        "named as another format: decoded by content": ["train/bus/moving.png"],
        "several frames: the first is used": ["train/bus/moving.png"],
    }


def test_a_folder_of_toys(tmp_path: Path) -> None:
    assert check(write_folder(tmp_path / "toys", NEW, 60, 1), group="^(.)")["classes"].keys() == {"b", "g", "r"}
