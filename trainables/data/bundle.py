"""A feature bundle: one safetensors file with frozen image features, labels and a classifier.

    train_features, val_features, test_features   float [n, d], of 16 or 32 bits
    train_labels, val_labels, test_labels         int64 [n], in 0..c-1
    class_features                                float [c, d]
    metadata: class_names (a JSON list), backbone, logit_scale; if known: template

Notation: n images, c classes, d feature dimension.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.data.base import DataError, FeatureRows, Split, SplitName, fingerprint
from trainables.data.prompts import PHOTO, PromptSet, PromptVariant
from trainables.data.sealed import SealedError, TestPermit

PREFIX = "bundle:"
"""What stands before the file in a data set's name."""

_SPLITS = ("train", "val", "test")
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A data set whose images a backbone has seen already."""

    path: Path
    """The file, absolute."""
    class_names: tuple[str, ...]
    """One name a class."""
    class_features: Tensor
    """float32 [c, d]: the classifier, one vector a class, not necessarily of unit length."""
    logit_scale: float
    """The temperature's inverse, positive."""
    backbone_name: str
    """Whose features they are."""
    template: str
    """The text that the classifier was made from, with one `{}` for the class name."""
    _train: Split
    _val: Split

    @property
    def name(self) -> str:
        """`bundle:` and the absolute path."""
        return f"{PREFIX}{self.path}"

    @property
    def flip(self) -> bool:
        """Features cannot be mirrored."""
        return False

    @property
    def shots(self) -> int:
        """The fewest training rows of a class: the most shots that can be drawn."""
        return int(self._train.labels.bincount().min())

    @property
    def notices(self) -> tuple[str, ...]:
        """That nothing can be augmented, and where the draws stop being different."""
        return (
            f"'{self.path.name}' holds features and no images: none is cropped or mirrored, and "
            "the classifier is the file's own, whatever the prompts.",
            f"'{self.path.name}' has {self.shots} training rows in its smallest class: at that "
            "many shots every seed draws the same of them.",
        )

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The file's one template, for the record: in use are the `class_features`."""
        return PromptSet(tuple(n.replace("_", " ") for n in self.class_names), (self.template,))

    def split(self, name: SplitName) -> Split:
        """The training or validation rows; raises `SealedError` for anything else."""
        if name not in ("train", "val"):
            raise SealedError(f"Only 'train' and 'val' are open, got '{name}'.")
        return self._train if name == "train" else self._val

    def sealed_split(self, permit: TestPermit) -> Split:
        """The test rows, read from the file only now; raises `DataError` where they are unfit."""
        permit.check(self.name)
        file = _File.open(self.path)
        file.check_shapes()
        return _rows(file, "test", self.class_names)


def open_bundle(path: Path) -> Bundle:
    """The bundle in the file `path`, all of it checked but the values of its test rows, which are
    not read: a search has them looked at before it starts, by `sealed.check_test_split`.

    Raises `DataError`.
    """
    path = path.expanduser().resolve()
    file = _File.open(path)
    file.check_shapes()
    names = file.class_names()
    train, val = (_rows(file, split, names) for split in ("train", "val"))
    for split, rows in (("training", train), ("validation", val)):
        count = rows.labels.bincount(minlength=len(names))
        if not count.all():
            label = int(count.argmin())
            file.refuse(
                f"Every class needs a {split} row, class {label} ('{names[label]}') has none"
            )
    return Bundle(
        path,
        names,
        _finite(file, "class_features"),
        file.logit_scale(),
        file.text("backbone"),
        file.template(),
        train,
        val,
    )


