"""The tuned text projection: its features, later stages, and unsupported backbones."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.data.prompts import PromptVariant, class_features, prompt_set
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.enhanced_base import EnhancedBase, EnhancedBaseConfig
from trainables.methods.taskres import TaskRes
from trainables.stages import open_training
from trainables.trial import Episode, TrialConfig

VARIANTS: tuple[PromptVariant, ...] = ("paper", "clean")


def classes(backbone: Backbone, variant: PromptVariant, *names: str) -> ClassTexts:
    prompts = prompt_set("imagenet", names or ("cat", "big_dog", "car"), variant)
    return ClassTexts(class_features(backbone, prompts), prompts)


def build(backbone: Backbone, variant: PromptVariant = "paper") -> EnhancedBase:
    return EnhancedBase.build(
        EnhancedBaseConfig(prompts=variant),
        BuildContext(backbone, classes(backbone, variant), Schedule(())),
    )


def moved(method: EnhancedBase) -> EnhancedBase:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in method.trainable().values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=rng))
    return method


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_base_is_made_of_every_single_text(backbone: Backbone, variant: PromptVariant) -> None:
    """Seven templates per class, each passed through the changed tower."""
    method = moved(build(backbone, variant))
    merged_backbone, prompts = method.merged_backbone(), classes(backbone, variant).prompts
    assert prompts is not None
    rows = [merged_backbone.encode_text(row) for row in prompts.texts()]
    assert [len(row) for row in rows] == [7, 7, 7]
    if variant == "clean":
        rows = [functional.normalize(row, dim=-1) for row in rows]
    base = torch.stack([row.mean(dim=0) for row in rows])
    z = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    cosine = functional.cosine_similarity(z[:, None], base[None], dim=-1)
    torch.testing.assert_close(method(z), backbone.logit_scale * cosine, atol=2e-3, rtol=1e-4)


def test_the_gradient_is_that_of_the_projection(backbone: Backbone) -> None:
    """dL/dW = h^T dL/d(h W), with the gradient of the base by differences in double precision."""
    method = moved(build(backbone))
    rng = torch.Generator().manual_seed(2)
    z, labels = torch.randn(6, 128, generator=rng), torch.arange(6) % 3
    method.backward(Batch(z, labels), rng)
    (weight,) = method.trainable().values()
    direction = torch.randn(weight.shape, generator=rng).double()

    def loss(step: float) -> torch.Tensor:
        base = method.states.double() @ (weight.detach().double() + step * direction)
        cosine = functional.cosine_similarity(z.double()[:, None], base[None], dim=-1)
        return functional.cross_entropy(backbone.logit_scale.double() * cosine, labels)

    assert weight.grad is not None
    found = (weight.grad.double() * direction).sum()
    torch.testing.assert_close(found, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_classes_are_projected_by_what_was_learned(
    backbone: Backbone, variant: PromptVariant
) -> None:
    method = moved(build(backbone, variant))
    new = classes(backbone, variant, "ship", "apple")
    method.set_classes(new)
    assert new.prompts is not None
    base = class_features(method.merged_backbone(), new.prompts)
    z = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    cosine = functional.cosine_similarity(z[:, None], base[None], dim=-1)
    torch.testing.assert_close(method(z), backbone.logit_scale * cosine, atol=2e-3, rtol=1e-4)


def test_nothing_but_the_projection_changes(backbone: Backbone) -> None:
    method = moved(build(backbone))
    before, after = backbone.model.state_dict(), method.merged_backbone().model.state_dict()
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["text_projection"]


def test_progress_is_the_relative_distance(backbone: Backbone) -> None:
    method = build(backbone)
    assert method.progress() == {"projection/moved": 0.0}
    with torch.no_grad():
        for weight in method.trainable().values():
            weight.mul_(1.25)
    assert method.progress() == {"projection/moved": pytest.approx(0.25, rel=1e-5)}


def test_settings() -> None:
    for shots in (1, 16):
        found = EnhancedBase.preset("paper", TaskFacts("dtd", shots, 9))
        assert (found.optim.epochs, found.optim.batch_size, found.crop_scale) == (50, 256, 1.0)
    large = EnhancedBase.preset("paper", TaskFacts("imagenet", 16, 16000))
    assert large.optim.lr == pytest.approx(found.optim.lr / 10)


def test_refuses_a_bundle(backbone: Backbone) -> None:
    features = classes(backbone, "paper").features
    with pytest.raises(MethodError, match="a bundle has only their features: use"):
        EnhancedBase.build(
            EnhancedBaseConfig(), BuildContext(backbone, ClassTexts(features), Schedule(()))
        )


def test_refuses_a_text_tower_that_ends_without_the_layer(backbone: Backbone) -> None:
    model = torch.nn.Module()
    model.logit_scale = backbone.model.logit_scale
    other = replace(backbone, model=model)
    with pytest.raises(MethodError, match="use another backbone"):
        EnhancedBase.build(
            EnhancedBaseConfig(),
            BuildContext(other, classes(backbone, "paper"), Schedule(())),
        )


def test_images_are_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tower is the same: only texts go through the changed backbone."""
    encoded_task, episode = EncodedTask("tiny", "cpu", DataSource()), Episode("digits", 1, 1)
    given = TaskFacts("digits", 1, 10)
    first = TrialConfig("enhanced-base", "paper", *EnhancedBase.preset("paper", given))
    second = TrialConfig("taskres", "paper", *TaskRes.preset("paper", given), before=first)
    training = open_training(second, encoded_task, episode)
    while isinstance(training.method, EnhancedBase):
        training.run_epoch()

    def refuse(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(Backbone, "encode_image", refuse)
    training.run_epoch()
    training.validate()


def test_it_improves_the_base_that_taskres_then_starts_from() -> None:
    """Trained on 16 digits per class: 77.5 % of the validation images before, over 90 % after."""
    encoded_task, episode = EncodedTask("tiny", "cpu", DataSource()), Episode("digits", 16, 1)
    given = TaskFacts("digits", 16, 160)
    first = TrialConfig("enhanced-base", "paper", *EnhancedBase.preset("paper", given))
    config, optim, crop_scale = TaskRes.preset("paper", given)
    both = TrialConfig("taskres", "paper", config, replace(optim, epochs=2), crop_scale)
    training = open_training(replace(both, before=first), encoded_task, episode)
    start = training.validate()
    for _ in range(50):
        training.run_epoch()
    assert isinstance(training.method, TaskRes)  # the next stage, not trained yet
    enhanced = training.validate()
    assert start["val/accuracy"] < 0.8
    assert enhanced["val/accuracy"] > 0.9
    assert enhanced["val/loss"] < start["val/loss"] / 2
    last = [training.run_epoch() for _ in range(2)][-1]
    assert training.epoch == training.epochs == 52
    assert last["val/loss"] < enhanced["val/loss"]
