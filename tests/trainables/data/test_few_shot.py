"""Few-shot draws: pure, nested, exact, the same everywhere."""

from __future__ import annotations

import errno
import json
import random
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.data.listed import Listed, listed, listed_split
from tests.trainables.data.shared import shared_data
from tests.trainables.data.trees import paint
from trainables.data.base import DataError, FeatureRows, Split, image_keys
from trainables.data.digits import Digits
from trainables.data.few_shot import (
    VAL_SHOTS,
    draw_few_shot,
    draws_problems,
    readable,
    sample_shots,
    size_caveat,
)
from trainables.data.image_files import ImageFiles
from trainables.data.registry import open_dataset

DIGITS = Digits("digits")
MOST = 6
patient = settings(deadline=None)  # busy machines are no failure


def sample(labels: Tensor, shots: int, seed: int, fingerprint: str = "") -> Tensor:
    """Positions of a draw, class by class."""
    drawn = sample_shots(labels, shots, seed, fingerprint)
    return torch.tensor([position for rows in drawn.values() for position in rows])


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
    chosen = sample(labels, shots, seed, fingerprint)
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
    draws = [sample(labels, k, seed).tolist() for k in range(1, MOST + 1)]
    for fewer, more in pairwise(draws):
        assert set(fewer) < set(more)
    for k, chosen in enumerate(draws, start=1):  # each class's draw begins with the smaller one
        longest = [draws[-1][i : i + MOST] for i in range(0, len(draws[-1]), MOST)]
        assert chosen == [row for member in longest for row in member[:k]]


@patient
@given(labelings(), shots_, seeds)
def test_a_draw_neither_reads_nor_moves_global_state(labels: Tensor, shots: int, seed: int) -> None:
    before = sample(labels, shots, seed)
    torch.manual_seed(seed % 1000)
    random.seed(seed)
    np.random.seed(seed % 1000)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    copy = labels.clone()
    assert torch.equal(sample(labels, shots, seed), before)
    assert torch.equal(labels, copy)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@patient
@given(labelings(), st.integers(0, 99))
def test_a_class_draws_alone(labels: Tensor, seed: int) -> None:
    """Another class's images, in any number, do not change what a class draws."""
    label = int(labels[0])
    chosen = sample(labels, 3, seed)
    own = chosen[labels[chosen] == label]
    more = torch.cat([labels, torch.full((9,), 99)])
    again = sample(more, 3, seed)
    assert torch.equal(again[more[again] == label], own)


