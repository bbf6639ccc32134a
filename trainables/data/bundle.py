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
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.core.files import kind_of
from trainables.core.text import printable
from trainables.data.base import (
    DataError,
    FeatureRows,
    Permit,
    Split,
    SplitName,
    check_class_names,
    check_is_open,
    fingerprint,
)
from trainables.data.prompts import PHOTO, PromptSet, PromptVariant

PREFIX = "bundle:"
"""Prefix of the file in a data set's name."""

_SPLITS = ("train", "val", "test")
_FLOATS = ("F16", "BF16", "F32")
_SCALES = (1.0, 1000.0)
"""Plausible logit scales: CLIP starts at 14 and ends at 100, SigLIP's end above 100."""
_LOGARITHMS = (2.5, 7.0)
"""Values that are more likely the logarithm of a scale: models store that, e.g. 4.6052."""
_LENGTHS = (1e-3, 1e4)
"""Plausible lengths of a feature: towers give from less than 1 to about 100."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A data set of image features from one backbone."""

    path: Path
    """The file, absolute."""
    class_names: tuple[str, ...]
    """One name per class; two classes may have the same."""
    class_features: Tensor
    """float32 [c, d]: the classifier, one vector per class, not necessarily of unit length."""
    logit_scale: float
    """The temperature's inverse, positive."""
    backbone_name: str
    """Name of the backbone."""
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
        """False: features cannot be mirrored."""
        return False

    @property
    def shots(self) -> int:
        """Training rows of the smallest class: the most shots that can be drawn."""
        return int(self._train.labels.bincount().min())

    @property
    def caveats(self) -> tuple[str, ...]:
        """Limits of features, and values that look like a mistake."""
        low, high = _LOGARITHMS
        scale = (
            f"The logit_scale of '{self.path.name}' is {self.logit_scale:g}, which looks like the "
            f"logarithm of {math.exp(self.logit_scale):.1f}: store the scale itself.",
        )
        return (
            f"'{self.path.name}' holds features and no images: none is cropped or mirrored, and "
            "the classifier is the file's own, whatever the prompts.",
            f"'{self.path.name}' has {self.shots} training rows in its smallest class: at that "
            "many shots every seed draws the same of them.",
            *(scale if low < self.logit_scale < high else ()),
        )

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The file's one template, for the record: the classifier is `class_features`."""
        return PromptSet(tuple(n.replace("_", " ") for n in self.class_names), (self.template,))

    def split(self, name: SplitName) -> Split:
        """The training or validation rows; raises `SealedError` for anything else."""
        check_is_open(name)
        return self._train if name == "train" else self._val

    def sealed_split(self, permit: Permit) -> Split:
        """The test rows, which are read from the file only now; raises `DataError`."""
        permit.check(self.name)
        file = _File.open(self.path)
        file.check_shapes()
        return _rows(file, "test", file.class_names())


def open_bundle(path: Path) -> Bundle:
    """Open the bundle in a file and check everything but the values of its test rows, which
    `sealed.check_test_split` checks before a search. Raises `DataError`."""
    path = Path(os.path.realpath(os.path.expanduser(path)))
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
        _features(file, "class_features"),
        file.logit_scale(),
        file.text("backbone"),
        file.template(),
        train,
        val,
    )


@dataclass(frozen=True)
class _File:
    """The header of a safetensors file."""

    path: Path
    types: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> _File:
        if (kind := kind_of(path)) != "a file":
            raise DataError(f"A bundle must be a file, '{path}' is {kind}: check the path.")
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
        """Check type and shape of every tensor, including the test rows."""
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
        check_class_names(names, f"the bundle '{self.path}'")
        if len(names) < 2:
            self.refuse(f"A data set needs at least 2 classes, got {len(names)}", "add another")
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
        low, high = _SCALES
        if not low <= scale <= high:
            self.refuse(
                f"The metadata's logit_scale must be a number from {low:g} to {high:g}, got "
                f"{text[:60]!r}",
                "store the factor of the cosines, which is 100 for CLIP",
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
            self.refuse(
                f"The metadata must have class_names, backbone and logit_scale; missing: {key}"
            )
        return printable(found)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"A bundle is a whole safetensors file, '{path}' is not ({str(error)[:200]}): copy or "
        "make it again."
    )


def _rows(file: _File, split: str, names: tuple[str, ...]) -> Split:
    """One split, its values checked."""
    features, labels = _features(file, f"{split}_features"), file.tensor(f"{split}_labels")
    wrong = ((labels < 0) | (labels >= len(names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        file.refuse(
            f"Labels of {len(names)} classes must be in 0..{len(names) - 1}, got "
            f"{int(labels[row])} in row {row} of {split}_labels"
        )
    content = (json.dumps(names).encode(), features.numpy().tobytes(), labels.numpy().tobytes())
    rows = FeatureRows(features, f"{PREFIX}{file.path}")
    return Split(rows, labels, fingerprint(*content))


def _features(file: _File, name: str) -> Tensor:
    """float32, checked: finite, and of a length that can be normalised."""
    features = file.tensor(name).float()
    wrong = (~features.isfinite().all(1)).nonzero()
    if len(wrong):
        file.refuse(
            f"Features must be finite, got NaN or infinity in row {int(wrong[0])} of {name}"
        )
    low, high = _LENGTHS
    lengths = features.double().norm(dim=1)
    wrong = ((lengths < low) | (lengths > high)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        file.refuse(
            f"Features must have a length from {low:g} to {high:g}, got {float(lengths[row]):.3g} "
            f"in row {row} of {name}",
            "leave out rows of zeros, and scale features to length 1 if they are in other units",
        )
    return features