@dataclass(frozen=True)
class _File:
    """What the head of a safetensors file says."""

    path: Path
    types: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> _File:
        if not path.is_file():
            raise DataError(f"A bundle is a file, there is none at '{path}': check the path.")
        try:
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                types = {name: str(part.get_dtype()) for name, part in slices.items()}
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                return cls(path, types, shapes, file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error

    def refuse(self, fault: str, remedy: str = "make the bundle again") -> NoReturn:
        """Raises `DataError`."""
        raise DataError(f"{fault}, in the bundle '{self.path}': {remedy}.")

    def tensor(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, "pt") as file:
                found: Tensor = file.get_tensor(name)
                return found
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.path, error) from error

    def check_shapes(self) -> None:
        """Of every tensor, the test rows' too."""
        names = [f"{split}_{kind}" for split in _SPLITS for kind in ("features", "labels")]
        missing = [name for name in [*names, "class_features"] if name not in self.shapes]
        if missing:
            self.refuse(
                f"A bundle holds train_, val_ and test_features and _labels, and class_features; "
                f"missing: {', '.join(missing)}"
            )
        for name in [*names, "class_features"]:
            kind, shape = self.types[name], self.shapes[name]
            if name.endswith("labels"):
                if kind != "I64" or len(shape) != 1:
                    self.refuse(f"Labels are int64 [n], got {kind} {list(shape)} as {name}")
            elif kind not in _FLOATS or len(shape) != 2 or 0 in shape:
                self.refuse(
                    f"Features are float16, bfloat16 or float32 [n, d] and not empty, got {kind} "
                    f"{list(shape)} as {name}"
                )
        dimension = self.shapes["class_features"][1]
        for split in _SPLITS:
            features, labels = self.shapes[f"{split}_features"], self.shapes[f"{split}_labels"]
            if features[0] != labels[0]:
                self.refuse(
                    f"Each row has one label, got {features[0]} rows of {split}_features and "
                    f"{labels[0]} of {split}_labels"
                )
            if features[1] != dimension:
                self.refuse(
                    f"Image and class features have one dimension, got {features[1]} in "
                    f"{split}_features and {dimension} in class_features",
                    "these are features of another backbone; compute both with the same one",
                )

    def class_names(self) -> tuple[str, ...]:
        text = self.text("class_names")
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
            self.refuse(f"The metadata's class_names are a JSON list of names, got {text[:60]!r}")
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            self.refuse(f"Class names differ from each other, '{twice[0]}' stands there twice")
        rows = self.shapes["class_features"][0]
        if len(names) != rows:
            self.refuse(
                f"Each class has one name, got {len(names)} names and {rows} class_features"
            )
        return tuple(names)

    def logit_scale(self) -> float:
        text = self.text("logit_scale")
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            self.refuse(
                f"The metadata's logit_scale is a positive number, got {text[:60]!r}",
                "CLIP's is 100",
            )
        return scale

    def template(self) -> str:
        text = self.metadata.get("template", PHOTO)
        if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
            self.refuse(f"The metadata's template has one {{}} for the name, got {text[:60]!r}")
        return text

    def text(self, key: str) -> str:
        found = self.metadata.get(key, "")
        if not found.strip():
            self.refuse(f"The metadata says class_names, backbone and logit_scale; missing: {key}")
        return found


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"A bundle is a whole safetensors file, '{path}' is not ({str(error)[:200]}): copy or "
        "make it again."
    )


def _rows(file: _File, split: str, names: tuple[str, ...]) -> Split:
    """One split, its values checked."""
    features, labels = _finite(file, f"{split}_features"), file.tensor(f"{split}_labels")
    wrong = ((labels < 0) | (labels >= len(names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        file.refuse(
            f"Labels of {len(names)} classes lie in 0..{len(names) - 1}, got {int(labels[row])} in "
            f"row {row} of {split}_labels"
        )
    content = (json.dumps(names).encode(), features.numpy().tobytes(), labels.numpy().tobytes())
    rows = FeatureRows(features, f"{PREFIX}{file.path}")
    return Split(rows, labels, fingerprint(*content))


def _finite(file: _File, name: str) -> Tensor:
    """float32."""
    features = file.tensor(name).float()
    wrong = (~features.isfinite().all(1)).nonzero()
    if len(wrong):
        file.refuse(f"Features are finite, got NaN or infinity in row {int(wrong[0])} of {name}")
    return features
