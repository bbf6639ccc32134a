"""Many images, decoded ahead by a few threads while somebody works on those before them.

Notation: h x w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.base import Images

_JOB = 8  # images a thread takes at a time


def decoded(images: Images, size: int, threads: int = 2) -> Iterator[list[Tensor]]:
    """All images in order, as lists of `size` uint8 [3, h, w]; the last one may be shorter.

    At most two lists' worth are decoded ahead. Raises `DataError` for the first image that cannot
    be read.
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
    """uint8 [3, h, w], by PIL's bicubic filter so that its shorter side is `shorter`, where it is
    longer; else as it is."""
    height, width = image.shape[-2:]
    if min(height, width) <= shorter:
        return image
    scale = shorter / min(height, width)
    shape = (round(width * scale), round(height * scale))
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small = np.array(pixels.resize(shape, Image.Resampling.BICUBIC))
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()
