"""Properties of mask tuning that the conformance suite and the golden runs do not cover."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.open_clip import open_clip
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.load_backbone import load_backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    Support,
    TaskFacts,
)
from trainables.methods.gradient_rules import GRADIENT_RULES, Dropping, RuleName
from trainables.methods.masking.layers import Masked, layer_of
from trainables.methods.masking.rmt import CLEAN_FLIP_BUDGET, MaskTuning, MaskTuningConfig
from trainables.methods.masking.scores import Granularity

RELEASED = OptimConfig(lr=8e-5, epochs=30, batch_size=32)


def build(backbone: Backbone, config: MaskTuningConfig, images: int = 160) -> MaskTuning:
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    schedule = Schedule(RELEASED.learning_rates(images))
    return MaskTuning.build(config, BuildContext(backbone, ClassTexts(features), schedule))


def batch(method: MaskTuning, seed: int = 2) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 32, 32, generator=rng)
    teacher = torch.randn(8, 5, generator=rng)
    return Batch(images, torch.arange(8) % 5, teacher if method.uses_zero_shot else None)


def support(batches: list[Batch]) -> Support:
    labels = torch.cat([batch.labels for batch in batches])
    return Support(labels, 1, lambda view: torch.zeros(len(labels), 128), lambda: iter(batches))


def test_gradients_equal_straight_through_autograd(backbone: Backbone) -> None:
    config = MaskTuningConfig(masked="all", patch_embedding=True, norm_weight=0.3, leak=1.0)
    method = build(backbone, config)
    given = batch(method)
    _, (first, second) = method.mask_gradients(given)
    assert given.zero_shot_logits is not None
    # The definition, by parametrised layers: B as a leaf, W B inside the tower.
    leaves = {n: torch.ones_like(m).requires_grad_() for n, m in method.trainable().items()}
    weights = {n: backbone.visual.get_parameter(n) * b for n, b in leaves.items()}
    features = torch.func.functional_call(backbone.visual, weights, (given.inputs,))
    logits = functional.normalize(features, dim=-1) @ method.classifier.T
    loss = functional.cross_entropy(logits, given.labels)
    kl = functional.kl_div(
        logits.log_softmax(-1), given.zero_shot_logits.softmax(-1), reduction="batchmean"
    )
    for total, ours in ((loss, first), (kl, second)):
        wanted = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
        for (name, score), grad in zip(method.trainable().items(), wanted, strict=True):
            if total is loss:  # d(0.3 ||M||)/dM, for equal scores 0.3 / sqrt(n)
                grad = grad + 0.3 / score.numel() ** 0.5  # noqa: PLW2901
            torch.testing.assert_close(ours[name], grad, atol=1e-6, rtol=1e-4)


def test_leak_zero_is_the_plain_gradient_and_draws_nothing(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(leak=0.0))
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    assert set(method.backward(batch(method), rng)) == {"train/loss"}
    assert torch.equal(rng.get_state(), before)
    plain = [p.grad for p in method.trainable().values()]
    _, (first,) = method.mask_gradients(batch(method))
    for ours, wanted in zip(plain, first.values(), strict=True):
        assert ours is not None
        assert torch.equal(ours, wanted)


def test_leak_scales_what_is_dropped(backbone: Backbone) -> None:
    gradients: dict[float, list[Tensor]] = {}
    for leak in (1.0, 0.3):
        method = build(backbone, MaskTuningConfig(leak=leak))
        method.backward(batch(method), torch.Generator().manual_seed(0))
        gradients[leak] = [p.grad for p in method.trainable().values() if p.grad is not None]
    dropped = 0
    for full, weak in zip(gradients[1.0], gradients[0.3], strict=True):
        gone = (full == 0) & (weak != 0)
        dropped += int(gone.sum())
        torch.testing.assert_close(full[~gone], weak[~gone])
    assert dropped > 1000


def test_a_score_at_the_threshold_is_dropped(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig())
    score = next(iter(method.trainable().values()))
    with torch.no_grad():
        score.view(-1)[0] = method.config.threshold
    assert method.progress()["mask/flipped"] == 1
    assert method.progress()["mask/sparsity"] == pytest.approx(1 / 262_144)


def test_teacher_is_required(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(leak=0.5))
    with pytest.raises(MethodError, match="zero-shot logits"):
        method.backward(replace(batch(method), zero_shot_logits=None), torch.Generator())


def test_dynamic_keeps_the_layers_with_positive_mean_gradient(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(masked="dynamic", leak=0.0))
    every = set(method.trainable())
    assert every == set(build(backbone, MaskTuningConfig(masked="all")).trainable())
    batches = [batch(method, seed) for seed in (2, 3)]
    sums = [method.mask_gradients(b)[1][0] for b in batches]
    weights = method.scores.weights
    name_of = {name: layer_of(name, weights[name]) for name in every}
    layers = set(name_of.values())
    means = {}
    for layer in layers:
        own = [s[n].double().flatten() for s in sums for n in every if name_of[n] == layer]
        means[layer] = torch.cat(own).mean()
    wanted = {n for n in every if means[name_of[n]] > 0}
    assert len(layers) < len(every)
    before = {n: m.clone() for n, m in method.trainable().items()}
    method.prepare(support(batches))
    assert set(method.trainable()) == wanted
    assert wanted
    assert wanted != every
    assert all(torch.equal(m, before[n]) for n, m in method.trainable().items())
    assert method.progress()["mask/tensors"] == len(wanted)
    again = build(backbone, method.config)
    again.load_state_dict(method.state_dict())
    assert set(again.trainable()) == wanted


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_a_groups_gradient_is_the_sum_over_the_group(
    backbone: Backbone, granularity: Granularity
) -> None:
    config = MaskTuningConfig(masked="all", patch_embedding=True)
    single, grouped = (
        build(backbone, replace(config, granularity=g)) for g in ("element", granularity)
    )
    given = batch(single)
    _, fine = single.mask_gradients(given)
    _, coarse = grouped.mask_gradients(given)
    for ours, elements in zip(coarse, fine, strict=True):
        for name, grad in ours.items():
            other = elements[name].transpose(0, 1) if granularity == "channel" else elements[name]
            assert grad.numel() == len(other)
            wanted = other.flatten(1).sum(1)
            torch.testing.assert_close(grad.flatten(), wanted, atol=1e-6, rtol=1e-3)


def test_a_dropped_filter_is_a_dropped_row(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(granularity="filter"))
    name, score = next(iter(method.trainable().items()))
    with torch.no_grad():
        score[3] = 0.0
    changed = method.merged_backbone().visual.get_parameter(name)
    assert not changed[3].any()
    kept = [i for i in range(len(changed)) if i != 3]
    assert torch.equal(changed[kept], backbone.visual.get_parameter(name)[kept])
    assert method.progress()["mask/flipped"] == 1
    assert method.progress()["mask/sparsity"] == pytest.approx(128 / 262_144)
    tensors, metadata = method.artifact()
    assert sum(t.numel() for t in tensors.values()) <= 4 * (384 + 128) / 8
    again = build(backbone, method.config)
    again.load_artifact(tensors, metadata)
    assert torch.equal(again.masks()[name], method.masks()[name])
    # The bits do not contain the change of the scores, so the metadata records it.
    assert json.loads(metadata["score_change"])[name] > 0
    assert again.artifact()[1] == metadata
    again.load_artifact(tensors, {k: v for k, v in metadata.items() if k != "score_change"})
    with pytest.raises(MethodError, match="another shape"):
        build(backbone, MaskTuningConfig()).load_artifact(tensors, metadata)


def test_temperature_and_shared_teacher(backbone: Backbone) -> None:
    """T^2 sum softmax(t / T) log softmax(s / T), t partly the student's own, as in the code."""
    method = build(backbone, MaskTuningConfig(temperature=3.0, teacher_share=0.7))
    given = batch(method)
    assert given.zero_shot_logits is not None
    losses, (_, second) = method.mask_gradients(given)
    leaves = {n: torch.ones_like(m).requires_grad_() for n, m in method.trainable().items()}
    weights = {n: backbone.visual.get_parameter(n) * b for n, b in leaves.items()}
    features = torch.func.functional_call(backbone.visual, weights, (given.inputs,))
    student = functional.normalize(features, dim=-1) @ method.classifier.T
    teacher = 0.7 * given.zero_shot_logits + 0.3 * student
    loss = functional.cross_entropy(student / 3, (teacher / 3).softmax(-1)) * 9
    assert losses["train/kl"] == pytest.approx(loss.item(), rel=1e-5)
    wanted = torch.autograd.grad(loss, list(leaves.values()))
    for name, grad in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(second[name], grad, atol=1e-6, rtol=1e-4)


