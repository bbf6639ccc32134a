"""State that a worker reuses across trials: computed at most once, and correct."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables import encoded_task as module
from trainables import view as view_module
from trainables.backbones.base import Backbone, BackboneError
from trainables.data.base import DataError
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask, zero_shot_logits
from trainables.methods.base import BuildContext, ClassTexts, Schedule
from trainables.methods.zero_shot import ZeroShot, ZeroShotConfig
from trainables.trial import Episode
from trainables.view import Progress


def open_task() -> EncodedTask:
    return EncodedTask("tiny", "cpu", DataSource())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the expensive things are done."""
    found: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: object, **named: object) -> object:
            found[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in (
        (module, "load_backbone"),
        (module, "class_features"),
        (DataSource, "draw"),
        (Backbone, "encode_image"),
        (view_module, "decoded"),
    ):
        count(owner, name)
    return found


def test_everything_is_computed_at_most_once(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    encoded_task = open_task()
    assert calls == {}  # nothing is loaded before it is needed
    for _ in range(3):
        first, second = (
            encoded_task.views(Episode("digits", 1, 5)),
            encoded_task.views(Episode("digits", 1, 6)),
        )
        texts = [encoded_task.class_features("digits", "all", name) for name in ("paper", "clean")]
        features = [view.features() for view in (*first, *second)]
        assert encoded_task.views(Episode("digits", 1, 5)) is first
        assert not torch.equal(features[0], features[2])
        assert not torch.equal(*texts)
    once = {"load_backbone": 1, "draw": 2, "class_features": 2, "encode_image": 4, "decoded": 4}
    assert calls == once
    # Another worker of the machine: what is in the store is not computed again.
    other = open_task()
    for view, known in zip(other.views(Episode("digits", 1, 5)), features, strict=False):
        assert torch.equal(view.features(), known)
    assert torch.equal(other.class_features("digits", "all", "paper"), texts[0])
    assert calls == once | {"load_backbone": 2, "draw": 3}


def test_no_two_cells_are_confused(encoded_task: EncodedTask) -> None:
    episodes = [
        Episode(name, shots, seed, half)
        for name in ("digits", "digits-rotated")
        for shots in (1, 2)
        for seed in (1, 2)
        for half in ("all", "base", "new")
    ]
    for episode in episodes * 2:
        drawn = encoded_task.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
        for view, split in zip(encoded_task.views(episode), (drawn.train, drawn.val), strict=True):
            assert torch.equal(view.labels, split.labels)
            images = [split.images.read(row) for row in range(len(split.images))]
            expected = encoded_task.backbone.preprocess.resize(images)
            assert torch.equal(view.images(torch.arange(len(view))), expected)


def test_halves_have_their_own_classes(encoded_task: EncodedTask) -> None:
    whole, base, new = (
        encoded_task.class_features("digits", h, "paper") for h in ("all", "base", "new")
    )
    torch.testing.assert_close(torch.cat([base, new]), whole)
    assert len(base) == len(new) == 5


def test_zero_shot_is_the_method_zero_shot(encoded_task: EncodedTask) -> None:
    classes = encoded_task.class_features("digits", "all", "single")
    context = BuildContext(encoded_task.backbone, ClassTexts(classes), Schedule(()))
    method = ZeroShot.build(ZeroShotConfig(prompts="single"), context)
    view = encoded_task.views(Episode("digits", 2, 1))[1]
    images = encoded_task.backbone.preprocess.normalise(view.images(torch.arange(len(view))))
    found = encoded_task.zero_shot("digits", "all", "single")(images)
    assert not found.requires_grad
    torch.testing.assert_close(found, method(view.features()), atol=1e-3, rtol=1e-5)


def test_zero_shot_logits_are_scaled_cosines() -> None:
    rng = torch.Generator().manual_seed(0)
    features, classes = torch.randn(4, 8, generator=rng), torch.randn(3, 8, generator=rng)
    expected = 50 * functional.cosine_similarity(features[:, None], classes[None], dim=-1)
    found = zero_shot_logits(features, classes, torch.tensor(50.0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        zero_shot_logits(3 * features, classes / 7, torch.tensor(50.0)), found
    )


def test_progress_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    told: list[Progress] = []
    encoded_task = EncodedTask("tiny", "cpu", DataSource(), progress=told.append)
    split = encoded_task.source.dataset("digits").split("val")
    view = encoded_task.view(split, flip=False)
    view.features()
    assert [(p.done, p.total) for p in told] == [(128, 296), (256, 296), (296, 296)]
    assert {p.what for p in told} == {"features of 296 images"}
    assert 0 < told[0].seconds <= told[-1].seconds
    view.features()
    assert len(told) == 3


def test_a_bundle_needs_no_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its features go through as they are, whichever view is asked for."""
    from tests.trainables.data.shared import shared_data

    file = shared_data("clip-vitb32", "oxford_pets25_4shot.safetensors")
    spec = f"bundle:{file}"
    encoded_task = EncodedTask(spec, "cpu", DataSource())
    train, _ = encoded_task.views(Episode(spec, 4, 1))
    rows: Tensor = encoded_task.source.draw(spec, 4, 1).train.images.features  # type: ignore[attr-defined]
    for view in (train.features(), train.features(3, 0.5)):
        assert torch.equal(view, rows)
    assert encoded_task.class_features(spec, "all", "paper").shape == (25, rows.shape[1])
    with pytest.raises(DataError, match="holds features and no images"):
        train.images(torch.tensor([0]))
    with pytest.raises(DataError, match="holds features and no images"):
        train.crops(torch.tensor([0]), 0.5, torch.Generator())
    with pytest.raises(DataError, match="holds features and no images"):
        next(train.batches(4))


def test_unknown_names(encoded_task: EncodedTask) -> None:
    unknown = EncodedTask("tinny", "cpu", DataSource())  # fails when it is used
    with pytest.raises(BackboneError, match="tinny"):
        unknown.views(Episode("digits", 1, 1))
    with pytest.raises(DataError, match="There is no data set 'digit'"):
        encoded_task.views(Episode("digit", 1, 1))
    with pytest.raises(DataError, match="There is no data set 'digit'"):
        encoded_task.class_features("digit", "all", "paper")
