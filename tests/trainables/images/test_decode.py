"""Decoding ahead: in order, not too far, and without losing an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from trainables.data.base import DataError
from trainables.images.decode import decoded, shrink


class Numbered:
    """Images that show their own number, in a size that depends on it."""

    def __init__(self, count: int, broken: int = -1) -> None:
        self.count, self.broken, self.begun = count, broken, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def read(self, position: int) -> Tensor:
        with self._lock:
            self.begun += 1
        if position == self.broken:
            raise DataError(f"image {position} is broken")
        return torch.full((3, 1 + position % 3, 2), position, dtype=torch.uint8)

    def name(self, position: int) -> str:
        return str(position)

    def take(self, index: Sequence[int]) -> Numbered:
        return Numbered(len(index))

    def content(self) -> str:
        return "numbers"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 4))
def test_all_images_in_order_in_lists_of_one_size(count: int, size: int, threads: int) -> None:
    lists = list(decoded(Numbered(count), size, threads))
    assert [int(image[0, 0, 0]) for images in lists for image in images] == list(range(count))
    assert [len(images) for images in lists[:-1]] == [size] * (len(lists) - 1)
    assert all(0 < len(images) <= size for images in lists)


def test_an_error_comes_after_the_lists_before_it() -> None:
    batches = decoded(Numbered(100, broken=50), 16)
    assert [len(next(batches)) for _ in range(3)] == [16, 16, 16]
    with pytest.raises(DataError, match="image 50 is broken"):
        next(batches)


def test_it_does_not_run_far_ahead_and_stops_when_left() -> None:
    images = Numbered(10_000)
    batches = decoded(images, 16)
    next(batches)
    time.sleep(0.2)
    assert images.begun <= 16 + 2 * 16 + 8
    batches.close()
    begun = images.begun
    time.sleep(0.1)
    assert images.begun == begun
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_large_images_are_reduced_as_pil_reduces_them() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 90, 130), generator=rng, dtype=torch.uint8)
    small = shrink(image, 64)
    assert small.shape == (3, 64, 92)
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    expected = np.array(pixels.resize((92, 64), Image.Resampling.BICUBIC))
    assert torch.equal(small, torch.from_numpy(expected).permute(2, 0, 1))
    assert small.is_contiguous()
    for shorter in (90, 91):
        assert shrink(image, shorter) is image
