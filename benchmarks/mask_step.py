"""Duration of an R-AMT training step: ours compared with the published one.

    python -m benchmarks.mask_step                               the embedded model, batch 32
    python -m benchmarks.mask_step --shape ViT-B-16 --batch 8    random weights, a few minutes
    python -m benchmarks.mask_step --shape ViT-B-16 --memory     peak memory only

The published step runs the student, runs the teacher with its gradients tracked, and backpropagates
twice: from the divergence through both, keeping the graph, then from the cross entropy. It is
reimplemented here from that description. Our step is `MaskTuning.backward` with the project's Adam,
in three variants: with the teacher run in every step (augmented views), with cached teacher logits
(fixed views), and with cached logits and activations in bfloat16.

The steps run in turns of rotating order. Figures are medians, and ratios compare durations in the
same turn. First, the float32 steps must compute the same gradients. Memory is measured in one
process per step: its peak during two steps, including weights, minus its memory after all imports.
The published step's process keeps one student and one teacher and no other copy of the image tower.
FLOP counts matrix products and convolutions, without those inside attention; a multiplication and
an addition count as 2. The peak is that of a 1024 x 1024 float32 matrix product in the same turns.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones.base import Backbone, Preprocess
from trainables.backbones.open_clip import open_clip
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.encoded_task import zero_shot_logits
from trainables.load_backbone import load_backbone
from trainables.methods.base import Batch, BuildContext, ClassTexts, Schedule
from trainables.methods.masking.rmt import MaskTuning, MaskTuningConfig

Shape = Literal["tiny", "ViT-B-16", "ViT-B-32"]
Step = Literal["published", "ours", "cached", "bfloat16"]

CONFIG = MaskTuningConfig()
"""Attention masks, init 1e-2, threshold 5e-3, leak 1."""
HALF = replace(CONFIG, precision="bfloat16")
OPTIM = OptimConfig(lr=8e-5, epochs=30, batch_size=32)
CLASSES = 10
_PUBLISHED = "published step"
_PEAK_SIDE = 1024


@dataclass(frozen=True)
class Row:
    """One implementation of the step."""

    name: str
    """Label in the table."""
    seconds: float
    """Median duration of a step, in seconds."""
    ratio: float
    """Median over turns of the published step's duration / this step's duration in the same
    turn."""
    flop: int
    """Floating-point operations of a step."""


@dataclass(frozen=True)
class Figures:
    """Result of one run."""

    batch: int
    """Images per step."""
    published: Row
    """The published step."""
    ours: Row
    """Ours, with the teacher run in every step."""
    cached: Row
    """Ours, with cached teacher logits."""
    half: Row
    """Ours, with cached teacher logits and activations in bfloat16."""
    forward: int
    """FLOP of one forward pass of the image tower on the batch."""
    peak: float
    """FLOP per second of a large matrix product."""
    difference: float
    """||ours - published|| / ||published|| of the gradients of all masks, the larger of the two
    for cross entropy and divergence."""
    dropped_alike: float
    """Share of elements for which gradient dropout decides the same, given the same uniforms."""


class Binarise(torch.autograd.Function):
    """[M > threshold] forward, the identity backward (straight-through)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: float) -> Tensor:
        """Scores of any shape -> 0 or 1 in their type."""
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient through unchanged."""
        return gradients[0], None


class MaskedWeight(nn.Module):
    """W -> W B, with the scores as its parameter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(weight, CONFIG.init))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W B for W of any shape."""
        mask: Tensor = Binarise.apply(self.scores, CONFIG.threshold)  # type: ignore[no-untyped-call]
        return weight * mask


class PublishedStep:
    """The step as published."""

    def __init__(self, backbone: Backbone, classifier: Tensor) -> None:
        """`classifier` [c, d]: unit vectors times the logit scale."""
        self.student = copy.deepcopy(backbone.visual)
        self.teacher = copy.deepcopy(backbone.visual).requires_grad_(True)
        self._classifier = classifier
        self.scores: dict[str, nn.Parameter] = {}
        for path, module in list(self.student.named_modules()):
            if isinstance(module, nn.MultiheadAttention):
                for owner, name, key in (
                    (module, "in_proj_weight", f"{path}.in_proj_weight"),
                    (module.out_proj, "weight", f"{path}.out_proj.weight"),
                ):
                    masked = MaskedWeight(getattr(owner, name))
                    parametrize.register_parametrization(owner, name, masked)
                    self.scores[key] = masked.scores
        self._optimiser = torch.optim.Adam(self.scores.values(), lr=OPTIM.lr)

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return dCE/dM and dKL/dM of every masked tensor."""
        with parametrize.cached():
            student = self._logits(self.student, images)
        teacher = self._logits(self.teacher, images)
        cross_entropy = functional.cross_entropy(student, labels)
        divergence = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()
        self._optimiser.zero_grad()
        divergence.backward(retain_graph=True)
        second = [score.grad.clone() for score in self.scores.values() if score.grad is not None]
        self._optimiser.zero_grad()
        cross_entropy.backward()
        return [s.grad for s in self.scores.values() if s.grad is not None], second

    def backward(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> None:
        """Gradient dropout: P = (1 + sgn(a) (a + b) / (|a| + |b|)) / 2 against a uniform."""
        first, second = self.gradients(images, labels)
        for score, a, b in zip(self.scores.values(), first, second, strict=True):
            purity = (1 + a.sign() * (a + b) / (a.abs() + b.abs())) / 2
            kept = purity > torch.rand(a.shape, generator=rng)
            score.grad = (1 - CONFIG.leak + CONFIG.leak * kept) * a

    def __call__(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> None:
        """Take one step on images [b, 3, s, s] and labels [b]."""
        self.backward(images, labels, rng)
        self._optimiser.step()

    def _logits(self, tower: nn.Module, images: Tensor) -> Tensor:
        return functional.normalize(tower(images), dim=-1) @ self._classifier.T


class OurStep:
    """The step as implemented in this project."""

    def __init__(
        self, backbone: Backbone, classes: Tensor, config: MaskTuningConfig = CONFIG
    ) -> None:
        """`classes` [c, d]: class features, not normalised."""
        self._backbone, self._classes = backbone, classes
        schedule = Schedule(OPTIM.learning_rates(1600))
        self.method = MaskTuning.build(
            config, BuildContext(backbone, ClassTexts(classes), schedule)
        )
        self._optimiser = make_optimiser(self.method.trainable().values(), OPTIM)

    def teacher(self, images: Tensor) -> Tensor:
        """Zero-shot logits [b, c]."""
        features = self._backbone.encode_image(images)
        return zero_shot_logits(features, self._classes, self._backbone.logit_scale)

    def __call__(
        self, images: Tensor, labels: Tensor, rng: torch.Generator, logits: Tensor | None = None
    ) -> None:
        """Take one step; the teacher runs unless its `logits` [b, c] are given."""
        logits = self.teacher(images) if logits is None else logits
        self.method.backward(Batch(images, labels, logits), rng)
        self._optimiser.step()


def open_shape(shape: Shape) -> Backbone:
    """The embedded model, or an untrained one of a named architecture."""
    if shape == "tiny":
        return load_backbone("tiny")
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config(shape)).eval().requires_grad_(False)
    side = int(model.visual.image_size[0])
    preprocess = Preprocess(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tokenizer = open_clip.SimpleTokenizer()
    return Backbone(f"untrained {shape}", model, tokenizer, preprocess, "gelu", "untrained")


def measure(shape: Shape = "tiny", batch: int = 32, repeats: int = 30) -> Figures:
    """Compare gradients, count operations, then time `repeats` turns of everything."""
    backbone = open_shape(shape)
    images, labels, classes, classifier, rng = _task(backbone, batch)
    ours, published = OurStep(backbone, classes), PublishedStep(backbone, classifier)
    half = OurStep(backbone, classes, HALF)
    cached_logits = ours.teacher(images)
    difference, alike = _compare(ours, published, images, labels, cached_logits, rng)
    square = torch.randn(_PEAK_SIDE, _PEAK_SIDE, generator=rng)
    work: dict[str, Callable[[], object]] = {
        _PUBLISHED: lambda: published(images, labels, rng),
        "ours, teacher in every step": lambda: ours(images, labels, rng),
        "ours, teacher logits cached": lambda: ours(images, labels, rng, cached_logits),
        "ours, cached, bfloat16": lambda: half(images, labels, rng, cached_logits),
        "matrix product": lambda: square @ square,
    }
    flop = {name: _count(run) for name, run in work.items()}
    tower = _count(lambda: backbone.encode_image(images))
    seconds = _take_turns(work, repeats)
    rows = [
        Row(
            name,
            statistics.median(times),
            statistics.median(a / b for a, b in zip(seconds[_PUBLISHED], times, strict=True)),
            flop[name],
        )
        for name, times in seconds.items()
    ]
    peak = rows[4].flop / rows[4].seconds
    return Figures(batch, rows[0], rows[1], rows[2], rows[3], tower, peak, difference, alike)


def peak_memory(step: Step, shape: Shape, batch: int) -> float:
    """Peak memory in MiB of one step in a separate process, see the module's docstring."""
    options = ["--shape", shape, "--batch", str(batch), "--peak-of", step]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.mask_step", *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(process.stdout)


def _own_peak(step: Step, shape: Shape, batch: int) -> float:
    """Take two steps; the second includes Adam's moments and what the first has allocated."""
    before = _held("VmRSS")
    backbone = open_shape(shape)
    images, labels, classes, classifier, rng = _task(backbone, batch)
    if step == "published":
        published = PublishedStep(backbone, classifier)
        backbone.model.visual = nn.Identity()  # it has two separate copies
        for _ in range(2):
            published(images, labels, rng)
    else:
        ours = OurStep(backbone, classes, HALF if step == "bfloat16" else CONFIG)
        logits = None if step == "ours" else torch.randn(batch, CLASSES, generator=rng)
        for _ in range(2):
            ours(images, labels, rng, logits)
    return _held("VmHWM") - before


def _held(kind: Literal["VmRSS", "VmHWM"]) -> float:
    """Current or peak memory of this process, in MiB. `getrusage` would include the parent's memory
    at the time of the fork."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == kind:
            return int(value.split()[0]) / 1024
    raise RuntimeError(f"/proc/self/status has no {kind}: memory is measured on Linux")


def _task(backbone: Backbone, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
    """Random images and labels, class features, the classifier built from them, and a generator."""
    rng = torch.Generator().manual_seed(0)
    side = backbone.preprocess.image_size
    images = torch.randn(batch, 3, side, side, generator=rng)
    labels = torch.randint(CLASSES, (batch,), generator=rng)
    classes = torch.randn(CLASSES, backbone.feature_dim, generator=rng)
    classifier = backbone.logit_scale * functional.normalize(classes, dim=-1)
    return images, labels, classes, classifier, rng


def _compare(
    ours: OurStep,
    published: PublishedStep,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    rng: torch.Generator,
) -> tuple[float, float]:
    """Compute the fields of `Figures`. Many bits are set to 0: if student and teacher agree, the
    divergence's gradient is a difference of nearly equal numbers, and only rounding errors could be
    compared."""
    scores = ours.method.trainable()
    if list(scores) != list(published.scores):
        raise AssertionError("the two steps do not mask the same tensors")
    with torch.no_grad():
        for name, score in scores.items():
            noise = torch.rand(score.shape, generator=rng)
            score.copy_(torch.where(noise < 0.3, 0.0, CONFIG.init))
            published.scores[name].copy_(score)
    batch = Batch(images, labels, logits)
    theirs = published.gradients(images, labels)
    _, mine = ours.method.mask_gradients(batch)
    difference = max(
        float((_flat(grads.values()) - _flat(others)).norm() / _flat(others).norm())
        for grads, others in zip(mine, theirs, strict=True)
    )
    ours.method.backward(batch, torch.Generator().manual_seed(1))
    published.backward(images, labels, torch.Generator().manual_seed(1))
    same = total = 0
    for name, score in scores.items():
        peer = published.scores[name].grad
        if score.grad is None or peer is None:
            raise AssertionError(f"{name} has no gradient")
        same += int(((score.grad == 0) == (peer == 0)).sum())
        total += score.numel()
    return difference, same / total


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _count(run: Callable[[], object]) -> int:
    """FLOP of `run`, without attention's fused inference path, which the counter cannot see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return int(counter.get_total_flops())


def _take_turns(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each entry per turn, after one warm-up turn."""
    times: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            work[name]()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return times


def table(figures: Figures) -> str:
    """Format the figures as a table."""
    lines = [f"{'':29}{'images/s':>9}{'ratio':>7}{'forwards':>10}{'GFLOP':>8}{'of peak':>9}"]
    lines += [
        f"{row.name:29}{figures.batch / row.seconds:9.1f}"
        f"{row.ratio:7.2f}{row.flop / figures.forward:10.2f}"
        f"{row.flop / 1e9:8.2f}{row.flop / row.seconds / figures.peak:9.0%}"
        for row in (figures.published, figures.ours, figures.cached, figures.half)
    ]
    lines += [
        f"peak: {figures.peak / 1e9:.0f} GFLOP/s in a {_PEAK_SIDE} x {_PEAK_SIDE} matrix product",
        f"gradients: relative difference {figures.difference:.1e}; "
        f"{figures.dropped_alike:.4%} of the elements dropped alike",
    ]
    return "\n".join(lines)


def memory_table(shape: Shape, batch: int) -> str:
    """Peak memory of every step, and its ratio to the published step's."""
    peaks = {step: peak_memory(step, shape, batch) for step in get_args(Step)}
    lines = [f"{shape}, batch {batch}: MiB at most, weights included"]
    lines += [f"{n:12}{p:8.0f}{p / peaks['published']:7.0%}" for n, p in peaks.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--shape", choices=["tiny", "ViT-B-16"], default="tiny")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--repeats", type=int, default=30, help="turns")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 1 as in a trial")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--peak-of", choices=get_args(Step), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(_own_peak(options.peak_of, options.shape, options.batch))
        return
    if options.memory:
        print(memory_table(options.shape, options.batch))
        return
    before = os.getloadavg()[0]
    figures = measure(options.shape, options.batch, options.repeats)
    print(
        f"{options.shape}, batch {options.batch}, float32, {options.threads} thread(s), "
        f"{options.repeats} turns, load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    print(table(figures))
    if figures.difference > 1e-5:
        raise SystemExit("the gradients differ by more than 1e-5: the comparison is void")


if __name__ == "__main__":
    main()
