"""CLIP-LoRA: branches against a plain statement of them, both kinds of CLIP, what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone, Preprocess
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.open_clip import open_clip
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.data.prompts import class_features, prompt_set
from trainables.load_backbone import load_backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.clip_lora import ClipLora, ClipLoraConfig
from trainables.methods.low_rank import Branch, Dropout, attach, sites

NAMES = ("cat", "red_dog", "aeroplane")
ALL = "q,k,v,o,up,down"
TEXT = {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


def random_clip(
    vision: dict[str, Any], text: dict[str, Any], custom: bool = False, dim: int = 16
) -> Backbone:
    """An untrained CLIP with the embedded model's tokenizer."""
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(dim, vision, text)
    model.eval().requires_grad_(False)
    transform = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize_mode="squash")
    return Backbone("random", model, load_backbone("tiny").tokenizer, transform, "gelu", "0" * 64)


def classes(backbone: Backbone, names: Sequence[str] = NAMES, variant: Any = "paper") -> ClassTexts:
    prompts = prompt_set("imagenet", names, variant)
    return ClassTexts(class_features(backbone, prompts), prompts)


def build(backbone: Backbone, config: ClipLoraConfig) -> ClipLora:
    return ClipLora.build(config, BuildContext(backbone, classes(backbone), Schedule(())))


def filled(method: ClipLora, size: float = 0.1) -> ClipLora:
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in method.trainable().values():
            tensor.normal_(0, size, generator=rng)
    return method


def zero_shot(backbone: Backbone, images: Tensor, text: Tensor) -> Tensor:
    unit = functional.normalize(backbone.encode_image(images), dim=-1)
    return backbone.logit_scale * unit @ functional.normalize(text, dim=-1).T


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("encoders", ["image", "text", "both"])
def test_it_is_the_zero_shot_model_of_the_folded_backbone(custom: bool, encoders: Any) -> None:
    backbone = random_clip(VISION, TEXT, custom)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    method = filled(build(backbone, ClipLoraConfig(matrices=ALL, encoders=encoders, rank=3)))
    merged_backbone = method.merged_backbone()
    assert method.linear_head() is not None
    with torch.no_grad():
        logits = method(images())
        linear_head = (
            functional.normalize(merged_backbone.encode_image(images()), dim=-1)
            @ method.linear_head().weight.T
        )
    expected = zero_shot(merged_backbone, images(), classes(merged_backbone).features)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(linear_head, expected, atol=1e-4, rtol=1e-4)
    assert (logits - zero_shot(backbone, images(), classes(backbone).features)).abs().max() > 0.1
    changed = {
        n for n, t in merged_backbone.model.state_dict().items() if not torch.equal(t, before[n])
    }
    towers = {"image" if name.startswith("visual.") else "text" for name in changed}
    assert towers == ({"image", "text"} if encoders == "both" else {encoders})
    layers = 2 * len(towers)
    assert len(changed) == layers * 4  # in_proj, out_proj, c_fc, c_proj
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Block(nn.Module):
    """The pieces of open_clip's block."""

    def __init__(self, width: int, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 3),
    half=st.integers(1, 4),
    rank=st.integers(1, 4),
    length=st.integers(1, 6),
    batch_first=st.booleans(),
    masked=st.sampled_from(["no", "one", "each"]),
    matrices=st.lists(st.sampled_from(ALL.split(",")), min_size=1, unique=True),
    seed=st.integers(0, 2**16),
)
def test_without_dropout_a_branch_is_a_changed_weight(
    heads: int,
    half: int,
    rank: int,
    length: int,
    batch_first: bool,
    masked: str,
    matrices: list[Any],
    seed: int,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    width, n = 2 * half * heads, 3
    model = nn.Module()
    model.transformer = nn.Module()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = Block(width, heads, batch_first).requires_grad_(False)
        folded = Block(width, heads, batch_first).requires_grad_(False)
    folded.load_state_dict(block.state_dict())
    model.transformer.resblocks = nn.ModuleList([block])
    mask = None
    if masked != "no":
        shape = (length, length) if masked == "one" else (n * heads, length, length)
        mask = torch.randn(shape, generator=rng)
    x = torch.randn((n, length, width) if batch_first else (length, n, width), generator=rng)
    branches = {}
    for site in sites(model, "text", tuple(matrices)):
        weight = site.of(model.get_parameter(site.parameter))
        down = torch.randn(rank, weight.shape[1], generator=rng)
        up = torch.randn(weight.shape[0], rank, generator=rng)
        branches[site] = Branch(down, up, 0.5, Dropout(0.0))
        name = site.parameter.removeprefix("transformer.resblocks.0.")
        site.of(folded.get_parameter(name)).add_(0.5 * up @ down)
    attach(model, branches)
    out = block.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
    expected = folded.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(block.mlp(x), folded.mlp(x), atol=2e-4, rtol=1e-4)


def test_dropout_falls_on_the_input_of_the_branch_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    dropout = Dropout(0.25)
    down, up = torch.randn(2, 64, generator=rng), torch.randn(8, 2, generator=rng)
    branch = Branch(down, up, 0.5, dropout)
    x = torch.randn(7, 64, generator=rng)
    whole = branch(x)
    torch.testing.assert_close(whole, 0.5 * x @ (up @ down).T)
    with dropout.drawing(torch.Generator().manual_seed(5), x.device):
        first, second = branch(x), branch(x)
    assert not torch.equal(first, second)  # queries, keys and values drop each their own
    with dropout.drawing(torch.Generator().manual_seed(5), x.device):
        assert torch.equal(branch(x), first)
    with dropout.drawing(torch.Generator().manual_seed(5), x.device):
        kept = dropout(x)
        expected = 0.5 * kept @ (up @ down).T
    torch.testing.assert_close(first, expected)
    zero = kept == 0
    torch.testing.assert_close(kept[~zero], x[~zero] / 0.75)
    with dropout.drawing(torch.Generator().manual_seed(6), x.device):
        share = (dropout(torch.ones(200_000)) == 0).double().mean().item()
    assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 200_000))
    assert torch.equal(branch(x), whole)  # and nothing falls afterwards


