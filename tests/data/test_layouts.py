"""What a data path is understood as, what is skipped with a reason, and what is refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskgraft.data.layouts import list_images
from taskgraft.errors import TaskgraftError
from toys import NEW, write_folder


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def table(root: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    put(root, "a.png", "b.png", "deep/c.png")
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def result(data: Path, task: str = "label", columns: tuple[str, ...] = ()) -> list[tuple[str, str | None, dict]]:
    return [(entry.path, entry.split, dict(entry.labels)) for entry in list_images(data, task, columns).entries]


def test_a_folder_per_class(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png", "dog/1.jpg")
    assert result(tmp_path, "pet") == [
        ("cat/1.png", None, {"pet": "cat"}),
        ("dog/1.jpg", None, {"pet": "dog"}),
        ("dog/2.png", None, {"pet": "dog"}),
    ]
    assert list_images(tmp_path, "pet").layout == "one folder per class"


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train_set", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("EVAL", "val"),
        ("test", "test"),
        ("Testing", "test"),
    ],
)
def test_split_folders_go_by_their_names(tmp_path: Path, folder: str, split: str) -> None:
    put(tmp_path, f"{folder}/cat/1.png", f"{folder}/dog/1.png")
    assert {part for _, part, _ in result(tmp_path)} == {split}
    assert {labels["label"] for _, _, labels in result(tmp_path)} == {"cat", "dog"}


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "val/cat/1.png", "Valid/cat/2.png")
    with pytest.raises(TaskgraftError, match="Valid and val are both val images; keep one of them"):
        list_images(tmp_path, "label")


def test_names_that_are_no_splits_are_answered_with_those_that_are(tmp_path: Path) -> None:
    put(tmp_path, "learn/cat/1.png", "exam/cat/1.png")
    with pytest.raises(TaskgraftError, match=r"exam/cat is a folder inside .*; splits are called train, training, val"):
        list_images(tmp_path, "label")


@pytest.mark.parametrize("names", [("cat/1.png", "dog/2.png"), ("train/cat/1.png", "val/cat/2.png")])
def test_a_root_one_level_up_is_descended(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"download/pets/{name}" for name in names), "download/README.md", "__MACOSX/x", "@eaDir/x.jpg")
    listing = list_images(tmp_path, "label")
    assert [entry.path for entry in listing.entries] == list(names)
    assert listing.root == tmp_path / "download" / "pets"
    assert listing.notes == (f"the images are in download/pets/, the only folder of {tmp_path.name}",)
    put(tmp_path, "other/1.png")  # no longer the only one
    with pytest.raises(TaskgraftError, match="download/pets is a folder inside the class folder 'download'"):
        list_images(tmp_path, "label")


def test_one_class_or_one_split_is_not_taken_for_a_wrapper(tmp_path: Path) -> None:
    put(tmp_path / "one", "cat/1.png")
    put(tmp_path / "two", "train/cat/1.png")
    assert result(tmp_path / "one") == [("cat/1.png", None, {"label": "cat"})]
    assert result(tmp_path / "two") == [("train/cat/1.png", "train", {"label": "cat"})]


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "dog/1.png")
    with pytest.raises(TaskgraftError, match=r"both split folders \(train\) and others \(dog\)"):
        list_images(tmp_path, "label")


def test_a_folder_in_a_class_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/old/1.png", "dog/1.png")
    with pytest.raises(TaskgraftError, match="cat/old is a folder inside the class folder 'cat'"):
        list_images(tmp_path, "label")


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png").joinpath("train/dog").mkdir()
    with pytest.raises(TaskgraftError, match="class folder 'train/dog' has no images"):
        list_images(tmp_path, "label")


def test_a_class_of_hidden_files_is_empty(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/.keep")
    with pytest.raises(TaskgraftError, match="'dog' has no images"):
        list_images(tmp_path, "label")


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match="has no class folder"):
        list_images(tmp_path, "label")
    with pytest.raises(TaskgraftError, match="does not exist"):
        list_images(tmp_path / "gone", "label")
    with pytest.raises(TaskgraftError, match="is not a table"):
        list_images(put(tmp_path, "notes.txt") / "notes.txt", "label")


def test_pictures_beside_class_folders_are_listed_as_skipped(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "stray.png", "README.md", "labels.json")
    assert list_images(tmp_path, "label").skipped == (("stray.png", "not in a class folder"),)
    split = put(tmp_path / "two", "train/cat/1.png", "train/stray.png")
    assert list_images(split, "label").skipped == (("train/stray.png", "not in a class folder"),)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".ipynb_checkpoints/1.png"])
def test_system_files_are_skipped_with_a_reason(tmp_path: Path, name: str) -> None:
    put(tmp_path, "cat/1.png", f"cat/{name}", f"{name}")
    listing = list_images(tmp_path, "label")
    assert [entry.path for entry in listing.entries] == ["cat/1.png"]
    top = name.split("/")[0]
    assert set(listing.skipped) == {(top, "hidden or system file"), (f"cat/{top}", "hidden or system file")}


def test_links_to_files_and_class_folders_are_followed_and_counted(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "2.png")
    root = put(tmp_path / "data", "cat/1.png")
    (root / "cat" / "out.png").symlink_to(elsewhere / "2.png")
    (root / "cat" / "in.png").symlink_to(root / "cat" / "1.png")
    (root / "far").symlink_to(elsewhere)
    listing = list_images(root, "label")
    assert [entry.path for entry in listing.entries] == ["cat/1.png", "cat/in.png", "cat/out.png", "far/2.png"]
    assert listing.skipped == ()
    assert listing.notes == ("1 class folder(s) and 2 image(s) are links, which were followed",)


def test_files_beside_each_picture_are_left_out_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path, *(f"cat/{number}{suffix}" for suffix in (".JPG", ".xml", ".npy", ".cr2", ".JPG.bin")))
    put(tmp_path, "dog/1", "dog/2.odd", "dog/labels.txt")  # the content of an unknown name decides
    listing = list_images(tmp_path, "label")
    names = [entry.path for entry in listing.entries]
    assert names == ["cat/0.JPG", "cat/1.JPG", "cat/2.JPG", "cat/3.JPG", "dog/1", "dog/2.odd"]
    assert listing.skipped == ()
    assert listing.notes == (
        "17 file(s) beside the images are no images, and left out: 4 .bin, 4 .cr2, 4 .npy, 1 .txt, 4 .xml",
    )
    put(tmp_path, "bird/1.txt")
    with pytest.raises(TaskgraftError, match="'bird' has no images"):
        list_images(tmp_path, "label")


@pytest.mark.parametrize(
    ("target", "reason"), [("/gone/dog", "a broken link: /gone/dog does not exist"), ("dog", "leads back to itself")]
)
def test_a_class_whose_link_leads_nowhere_does_not_vanish(tmp_path: Path, target: str, reason: str) -> None:
    put(tmp_path, "cat/1.png")
    (tmp_path / "dog").symlink_to(target)
    with pytest.raises(TaskgraftError, match=f"dog, where a class folder is expected: .*{reason}"):
        list_images(tmp_path, "label")


def test_a_root_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    put(tmp_path / "data", "cat/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert result(tmp_path / "link") == [("cat/1.png", None, {"label": "cat"})]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "self.png").symlink_to(tmp_path / "cat" / "self.png")
    assert list_images(tmp_path, "label").entries[0].path == "cat/1.png"
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    with pytest.raises(TaskgraftError, match="cat/up is a folder inside"):
        list_images(tmp_path, "label")


def test_a_pipe_named_as_a_picture_is_listed_without_being_opened(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    assert [path for path, _, _ in result(tmp_path)] == ["cat/1.png", "cat/2.jpg"]


def test_a_table_with_a_byte_order_mark_and_one_free_column(tmp_path: Path) -> None:
    path = table(tmp_path, b"\xef\xbb\xbfpath,make\r\na.png,van\r\ndeep/c.png, bus \r\n")
    assert result(path) == [("a.png", None, {"label": "van"}), ("deep/c.png", None, {"label": "bus"})]
    assert list_images(path, "x").layout == "table, labels from column 'make'"


def test_several_columns_with_blanks(tmp_path: Path) -> None:
    path = table(tmp_path, "path,split,make,paint\na.png,train,van,\nb.png,VALID,,red\ndeep/c.png,,van,blue\n")
    assert result(path, "paint", ("make", "other")) == [
        ("a.png", "train", {"make": "van"}),
        ("b.png", "val", {"paint": "red"}),
        ("deep/c.png", None, {"paint": "blue", "make": "van"}),
    ]
    assert result(path, "make") == [
        ("a.png", "train", {"make": "van"}),
        ("deep/c.png", None, {"make": "van"}),
    ]
    with pytest.raises(TaskgraftError, match="choose one with --task: make, paint"):
        list_images(path, "size")


def test_a_tab_separated_table_and_a_folder_with_metadata(tmp_path: Path) -> None:
    assert result(table(tmp_path, "file_name\tlabel\na.png\tx,y\n", "t.tsv")) == [("a.png", None, {"label": "x,y"})]
    table(tmp_path, "file_name,label\nb.png,z\n", "metadata.csv")
    assert result(tmp_path) == [("b.png", None, {"label": "z"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\nb.png,x,y\n", "line 3: the number of fields differs"),
        ("path,label\na.png\n", "line 2: the number of fields differs"),
        ("path,label\na.png,x\n../b.png,x\n", "line 3: '../b.png' is outside the table's folder"),
        ("path,label\n/etc/passwd,x\n", "line 2: '/etc/passwd' is outside the table's folder"),
        ("path,label\na.png,x\nb.png,x\na.png,y\n", "line 4: 'a.png' is in the table twice"),
        ("path,label\na.png,x\n  ,x\n", "line 3: the path is blank"),
        ("path,split,label\na.png,extra,x\n", "line 2: split 'extra' is unknown; use one of train, training, val"),
        ("picture,label\ne.png,x\nf.png,x\n", r"no column 'path' among picture, label \(first row: e.png, x\)"),
        ("", "no column 'path' among none at all"),
        ("path,label\n..\\b.png,x\n", "is outside the table's folder"),
        ("path,label\nC:\\pets\\a.png,x\n", "is outside the table's folder"),
        ("path,label\ntwo,x\n", "line 2: 'two' may be 'two.jpg' or 'two.png'; write which"),
        ("path,size,age\na.png,1,2\n", "several columns .* choose one with --task: size, age"),
        ("path\na.png\n", "no column with labels among path"),
        ("path,label\na.png,\n", "no row has a label in column 'label'"),
        ("path,label\ngone.png,x\n", "no row has a label in column 'label' and a file that exists"),
        (b"path,label\na.png,caf\xe9\n", "not a readable UTF-8 table"),
        ('path,label\na.png,"x\n', "not a readable UTF-8 table"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = table(tmp_path, text)
    put(tmp_path, "two.jpg", "two.png")
    with pytest.raises(TaskgraftError, match=message) as caught:
        list_images(path, "label")
    assert str(path) in str(caught.value)


ROWS = [("a.png", None, {"label": "van"}), ("deep/c.png", None, {"label": "bus"})]
ADDED = "file names were completed, such as 'a' to 'a.png'"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (
            "filename;class\r\na.png;van\r\ndeep\\c.png;bus\r\n;\r\n",
            ("file names were completed, such as 'deep\\\\c.png' to 'deep/c.png'",),
        ),
        ("sep=;\r\nfilename;class\r\na.png;van\r\ndeep/c.png;bus\r\n", ()),
        ("File Name\tTarget\na.png\tvan\ndeep/c.png\tbus\n", ("the files are those of column 'File Name'",)),
        (b"\xff\xfe" + "path\tlabel\r\na.png\tvan\r\ndeep/c.png\tbus\r\n".encode("utf-16-le"), ()),
        (",id,class,fold\n0,a,van,1\n1,deep/c,bus,2\n", ("the files are those of column 'id'", ADDED)),
        ("image_id,id,kind\na,7,van\ndeep/c,8,bus\n", ("the files are those of column 'image_id'", ADDED)),
        ("name,image,label\nx,a.png,van\ny,deep/c.png,bus\n", ("the files are those of column 'image'",)),
        ("picture,label\na.png,van\ndeep/c.png,bus\n", ("the files are those of column 'picture'",)),
        ("a.png,van\ndeep/c.png,bus\n", ("the table has no header: its columns are taken as path and label",)),
        ("van;a.png\nbus;deep/c.png\n", ("the table has no header: its columns are taken as label and path",)),
        ("path,bus,van\na.png,0,1\ndeep/c.png,1.0,0.0\n", ()),
    ],
)
def test_tables_of_excel_kaggle_and_windows_are_read(tmp_path: Path, text: str | bytes, notes: tuple[str, ...]) -> None:
    path = table(tmp_path, text)
    assert result(path) == ROWS
    listing = list_images(path, "label")
    said = [note for note in listing.notes if not note.startswith("the labels are those")]
    assert said == list(notes)
    assert len(said) + (listing.layout != "table, labels from column 'label'") == len(listing.notes)


def test_absolute_paths_below_the_table_are_read(tmp_path: Path) -> None:
    rows = f"{tmp_path}/a.png,van\n{tmp_path}/deep/../deep/c.png,bus\n"
    assert result(table(tmp_path, f"path,label\n{rows}")) == ROWS
    path = table(tmp_path, f"path,label\n{tmp_path}/../{tmp_path.name}-other/a.png,van\n")
    with pytest.raises(TaskgraftError, match="is outside the table's folder"):
        list_images(path, "label")


@pytest.mark.parametrize("text", ["a.png,van,1\nb.png,bus,2\n", "a.png,b.png\ndeep/c.png,a.png\n"])
def test_a_missing_header_is_named_where_columns_could_mean_anything(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        TaskgraftError, match=r"its first row names an image \(a.png\) where the header is expected; add one"
    ):
        list_images(table(tmp_path, text), "label")


def test_two_ones_in_a_row_are_not_one_class(tmp_path: Path) -> None:
    path = table(tmp_path, "path,bus,van\na.png,1,1\ndeep/c.png,1,0\n")
    with pytest.raises(
        TaskgraftError, match=r"several columns that may hold the labels; choose one with --task: bus, van"
    ):
        list_images(path, "label")


def test_files_in_a_folder_that_the_table_does_not_name(tmp_path: Path) -> None:
    put(tmp_path, "train_images/1.jpg", "train_images/2.jpg", "test_images/3.jpg", "cat/notes.txt")
    (tmp_path / "train.csv").write_text("image_id,label\n1,cat\n2,dog\n4,dog\n")
    listing = list_images(tmp_path / "train.csv", "label")
    assert [entry.path for entry in listing.entries] == ["train_images/1.jpg", "train_images/2.jpg"]
    assert listing.missing == (("4", "line 4: no such file"),)
    assert listing.notes[-1] == "file names were completed, such as '1' to 'train_images/1.jpg'"


def test_a_column_like_split_counts_if_it_holds_nothing_else(tmp_path: Path) -> None:
    path = table(tmp_path, "path,class,Usage\na.png,van,Training\nb.png,bus,Testing\n")
    assert [split for _, split, _ in result(path)] == ["train", "test"]
    path = table(tmp_path, "path,class,Usage\na.png,van,PublicTest\nb.png,bus,Testing\n")
    assert [split for _, split, _ in result(path)] == [None, None]


def test_a_workbook_is_answered_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=r"is not a table; .* save it as CSV \(UTF-8\)"):
        list_images(put(tmp_path, "labels.xlsx") / "labels.xlsx", "label")


def test_a_row_without_its_file_is_missing_with_its_line(tmp_path: Path) -> None:
    listing = list_images(table(tmp_path, "path,label\na.png,x\ngone.png,y\nb.png,y\n"), "label")
    assert [entry.path for entry in listing.entries] == ["a.png", "b.png"]
    assert listing.missing == (("gone.png", "line 3: no such file"),)


def test_names_are_one_name_however_their_accents_are_written(tmp_path: Path) -> None:
    put(tmp_path, "train/caf\u00e9/1.png", "val/cafe\u0301/1.png")
    assert {labels["label"] for _, _, labels in result(tmp_path)} == {"caf\u00e9"}


def test_listing_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    put(tmp_path / "one", "b/2.png", "b/1.png", "a/1.png")
    put(tmp_path / "two", "a/1.png", "b/1.png", "b/2.png")
    assert result(tmp_path / "one") == result(tmp_path / "two")
    assert len(result(write_folder(tmp_path / "three", NEW, 8, 1, size=8))) == 8
