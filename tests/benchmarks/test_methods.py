"""The documentation's table of methods matches the measurements, which can be repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.methods import PUBLISHED, SEEDS, SHOTS, known, sizes, table, train
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.registry import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
TABLE = PAGE.split("<!-- methods -->\n")[1].split("\n<!-- -->")[0]


def counted() -> dict[str, tuple[int, int]]:
    """Trained parameters as listed in the table, from which the size follows."""
    cell = r"([0-9.,]+)(?: ([KM])iB)?"
    found = re.findall(rf"^\| `([a-z-]+)` \| .*? \| ([0-9,]+) \| {cell}", TABLE, re.M)
    units = {"": 1, "K": 2**10, "M": 2**20}
    return {
        name: (int(count.replace(",", "")), round(float(size.replace(",", "")) * units[unit]))
        for name, count, size, unit in found
    }


def test_the_table_shows_every_method_as_measured() -> None:
    assert set(PUBLISHED) == set(METHODS)
    assert table(known(), counted()) == TABLE
    measured = [(f.method, f.preset, f.shots, f.seed) for f in known()]
    assert len(measured) == len(set(measured))
    wanted = {(m, "paper", k, s) for m in METHODS for k in SHOTS for s in SEEDS}
    left = {(method, shots) for method, _, shots, _ in wanted - set(measured)}
    assert TABLE.count("not run") == len(left)


@pytest.mark.parametrize("method", ["zero-shot", "taskres", "gda", "tip-adapter-f"])
def test_a_figure_comes_out_again(method: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bench = EncodedTask("tiny", "cpu", DataSource())
    found = train(method, "paper", 4, 2, bench)
    torch.set_num_threads(threads)
    (kept,) = (
        f for f in known() if (f.method, f.preset, f.shots, f.seed) == (method, "paper", 4, 2)
    )
    # Another processor may round differently: allow one image of the pool.
    assert found.accuracy == pytest.approx(kept.accuracy, abs=0.005)


@pytest.mark.slow
def test_the_parameters_are_counted() -> None:
    assert {name: count for name, (count, _) in sizes().items()} == {
        name: count for name, (count, _) in counted().items()
    }
    assert table(known(), sizes()) == TABLE