def test_seeds_fingerprints_and_classes_draw_differently() -> None:
    labels = torch.arange(5).repeat(40)
    seen = {tuple(sample(labels, 4, seed).tolist()) for seed in range(50)}
    seen |= {tuple(sample(labels, 4, 0, f"data {i}").tolist()) for i in range(50)}
    assert len(seen) == 100
    rows = (sample(labels, 4, seed=0) // 5).view(5, 4)  # the position among its class
    assert len({tuple(row) for row in rows.tolist()}) == 5


def test_every_image_can_be_drawn_and_all_equally_often() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    drawn = torch.cat([sample(labels, 2, seed) for seed in range(1000)])
    counts = drawn.bincount(minlength=10)
    assert (counts - 200).abs().max() < 60  # over 4.7 standard deviations of a fair draw


@pytest.mark.parametrize("shots", [0, -1])
def test_no_shots(shots: int) -> None:
    with pytest.raises(DataError, match=rf"shots must be at least 1, got {shots}"):
        draw_few_shot(DIGITS, shots, 0)


def test_an_image_that_cannot_be_used_is_replaced_by_the_next() -> None:
    labels = torch.zeros(20, dtype=torch.int64)
    order = sample_shots(labels, 20, 7)[0]
    assert sample_shots(labels, 3, 7, usable=lambda row: row != order[1])[0] == [
        order[0],
        order[2],
        order[3],
    ]
    assert sample_shots(labels, 3, 7, usable=lambda row: row in order[-2:])[0] == order[-2:]


def pixels(split: Split) -> list[bytes]:
    return [split.images.read(i).numpy().tobytes() for i in range(len(split.images))]


def names(split: Split) -> list[str]:
    return [split.images.name(i) for i in range(len(split.images))]


@settings(patient, max_examples=15)
@given(
    shots=st.integers(1, 58), seed=st.integers(0, 10**6), draws=st.sampled_from(["seeded", "coop"])
)
def test_train_and_val_are_disjoint_and_sized(shots: int, seed: int, draws: str) -> None:
    pair = draw_few_shot(DIGITS, shots, seed, draws)
    assert len(pair.train.labels) == len(pair.train.images) == 10 * shots
    assert len(pair.val.labels) == 10 * min(shots, VAL_SHOTS)
    train, val = set(pixels(pair.train)), set(pixels(pair.val))
    assert not train & val
    assert len(train) + len(val) == len(pair.train.labels) + len(pair.val.labels)


@pytest.mark.parametrize("dataset", [DIGITS, Digits("digits-rotated", half_turns=1)])
@pytest.mark.parametrize("draws", ["seeded", "coop"])
def test_drawn_images_come_with_their_labels_and_a_fingerprint(dataset: Digits, draws: str) -> None:
    pools = {
        image: int(label)
        for split in (dataset.split("train"), dataset.split("val"))
        for image, label in zip(pixels(split), split.labels, strict=True)
    }
    first, same, other = (draw_few_shot(dataset, 3, seed, draws) for seed in (1, 1, 2))
    for image, label in zip(pixels(first.train), first.train.labels, strict=True):
        assert pools[image] == int(label)
    assert first.train.fingerprint == same.train.fingerprint
    prints = {s.fingerprint for s in (first.train, first.val, other.train, other.val)}
    assert len(prints) == 4


def test_too_many_shots_for_a_data_set() -> None:
    rule = r"class 8 \('eight'\) of 'digits' has 58 in train, shots is 61\. Use --shots 58, "
    with pytest.raises(DataError, match=rule):
        draw_few_shot(DIGITS, 61, 1)


def sized(train: dict[int, int], val: dict[int, int]) -> Listed:
    """A data set with so many images per class."""
    rows = {
        part: tuple(
            (f"{part}/{label}/{number}.jpg", label)
            for label, n in counts.items()
            for number in range(n)
        )
        for part, counts in (("train", train), ("val", val))
    }
    return Listed(tuple(f"class {label}" for label in train), **rows)


@pytest.mark.parametrize(
    ("train", "val", "largest", "where"),
    [
        ({0: 2, 1: 100}, {0: 1, 1: 40}, 1, r"class 0 .* has 1 in val"),
        ({0: 100, 1: 5}, {0: 2, 1: 9}, 2, r"class 0 .* has 2 in val"),
        ({0: 7, 1: 5}, {0: 4, 1: 4}, 5, r"class 1 .* has 5 in train"),
        ({0: 3, 1: 5}, {0: 4, 1: 3}, 3, r"class 0 .* has 3 in train"),
        ({0: 20, 1: 20}, {0: 20, 1: 3}, 3, r"class 1 .* has 3 in val"),
    ],
)
def test_one_message_names_the_largest_number_that_works(
    train: dict[int, int], val: dict[int, int], largest: int, where: str
) -> None:
    data = sized(train, val)
    with pytest.raises(DataError, match=rf"{where}, shots is 16\. Use --shots {largest}, "):
        draw_few_shot(data, 16, 1)
    drawn = draw_few_shot(data, largest, 1)
    assert len(drawn.train.labels) == largest * len(train)
    with pytest.raises(DataError, match=f"Use --shots {largest}, "):
        draw_few_shot(data, largest + 1, 1)


def test_smaller_classes_may_have_fewer_images() -> None:
    data = sized({0: 5, 1: 200}, {0: 2, 1: 80})
    drawn = draw_few_shot(data, 16, 1, "seeded-capped")
    assert drawn.train.labels.bincount().tolist() == [5, 16]
    assert drawn.val.labels.bincount().tolist() == [2, 4]
    (caveat,) = size_caveat(data, drawn, 16)
    assert "1 class has fewer training images" in caveat
    assert "'class 0' with 5" in caveat
    assert size_caveat(data, draw_few_shot(data, 2, 1), 2) == ()
    few = draw_few_shot(data, 2, 1)
    assert names(draw_few_shot(data, 2, 1, "seeded-capped").train) == names(few.train)


def test_training_images_from_both_pools(tmp_path: Path) -> None:
    for label, count in enumerate((8, 4)):
        for i in range(count):
            paint(tmp_path / f"class {label}" / f"{i}.png", label, i)
    data = open_dataset(f"folder:{tmp_path}")
    drawn = draw_few_shot(data, 6, 1, "joined")
    assert drawn.train.labels.bincount().tolist() == [6, 3]
    pools = names(data.split("train")) + names(data.split("val"))
    assert sorted(names(drawn.train)) == sorted(pools)
    for row, label in enumerate(drawn.train.labels.tolist()):
        assert names(drawn.train)[row].startswith(f"class {label}/")
    again = draw_few_shot(data, 6, 1, "joined")
    assert again.train.fingerprint == drawn.train.fingerprint
    assert names(draw_few_shot(data, 2, 1, "joined").train)[:2] == names(drawn.train)[:2]


def test_pools_in_memory_are_joined() -> None:
    drawn = draw_few_shot(DIGITS, 10_000, 1, "joined").train
    pools = DIGITS.split("train"), DIGITS.split("val")
    assert sorted(image_keys(drawn)) == sorted(key for pool in pools for key in image_keys(pool))


def test_pools_of_another_kind_are_not_joined() -> None:
    with pytest.raises(DataError, match="must be below one folder to be joined"):
        draw_few_shot(listed(), 2, 1, "joined")


def test_seeds_and_shots_have_64_bits() -> None:
    assert draws_problems("seeded", ["listed"], [1], [2**63 - 1]) == []
    for seeds_, shots_of in (([1, 2**63], [1]), ([1], [10**30])):
        (problem,) = draws_problems("coop", ["listed"], shots_of, seeds_)
        assert "must be at most 9223372036854775807" in problem


@pytest.mark.parametrize("draws", ["seeded", "coop"])
def test_a_class_without_images_is_named(draws: str) -> None:
    data = listed(classes=3)
    bare = replace(data, val=tuple(row for row in data.val if row[1] != 1))
    with pytest.raises(DataError, match=r"class 1 \('class 1'\) of 'listed' has none in val"):
        draw_few_shot(bare, 1, 1, draws)
    with pytest.raises(DataError, match="at least 1, got 0"):
        draw_few_shot(data, 0, 1, draws)


@pytest.mark.parametrize("draws", ["", "Own", "own:x", "coop:", "file", "file:", "fil:x"])
def test_rules_that_do_not_exist(draws: str) -> None:
    with pytest.raises(DataError, match=f"'coop' or 'file:PATTERN', got '{draws}'"):
        draw_few_shot(listed(), 1, 1, draws)
    (problem,) = draws_problems(draws, ["listed"], [1], [1])
    assert f"got '{draws}'" in problem


# --- own: whatever the order of the list ---------------------------------------------------------


@patient
@given(st.data(), st.integers(1, 8), st.integers(0, 99))
def test_the_order_of_the_list_does_not_matter(data: st.DataObject, shots: int, seed: int) -> None:
    dataset = listed()
    shuffled = replace(
        dataset,
        train=tuple(data.draw(st.permutations(dataset.train))),
        val=tuple(data.draw(st.permutations(dataset.val))),
    )
    first, second = (draw_few_shot(d, shots, seed) for d in (dataset, shuffled))
    for one, other in ((first.train, second.train), (first.val, second.val)):
        assert names(one) == names(other)
        assert one.fingerprint == other.fingerprint
        assert one.labels.equal(other.labels)


@patient
@given(st.integers(0, 10**6))
def test_draws_are_nested_for_validation_too(seed: int) -> None:
    draws = [draw_few_shot(listed(), shots, seed) for shots in range(1, 9)]
    for fewer, more in pairwise(draws):
        assert set(names(fewer.train)) < set(names(more.train))
        assert set(names(fewer.val)) <= set(names(more.val))
    assert names(draws[3].val) == names(draws[7].val)


# --- coop: the published rule --------------------------------------------------------------------


def test_the_rule_takes_all_of_a_small_class_and_moves_no_global_state() -> None:
    data = listed(classes=2, train=3, val=2)
    state = random.getstate()
    pair = draw_few_shot(data, 16, 1, "coop")
    assert names(pair.train) == [name for name, _ in data.train]
    assert names(pair.val) == [name for name, _ in data.val]
    assert random.getstate() == state


def test_classes_come_in_the_order_of_their_first_image() -> None:
    data = listed(classes=3)
    turned = replace(data, train=data.train[::-1])
    assert draw_few_shot(turned, 2, 1, "coop").train.labels.tolist() == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("folder", "file"),
    [("dtd", "DescribableTextures"), ("oxford_pets", "OxfordPets"), ("eurosat", "EuroSAT")],
)
def test_published_draws_are_reproduced(folder: str, file: str) -> None:
    lists = json.loads(
        shared_data("coop-splits", f"split_zhou_{file}.json").read_text(encoding="utf-8")
    )
    rows = {key: tuple((name, label) for name, label, _ in lists[key]) for key in ("train", "val")}
    classes = {label: name for _, label, name in lists["train"]}
    data = Listed(tuple(classes[label] for label in range(len(classes))), **rows, name=folder)
    pattern = str(shared_data("coop-splits", "indices", folder, "shot_1-seed_1.json"))
    pattern = pattern.replace("shot_1-seed_1", "shot_{shots}-seed_{seed}")
    for shots, seed in product((1, 2, 4, 8, 16), (1, 2, 3)):
        published = json.loads(Path(pattern.format(shots=shots, seed=seed)).read_bytes())
        by_rule = draw_few_shot(data, shots, seed, "coop")
        from_file = draw_few_shot(data, shots, seed, f"file:{pattern}")
        for split in ("train", "val"):
            found, same = getattr(by_rule, split), getattr(from_file, split)
            positions = published[split]["indices"]
            assert names(found) == [rows[split][i][0] for i in positions]
            assert found.labels.tolist() == [rows[split][i][1] for i in positions]
            assert names(same) == names(found)
            assert same.fingerprint == found.fingerprint