def test_half_precision_gradients_are_near_and_float32(backbone: Backbone) -> None:
    exact, rough = (
        build(backbone, MaskTuningConfig(precision=precision, rule="none"))
        for precision in ("float32", "bfloat16")
    )
    given = batch(exact)
    _, (fine,) = exact.mask_gradients(given)
    _, (coarse,) = rough.mask_gradients(given)
    one, other = (torch.cat([g.flatten() for g in grads.values()]) for grads in (fine, coarse))
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert functional.cosine_similarity(one, other, dim=0) > 0.99
    assert all(p.dtype == torch.float32 for p in rough.trainable().values())
    assert torch.equal(exact(given.inputs), rough(given.inputs)), "judged in another precision"


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_rules_reach_the_gradient(backbone: Backbone, rule: RuleName) -> None:
    method = build(backbone, MaskTuningConfig(rule=rule, leak=0.6, leak_kl=0.4, purity_eps=1e-8))
    given = batch(method)
    method.backward(given, torch.Generator().manual_seed(5))
    found = [p.grad for p in method.trainable().values()]
    _, gradients = method.mask_gradients(given)
    rng = torch.Generator().manual_seed(5)
    for (name, a), grad in zip(gradients[0].items(), found, strict=True):
        b = gradients[-1][name].clone()
        drawing = partial(torch.rand, a.shape, generator=rng)
        wanted = GRADIENT_RULES[rule].merge(a.clone(), b, drawing, Dropping(0.6, 0.4, 1e-8))
        assert grad is not None
        assert torch.equal(grad, wanted)


