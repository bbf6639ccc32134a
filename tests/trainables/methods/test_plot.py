"""PLOT++: transport plans, single prompts against CoOp and VPT, the two halves of a training."""

from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.trainables.methods.named_classes import context, images
from trainables.backbones.base import Backbone
from trainables.backbones.open_clip import open_clip
from trainables.methods.base import Batch, MethodError, TaskFacts
from trainables.methods.context import ContextConfig
from trainables.methods.coop import CoOp
from trainables.methods.plot import Plot, PlotConfig, transport_plan
from trainables.methods.vpt import Vpt, VptConfig

DATASETS = (
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
)


def build(backbone: Backbone, **fields: Any) -> Plot:
    return Plot.build(PlotConfig(**fields), context(backbone))


def cosines(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.3


def test_a_plan_has_uniform_marginals() -> None:
    plan = transport_plan(cosines(5, 7, 4, 3), 0.1)
    assert (plan > 0).all()
    torch.testing.assert_close(plan.sum(-1), torch.full((5, 7, 4), 1 / 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(-2), torch.full((5, 7, 3), 1 / 3), atol=1e-6, rtol=0)


def test_a_plan_is_optimal() -> None:
    """Log-ratios of an entropic plan differ from the cosines by a term per row and one per column;
    with little entropy the plan is the best assignment."""
    similarity = cosines(4, 4)
    rest = transport_plan(similarity, 0.1).log() - similarity / 0.1
    centred = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    assert centred.abs().max() < 1e-4
    rows, columns = linear_sum_assignment(-similarity.numpy())
    value = (transport_plan(similarity + 0.7, 0.01) * similarity).sum()
    assert value.item() == pytest.approx(similarity[rows, columns].mean().item(), abs=1e-2)


def test_a_single_prompt_in_each_tower_is_coop_with_shallow_vpt(backbone: Backbone) -> None:
    method = build(backbone, text_prompts=1, image_prompts=1, context_tokens=3, init_words="")
    coop = CoOp.build(ContextConfig(context_tokens=3), context(backbone))
    vpt = Vpt.build(VptConfig(tokens=2, deep=False), context(backbone))
    with torch.no_grad():
        coop.context.copy_(method.context[0])
        vpt.tokens.copy_(method.tokens)
        vpt.classifier = coop.scale * coop.classifier()
        torch.testing.assert_close(method(images()), vpt(images()), atol=1e-4, rtol=1e-5)


def test_logits_of_an_image_do_not_depend_on_its_batch(backbone: Backbone) -> None:
    method = build(backbone)
    with torch.no_grad():
        torch.testing.assert_close(method(images())[1:2], method(images()[1:2]))


def test_the_image_prompts_are_trained_first(backbone: Backbone) -> None:
    """In the second half both kinds, also in a process that resumes there."""
    method, batch = build(backbone), Batch(images(), torch.tensor([0, 1, 2, 0]))
    for epoch in range(1, 5):
        method.backward(batch, torch.Generator())
        assert method.tokens.grad is not None
        assert method.context.grad is not None
        assert method.tokens.grad.any()
        assert bool(method.context.grad.any()) == (epoch > 2)
        other = build(backbone)
        other.load_state_dict(method.state_dict())
        expected = method.backward(batch, torch.Generator())
        assert other.backward(batch, torch.Generator()) == expected
        method.end_epoch(epoch, 4)


def test_gradients_ignore_that_the_plan_depends_on_the_prompts(backbone: Backbone) -> None:
    """With a plan that is almost uniform the loss is the one of the mean cosines."""
    method = build(backbone, entropy=1e4, image_share=0.0)
    batch = Batch(images(), torch.tensor([0, 1, 2, 0]))
    loss = method.backward(batch, torch.Generator())["train/loss"]
    with torch.no_grad():
        z = torch.nn.functional.normalize(method._images(batch.inputs), dim=-1)
        t = torch.nn.functional.normalize(method._texts(method.context.unbind()), dim=-1)
        logits = method.scale * z.mean(0) @ t.mean(0).T
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-3
    )


@pytest.mark.parametrize("dataset", DATASETS)
def test_published_first_words_fill_the_context(dataset: str) -> None:
    """Every opening has at least as many of CLIP's tokens as are learned."""
    config = Plot.preset("paper", TaskFacts(dataset, 16, 1600)).config
    openings = [words.strip() for words in config.init_words.split("|")]
    assert len(openings) == config.text_prompts
    ids = open_clip.get_tokenizer("ViT-B-16")(openings)
    assert min((row > 0).sum().item() - 2 for row in ids) >= config.context_tokens


def test_recipe() -> None:
    config, optim, crop_scale = Plot.preset("paper", TaskFacts("eurosat", 16, 160))
    assert (config.text_prompts, config.image_prompts, config.image_tokens) == (4, 4, 2)
    assert (config.context_tokens, config.image_share, crop_scale) == (5, 0.5, 0.08)
    assert (optim.optimiser, optim.lr, optim.epochs, optim.batch_size) == ("sgd", 2e-3, 100, 32)


def test_every_opening_fills_the_context(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="at least context_tokens"):
        build(backbone, init_words="a photo of a | a")
