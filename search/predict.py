"""`python -m search.predict`: classifies images with a trained model."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from rich.console import Console

from search.core.problems import UsageError
from search.exporting.classifier import Classifier, Photos
from search.exporting.open_classifier import RegistryError, open_classifier
from search.terminal.bars import Bars
from search.terminal.console import open_console, print_errors
from search.terminal.exit_code import Failures, exit_code
from search.terminal.parser import Parser, integer
from trainables.core.files import expanded
from trainables.core.text import amount, in_spreadsheet, printable
from trainables.data.base import DataError
from trainables.data.image_files import images_below

_INTRODUCTION = """\
Classify images with a trained model: the winner of a finished sweep, an export, or a registered
MLflow model. Images that cannot be read are reported and skipped."""
_EXAMPLES = """\
examples:
  python -m search.predict my-sweep photo.jpg
  python -m search.predict exports/my-sweep-best-torch photos/ --top 3
  python -m search.predict models:/birds@champion photos/"""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.predict", _INTRODUCTION, epilog=_EXAMPLES)
    parser.add_argument(
        "name",
        metavar="NAME",
        help="name of a sweep, folder of an export, or models:/MODEL@ALIAS in MLflow",
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image file, or folder of images at any depth"
    )
    parser.add_argument(
        "--top",
        type=integer,
        default=1,
        metavar="N",
        help="how many classes to give per image, the most probable first (default: %(default)s)",
    )
    parser.add_argument(
        "--output", default="", metavar="FILE", help="CSV file to write (default: print a table)"
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu or cuda; auto uses a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--tracking-uri",
        default="",
        metavar="URI",
        help="MLflow, for a registered model: sqlite:///FILE or http://HOST:PORT (default: "
        "MLFLOW_TRACKING_URI if set, else a sqlite file in the storage folder)",
    )
    parser.add_storage()
    parser.add_model()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if an image was classified, 2 for a mistake in the request, 1 if no image could
    be read or the predictions could not be written."""
    failures: Failures = {
        RegistryError: (2, "The registered model could not be opened: {}."),
        OSError: (1, "The predictions could not be written: {}."),
    }
    return exit_code(lambda: _run(arguments), failures=failures)


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    files = _files(options)
    with console.status("Opening the model"):
        classifier = open_classifier(
            options.name,
            options.storage,
            options.trial,
            options.episode,
            options.data,
            options.device,
            options.tracking_uri,
        )
    count = write_predictions(classifier, files, options.top, options.output, console)
    return 0 if count else 1


def _files(options: argparse.Namespace) -> list[str]:
    """All image files, each once; raises `UsageError` with every mistake in the request."""
    problems = []
    if options.top < 1:
        problems.append(f"--top must be at least 1, got {options.top}.")
    if options.output and not expanded(options.output).absolute().parent.is_dir():
        problems.append(
            f"--output must be in a folder that exists, got '{options.output}'. Create the folder."
        )
    files: list[str] = []
    for name in options.images:
        path = expanded(name)
        if path.is_dir():
            try:
                found = images_below(path)
            except DataError as error:
                problems.append(str(error))
                continue
            files += map(str, found)
            if not found:
                problems.append(f"A folder must contain images, and '{name}' has none.")
        elif path.exists():
            files.append(str(path))
        else:
            problems.append(f"An image must exist, and '{name}' does not. Check the path.")
    if problems:
        raise UsageError(problems)
    once: dict[str, str] = {}
    for file in files:
        once.setdefault(os.path.abspath(file), file)
    return [*once.values()]


def write_predictions(
    classifier: Classifier, files: Sequence[str], top: int, output: str, console: Console
) -> int:
    """Classify image files, print the predictions or write them to `output`, and report unreadable
    images; return how many were classified. Raises `OSError`."""
    photos, top = Photos(files), min(top, len(classifier.classes))
    with _opened(output) as stream, Bars(console) as bars:
        rows = _rows(classifier, photos, top, bars)
        if stream is not None:
            _write(stream, rows, top)
        else:
            for file, *pairs in rows:
                ranked = zip(pairs[::2], pairs[1::2], strict=True)
                shown = "  ".join(f"{name} {share:.1%}" for name, share in ranked)
                console.print(f"{printable(file)}  {shown}", highlight=False, soft_wrap=True)
    failed = photos.unreadable
    print_errors(f"'{files[row]}' was skipped: {why}." for row, why in sorted(failed.items()))
    count = len(files) - len(failed)
    if output:
        console.print(
            f"{amount(count, 'image')} classified into {len(classifier.classes)} classes: {output}",
            highlight=False,
            soft_wrap=True,
        )
    return count


def _opened(output: str) -> AbstractContextManager[IO[str] | None]:
    """The file to write, or None if there is none."""
    if not output:
        return nullcontext()
    path = expanded(output)
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")


def _rows(
    classifier: Classifier, photos: Photos, top: int, bars: Bars
) -> Iterator[tuple[Any, ...]]:
    """File, and class and probability of the `top` most probable classes, for each image."""
    start = time.monotonic()
    for batch in classifier.batches(photos):
        rate = batch.done / max(time.monotonic() - start, 1e-9)
        bars.tell("images classified", batch.done, len(photos), f"{rate:.0f} images/s")
        best = batch.probabilities.topk(top, dim=1)
        for row, shares, places in zip(batch.rows, *(t.tolist() for t in best), strict=True):
            names = (classifier.classes[place] for place in places)
            pairs = (value for pair in zip(names, shares, strict=True) for value in pair)
            yield photos.name(row), *pairs


def _write(stream: IO[str], rows: Iterator[tuple[Any, ...]], top: int) -> None:
    table = csv.writer(stream)
    header = (f"{kind}_{n}" for n in range(1, top + 1) for kind in ("class", "probability"))
    table.writerow(["file", *(header if top > 1 else ("class", "probability"))])
    for file, *pairs in rows:
        cells = (f"{v:.6f}" if isinstance(v, float) else in_spreadsheet(v) for v in pairs)
        table.writerow([in_spreadsheet(file), *cells])


if __name__ == "__main__":
    sys.exit(main())