# --- unreadable images ---------------------------------------------------------------------------


def test_unreadable_images_are_left_out() -> None:
    rows = [("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 0), ("d.jpg", 1)]
    whole = listed_split(rows, frozenset({"c.jpg"}))
    part = readable(whole)
    assert names(part) == ["a.jpg", "b.jpg", "d.jpg"]
    assert part.labels.tolist() == [0, 1, 1]
    assert part.fingerprint != whole.fingerprint
    sound = listed_split(rows)
    assert readable(sound) is sound


@pytest.mark.parametrize("broken", [{"b.jpg", "d.jpg"}, {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}])
def test_a_class_without_a_readable_image(broken: set[str]) -> None:
    rows = [("a.jpg", 2), ("b.jpg", 1), ("c.jpg", 2), ("d.jpg", 1)]
    with pytest.raises(
        DataError, match=r"class 1 has none of 2: .*'(a|b).jpg' cannot be read"
    ) as e:
        readable(listed_split(rows, frozenset(broken)))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_can_be_read_does_not_depend_on_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """An image that cannot be read now is not left out for good."""
    paint(tmp_path / "a.png", 1)
    split = Split(ImageFiles(tmp_path, ("a.png",)), torch.tensor([0]), "")
    assert readable(split) is split

    def fail(file: Path) -> None:
        raise fault

    monkeypatch.setattr("trainables.images.decode.open_regular", fail)
    with pytest.raises(DataError, match=r"a\.png' is not \((\[Errno 24\] Too|Memory).*Try again"):
        readable(split)


def test_nobody_is_told_to_leave_out_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    split = Split(ImageFiles(tmp_path, ("a.jpg",)), torch.tensor([0]), "")
    with pytest.raises(DataError, match=r"class 0 has none of 1: .*a.jpg") as found:
        readable(split)
    assert "--skip-unreadable" not in str(found.value)


@pytest.mark.parametrize("draws", ["seeded", "seeded-capped", "coop"])
def test_unreadable_images_are_never_drawn(draws: str) -> None:
    data = listed(classes=2, train=6, val=6)
    sound = draw_few_shot(data, 4, 3, draws)
    assert names(draw_few_shot(data, 4, 3, draws, skip_unreadable=True).train) == names(sound.train)
    bad = {names(sound.train)[0], names(sound.train)[5], names(sound.val)[1]}
    broken = replace(data, broken=frozenset(bad))
    drawn = draw_few_shot(broken, 4, 3, draws, skip_unreadable=True)
    for split in (drawn.train, drawn.val):
        assert split.labels.bincount().tolist() == [4, 4]
        assert len(set(names(split))) == 8
        assert not bad & set(names(split))
    kept = [name for name in names(sound.train) if name not in bad]
    assert set(kept) < set(names(drawn.train))


def test_too_few_readable_images_are_one_message() -> None:
    data = listed(classes=2, train=6, val=6)
    broken = frozenset([name for name, label in data.train if label == 1][:3])
    data = replace(data, broken=broken)
    with pytest.raises(DataError, match=r"readable images.*class 1 .* has 3 in train.*--shots 3"):
        draw_few_shot(data, 5, 3, skip_unreadable=True)
    assert len(draw_few_shot(data, 3, 3, skip_unreadable=True).train.labels) == 6


def test_features_have_been_read_already() -> None:
    split = Split(FeatureRows(torch.ones(2, 3), "bundle:x"), torch.tensor([0, 1]), "f")
    assert readable(split) is split


def test_another_process_draws_the_same(elsewhere: dict[str, Any]) -> None:
    # Here and not above: the facts need the whole project.
    from tests.trainables.fresh_facts import facts

    here = facts()
    for fact in ("draw", "splits", "trial", "metrics", "state"):
        assert here[fact] == elsewhere[fact], fact
