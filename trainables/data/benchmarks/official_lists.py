"""The official lists of the benchmark data sets, and splits generated from them by the published
rules.

Each function takes the data set's folder and returns rows whose paths are relative to the folder
of its images; each raises `DataError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.base import DataError
from trainables.data.benchmarks.layouts import LAYOUTS
from trainables.data.image_files import folders_in, images_in, read_lines, read_list
from trainables.data.lists import Lists, Row, split_by_hash, split_off_by_hash

Official = Callable[[Path], Lists]

# --- one folder per class, split 50/20/30 --------------------------------------------------------

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
    """Omit two folders and rename four classes after sorting."""
    return _class_folders(folder, "caltech101", CALTECH_NAMES, CALTECH_LEFT_OUT)


def food101(folder: Path) -> Lists:
    """Images per class folder, not the official 750/250 per class."""
    return _class_folders(folder, "food101")


def dtd(folder: Path) -> Lists:
    """Images per class folder, not one of the ten official splits."""
    return _class_folders(folder, "dtd")


def eurosat(folder: Path) -> Lists:
    """Images per class folder, with readable class names."""
    return _class_folders(folder, "eurosat", EUROSAT_NAMES)


def _class_folders(
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
    """Labels by image number in a MATLAB file, names in a JSON file; split 50/20/30."""
    file, names_file = folder / "imagelabels.mat", folder / "cat_to_name.json"
    ids = np.atleast_1d(_mat(file, "labels"))
    try:
        names: dict[str, str] = json.loads(read_list(names_file))
        rows = [
            Row(f"image_{number:05d}.jpg", int(label) - 1, names[str(int(label))])
            for number, label in enumerate(ids, start=1)
        ]
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"'{names_file}' must name every label of '{file}' ({type(error).__name__}: {error}). "
            "Fetch it again."
        ) from None
    return split_by_hash(rows, "'oxford_flowers'")


# --- official training and test sets, a fifth of the training set to val -------------------------


def oxford_pets(folder: Path) -> Lists:
    """Class names are the file names without their numbers, in lower case."""

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
    """The year moves to the front of the class name."""
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
                    f"An annotation must have an fname, and a class that is a number of '{meta}': "
                    f"one of '{file}' has not. Fetch both again."
                ) from None
        return rows

    return _official(
        "stanford_cars",
        read(folder / "devkit" / "cars_train_annos.mat", "cars_train"),
        read(folder / "cars_test_annos_withlabels.mat", "cars_test"),
    )


def sun397(folder: Path) -> Lists:
    """Labels by the lines of ClassName.txt; `/w/wrestling_ring/indoor` becomes `indoor
    wrestling_ring`."""
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
    train, val = split_off_by_hash(trainval, f"'{name}'")
    return {"train": train, "val": val, "test": test}


# --- three official splits -----------------------------------------------------------------------


def fgvc_aircraft(folder: Path) -> Lists:
    """Labels by the lines of variants.txt; all three splits are official."""
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
"""Reads the splits of each data set without a split file."""


# --- files ---------------------------------------------------------------------------------------


def _mat(file: Path, key: str) -> Any:
    """Return one variable of a MATLAB file; structures are dictionaries."""
    from scipy.io import loadmat

    content = BytesIO(read_list(file, "A MATLAB file of the data set"))
    try:
        return loadmat(content, simplify_cells=True)[key]
    # A broken file raises whatever its first wrong byte leads to.
    except Exception as error:
        raise DataError(
            f"'{file}' must be a MATLAB file with '{key}' and is not "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from None


def _fields(line: str, count: int, file: Path) -> list[str]:
    fields = line.split()
    if len(fields) < count:
        raise DataError(
            f"A line of '{file}' must have at least {count} fields: '{line}' has not. Fetch it "
            "again."
        )
    return fields


def _number(field: str, line: str) -> int:
    if not field.isdecimal():
        raise DataError(f"A label must be a number: '{field}' in '{line}'. Fetch the list again.")
    return int(field)


def _known(labels: dict[str, int], entry: str, file: Path) -> int:
    if entry not in labels:
        raise DataError(
            f"Every image must be of a listed class: '{entry}' in '{file}' is not. "
            "Fetch the lists again."
        )
    return labels[entry]