def timm_backbone(name: str) -> Backbone:
    """A small untrained tower of timm's behind a CLIP's text tower."""
    tiny = load_backbone("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            64,
            {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
            {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 1},
        )
    model.eval().requires_grad_(False)
    return replace(tiny, name=name, model=model, fingerprint=name)


@pytest.mark.parametrize(
    ("name", "masked", "kinds"),
    [
        ("test_vit", "mhsa", {"attn.qkv", "attn.proj"}),
        ("test_vit", "mlp", {"mlp.fc1", "mlp.fc2"}),
        ("test_convnext2", "mlp", {"mlp.fc1", "mlp.fc2"}),
        ("test_convnext2", "all", {"mlp.fc1", "mlp.fc2", "conv_dw"}),
    ],
)
def test_towers_of_timm_are_trained(name: str, masked: Masked, kinds: set[str]) -> None:
    backbone = timm_backbone(name)
    assert backbone.tower == "other"
    config = MaskTuningConfig(masked=masked, patch_embedding=True, rule="none")
    features = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    schedule = Schedule(RELEASED.learning_rates(160))
    method = MaskTuning.build(config, BuildContext(backbone, ClassTexts(features), schedule))
    names = list(method.trainable())
    assert all(any(f".{kind}.weight" in n for n in names) for kind in kinds)
    assert all("norm" not in n and "bias" not in n and not n.startswith("head") for n in names)
    rng = torch.Generator().manual_seed(0)
    given = Batch(torch.randn(4, 3, 32, 32, generator=rng), torch.arange(4))
    optimiser = make_optimiser(method.trainable().values(), replace(RELEASED, lr=3e-3))
    losses = []
    for _ in range(4):
        losses.append(method.backward(given, rng)["train/loss"])
        assert all(p.grad is not None and p.grad.any() for p in method.trainable().values())
        optimiser.step()
    assert losses[-1] < losses[0]
    assert method.progress()["mask/flipped"] > 0


def test_a_tower_without_attention_says_what_it_has() -> None:
    backbone = timm_backbone("test_convnext2")
    features = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    context = BuildContext(backbone, ClassTexts(features), Schedule((1e-3,)))
    with pytest.raises(MethodError, match=r"has conv, mlp, patch .* Conv2d, .* Linear"):
        MaskTuning.build(MaskTuningConfig(), context)
    recipe = MaskTuning.preset("paper", TaskFacts("dtd", 1, 10, tower=backbone.tower))
    assert MaskTuning.build(recipe.config, context).trainable()


@pytest.mark.parametrize(
    ("images", "sentence"),
    [(32, "No mask bit can flip"), (96, "No mask bit can flip"), (1600, "")],
)
def test_warnings(backbone: Backbone, images: int, sentence: str) -> None:
    warnings = build(backbone, MaskTuningConfig(), images).warnings()
    assert len(warnings) == bool(sentence)
    assert not sentence or warnings[0].startswith(sentence)


def test_gentle_warning(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(), images=128)  # 120 steps: .99 of the gap
    assert method.forecast()["flip/bound"] > 1 > method.forecast()["flip/budget"]
    assert method.warnings()[0].startswith("Hardly a mask bit")


def test_where_the_bound_says_so_no_bit_flips(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(leak=0.0), images=32)
    optimiser = make_optimiser(method.trainable().values(), RELEASED)
    for rate in RELEASED.learning_rates(32):
        optimiser.param_groups[0]["lr"] = rate
        method.backward(batch(method), torch.Generator())
        optimiser.step()
    assert method.progress()["mask/flipped"] == 0


@pytest.mark.parametrize("images", [5, 160, 1600, 16000])
def test_clean_preset_has_one_flip_budget(images: int) -> None:
    config, optim, _ = MaskTuning.preset("clean", TaskFacts("digits", 16, images))
    total = sum(optim.learning_rates(images)) / (config.init - config.threshold)
    assert total == pytest.approx(CLEAN_FLIP_BUDGET)


@pytest.mark.parametrize(
    ("dataset", "shots", "leak", "lr", "epochs"),
    [
        ("oxford_pets", 16, 0.3, 8e-5, 30),
        ("oxford_pets", 8, 1.0, 8e-5, 30),
        ("imagenet", 16, 1.0, 3e-5, 10),
        ("sun397", 16, 1.0, 8e-5, 30),
        ("food101", 16, 1.0, 8e-5, 30),
    ],
)
def test_published_settings(dataset: str, shots: int, leak: float, lr: float, epochs: int) -> None:
    paper = MaskTuning.preset("paper", TaskFacts(dataset, shots, 100))
    code = MaskTuning.preset("reference", TaskFacts(dataset, shots, 100))
    for config, optim, crop_scale in (paper, code):
        assert (config.leak, optim.lr, optim.epochs) == (leak, lr, epochs)
        assert (optim.batch_size, crop_scale, config.masked) == (32, 0.5, "mhsa")
    assert (paper.config.norm_weight, paper.config.purity_eps) == (0, 0)
    assert (code.config.norm_weight, code.config.purity_eps) == (1e-4, 1e-8)
    assert code.config.patch_embedding
    assert not paper.config.patch_embedding


def test_all_weights_are_kept_at_first(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="init must be greater than threshold"):
        build(backbone, MaskTuningConfig(init=5e-3))


def test_refuses_a_tower_without_the_layers(backbone: Backbone) -> None:
    no_layers = replace(backbone, model=torch.nn.Module())
    no_layers.model.visual = torch.nn.Sequential(torch.nn.Linear(3, 3))
    no_layers.model.logit_scale = backbone.model.logit_scale
    with pytest.raises(MethodError, match=r"neither attention, MLP nor convolution: 0\.weight"):
        build(no_layers, MaskTuningConfig(masked="all"))


def test_artifact_of_other_layers_is_refused(backbone: Backbone) -> None:
    tensors, metadata = build(backbone, MaskTuningConfig(masked="mhsa")).artifact()
    for config in (MaskTuningConfig(masked="all"), MaskTuningConfig(masked="mlp")):
        with pytest.raises(MethodError, match="missing"):
            build(backbone, config).load_artifact(tensors, metadata)
    dynamic = build(backbone, MaskTuningConfig(masked="dynamic"))
    dynamic.load_artifact(tensors, metadata)
    assert len(dynamic.trainable()) == 8
