"""The official lists of the field's data sets, and splits made from them by the published rules.

Each function takes the data set's folder and returns rows whose paths are relative to the folder
of its images; each raises `DataError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.base import DataError
from trainables.data.benchmarks.coop_layouts import LAYOUTS
from trainables.data.listing import folders_in, images_in, read_lines
from trainables.data.lists import Lists, Row, split_by_hash, split_val_by_hash

Official = Callable[[Path], Lists]

# --- one folder a class, dealt 50/20/30 ----------------------------------------------------------

CALTECH_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
CALTECH_NAMES: dict[str, str] = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
EUROSAT_NAMES: dict[str, str] = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def caltech101(folder: Path) -> Lists:
    """Two folders are left out, four classes renamed after sorting."""
    return _dealt_folders(folder, "caltech101", CALTECH_NAMES, CALTECH_LEFT_OUT)


def food101(folder: Path) -> Lists:
    """Not the official 750/250 a class."""
    return _dealt_folders(folder, "food101")


def dtd(folder: Path) -> Lists:
    """Not one of the ten official splits."""
    return _dealt_folders(folder, "dtd")


def eurosat(folder: Path) -> Lists:
    """The classes have names that can be read."""
    return _dealt_folders(folder, "eurosat", EUROSAT_NAMES)


def _dealt_folders(
    folder: Path, name: str, renamed: dict[str, str] | None = None, left_out: Sequence[str] = ()
) -> Lists:
    images = folder / LAYOUTS[name].images
    classes = [entry for entry in folders_in(images) if entry not in left_out]
    rows = []
    for label, entry in enumerate(classes):
        class_name = (renamed or {}).get(entry, entry)
        rows += [Row(f"{entry}/{image}", label, class_name) for image in images_in(images / entry)]
    return split_by_hash(rows, f"'{name}'")


def oxford_flowers(folder: Path) -> Lists:
    """Labels by image number in a MATLAB file, names in a JSON file; dealt 50/20/30."""
    file, names_file = folder / "imagelabels.mat", folder / "cat_to_name.json"
    ids = np.atleast_1d(_mat(file, "labels"))
    try:
        names: dict[str, str] = json.loads(names_file.read_text(encoding="utf-8"))
        rows = [
            Row(f"image_{number:05d}.jpg", int(label) - 1, names[str(int(label))])
            for number, label in enumerate(ids, start=1)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"'{names_file}' must name every label of '{file}' ({type(error).__name__}: {error}). "
            "Fetch it again."
        ) from None
    return split_by_hash(rows, "'oxford_flowers'")


# --- official training and test sets, a fifth of the training set to val -------------------------


def oxford_pets(folder: Path) -> Lists:
    """The breed is the file's name without its number, lower-cased."""

    def read(name: str) -> list[Row]:
        rows = []
        for line in read_lines(folder / "annotations" / name):
            if line.startswith("#"):
                continue
            image, label = _fields(line, 2, folder / "annotations" / name)[:2]
            breed = image.rpartition("_")[0].lower()
            rows.append(Row(f"{image}.jpg", _number(label, line) - 1, breed))
        return rows

    return _official("oxford_pets", read("trainval.txt"), read("test.txt"))


def stanford_cars(folder: Path) -> Lists:
    """The year moves to the front of the name."""
    meta = folder / "devkit" / "cars_meta.mat"
    names = [
        " ".join([name.split(" ")[-1], *name.split(" ")[:-1]])
        for name in map(str, np.atleast_1d(_mat(meta, "class_names")))
    ]

    def read(file: Path, images: str) -> list[Row]:
        rows = []
        for entry in np.atleast_1d(_mat(file, "annotations")):
            try:
                label = int(entry["class"]) - 1
                rows.append(Row(f"{images}/{entry['fname']}", label, names[label]))
            except (LookupError, TypeError, ValueError):
                raise DataError(
                    f"An annotation has fname, and class as a number of '{meta}': one of "
                    f"'{file}' has not. Fetch both again."
                ) from None
        return rows

    return _official(
        "stanford_cars",
        read(folder / "devkit" / "cars_train_annos.mat", "cars_train"),
        read(folder / "cars_test_annos_withlabels.mat", "cars_test"),
    )


