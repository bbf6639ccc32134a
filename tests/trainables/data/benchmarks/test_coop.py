"""Every data set of the field, from a miniature of its original layout: one suite for all."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.trainables.data.shared import shared_data
from tests.trainables.data.trees import (
    TREES,
    Tree,
    fgvc_aircraft,
    looks_like,
    snapshot,
    write_split,
)
from trainables.data.base import DataError, SealedError, Split
from trainables.data.benchmarks.layouts import (
    ALL11,
    IMAGENET_SHIFTS,
    LAYOUTS,
    counts_caveat,
    find_folder,
)
from trainables.data.benchmarks.official_lists import CALTECH_NAMES, EUROSAT_NAMES, OFFICIAL
from trainables.data.image_files import ImageFiles
from trainables.data.lists import Counts, ListedDataset
from trainables.data.registry import BASE_TASKS, DATASETS, SHIFTS, open_dataset
from trainables.data.sealed import TRAINING_PROCESS, TestPermit, read_test_split

LISTED = tuple(OFFICIAL)
WITH_FILE = tuple(name for name in LISTED if LAYOUTS[name].split_file)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    """One root with all data sets, which no test may change."""
    root = tmp_path_factory.mktemp("data")
    return {name: grow(root) for name, grow in TREES.items()}


@pytest.fixture
def tree(request: pytest.FixtureRequest, trees: dict[str, Tree]) -> Tree:
    return trees[request.param]


def parts(name: str, root: Path, generate_split: bool = False) -> dict[str, Split]:
    dataset = open_dataset(name, str(root), generate_split)
    return {
        "train": dataset.split("train"),
        "val": dataset.split("val"),
        "test": read_test_split(dataset, lambda: None),
    }


def rows(split: Split) -> list[tuple[str, int]]:
    return [(split.images.name(i), label) for i, label in enumerate(split.labels.tolist())]


# --- the tables ----------------------------------------------------------------------------------


def test_every_data_set_has_a_tree_a_layout_and_a_builder() -> None:
    assert set(TREES) == set(LAYOUTS) == set(ALL11) | set(IMAGENET_SHIFTS)
    assert set(LISTED) == set(ALL11) - {"imagenet"}
    assert set(DATASETS) == set(LAYOUTS) | {"digits", "digits-rotated"}
    assert len(BASE_TASKS) == 11
    assert BASE_TASKS[0] == "imagenet"
    assert {shift for shifts in SHIFTS.values() for shift in shifts} < set(DATASETS)


def test_published_counts() -> None:
    counts = [LAYOUTS[name].counts for name in ALL11]
    assert sum(count.classes for count in counts) == 2191
    assert LAYOUTS["imagenet"].counts.train + LAYOUTS["imagenet"].counts.val == 1_281_167
    assert LAYOUTS["ucf101"].counts == Counts(101, 7639, 1898, 3783)
    assert LAYOUTS["imagenet_r"].counts == Counts(200, 0, 0, 30_000)


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_counts_than_the_published_ones_are_told(name: str, trees: dict[str, Tree]) -> None:
    published = LAYOUTS[name].counts
    assert counts_caveat(name, published) == ()
    assert (
        f"Published: {published.classes:,} classes"
        in (open_dataset(name, str(trees["dtd"].root)).caveats[-1])
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tables_needed_files_are_those_of_the_tree(name: str, trees: dict[str, Tree]) -> None:
    layout, folder = LAYOUTS[name], trees[name].folder
    for file in (*layout.needs, *layout.makes, *filter(None, [layout.split_file])):
        assert (folder / file).is_file()
    assert (folder / layout.images).is_dir()


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_has_all_that_the_protocol_says(name: str, trees: dict[str, Tree]) -> None:
    dataset = open_dataset(name, str(trees["dtd"].root))
    assert dataset.name == name
    assert isinstance(dataset.flip, bool)
    assert all(notice.endswith(".") and "\n" not in notice for notice in dataset.caveats)
    for variant in ("paper", "reference", "clean", "single"):
        texts = dataset.prompts(variant).texts()
        assert len(texts) == len(dataset.class_names)
        assert all(text for row in texts for text in row)
    with pytest.raises(SealedError, match="Only 'train' and 'val' are open"):
        dataset.split("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DATASETS)
def test_the_seal_holds_for_every_data_set(
    name: str, trees: dict[str, Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(name, str(trees["dtd"].root))
    with pytest.raises(SealedError, match=f"A permit for 'other' does not open '{name}'"):
        dataset.sealed_split(TestPermit("other"))
    monkeypatch.setenv(*next(iter(TRAINING_PROCESS.items())))
    recorded: list[str] = []
    with pytest.raises(SealedError, match="cannot be read in a process that trains"):
        dataset.sealed_split(TestPermit(name))
    with pytest.raises(SealedError, match="cannot be read in a process that trains"):
        read_test_split(dataset, lambda: recorded.append("recorded"))
    assert recorded == []


@pytest.mark.parametrize("tree", LISTED, indirect=True)
def test_names_labels_counts_and_images(tree: Tree, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["tree"]
    before = snapshot(tree.folder)
    dataset = open_dataset(name, str(tree.root))
    assert isinstance(dataset, ListedDataset)
    assert dataset.class_names == tree.class_names
    assert dataset.counts() == Counts(4, 26, 16, 16)
    (notice,) = dataset.caveats  # it is a miniature
    assert notice.startswith(f"'{name}' has 4 classes, 26 train, 16 val, 16 test. Published: ")
    for part, split in parts(name, tree.root).items():
        assert rows(split) == tree.rows[part]  # in the list's own order
        for i, label in enumerate(split.labels.tolist()):
            pixels = split.images.read(i)
            assert pixels.shape == (3, 32, 32)
            assert looks_like(label, pixels)
            assert not looks_like(label + 1, pixels)
        assert len(split.images.content()) == 64
    assert snapshot(tree.folder) == before


def test_caltech_sorts_capitals_first_and_leaves_two_folders_out(trees: dict[str, Tree]) -> None:
    dataset = open_dataset("caltech101", str(trees["dtd"].root))
    assert dataset.class_names == ("face", "leopard", "accordion", "airplane")


@pytest.mark.parametrize("name", LISTED)
def test_the_fingerprint_knows_neither_order_nor_place(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path / "a")
    before = {part: split.fingerprint for part, split in parts(name, tree.root).items()}
    assert len(set(before.values())) == 3
    shutil.move(tree.root, tmp_path / "b")
    folder = tmp_path / "b" / tree.folder.relative_to(tree.root)
    if tree.split_file is None:
        lists = [folder / f"images_variant_{part}.txt" for part in ("train", "val", "test")]
        for file in lists:
            file.write_text("".join(sorted(file.read_text().splitlines(keepends=True))))
    else:
        file, listed = folder / tree.split_file.name, tree.rows
        write_split(file, {p: sorted(found) for p, found in listed.items()}, tree.class_names)
    after = parts(name, tmp_path / "b")
    assert {part: split.fingerprint for part, split in after.items()} == before
    assert rows(after["train"]) == sorted(tree.rows["train"])


def test_a_caller_cannot_change_the_labels_of_the_next(trees: dict[str, Tree]) -> None:
    dataset = open_dataset("dtd", str(trees["dtd"].root))
    dataset.split("train").labels.zero_()
    assert dataset.split("train").labels.any()


def test_the_fingerprint_sees_name_part_labels_and_images(trees: dict[str, Tree]) -> None:
    root = trees["dtd"].root
    prints = [s.fingerprint for name in LISTED for s in parts(name, root).values()]
    assert len(set(prints)) == len(prints)


# --- a split that is made ------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_FILE)
def test_a_missing_split_file_is_named_and_a_split_made_only_on_request(
    name: str, tmp_path: Path
) -> None:
    tree = TREES[name](tmp_path)
    assert tree.split_file is not None
    tree.split_file.unlink()
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=rf"'{tree.split_file}' is missing.*--generate-split"):
        open_dataset(name, str(tmp_path))
    dataset = open_dataset(name, str(tmp_path), generate_split=True)
    assert dataset.class_names == tree.class_names
    assert tree.split_file.name in dataset.caveats[0]
    made = parts(name, tmp_path, generate_split=True)
    listed = [row for found in tree.rows.values() for row in found]
    assert Counter(row for split in made.values() for row in rows(split)) == Counter(listed)
    sizes = {part: Counter(split.labels.tolist()) for part, split in made.items()}
    if LAYOUTS[name].makes and name != "oxford_flowers":  # official trainval and test
        assert sorted(rows(made["test"])) == sorted(tree.rows["test"])
        assert [sizes["val"][label] for label in range(4)] == [2, 2, 2, 1]  # 20 % of 12 and of 6
    else:  # 50/20/30 of 16 images, and of the last class's 10
        assert [sizes["train"][label] for label in range(4)] == [8, 8, 8, 5]
        assert [sizes["val"][label] for label in range(4)] == [3, 3, 3, 2]
        assert [sizes["test"][label] for label in range(4)] == [5, 5, 5, 3]
    again = parts(name, tmp_path, generate_split=True)
    assert {p: s.fingerprint for p, s in again.items()} == {
        p: s.fingerprint for p, s in made.items()
    }
    assert snapshot(tmp_path) == before


def test_a_split_file_is_read_even_where_one_could_be_made(trees: dict[str, Tree]) -> None:
    tree = trees["dtd"]
    notices = open_dataset("dtd", str(tree.root), generate_split=True).caveats
    assert not [notice for notice in notices if "was generated" in notice]
    assert rows(parts("dtd", tree.root, generate_split=True)["val"]) == tree.rows["val"]


@pytest.mark.parametrize("name", [name for name in WITH_FILE if LAYOUTS[name].makes])
def test_a_partial_tree_names_all_missing_lists_and_ways_on(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path)
    assert tree.split_file is not None
    tree.split_file.unlink()
    for file in LAYOUTS[name].makes:
        (tree.folder / file).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(name, str(tmp_path), generate_split=True)
    for words in (*LAYOUTS[name].makes, tree.split_file.name, "folder:PATH", "official download"):
        assert words in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_lists_that_are_no_files(kind: str, tmp_path: Path) -> None:
    for name in ("dtd", "fgvc_aircraft", "stanford_cars"):
        tree = TREES[name](tmp_path)
        files = [*LAYOUTS[name].needs, *filter(None, [LAYOUTS[name].split_file])]
        for file in files:
            path = tree.folder / file
            content = path.read_bytes()
            path.unlink()
            {"pipe": os.mkfifo, "loop": lambda p: p.symlink_to(p), "folder": Path.mkdir}[kind](path)
            with pytest.raises(DataError, match=r"named pipe|leads to itself|a folder"):
                open_dataset(name, str(tmp_path))
            path.rmdir() if kind == "folder" else path.unlink()
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_1\n"),
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_1 one 1 1\n"),
        ("oxford_pets", "annotations/test.txt", None),
        ("stanford_cars", "devkit/cars_meta.mat", "not MATLAB"),
        ("stanford_cars", "devkit/cars_train_annos.mat", None),
        ("oxford_flowers", "imagelabels.mat", ""),
        ("oxford_flowers", "cat_to_name.json", '{"1": "pink primrose"}'),
        ("oxford_flowers", "cat_to_name.json", "{"),
        ("sun397", "ClassName.txt", "/a/abbey\n"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "1 YoYo\n"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "YoYo\n"),
    ],
)
def test_broken_official_lists_are_one_clear_error(
    name: str, file: str, text: str | None, tmp_path: Path
) -> None:
    tree = TREES[name](tmp_path)
    assert tree.split_file is not None
    tree.split_file.unlink()
    path = tree.folder / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(name, str(tmp_path), generate_split=True)
    assert "\n" not in str(caught.value)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_folder_and_a_missing_root_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"'{name}' needs --data ROOT"):
        open_dataset(name)
    with pytest.raises(DataError, match=f"'{tmp_path / 'nowhere'}' is missing"):
        open_dataset(name, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=f"'{tmp_path / LAYOUTS[name].folders[0]}'"):
        open_dataset(name, str(tmp_path))


@pytest.mark.parametrize("folder", LAYOUTS["fgvc_aircraft"].folders)
def test_aircraft_under_its_other_names(folder: str, tmp_path: Path) -> None:
    tree = fgvc_aircraft(tmp_path, folder)
    assert find_folder("fgvc_aircraft", tmp_path) == tree.folder
    assert rows(parts("fgvc_aircraft", tmp_path)["test"]) == tree.rows["test"]


def test_an_image_that_the_list_names_and_the_folder_lacks(tmp_path: Path) -> None:
    tree = TREES["eurosat"](tmp_path)
    path, _ = tree.rows["train"][3]
    dataset = open_dataset("eurosat", str(tmp_path))
    assert isinstance(dataset, ListedDataset)
    assert dataset.missing() == []
    (tree.folder / "2750" / path).unlink()
    assert dataset.missing() == [path]
    train = open_dataset("eurosat", str(tmp_path)).split("train")  # a partial copy is listed
    train.images.read(2)
    for ask in (lambda: train.images.read(3), train.images.content):
        with pytest.raises(DataError, match=rf"'{tree.folder / '2750' / path}'.*missing"):
            ask()


# --- the real lists and the real images ----------------------------------------------------------

REAL = {
    "caltech101": ("face", "yin_yang"),
    "dtd": ("banded", "zigzagged"),
    "eurosat": ("Annual Crop Land", "Sea or Lake"),
    "oxford_flowers": ("pink primrose", "blackberry lily"),
    "oxford_pets": ("abyssinian", "yorkshire_terrier"),
    "stanford_cars": ("2000 AM General Hummer SUV", "2012 smart fortwo Convertible"),
    "ucf101": ("Apply_Eye_Makeup", "Yo_Yo"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_fields_own_lists_without_any_image(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    folder = tmp_path / layout.folders[0]
    folder.mkdir()
    (folder / layout.split_file).symlink_to(shared_data("coop-splits", layout.split_file))
    dataset = open_dataset(name, str(tmp_path))
    assert isinstance(dataset, ListedDataset)
    assert dataset.counts() == layout.counts
    assert (dataset.class_names[0], dataset.class_names[-1]) == REAL[name]
    found = parts(name, tmp_path)
    base = (layout.counts.classes + 1) // 2
    for split in found.values():
        assert set(split.labels.tolist()) == set(range(layout.counts.classes))
    if name == "eurosat":
        assert int((found["test"].labels < base).sum()) == 4200
    with pytest.raises(DataError, match="missing"):
        found["train"].images.read(0)


def test_the_rules_give_the_published_class_names(tmp_path: Path) -> None:
    """The names of Caltech101 and EuroSAT that the lists publish come out of the rules too."""
    for name, renamed in (("caltech101", CALTECH_NAMES), ("eurosat", EUROSAT_NAMES)):
        plain = json.loads(shared_data("coop-splits", LAYOUTS[name].split_file).read_text())
        folders: dict[str, set[tuple[int, str]]] = defaultdict(set)
        for path, label, class_name in plain["train"]:
            folders[path.split("/")[0]].add((label, class_name))
        expected = {f: {(i, renamed.get(f, f))} for i, f in enumerate(sorted(folders))}
        assert folders == expected


@pytest.fixture
def real_dtd(tmp_path: Path) -> Path:
    source = shared_data("dtd-10classes", "dtd")
    folder = tmp_path / "dtd"
    folder.mkdir()
    (folder / "images").symlink_to(source / "images")
    shutil.copy(source / "split_10classes.json", folder / LAYOUTS["dtd"].split_file)
    return tmp_path


def test_real_textures(real_dtd: Path) -> None:
    dataset = open_dataset("dtd", str(real_dtd))
    assert dataset.class_names[0] == "banded"
    assert len(dataset.class_names) == 10
    found = parts("dtd", real_dtd)
    assert {part: len(split.labels) for part, split in found.items()} == {
        "train": 600,
        "val": 240,
        "test": 360,
    }
    for split in found.values():
        assert isinstance(split.images, ImageFiles)
        assert len(split.images.content()) == 64
        assert split.images.read(17).shape[0] == 3


def test_real_textures_split_here(real_dtd: Path) -> None:
    """The published rule gives the published counts."""
    (real_dtd / "dtd" / LAYOUTS["dtd"].split_file).unlink()
    found = parts("dtd", real_dtd, generate_split=True)
    assert [len(split.labels) for split in found.values()] == [600, 240, 360]
