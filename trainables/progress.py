"""How far a computation is that a person may be waiting for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """So many of so many images."""

    what: str
    """What is computed, e.g. `features of 592 images`."""
    done: int
    """Images that are done."""
    total: int
    """Images in all."""
    seconds: float
    """Time since the first image was asked for, in seconds."""


Listener = Callable[[Progress], None]
"""Is told after every batch; shows as much of it as it likes."""


def counted(
    batches: Iterable[T], rows: Callable[[T], int], what: str, total: int, tell: Listener | None
) -> Iterator[T]:
    """`batches`, one after the other, telling the listener when each has been used."""
    start, done = time.monotonic(), 0
    for batch in batches:
        yield batch
        done += rows(batch)
        if tell is not None:
            tell(Progress(what, done, total, time.monotonic() - start))