def sun397(folder: Path) -> Lists:
    """Labels by the lines of ClassName.txt; `/w/wrestling_ring/indoor` is read backwards."""
    classes = [line.strip("/") for line in read_lines(folder / "ClassName.txt")]
    labels = {entry: label for label, entry in enumerate(classes)}

    def read(name: str) -> list[Row]:
        rows = []
        for line in read_lines(folder / name):
            entry = line.strip("/").rpartition("/")[0]
            words = reversed(entry.split("/")[1:])
            rows.append(Row(line.strip("/"), _known(labels, entry, folder / name), " ".join(words)))
        return rows

    return _official("sun397", read("Training_01.txt"), read("Testing_01.txt"))


def ucf101(folder: Path) -> Lists:
    """Middle frames instead of videos; `YoYo` becomes `Yo_Yo`."""
    lists = folder / "ucfTrainTestlist"
    labels = {}
    for line in read_lines(lists / "classInd.txt"):
        number, action = _fields(line, 2, lists / "classInd.txt")[:2]
        labels[action] = _number(number, line) - 1

    def read(name: str) -> list[Row]:
        rows = []
        for line in read_lines(lists / name):
            action, _, video = line.split()[0].partition("/")
            renamed = "_".join(re.findall("[A-Z][^A-Z]*", action))
            image = f"{renamed}/{video.removesuffix('.avi')}.jpg"
            rows.append(Row(image, _known(labels, action, lists / name), renamed))
        return rows

    return _official("ucf101", read("trainlist01.txt"), read("testlist01.txt"))


def _official(name: str, trainval: list[Row], test: list[Row]) -> Lists:
    train, val = split_val_by_hash(trainval, f"'{name}'")
    return {"train": train, "val": val, "test": test}


# --- three official parts ------------------------------------------------------------------------


def fgvc_aircraft(folder: Path) -> Lists:
    """Labels by the lines of variants.txt; the parts are official, nothing is made."""
    labels = {variant: label for label, variant in enumerate(read_lines(folder / "variants.txt"))}

    def read(part: str) -> list[Row]:
        file = folder / f"images_variant_{part}.txt"
        rows = []
        for line in read_lines(file):
            image, _, variant = line.partition(" ")
            rows.append(Row(f"{image}.jpg", _known(labels, variant.strip(), file), variant.strip()))
        return rows

    return {"train": read("train"), "val": read("val"), "test": read("test")}


OFFICIAL: dict[str, Official] = {
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
}
"""How the parts of each data set come about without a split file."""


# --- files ---------------------------------------------------------------------------------------


def _mat(file: Path, key: str) -> Any:
    """One variable of a MATLAB file; structures are dictionaries."""
    from scipy.io import loadmat

    try:
        return loadmat(str(file), simplify_cells=True)[key]
    # A broken file raises whatever its first wrong byte leads to.
    except Exception as error:
        raise DataError(
            f"A MATLAB file with '{key}' is needed: '{file}' is none "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from None


def _fields(line: str, count: int, file: Path) -> list[str]:
    fields = line.split()
    if len(fields) < count:
        raise DataError(
            f"A line of '{file}' has at least {count} fields: '{line}' has not. Fetch it again."
        )
    return fields


def _number(field: str, line: str) -> int:
    if not field.isdecimal():
        raise DataError(f"A class number is a number: '{field}' in '{line}'. Fetch the list again.")
    return int(field)


def _known(labels: dict[str, int], entry: str, file: Path) -> int:
    if entry not in labels:
        raise DataError(
            f"Every image is of a listed class: '{entry}' in '{file}' is not listed. "
            "Fetch the lists again."
        )
    return labels[entry]
