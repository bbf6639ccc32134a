"""Fine-tuning: steps against PyTorch's own training of a copy, batch norms, what is stored."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone, Preprocess
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.open_clip import open_clip
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.load_backbone import load_backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.fine_tuning import FineTuning, FineTuningConfig

ADAM = OptimConfig(lr=1e-3, epochs=1, batch_size=4)
SGD = OptimConfig(lr=1e-3, epochs=1, batch_size=4, optimiser="sgd")
TEXT = {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}


@pytest.fixture(params=["vit", "resnet"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    tiny = load_backbone("tiny")
    if request.param == "vit":
        return tiny
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(128, RESNET, TEXT)
    for norm in model.visual.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # a new block's last norm is zero
            torch.nn.init.ones_(norm.weight)
    model.eval().requires_grad_(False)
    transform = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize_mode="squash")
    return Backbone("resnet", model, tiny.tokenizer, transform, "gelu", "0" * 64)


def texts() -> Tensor:
    return torch.randn(5, 128, generator=torch.Generator().manual_seed(1))


def build(backbone: Backbone, config: Any = None) -> FineTuning:
    context = BuildContext(backbone, ClassTexts(texts()), Schedule(()))
    return FineTuning.build(config or FineTuningConfig(), context)


def batches(count: int = 3) -> list[Batch]:
    rng = torch.Generator().manual_seed(2)
    return [
        Batch(torch.randn(4, 3, 32, 32, generator=rng), torch.tensor([0, 1, 2, 3]))
        for _ in range(count)
    ]


def train(method: FineTuning, optim: OptimConfig = ADAM) -> list[float]:
    optimiser = make_optimiser(method.trainable().values(), optim)
    losses = []
    for batch in batches():
        losses.append(method.backward(batch, torch.Generator())["train/loss"])
        optimiser.step()
    return losses


def test_steps_are_those_of_a_trained_copy(backbone: Backbone) -> None:
    """A copy of the tower in evaluation mode, trained with `loss.backward()`. With SGD: attention
    ignores a constant in its keys, so that Adam would scale up the rounding of that gradient."""
    method = build(backbone)
    losses = train(method, SGD)
    visual = copy.deepcopy(backbone.visual).requires_grad_()
    optimiser = make_optimiser(visual.parameters(), SGD)
    unit = functional.normalize(texts(), dim=-1)
    for batch, found in zip(batches(), losses, strict=True):
        features = functional.normalize(visual(batch.inputs), dim=-1)
        loss = functional.cross_entropy(backbone.logit_scale * features @ unit.T, batch.labels)
        assert found == pytest.approx(loss.item(), rel=1e-3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, weight in visual.named_parameters():
        torch.testing.assert_close(
            method.learned()[f"visual.{name}"], weight, atol=1e-5, rtol=1e-3, msg=name
        )


def test_every_weight_of_the_image_encoder_is_trained(backbone: Backbone) -> None:
    method = build(backbone)
    model = dict(backbone.model.named_parameters())
    before = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    assert method.progress() == {"weights/moved": 0}
    train(method)
    assert set(method.learned()) == {name for name in model if name.startswith("visual.")}
    for name, weight in method.learned().items():
        assert not torch.equal(weight, model[name]), name
    # The backbone itself, the statistics of batch norms included, is shared by all trials.
    for name, weight in backbone.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_the_distance_is_relative(backbone: Backbone) -> None:
    method = build(backbone)
    with torch.no_grad():
        for weight in method.trainable().values():
            weight.mul_(1.25)
    assert method.progress() == {"weights/moved": pytest.approx(0.25, rel=1e-5)}


def test_the_merged_backbone_has_the_trained_weights(backbone: Backbone) -> None:
    method = build(backbone)
    train(method)
    inputs, merged = batches(1)[0].inputs, method.merged_backbone()
    unit = functional.normalize(merged.encode_image(inputs), dim=-1)
    with torch.no_grad():
        assert torch.equal(unit @ method.linear_head().weight.T, method(inputs))
    assert merged.fingerprint != backbone.fingerprint
    assert not merged.sees_as(backbone)


def test_other_classes_keep_the_weights(backbone: Backbone) -> None:
    method = build(backbone)
    train(method)
    expected = method(batches(1)[0].inputs)[:, :2]
    method.set_classes(ClassTexts(texts()[:2]))
    torch.testing.assert_close(method(batches(1)[0].inputs), expected)


def test_refuses_a_bundle() -> None:
    tiny = load_backbone("tiny")
    bundle = FeatureBackbone(
        "features", tiny.model, tiny.tokenizer, tiny.preprocess, "none", "0" * 64, dimension=128
    )
    with pytest.raises(MethodError, match="features"):
        build(bundle)


def test_settings() -> None:
    for name in ("paper", "reference", "clean"):
        config, optim, crop_scale = FineTuning.preset(name, TaskFacts("dtd", 16, 752))
        assert config.prompts == ("clean" if name == "clean" else "single")
        assert (optim.lr, optim.epochs, optim.batch_size, crop_scale) == (1e-5, 30, 32, 0.5)
    assert FineTuning.preset("paper", TaskFacts("imagenet", 16, 16_000)).optim.epochs == 10
