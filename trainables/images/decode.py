"""Decoding image files with Pillow: one file, or many ahead of their use in a few threads.

Notation: h x w pixels.
"""

from __future__ import annotations

import errno
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from trainables.core.files import kind_of, open_regular

_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
"""Formats that are tried first."""
_EXCLUDED = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Formats that Pillow cannot decode itself: it starts Ghostscript, or recognises the file only."""
_MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Faults of a disk or of the machine."""
_JOB = 8  # images that a thread decodes at a time
_FILTERS = threading.Lock()
"""Warning filters are global to the interpreter: only one thread at a time may replace them."""


class ImageError(ValueError):
    """An image cannot be decoded; the message is the reason, for the middle of a sentence."""

    def __init__(self, reason: str, remedy: str = "Restore it", may_pass: bool = False) -> None:
        super().__init__(reason)
        self.remedy = remedy
        """What to do about it, as the beginning of a sentence."""
        self.may_pass = may_pass
        """Whether the machine is at fault and not the file, which may be readable later."""


class Readable(Protocol):
    """A sequence of images that are decoded on demand."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, position: int) -> Tensor:
        """Decode one image: uint8 [3, h, w]."""


@cache
def image_formats() -> dict[str, tuple[str, ...]]:
    """Return every format that is read, in the order in which they are tried, with its suffixes."""
    Image.init()
    found: dict[str, tuple[str, ...]] = {}
    for suffix, name in Image.registered_extensions().items():
        if name in Image.OPEN and name not in _EXCLUDED:
            found[name] = (*found.get(name, ()), suffix)
    return {name: found[name] for name in (*_COMMON, *sorted(found)) if name in found}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name suffixes that mark an image, in lower case."""
    return frozenset(suffix for suffixes in image_formats().values() for suffix in suffixes)


def read_image(file: Path) -> Tensor:
    """Decode a file to uint8 [3, h, w] as the field's loaders do: converted to RGB, an alpha
    channel dropped, EXIF orientation ignored. Raises `ImageError`."""
    try:
        with open_regular(file) as stream:
            pixels = _rgb(_open(stream))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"it is {kind_of(file)}") from None
    except UnidentifiedImageError:
        raise ImageError(f"Pillow recognises none of {', '.join(_COMMON)}, ... in it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            str(error).partition(",")[0].replace("Image size", "its size"),
            "Scale it down below Pillow's limit (`magick mogrify -resize 4096x4096 FILE`)",
        ) from None
    # What a broken file makes Pillow raise depends on its format and on the fault.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _MAY_PASS:
            raise ImageError(reason, "Try again", may_pass=True) from None
        raise ImageError(reason) from None
    # NumPy transposes in this thread; torch would use its own threads and wait for busy cores.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _open(stream: BinaryIO) -> Image.Image:
    """Pillow's warnings about odd metadata are ignored; the one about a huge image is an error."""
    formats = tuple(image_formats())
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(stream, formats=formats)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3]. Pillow clips pixels of more than 8 bits instead of scaling them, so they are
    scaled here if the format defines the value of white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = 16
        if image.format == "TIFF":
            bits = int(image.tag_v2.get(258, (16,))[0])  # type: ignore[attr-defined]  # BitsPerSample
        white = (1 << bits) - 1
        grey = np.asarray(image).astype(np.int64).clip(0, white)
        return np.repeat(((grey * 255 + white // 2) // white).astype(np.uint8)[..., None], 3, 2)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ImageError(
            f"its pixels are {kind}, whose black and white are not defined",
            "Convert it to 8 or 16 bits per channel",
        )
    if image.mode == "P":  # straight to RGB warns of transparency; the colours are the same
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def decoded(images: Readable, size: int, threads: int = 2) -> Iterator[list[Tensor]]:
    """Yield all images in order, as lists of `size` uint8 [3, h, w]; the last may be shorter.

    At most two lists' worth are decoded ahead. Raises what reading the first unreadable image
    raises.
    """
    starts = iter(range(0, len(images), _JOB))

    def read(start: int) -> list[Tensor]:
        return [images.read(row) for row in range(start, min(start + _JOB, len(images)))]

    with ThreadPoolExecutor(threads, "decode") as pool:
        ahead: deque[Future[list[Tensor]]] = deque()
        batch: list[Tensor] = []
        try:
            while True:
                while len(ahead) * _JOB < 2 * size and (start := next(starts, None)) is not None:
                    ahead.append(pool.submit(read, start))
                if not ahead:
                    break
                batch += ahead.popleft().result()
                while len(batch) >= size:
                    yield batch[:size]
                    batch = batch[size:]
            if batch:
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def shrink(image: Tensor, shorter: int) -> Tensor:
    """Resize uint8 [3, h, w] with PIL's bicubic filter until the shorter side has `shorter` pixels;
    an image that is small enough is returned unchanged."""
    height, width = image.shape[-2:]
    if min(height, width) <= shorter:
        return image
    scale = shorter / min(height, width)
    shape = (round(width * scale), round(height * scale))
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small = np.array(pixels.resize(shape, Image.Resampling.BICUBIC))
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()
