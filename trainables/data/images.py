"""Image files in a row, decoded when they are asked for.

Notation: h x w pixels.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from trainables.data.base import DataError, fingerprint

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
"""What counts as an image where a folder is listed, in lower case."""

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What is tried on a file, whatever its name ends in: ImageNet has a PNG that is called JPEG."""
_ASKED = 2000  # files at a time
_ASKERS = 4
_FILTERS = threading.Lock()
"""Warning filters belong to the whole interpreter: one thread at a time may set them aside."""


@dataclass(frozen=True)
class ImageFiles:
    """Images below one folder; implements `Images`."""

    root: Path
    """The folder."""
    paths: tuple[str, ...]
    """Relative to it, with slashes; an absolute path stands for itself."""

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.paths)

    def read(self, position: int) -> Tensor:
        """uint8 [3, h, w], as the field's loaders see it: converted to RGB (an alpha channel is
        dropped), not turned by what EXIF says. Raises `DataError`."""
        file = self.root / self.paths[position]
        try:
            pixels = np.asarray(_decode(file))
        except FileNotFoundError:
            raise DataError(_unreadable(file, "it is missing")) from None
        except UnidentifiedImageError:
            raise DataError(_unreadable(file, f"it is none of {', '.join(_FORMATS)}")) from None
        # What a broken file makes Pillow raise depends on its format and on where it is broken.
        except (
            *(OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError),
            *(TypeError, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning),
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(_unreadable(file, reason)) from None
        # By NumPy, in this thread: torch's own threads wait for busy cores, for longer than this.
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    def name(self, position: int) -> str:
        """The relative path."""
        return self.paths[position]

    def take(self, index: Sequence[int]) -> ImageFiles:
        """See `Images`."""
        return ImageFiles(self.root, tuple(self.paths[row] for row in index))

    def content(self) -> str:
        """Of where the files lie, how large they are and when they were last changed.

        Raises `DataError` for one that is missing.
        """
        root = os.path.realpath(self.root)
        files = [path if path.startswith("/") else f"{root}/{path}" for path in self.paths]
        names = "\0".join((root, *self.paths)).encode(errors="surrogateescape")
        return fingerprint(names, _marks(files).tobytes())


def _marks(files: list[str]) -> NDArray[np.int64]:
    """Size in bytes and time of the last change in nanoseconds of each file, [n, 2].

    By Arrow, in threads: a question to the system a file is all that a second use of cached
    features costs, and Python's own takes twice as long. Raises `DataError`.
    """
    ask = LocalFileSystem().get_file_info
    batches = [files[i : i + _ASKED] for i in range(0, len(files), _ASKED)]
    sizes: list[int | None] = []
    times: list[int] = []
    try:
        with ThreadPoolExecutor(_ASKERS) as pool:
            # Answers are read while others are waited for.
            for found in map(ask, batches) if len(batches) == 1 else pool.map(ask, batches):
                sizes += [info.size for info in found]
                times += [info.mtime_ns for info in found]
        if None not in sizes:
            return np.stack([np.array(sizes, np.int64), np.array(times, np.int64)], axis=1)
    except (OSError, UnicodeError):  # it does not say which, and knows no names but in UTF-8
        pass
    return np.array([_mark(file) for file in files], np.int64).reshape(-1, 2)


def _mark(file: str) -> tuple[int, int]:
    """The same for one, which is named where it is not there."""
    try:
        found = os.stat(file)
    except OSError as error:
        reason = "it is missing" if not os.path.lexists(file) else str(error.strerror)
        raise DataError(_unreadable(file, reason)) from None
    return found.st_size, found.st_mtime_ns


def _decode(file: Path) -> Image.Image:
    """In RGB. Pillow's warnings (odd metadata) say nothing about the pixels; the one about a size
    beyond reason is an error."""
    with file.open("rb") as stream:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(stream, formats=_FORMATS)
        if image.mode == "P":  # straight to RGB warns of transparency; the colours are the same
            image = image.convert("RGBA")
        return image.convert("RGB")


def _unreadable(file: str | Path, reason: str) -> str:
    return (
        f"Every image must be readable: '{file}' is not ({reason}). Restore it, or leave such "
        "images out with --skip-unreadable."
    )
