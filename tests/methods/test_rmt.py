"""Mask tuning: what the conformance suite and the golden runs do not see."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.registry import load_backbone
from trainables.methods.base import Batch, Classes, Material, MethodError, Schedule, Support
from trainables.methods.rmt import CLEAN_FLIP_BUDGET, MaskTuning, MaskTuningConfig
from trainables.optim import OptimConfig, make_optimiser

RELEASED = OptimConfig(lr=8e-5, epochs=30, batch_size=32)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def build(backbone: Backbone, config: MaskTuningConfig, images: int = 160) -> MaskTuning:
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    schedule = Schedule(RELEASED.learning_rates(images))
    return MaskTuning.build(config, Material(backbone, Classes(features), schedule))


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


def test_dynamic_keeps_the_tensors_with_positive_mean_gradient(backbone: Backbone) -> None:
    method = build(backbone, MaskTuningConfig(masked="dynamic", leak=0.0))
    every = set(method.trainable())
    assert every == set(build(backbone, MaskTuningConfig(masked="all")).trainable())
    batches = [batch(method, seed) for seed in (2, 3)]
    sums = [method.mask_gradients(b)[1][0] for b in batches]
    wanted = {n for n in every if float(sum(s[n].double().mean() for s in sums)) > 0}
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


def test_dynamic_without_a_positive_mean_keeps_one(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(backbone, MaskTuningConfig(masked="dynamic"))
    names = list(method.trainable())

    def negative(_: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        weights = [backbone.visual.get_parameter(n) for n in names]
        return [-(i + 1) * w.sign() for i, w in enumerate(weights)][: len(leaves)]

    monkeypatch.setattr(torch.autograd, "grad", negative)
    method.prepare(support([batch(method)]))
    assert len(method.trainable()) == 1


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
    config, optim, _ = MaskTuning.preset("clean", dataset="digits", shots=16, images=images)
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
    paper = MaskTuning.preset("paper", dataset=dataset, shots=shots, images=100)
    code = MaskTuning.preset("reference", dataset=dataset, shots=shots, images=100)
    for config, optim, crop_scale in (paper, code):
        assert (config.leak, optim.lr, optim.epochs) == (leak, lr, epochs)
        assert (optim.batch_size, crop_scale, config.masked) == (32, 0.5, "mhsa")
    assert (paper.config.norm_weight, paper.config.purity_eps) == (0, 0)
    assert (code.config.norm_weight, code.config.purity_eps) == (1e-4, 1e-8)
    assert code.config.patch_embedding
    assert not paper.config.patch_embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masked": "conv"}, "masked must be one of"),
        ({"init": 5e-3}, "init must be greater than threshold"),
        ({"init": float("nan")}, "must be finite"),
        ({"leak": 1.5}, "leak must lie in"),
        ({"leak": float("nan")}, "leak must lie in"),
        ({"norm_weight": -1.0}, "norm_weight must be"),
        ({"purity_eps": float("inf")}, "purity_eps must be"),
    ],
)
def test_refuses_broken_settings(
    backbone: Backbone, change: dict[str, object], message: str
) -> None:
    config = replace(MaskTuningConfig(), **change)
    (problem,) = config.problems()
    assert message in problem
    with pytest.raises(MethodError, match=message):
        build(backbone, config)


def test_refuses_a_tower_without_the_layers(backbone: Backbone) -> None:
    no_layers = replace(backbone, model=torch.nn.Module())
    no_layers.model.visual = torch.nn.Sequential(torch.nn.Linear(3, 3))
    no_layers.model.logit_scale = backbone.model.logit_scale
    with pytest.raises(MethodError, match="none that can be masked"):
        build(no_layers, MaskTuningConfig(masked="all"))


def test_artifact_of_other_layers_is_refused(backbone: Backbone) -> None:
    tensors, metadata = build(backbone, MaskTuningConfig(masked="mhsa")).artifact()
    for config in (MaskTuningConfig(masked="all"), MaskTuningConfig(masked="mlp")):
        with pytest.raises(MethodError, match="missing"):
            build(backbone, config).load_artifact(tensors, metadata)
    dynamic = build(backbone, MaskTuningConfig(masked="dynamic"))
    dynamic.load_artifact(tensors, metadata)
    assert len(dynamic.trainable()) == 8