def test_training_drops_and_evaluation_does_not(tiny: Backbone) -> None:
    method = filled(build(tiny, ClipLoraConfig(dropout=0.5)))
    state = torch.get_rng_state()
    rng = torch.Generator().manual_seed(0)
    batch = Batch(images(), torch.arange(5) % 3)
    losses = [method.backward(batch, rng)["train/loss"] for _ in range(2)]
    with torch.no_grad():
        assert torch.equal(method(images()), method(images()))
    assert losses[0] != losses[1]
    assert torch.equal(torch.get_rng_state(), state)
    plain = filled(build(tiny, ClipLoraConfig(dropout=0.0)))
    assert plain.backward(batch, rng) == plain.backward(batch, rng)


def test_the_gradient_is_that_of_the_folded_weights() -> None:
    """Without dropout, dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW."""
    backbone = random_clip(VISION, TEXT)
    method = filled(build(backbone, ClipLoraConfig(encoders="image", dropout=0.0, lora_alpha=3)))
    batch = Batch(images(), torch.arange(5) % 3)
    method.backward(batch, torch.Generator())
    model = method.merged_backbone().model
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    whole = model.get_parameter(name).requires_grad_()
    unit = functional.normalize(model.visual(batch.inputs), dim=-1)
    text = functional.normalize(classes(backbone).features, dim=-1)
    functional.cross_entropy(backbone.logit_scale * unit @ text.T, batch.labels).backward()
    for third, matrix in enumerate("qkv"):
        slope = whole.grad.chunk(3)[third]
        key = f"visual/transformer/resblocks/1/{matrix}"
        down, up = method.downs[key], method.ups[key]
        torch.testing.assert_close(up.grad, 1.5 * slope @ down.T, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(down.grad, 1.5 * up.T @ slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_text_features_are_made_once_for_each_state_of_the_weights(
    tiny: Backbone, optimiser: Any
) -> None:
    method = build(tiny, ClipLoraConfig(encoders="text"))
    encoded = []
    transformer = method._tuned.model.get_submodule("transformer")
    transformer.register_forward_hook(lambda *_: encoded.append(1))
    with torch.no_grad():
        first = method(images())
        method(images())
    assert len(encoded) == 1
    batch = Batch(images(), torch.arange(5) % 3)
    optim = make_optimiser(
        method.trainable().values(), OptimConfig(1e-1, 1, 5, optimiser=optimiser)
    )
    for steps in range(1, 4):
        method.backward(batch, torch.Generator().manual_seed(0))
        with torch.no_grad():
            method(images())  # before the step, from what is known
        optim.step()
        with torch.no_grad():
            now = method(images())
        assert len(encoded) == 1 + 2 * steps
        merged_backbone = method.merged_backbone()
        expected = zero_shot(merged_backbone, images(), classes(merged_backbone).features)
        torch.testing.assert_close(now, expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(first, now)
    fresh = build(tiny, ClipLoraConfig(encoders="text"))
    with torch.no_grad():
        fresh(images())
        fresh.load_state_dict(method.state_dict())
        assert torch.equal(fresh(images()), now)
        fresh.set_classes(classes(tiny, ("ship", "car")))
        assert fresh(images()).shape == (5, 2)


def test_frozen_encoders_take_no_part_in_the_gradient(tiny: Backbone) -> None:
    for config in (ClipLoraConfig(), ClipLoraConfig(encoders="text", matrices="up")):
        method = build(tiny, config)
        method.backward(Batch(images(), torch.arange(5) % 3), torch.Generator())
        assert all(p.grad is None and not p.requires_grad for p in tiny.model.parameters())
        assert all(p.grad is not None for p in method.parameters())


def test_first_values(tiny: Backbone) -> None:
    method = build(tiny, ClipLoraConfig(rank=16))
    for up in method.ups.values():
        assert not up.any()
    for down in method.downs.values():
        bound = 1 / math.sqrt(down.shape[1])
        assert down.abs().max() <= bound
        assert down.abs().max() > 0.95 * bound
        assert down.mean().abs() < 5 * bound / math.sqrt(3 * down.numel())
    downs = [down.flatten()[:4].tolist() for down in method.downs.values()]
    assert len({tuple(row) for row in downs}) == len(downs)


def test_size_on_vit_b_16() -> None:
    """184,320 numbers, as in the paper; the architecture without its weights."""
    with torch.device("meta"):
        config = open_clip.get_model_config("ViT-B-16")
        model = open_clip.CLIP(**config)
    total = 0
    for encoder in ("image", "text"):
        found = sites(model, encoder, ("q", "k", "v"))
        assert len(found) == 36
        for site in found:
            total += 2 * sum(site.of(model.get_parameter(site.parameter)).shape)
    assert total == 184_320


def test_a_resnet_has_its_text_encoder_tuned() -> None:
    resnet = random_clip(
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}, TEXT
    )
    with pytest.raises(MethodError, match="encoders='text', or a ViT"):
        build(resnet, ClipLoraConfig())
    config, _, _ = ClipLora.preset("paper", TaskFacts("dtd", 1, 9, tower="resnet"))
    assert config.encoders == "text"
    method = filled(build(resnet, config))
    merged_backbone = method.merged_backbone()
    with torch.no_grad():
        found = method(images())
    expected = zero_shot(merged_backbone, images(), classes(merged_backbone).features)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"qk_norm": True}, {}, "image encoder"),
        ({}, {"qk_norm": True}, "text encoder"),
        ({}, {"pool_type": "last"}, "text"),
    ],
)
def test_refuses_towers_that_it_does_not_know(
    vision: dict[str, Any], text: dict[str, Any], message: str
) -> None:
    backbone = random_clip(VISION | vision, TEXT | text)
    with pytest.raises(MethodError, match=message):
        build(backbone, ClipLoraConfig())


