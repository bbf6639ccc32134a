"""The masked text tower: equal to the whole one, cut short, in pieces, remembered."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone
from trainables.backbones.open_clip import open_clip
from trainables.data.prompts import PromptVariant, class_features, prompt_set
from trainables.load_backbone import load_backbone
from trainables.methods.base import Batch, BuildContext, ClassTexts, MethodError, Schedule
from trainables.methods.masking import masked_text
from trainables.methods.masking.layers import text_names
from trainables.methods.masking.mask_method import MaskConfig
from trainables.methods.masking.masked_text import MaskedClassifier, TextTower
from trainables.methods.masking.rmt import MaskedText, MaskedTowers, MaskedTowersConfig

NAMES = ("red_square", "blue_circle", "a very long name of a class", "star")


def custom_text() -> Backbone:
    """A CLIP whose text tower is a separate, non-causal module, as in SigLIP."""
    tiny = load_backbone("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(
            64,
            {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            {
                "context_length": 24,
                "vocab_size": 1536,
                "width": 64,
                "heads": 2,
                "layers": 2,
                "no_causal_mask": True,
                "pool_type": "last",
            },
        )
    model.eval().requires_grad_(False)
    return replace(tiny, name="custom", model=model, fingerprint="custom")


def classes(backbone: Backbone, variant: PromptVariant = "paper") -> ClassTexts:
    prompts = prompt_set("imagenet", NAMES, variant)
    return ClassTexts(class_features(backbone, prompts), prompts)


def perturbed(backbone: Backbone, masked: str = "all") -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    found = {}
    for name in text_names(backbone, masked):  # type: ignore[arg-type]
        weight = backbone.model.get_parameter(name)
        found[name] = weight * (torch.rand(weight.shape, generator=rng) > 0.1)
    return found


@pytest.mark.parametrize("kind", ["tiny", "custom"])
@pytest.mark.parametrize("variant", ["paper", "clean"])
def test_equals_a_changed_backbone(kind: str, variant: PromptVariant) -> None:
    backbone = load_backbone("tiny") if kind == "tiny" else custom_text()
    given = classes(backbone, variant)
    weights = perturbed(backbone)
    assert given.prompts is not None
    wanted = class_features(backbone.changed(weights), given.prompts)
    with torch.no_grad():
        found = TextTower(backbone, given)(weights)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, given.features, atol=1e-2)


def test_padding_is_cut_where_that_changes_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    encode = type(backbone.model).encode_text

    def watch(self: nn.Module, text: Tensor, normalize: bool = False) -> Tensor:
        lengths.append(text.shape[1])
        return encode(self, text, normalize)

    monkeypatch.setattr(type(backbone.model), "encode_text", watch)
    tokens = backbone.tokenizer(["a photo of a star."])
    used = int(tokens[0].argmax()) + 1
    short = prompt_set("caltech101", ("star",), "paper")
    TextTower(backbone, ClassTexts(torch.zeros(1, 128), short))({})
    assert lengths == [used]
    assert used < tokens.shape[1]


def test_pieces_give_the_same_gradients(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = classes(backbone)
    found = []
    for size in (256, 5):
        monkeypatch.setattr(masked_text, "_TEXTS", size)
        leaves = {n: w.requires_grad_() for n, w in perturbed(backbone, "mhsa").items()}
        features = TextTower(backbone, given)(leaves)
        score = (features * torch.arange(128.0)).sum()
        first = torch.autograd.grad(score, list(leaves.values()), retain_graph=True)
        second = torch.autograd.grad(2 * score, list(leaves.values()))
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(2 * one, other)
        found.append(torch.cat([g.flatten() for g in first]))
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[1], found[0], atol=1e-5 * scale, rtol=1e-4)


def test_the_classifier_is_remembered_until_the_weights_change(backbone: Backbone) -> None:
    classifier = MaskedClassifier(backbone, classes(backbone))
    weights = perturbed(backbone)
    first = classifier(weights)
    assert classifier({n: w.clone() for n, w in weights.items()}) is first
    name = next(iter(weights))
    weights = weights | {name: weights[name] * 0}
    assert not torch.equal(classifier(weights), first)
    length = classifier(weights).norm(dim=-1)
    torch.testing.assert_close(length, backbone.logit_scale.expand(4), rtol=1e-5, atol=0)
    leaves = weights | {name: weights[name].clone().requires_grad_()}
    assert classifier(leaves).requires_grad


@pytest.mark.parametrize("method", [MaskedText, MaskedTowers])
def test_features_without_texts_are_refused(
    backbone: Backbone, method: type[MaskedText | MaskedTowers]
) -> None:
    alone = ClassTexts(torch.zeros(4, 128))
    with pytest.raises(MethodError, match="needs the classes' texts"):
        method.build(method.Config(), BuildContext(backbone, alone, Schedule((1e-3,))))  # type: ignore[arg-type]
    built = method.build(
        method.Config(),  # type: ignore[arg-type]
        BuildContext(backbone, classes(backbone), Schedule((1e-3,))),
    )
    with pytest.raises(MethodError, match="needs the classes' texts"):
        built.set_classes(alone)


def test_other_classes_are_read_by_the_masked_tower(backbone: Backbone) -> None:
    method = MaskedText.build(
        MaskConfig(), BuildContext(backbone, classes(backbone), Schedule((1e-3,)))
    )
    with torch.no_grad():
        for score in method.trainable().values():
            score.view(-1)[::7] = 0.0
    others = prompt_set("imagenet", ("dog", "cat"), "paper")
    method.set_classes(ClassTexts(class_features(backbone, others), others))
    features = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    text = class_features(method.merged_backbone(), others)
    unit, directions = (nn.functional.normalize(x, dim=-1) for x in (features, text))
    torch.testing.assert_close(
        method(features), backbone.logit_scale * unit @ directions.T, atol=1e-3, rtol=1e-4
    )


def test_gradients_of_both_towers_equal_straight_through_autograd(backbone: Backbone) -> None:
    given = classes(backbone)
    config = MaskedTowersConfig(rule="sum", masked_text="all")
    method = MaskedTowers.build(config, BuildContext(backbone, given, Schedule((1e-3,))))
    rng = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(4, 3, 32, 32, generator=rng), torch.arange(4), torch.randn(4, 4, generator=rng)
    )
    _, (first, second) = method.mask_gradients(batch)
    leaves = {n: torch.ones_like(m).requires_grad_() for n, m in method.trainable().items()}
    model = backbone.model
    weights = {n: model.get_parameter(n) * b for n, b in leaves.items()}
    assert given.prompts is not None
    tokens = backbone.tokenizer([t for row in given.prompts.texts() for t in row])
    # Both towers in one call of the whole model, without anything cut.
    image, text, scale = torch.func.functional_call(model, weights, (batch.inputs, tokens))
    whole = torch.func.functional_call(
        masked_text._Encoder(model), {f"model.{n}": w for n, w in weights.items()}, (tokens,)
    )
    assert torch.allclose(nn.functional.normalize(whole, dim=-1), text, atol=1e-6)
    means = whole.reshape(4, -1, 128).mean(1)
    logits = scale * image @ nn.functional.normalize(means, dim=-1).T
    assert batch.zero_shot_logits is not None
    losses = (
        nn.functional.cross_entropy(logits, batch.labels),
        nn.functional.cross_entropy(logits, batch.zero_shot_logits.softmax(-1)),
    )
    for loss, ours in zip(losses, (first, second), strict=True):
        wanted = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        for name, grad in zip(leaves, wanted, strict=True):
            size = float(grad.abs().max())
            torch.testing.assert_close(ours[name], grad, atol=1e-4 * size, rtol=1e-3, msg=name)
