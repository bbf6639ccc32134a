"""Layout of the benchmark data sets below one root, as in CoOp's instructions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.core.files import kind_of
from trainables.data.base import DataError
from trainables.data.lists import Counts


@dataclass(frozen=True)
class Layout:
    """Folders, files and published counts of one data set."""

    folders: tuple[str, ...]
    """Its folder below the root, and other common names of it."""
    images: str
    """The folder in it that listed paths are relative to; empty for itself."""
    counts: Counts
    """Published counts, for the splits as used here."""
    split_file: str = ""
    """The published train, val and test lists; empty if the splits are official."""
    unpacked: tuple[str, ...] = ("",)
    """Folders below that of the images that exist once the images are unpacked."""
    needs: tuple[str, ...] = ()
    """Files in its folder that are always needed, besides the images and the split file."""
    makes: tuple[str, ...] = ()
    """Files that are needed only to generate a missing split."""


LAYOUTS: dict[str, Layout] = {
    # Published: val = test. Here val is carved from train, see `imagenet.py`.
    "imagenet": Layout(
        ("imagenet",), "", Counts(1000, 1_231_167, 50_000, 50_000), needs=("classnames.txt",)
    ),
    "caltech101": Layout(
        ("caltech-101",),
        "101_ObjectCategories",
        Counts(100, 4128, 1649, 2465),
        "split_zhou_Caltech101.json",
    ),
    "oxford_pets": Layout(
        ("oxford_pets",),
        "images",
        Counts(37, 2944, 736, 3669),
        "split_zhou_OxfordPets.json",
        makes=("annotations/trainval.txt", "annotations/test.txt"),
    ),
    "stanford_cars": Layout(
        ("stanford_cars",),
        "",
        Counts(196, 6509, 1635, 8041),
        "split_zhou_StanfordCars.json",
        unpacked=("cars_train", "cars_test"),
        makes=(
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ),
    ),
    "oxford_flowers": Layout(
        ("oxford_flowers",),
        "jpg",
        Counts(102, 4093, 1633, 2463),
        "split_zhou_OxfordFlowers.json",
        makes=("imagelabels.mat", "cat_to_name.json"),
    ),
    "food101": Layout(
        ("food-101",), "images", Counts(101, 50_500, 20_200, 30_300), "split_zhou_Food101.json"
    ),
    "fgvc_aircraft": Layout(
        (
            *("fgvc_aircraft", "fgvc_aircraft/data"),
            *("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/data"),
        ),
        "images",
        Counts(100, 3334, 3333, 3333),
        needs=(
            "variants.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
        ),
    ),
    "sun397": Layout(
        ("sun397",),
        "SUN397",
        Counts(397, 15_880, 3970, 19_850),
        "split_zhou_SUN397.json",
        makes=("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
    ),
    "dtd": Layout(
        ("dtd",), "images", Counts(47, 2820, 1128, 1692), "split_zhou_DescribableTextures.json"
    ),
    "eurosat": Layout(
        ("eurosat",), "2750", Counts(10, 13_500, 5400, 8100), "split_zhou_EuroSAT.json"
    ),
    "ucf101": Layout(
        ("ucf101",),
        "UCF-101-midframes",
        Counts(101, 7639, 1898, 3783),
        "split_zhou_UCF101.json",
        makes=(
            "ucfTrainTestlist/classInd.txt",
            "ucfTrainTestlist/trainlist01.txt",
            "ucfTrainTestlist/testlist01.txt",
        ),
    ),
    "imagenet_v2": Layout(
        ("imagenetv2",), "imagenetv2-matched-frequency-format-val", Counts(1000, 0, 0, 10_000)
    ),
    "imagenet_sketch": Layout(("imagenet-sketch",), "images", Counts(1000, 0, 0, 50_889)),
    "imagenet_a": Layout(("imagenet-adversarial",), "imagenet-a", Counts(200, 0, 0, 7500)),
    "imagenet_r": Layout(("imagenet-rendition",), "imagenet-r", Counts(200, 0, 0, 30_000)),
}
"""All differences between the data sets, except how a split is generated."""

ALL11 = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
"""The eleven data sets of the field, in its order."""

IMAGENET_SHIFTS = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
"""Evaluated by a classifier of ImageNet."""


def find_folder(name: str, root: Path) -> Path:
    """Return the folder of a data set below `root`: of several, one with the files it needs.

    Raises `DataError`.
    """
    layout = LAYOUTS[name]
    if not root.is_dir():
        raise DataError(
            f"The root of the data sets must be a folder: '{root}' is {kind_of(root)}. Give "
            f"--data ROOT, the folder that contains '{layout.folders[0]}'."
        )
    found = [root / folder for folder in layout.folders if (root / folder).is_dir()]
    if not found:
        looked = "', '".join(str(root / folder) for folder in layout.folders)
        raise DataError(
            f"The data set '{name}' must be in a folder below the root: there is no '{looked}'. "
            "Put it there, or give another --data ROOT."
        )
    whole = [folder for folder in found if all((folder / need).is_file() for need in layout.needs)]
    return (whole or found)[0]


def counts_caveat(name: str, counts: Counts) -> tuple[str, ...]:
    """Return a caveat if a data set does not have its published counts."""
    why = counts.mismatch(LAYOUTS[name].counts)
    return (f"'{name}' has {counts}. {why}",) if why else ()
