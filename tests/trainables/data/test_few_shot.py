"""Few-shot draws: pure, nested, exact, the same everywhere."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.fresh_facts import facts
from trainables.data.base import DataError
from trainables.data.few_shot import VAL_SHOTS, draw_few_shot, sample_shots
from trainables.data.registry import DATASETS, open_dataset

MOST = 6
patient = settings(deadline=None)  # busy machines are no failure


@st.composite
def labelings(draw: st.DrawFn) -> Tensor:
    """Labels of some classes, each with at least `MOST` images, in any order."""
    classes = draw(st.lists(st.integers(0, 50), min_size=1, max_size=5, unique=True))
    counts = [draw(st.integers(MOST, 12)) for _ in classes]
    labels = [label for label, n in zip(classes, counts, strict=True) for _ in range(n)]
    return torch.tensor(draw(st.permutations(labels)))


shots_ = st.integers(1, MOST)
seeds = st.integers(-(2**40), 2**40)


@patient
@given(labelings(), shots_, seeds, st.text(max_size=5))
def test_every_class_gives_exactly_its_shots_and_no_image_twice(
    labels: Tensor, shots: int, seed: int, fingerprint: str
) -> None:
    chosen = sample_shots(labels, shots, seed, fingerprint)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == len(chosen)
    classes, counts = labels[chosen].unique(return_counts=True)
    assert classes.tolist() == sorted(set(labels.tolist()))
    assert counts.tolist() == [shots] * len(classes)
    # class by class, as documented
    assert labels[chosen].tolist() == [c for c in classes.tolist() for _ in range(shots)]


@patient
@given(labelings(), seeds)
def test_more_shots_keep_the_images_of_fewer(labels: Tensor, seed: int) -> None:
    draws = [sample_shots(labels, k, seed).tolist() for k in range(1, MOST + 1)]
    for fewer, more in pairwise(draws):
        assert set(fewer) < set(more)
    for k, chosen in enumerate(draws, start=1):  # each class's draw begins with the smaller one
        longest = [draws[-1][i : i + MOST] for i in range(0, len(draws[-1]), MOST)]
        assert chosen == [row for member in longest for row in member[:k]]


@patient
@given(labelings(), shots_, seeds)
def test_a_draw_neither_reads_nor_moves_global_state(labels: Tensor, shots: int, seed: int) -> None:
    before = sample_shots(labels, shots, seed)
    torch.manual_seed(seed % 1000)
    random.seed(seed)
    np.random.seed(seed % 1000)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    copy = labels.clone()
    assert torch.equal(sample_shots(labels, shots, seed), before)
    assert torch.equal(labels, copy)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@patient
@given(labelings(), st.integers(0, 99))
def test_a_class_draws_alone(labels: Tensor, seed: int) -> None:
    """Another class's images, in any number, do not change what a class draws."""
    label = int(labels[0])
    chosen = sample_shots(labels, 3, seed)
    own = chosen[labels[chosen] == label]
    more = torch.cat([labels, torch.full((9,), 99)])
    again = sample_shots(more, 3, seed)
    assert torch.equal(again[more[again] == label], own)


def test_seeds_fingerprints_and_classes_draw_differently() -> None:
    labels = torch.arange(5).repeat(40)
    seen = {tuple(sample_shots(labels, 4, seed).tolist()) for seed in range(50)}
    seen |= {tuple(sample_shots(labels, 4, 0, f"data {i}").tolist()) for i in range(50)}
    assert len(seen) == 100
    rows = (sample_shots(labels, 4, seed=0) // 5).view(5, 4)  # the position among its class
    assert len({tuple(row) for row in rows.tolist()}) == 5


def test_every_image_can_be_drawn_and_all_equally_often() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    drawn = torch.cat([sample_shots(labels, 2, seed) for seed in range(1000)])
    counts = drawn.bincount(minlength=10)
    assert (counts - 200).abs().max() < 60  # over 4.7 standard deviations of a fair draw


@pytest.mark.parametrize("shots", [0, -1])
def test_no_shots(shots: int) -> None:
    with pytest.raises(DataError, match=rf"shots must be at least 1, got {shots}"):
        sample_shots(torch.tensor([0, 1]), shots, 0)


def test_too_few_images_say_rule_value_and_remedy() -> None:
    labels = torch.tensor([0, 0, 0, 7, 7, 0, 9, 9, 9])
    with pytest.raises(DataError) as caught:
        sample_shots(labels, 5, 0)
    message = str(caught.value)
    assert "Every class needs at least as many images as there are shots" in message
    assert "class 7 has 2, shots is 5" in message
    assert "--shots 2" in message
    assert len(sample_shots(labels, 2, 0)) == 6  # the remedy helps


@settings(patient, max_examples=25)
@given(shots=st.integers(1, 58), seed=st.integers(0, 10**6))
def test_train_and_val_are_disjoint_and_sized(shots: int, seed: int) -> None:
    pair = draw_few_shot(open_dataset("digits"), shots, seed)
    assert len(pair.train.labels) == len(pair.train.images) == 10 * shots
    assert len(pair.val.labels) == 10 * min(shots, VAL_SHOTS)
    train = {image.numpy().tobytes() for image in pair.train.images}
    val = {image.numpy().tobytes() for image in pair.val.images}
    assert not train & val
    assert len(train) + len(val) == len(pair.train.labels) + len(pair.val.labels)


@pytest.mark.parametrize("name", [name for name in DATASETS if name.startswith("digits")])
def test_drawn_images_come_with_their_labels_and_a_fingerprint(name: str) -> None:
    dataset = open_dataset(name)
    pools = {
        image.numpy().tobytes(): int(label)
        for split in (dataset.split("train"), dataset.split("val"))
        for image, label in zip(split.images, split.labels, strict=True)
    }
    first, same, other = (draw_few_shot(dataset, 3, seed) for seed in (1, 1, 2))
    for image, label in zip(first.train.images, first.train.labels, strict=True):
        assert pools[image.numpy().tobytes()] == int(label)
    assert first.train.fingerprint == same.train.fingerprint
    prints = {s.fingerprint for s in (first.train, first.val, other.train, other.val)}
    assert len(prints) == 4


def test_too_many_shots_for_a_data_set() -> None:
    with pytest.raises(DataError, match=r"class 8 has 58, shots is 61\. Use at most --shots 58"):
        draw_few_shot(open_dataset("digits"), 61, 1)


def test_another_process_draws_the_same(elsewhere: dict[str, Any]) -> None:
    here = facts()
    for fact in ("draw", "splits", "trial", "metrics", "state"):
        assert here[fact] == elsewhere[fact], fact