def test_refuses_what_has_no_encoders_or_texts(tiny: Backbone) -> None:
    features = ClassTexts(torch.randn(3, 128))
    with pytest.raises(MethodError, match="needs the texts of the classes"):
        ClipLora.build(ClipLoraConfig(), BuildContext(tiny, features, Schedule(())))
    temperature = nn.Module()
    temperature.logit_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
    bundle = FeatureBackbone(
        "bundle:x", temperature, tiny.tokenizer, tiny.preprocess, "none", "0", dimension=128
    )
    with pytest.raises(MethodError, match="has none"):
        ClipLora.build(ClipLoraConfig(), BuildContext(bundle, features, Schedule(())))


@pytest.mark.parametrize("matrices", ["", "q,x", "q,q"])
def test_refuses_unknown_and_repeated_matrices(tiny: Backbone, matrices: str) -> None:
    with pytest.raises(MethodError, match="matrices must be some of"):
        build(tiny, ClipLoraConfig(matrices=matrices))


def test_an_artifact_of_another_scale_is_refused(tiny: Backbone) -> None:
    artifact = filled(build(tiny, ClipLoraConfig())).artifact()
    for change in ({"lora_alpha": 2.0}, {"scaling": "root"}):
        with pytest.raises(MethodError, match="scale"):
            build(tiny, replace(ClipLoraConfig(), **change)).load_artifact(*artifact)
    with pytest.raises(MethodError, match="shapes"):
        build(tiny, ClipLoraConfig(rank=4, lora_alpha=2.0)).load_artifact(*artifact)


@pytest.mark.parametrize(
    ("shots", "count", "epochs"), [(1, 10, 500), (4, 40, 2000), (16, 160, 1600), (16, 1600, 160)]
)
def test_published_settings(shots: int, count: int, epochs: int) -> None:
    for name in ("paper", "reference", "clean"):
        config, optim, crop_scale = ClipLora.preset(name, TaskFacts("dtd", shots, count))
        assert (config.rank, config.lora_alpha, config.dropout) == (2, 1, 0.25)
        assert (config.encoders, config.matrices) == ("both", "q,k,v")
        assert config.scale == (1 / math.sqrt(2) if name == "reference" else 0.5)
        assert config.prompts == ("single" if name == "clean" else "photo")
        assert (optim.optimiser, optim.lr, optim.weight_decay) == ("adamw", 2e-4, 1e-2)
        rates = optim.learning_rates(count)
        assert optim.epochs == epochs
        assert len(rates) == 500 * shots
        assert crop_scale == 0.08
        # torch's CosineAnnealingLR over all steps
        for step in (0, 1, len(rates) // 2, len(rates) - 1):
            cosine = (1 + math.cos(math.pi * step / len(rates))) / 2
            assert rates[step] == pytest.approx(1e-6 + (2e-4 - 1e-6) * cosine)
