"""What a warm worker keeps: computed at most once, and rightly."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables import workbench
from trainables.backbones.base import Backbone, BackboneError
from trainables.data.base import DataError
from trainables.data.few_shot import draw_few_shot
from trainables.data.registry import open_dataset
from trainables.methods.base import Schedule
from trainables.methods.zero_shot import ZeroShot, ZeroShotConfig
from trainables.workbench import Workbench, encode_images, zero_shot_logits


def test_everything_is_computed_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    for name in ("load_backbone", "draw_few_shot", "class_features", "encode_images"):
        count(workbench, name)
    bench = Workbench("tiny", "cpu")
    assert calls == {}  # nothing is loaded before it is needed
    for _ in range(3):
        first, second = bench.views("digits", 1, 5), bench.views("digits", 1, 6)
        texts = bench.class_features("digits", "paper"), bench.class_features("digits", "clean")
        assert bench.views("digits", 1, 5) is first
        assert not torch.equal(first[0].images, second[0].images)
        assert not torch.equal(*texts)
    assert calls == {
        "load_backbone": 1,
        "draw_few_shot": 2,
        "class_features": 2,
        "encode_images": 4,
    }


def test_no_two_draws_are_confused(bench: Workbench) -> None:
    keys = [
        (name, shots, seed)
        for name in ("digits", "digits-rotated")
        for shots in (1, 2)
        for seed in (1, 2)
    ]
    for name, shots, seed in keys * 2:
        drawn = draw_few_shot(open_dataset(name), shots, seed)
        for view, split in zip(
            bench.views(name, shots, seed), (drawn.train, drawn.val), strict=True
        ):
            assert torch.equal(view.images, bench.backbone.preprocess.resize(split.images))
            assert torch.equal(view.labels, split.labels)


def test_a_view_holds_what_the_model_makes_of_the_test_transform(bench: Workbench) -> None:
    drawn = draw_few_shot(open_dataset("digits"), 3, 1).train
    view = bench.view(drawn.images, drawn.labels)
    side = bench.backbone.preprocess.image_size
    assert view.images.shape == (30, 3, side, side)
    assert view.images.dtype == torch.uint8
    assert view.features.dtype == torch.float32
    for image, feature in zip(view.images, view.features, strict=True):
        alone = bench.backbone.encode_image(bench.backbone.preprocess.normalise(image[None]))[0]
        torch.testing.assert_close(feature, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_images_are_encoded_in_batches_in_order(count: int, bench: Workbench) -> None:
    rng = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    sizes = []

    class Mean(Backbone):
        def encode_image(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return images.flatten(1).mean(1, keepdim=True)

    fields = {name: getattr(bench.backbone, name) for name in Backbone.__dataclass_fields__}
    found = encode_images(Mean(**fields), images)
    expected = bench.backbone.preprocess.normalise(images).flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert max(sizes) <= 128
    assert sum(sizes) == count


def test_zero_shot_is_the_method_zero_shot(bench: Workbench) -> None:
    classes = bench.class_features("digits", "single")
    method = ZeroShot.build(ZeroShotConfig(prompts="single"), bench.backbone, classes, Schedule(()))
    view = bench.views("digits", 2, 1)[1]
    images = bench.backbone.preprocess.normalise(view.images)
    found = bench.zero_shot("digits", "single")(images)
    assert not found.requires_grad
    torch.testing.assert_close(found, method(view.features), atol=1e-3, rtol=1e-5)


def test_zero_shot_logits_are_scaled_cosines() -> None:
    rng = torch.Generator().manual_seed(0)
    features, classes = torch.randn(4, 8, generator=rng), torch.randn(3, 8, generator=rng)
    expected = 50 * functional.cosine_similarity(features[:, None], classes[None], dim=-1)
    found = zero_shot_logits(features, classes, torch.tensor(50.0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        zero_shot_logits(3 * features, classes / 7, torch.tensor(50.0)), found
    )


def test_unknown_names(bench: Workbench) -> None:
    unknown = Workbench("tinny", "cpu")  # says so when it is used: a worker reports it
    with pytest.raises(BackboneError, match="tinny"):
        unknown.views("digits", 1, 1)
    with pytest.raises(DataError, match="There is no data set 'digit'"):
        bench.views("digit", 1, 1)
    with pytest.raises(DataError, match="There is no data set 'digit'"):
        bench.class_features("digit", "paper")
