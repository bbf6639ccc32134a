"""Miniature trees of the field's data sets in their original layouts, with what is odd in each.

Every class has 8 train, 4 val and 4 test images of 32x32 pixels, but the last one, which has 2
train images. An image shows its class: a hue with stripes. Lists are written in no special order.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZES = {"train": 8, "val": 4, "test": 4}
FEWEST = 2

Rows = dict[str, list[tuple[str, int]]]


@dataclass(frozen=True)
class Tree:
    """What was written: the truth that a loader is held to."""

    root: Path
    folder: Path
    """The data set's own folder."""
    class_names: tuple[str, ...]
    rows: Rows
    """Part -> (path relative to the folder of the images, label) in the list's order."""
    split_file: Path | None = None


@cache
def _jpeg(label: int, number: int) -> bytes:
    red, green, blue = colorsys.hsv_to_rgb((label * 0.381966) % 1, 1, 0.9)
    pixels = np.empty((32, 32, 3), np.uint8)
    pixels[:] = np.array([red, green, blue]) * 255
    pixels[number % 4 :: 4] //= 2
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def paint(file: Path, label: int, number: int = 0) -> None:
    """A JPEG of the class, whatever the file is called."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_jpeg(label, number))


def looks_like(label: int, pixels: Any) -> bool:
    """Whether an image [3, 32, 32] shows the class."""
    expected = np.array(Image.open(io.BytesIO(_jpeg(label, 0))))
    got = np.asarray(pixels, np.float64).mean((1, 2))
    return bool(np.abs(got - expected.mean((0, 1))).max() < 6)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def jumbled(rows: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """In an order that is neither by path nor by label."""
    return sorted(rows, key=lambda row: hashlib.md5(row[0].encode()).digest())


def plan(classes: int, path: Callable[[int, int, str], str]) -> Rows:
    """Rows of every part: `path(label, number within the class, part)`."""
    rows: Rows = {}
    for part, size in SIZES.items():
        first = {"train": 1, "val": 9, "test": 13}[part]
        found = []
        for label in range(classes):
            count = FEWEST if part == "train" and label == classes - 1 else size
            found += [(path(label, first + i, part), label) for i in range(count)]
        rows[part] = jumbled(found)
    return rows


def grow(images: Path, rows: Rows) -> None:
    for part in rows.values():
        for number, (path, label) in enumerate(part):
            paint(images / path, label, number)


def write_split(file: Path, rows: Rows, names: Sequence[str]) -> None:
    plain = {part: [[path, i, names[i]] for path, i in found] for part, found in rows.items()}
    write(file, json.dumps(plain))


def _with_split(
    root: Path, folder: str, images: str, split: str, names: Sequence[str], rows: Rows
) -> Tree:
    grow(root / folder / images, rows)
    write_split(root / folder / split, rows, names)
    return Tree(root, root / folder, tuple(names), rows, root / folder / split)


# --- one builder a data set ----------------------------------------------------------------------


def caltech101(root: Path) -> Tree:
    """Two folders to leave out; capital letters sort first; renamed classes."""
    folders = ("Faces", "Leopards", "accordion", "airplanes")
    rows = plan(4, lambda label, i, _: f"{folders[label]}/image_{i:04d}.jpg")
    images = root / "caltech-101" / "101_ObjectCategories"
    for odd in ("BACKGROUND_Google", "Faces_easy"):
        paint(images / odd / "image_0001.jpg", 0)
    write(images / "BACKGROUND_Google" / "tmp", "")
    return _with_split(
        root,
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        ("face", "leopard", "accordion", "airplane"),
        rows,
    )


def oxford_pets(root: Path) -> Tree:
    """Cats are capitalised, dogs are not; breeds of several words."""
    breeds = ("Abyssinian", "american_bulldog", "Bengal", "staffordshire_bull_terrier")
    rows = plan(4, lambda label, i, _: f"{breeds[label]}_{i}.jpg")

    def lines(found: list[tuple[str, int]]) -> str:
        return "".join(f"{path.removesuffix('.jpg')} {i + 1} 1 1\n" for path, i in found)

    annotations = root / "oxford_pets" / "annotations"
    write(annotations / "trainval.txt", lines(rows["train"] + rows["val"]))
    write(annotations / "test.txt", "#Image CLASS-ID SPECIES BREED ID\n" + lines(rows["test"]))
    write(root / "oxford_pets" / "images" / "Abyssinian_101.mat", "a stray file, as in the archive")
    names = [breed.lower() for breed in breeds]
    return _with_split(root, "oxford_pets", "images", "split_zhou_OxfordPets.json", names, rows)


def stanford_cars(root: Path) -> Tree:
    """Annotations in MATLAB files; the year stands at the end of the official names."""
    official = (
        *("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TTS Coupe 2012"),
        "Ferrari 458 Italia Convertible 2012",
    )
    names = (
        *("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TTS Coupe"),
        "2012 Ferrari 458 Italia Convertible",
    )

    def path(label: int, i: int, part: str) -> str:
        return f"{'cars_test' if part == 'test' else 'cars_train'}/{label * 16 + i:05d}.jpg"

    def annotate(file: Path, found: list[tuple[str, int]]) -> None:
        kinds = [(key, object) for key in ("bbox_x1", "bbox_y1", "class", "fname")]
        table = np.empty((1, len(found)), kinds)
        for column, (image, label) in enumerate(found):
            table[0, column] = (1, 1, label + 1, image.rpartition("/")[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        savemat(file, {"annotations": table})

    rows, folder = plan(4, path), root / "stanford_cars"
    annotate(folder / "devkit" / "cars_train_annos.mat", rows["train"] + rows["val"])
    annotate(folder / "cars_test_annos_withlabels.mat", rows["test"])
    episodes = np.array([list(official)], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": episodes})
    return _with_split(root, "stanford_cars", "", "split_zhou_StanfordCars.json", names, rows)


def oxford_flowers(root: Path) -> Tree:
    """Labels by image number, names under string keys."""
    names = ("pink primrose", "hard-leaved pocket orchid", "bird of paradise", "bee balm")
    # The last class has 10 images: numbers run without a gap.
    numbers = {(label, i): label * 16 + i for label in range(3) for i in range(1, 17)}
    last = [1, 2, *range(9, 17)]
    numbers |= {(3, i): 49 + place for place, i in enumerate(last)}
    rows = plan(4, lambda label, i, _: f"image_{numbers[label, i]:05d}.jpg")
    labels = [0] * len(numbers)
    for found in rows.values():
        for path, label in found:
            labels[int(path[6:11]) - 1] = label + 1
    folder = root / "oxford_flowers"
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    cat_to_name = {str(i): names[i - 1] for i in (3, 1, 4, 2)}
    write(folder / "cat_to_name.json", json.dumps(cat_to_name))
    return _with_split(root, "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", names, rows)


def food101(root: Path) -> Tree:
    """Class names with an underscore, images with numbers for names."""
    names = ("apple_pie", "french_onion_soup", "sushi", "waffles")
    rows = plan(4, lambda label, i, _: f"{names[label]}/{label * 1000 + i * 7}.jpg")
    write(root / "food-101" / "meta" / "classes.txt", "\n".join(names))
    return _with_split(root, "food-101", "images", "split_zhou_Food101.json", names, rows)


def fgvc_aircraft(root: Path, folder: str = "fgvc_aircraft") -> Tree:
    """Three official lists; variants with a space or a slash, in another order."""
    names = ("747-400", "Cessna 172", "A300B4", "F/A-18")
    rows = plan(4, lambda label, i, _: f"{label:02d}34{i:03d}.jpg")
    for part, found in rows.items():
        lines = "".join(f"{path.removesuffix('.jpg')} {names[i]}\n" for path, i in found)
        write(root / folder / f"images_variant_{part}.txt", lines)
    write(root / folder / "variants.txt", "".join(f"{name}\n" for name in names))
    grow(root / folder / "images", rows)
    return Tree(root, root / folder, names, rows)


def sun397(root: Path) -> Tree:
    """Classes of two levels and of one, in the order of ClassName.txt."""
    classes = (
        "a/abbey",
        "a/airplane_cabin",
        "w/wrestling_ring/indoor",
        "b/basketball_court/indoor",
    )
    names = ("abbey", "airplane_cabin", "indoor wrestling_ring", "indoor basketball_court")
    rows = plan(4, lambda label, i, _: f"{classes[label]}/sun_a{label}{i:02d}.jpg")
    folder = root / "sun397"
    write(folder / "ClassName.txt", "".join(f"/{entry}\n" for entry in classes))
    trainval = rows["train"] + rows["val"]
    write(folder / "Training_01.txt", "".join(f"/{path}\n" for path, _ in trainval))
    write(folder / "Testing_01.txt", "".join(f"/{path}\n" for path, _ in rows["test"]))
    return _with_split(root, "sun397", "SUN397", "split_zhou_SUN397.json", names, rows)


def dtd(root: Path) -> Tree:
    """Class names with a hyphen; further lists that are not used."""
    names = ("banded", "blotchy", "polka-dotted", "zigzagged")
    rows = plan(4, lambda label, i, _: f"{names[label]}/{names[label]}_{i:04d}.jpg")
    write(root / "dtd" / "labels" / "train1.txt", "banded/banded_0002.jpg\n")
    write(root / "dtd" / "images" / "banded" / ".directory", "[Dolphin]")
    return _with_split(root, "dtd", "images", "split_zhou_DescribableTextures.json", names, rows)


def eurosat(root: Path) -> Tree:
    """Class names that are written out."""
    classes = ("AnnualCrop", "Forest", "PermanentCrop", "SeaLake")
    names = ("Annual Crop Land", "Forest", "Permanent Crop Land", "Sea or Lake")
    rows = plan(4, lambda label, i, _: f"{classes[label]}/{classes[label]}_{i}.jpg")
    return _with_split(root, "eurosat", "2750", "split_zhou_EuroSAT.json", names, rows)


def ucf101(root: Path) -> Tree:
    """Names split at capitals; videos whose middle frames are images; a file whose own name
    differs from its class."""
    actions = ("ApplyEyeMakeup", "Archery", "HandstandPushups", "YoYo")
    names = ("Apply_Eye_Makeup", "Archery", "Handstand_Pushups", "Yo_Yo")
    files = ("ApplyEyeMakeup", "Archery", "HandStandPushups", "YoYo")

    def video(label: int, i: int) -> str:
        return f"v_{files[label]}_g{i:02d}_c01"

    rows = plan(4, lambda label, i, _: f"{names[label]}/{video(label, i)}.jpg")

    def lines(found: list[tuple[str, int]], numbered: bool) -> str:
        text = ""
        for path, label in found:
            name = path.rpartition("/")[2].removesuffix(".jpg")
            text += f"{actions[label]}/{name}.avi{f' {label + 1}' if numbered else ''}\n"
        return text

    lists = root / "ucf101" / "ucfTrainTestlist"
    write(lists / "classInd.txt", "".join(f"{i} {a}\n" for i, a in enumerate(actions, 1)))
    write(lists / "trainlist01.txt", lines(rows["train"] + rows["val"], True))
    write(lists / "testlist01.txt", lines(rows["test"], False))
    return _with_split(root, "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", names, rows)


# --- ImageNet ------------------------------------------------------------------------------------

WNIDS: dict[str, str] = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01530575": "brambling",
    "n01580077": "jay",
    "n02012849": "crane (bird)",
    "n03126707": "construction crane",
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglasses",
    "n04356056": "sunglasses",
    "n15075141": "toilet paper",
}
"""Twelve classes, so that 10 sorts before 2; two names each have two classes."""
SOME = ("n01443537", "n04008634")
"""The classes of A and R."""


def write_class_names(file: Path) -> None:
    """Not in the order of the ids."""
    write(file, "".join(f"{w} {n}\n" for w, n in sorted(WNIDS.items(), key=lambda e: e[1][::-1])))


def imagenet(root: Path, inner: str = "images") -> Tree:
    """The parts are not listed here: `rows` holds what is there, under `train` and `test`."""
    base = root / "imagenet" / inner
    rows: Rows = {"train": [], "val": [], "test": []}
    for label, wnid in enumerate(WNIDS):
        count = FEWEST if label == 11 else 8
        rows["train"] += [(f"train/{wnid}/{wnid}_{i}.JPEG", label) for i in range(count)]
        rows["test"] += [(f"val/{wnid}/ILSVRC2012_val_{i:08d}.JPEG", label) for i in range(2)]
    grow(base, rows)
    write_class_names(root / "imagenet" / "classnames.txt")
    return Tree(root, root / "imagenet", tuple(WNIDS.values()), rows)


def _shift(
    root: Path, name: str, inner: str, folders: dict[str, str], own_names: bool = False
) -> Tree:
    wnids = list(WNIDS)
    rows: Rows = {"test": []}
    for label, (wnid, folder) in enumerate(folders.items()):
        for i in range(2):
            paint(root / name / inner / folder / f"{i}.jpg", wnids.index(wnid), i)
            rows["test"].append((f"{folder}/{i}.jpg", label))
    write(root / name / inner / "README.txt", "n01440764 tench\n")
    if own_names or not (root / "imagenet" / "classnames.txt").exists():
        write_class_names(root / name / "classnames.txt")
    return Tree(root, root / name, tuple(WNIDS[wnid] for wnid in folders), rows)


def imagenet_v2(root: Path) -> Tree:
    """Folders are numbers."""
    numbered = {wnid: str(i) for i, wnid in enumerate(WNIDS)}
    return _shift(root, "imagenetv2", "imagenetv2-matched-frequency-format-val", numbered)


def imagenet_sketch(root: Path) -> Tree:
    """All classes."""
    return _shift(root, "imagenet-sketch", "images", {wnid: wnid for wnid in WNIDS})


def imagenet_a(root: Path) -> Tree:
    """Some classes."""
    return _shift(root, "imagenet-adversarial", "imagenet-a", {w: w for w in SOME}, True)


def imagenet_r(root: Path) -> Tree:
    """Some classes."""
    return _shift(root, "imagenet-rendition", "imagenet-r", {w: w for w in SOME})


TREES: dict[str, Callable[[Path], Tree]] = {
    "imagenet": imagenet,
    "caltech101": caltech101,
    "oxford_pets": oxford_pets,
    "stanford_cars": stanford_cars,
    "oxford_flowers": oxford_flowers,
    "food101": food101,
    "fgvc_aircraft": fgvc_aircraft,
    "sun397": sun397,
    "dtd": dtd,
    "eurosat": eurosat,
    "ucf101": ucf101,
    "imagenet_v2": imagenet_v2,
    "imagenet_sketch": imagenet_sketch,
    "imagenet_a": imagenet_a,
    "imagenet_r": imagenet_r,
}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below a folder: a loader that writes changes it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.stat()
        found[path.relative_to(folder).as_posix()] = (state.st_size, state.st_mtime_ns)
    return found
