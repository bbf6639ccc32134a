"""`python -m search.example`: writes a small folder of images for trying the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from search.core.problems import UsageError
from search.terminal.console import end_with_the_reader, open_console, tool
from search.terminal.exit_code import Failures, exit_code
from search.terminal.parser import Parser, text
from trainables.core.files import expanded
from trainables.data.base import Split
from trainables.data.digits import Digits

LABELLED = 40
"""Labelled images per class."""
_SIDE = 64  # pixels; the data has 8, too small to look at

_INTRODUCTION = """\
Write a small folder of images in the layout of a data set of your own:

  FOLDER/labelled/CLASS/NN.png  40 handwritten digits of each of 10 classes
  FOLDER/new/CLASS.png          one other image of each class, to classify

Use it as `--dataset folder:FOLDER/labelled`."""


def build_parser() -> Parser:
    """Return the parser of all options."""
    parser = Parser("search.example", _INTRODUCTION)
    parser.add_argument("folder", type=text, metavar="FOLDER", help="a new or an empty folder")
    return parser


def write_example(folder: Path) -> None:
    """Write the folder; raises `UsageError` if it is not empty, and `OSError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            [f"FOLDER must be new or empty, got '{folder}'. Name another one, or remove it."]
        )
    digits = Digits("digits")
    train, val = digits.split("train"), digits.split("val")
    for label, name in enumerate(digits.class_names):
        for number, image in enumerate(_images(train, label, LABELLED), start=1):
            _write(image, folder / "labelled" / name / f"{number:02d}.png")
        (other,) = _images(val, label, 1)
        _write(other, folder / "new" / f"{name}.png")


def _images(split: Split, label: int, count: int) -> list[Tensor]:
    """Return the first images of a class, uint8 [3, 8, 8] each."""
    rows = (split.labels == label).nonzero().flatten().tolist()[:count]
    return [split.images.read(row) for row in rows]


def _write(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; return 0, 2 for invalid options, and 1 if it cannot be written."""
    failures: Failures = {OSError: (1, "The folder could not be written: {}. Name another one.")}
    return exit_code(lambda: _run(arguments), failures=failures)


def _run(arguments: Sequence[str] | None) -> int:
    folder = expanded(build_parser().parse_args(arguments).folder)
    write_example(folder)
    console = open_console()
    python = tool("python")
    for line in (
        f"Wrote {10 * LABELLED} labelled images of 10 classes to {folder}/labelled, and 10 others "
        f"to {folder}/new. Next:",
        f"{python} -m search.run --space taskres --dataset folder:{folder}/labelled --name own",
        f"{python} -m search.predict own {folder}/new",
    ):
        console.print(line, soft_wrap=True)
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
