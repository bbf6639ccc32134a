"""Pre-train the embedded tiny CLIP from drawn characters: minutes on two CPU cores.

    python -m tools.tiny.pretrain --out DIR [--steps 2600] [--seed 0] [--report]

writes a folder that `open_clip.create_model_and_transforms("local-dir:DIR")` loads, plus the
merges its tokenizer needs:
`SimpleTokenizer(bpe_path=DIR/bpe_merges.txt.gz, context_length=24)`.

The shipped files come from the defaults, seed 0 and two threads: 8 minutes. They are the first
and only full run of this script, and `--report` printed

    digits: 75.1%
    digits turned by 180 degrees: 39.5%
    held-out fonts, digits: 100.0%
    held-out fonts, all concepts: 75.1%

(the last takes similar characters, such as c and C, or 0 and o, for different concepts). No image
of scikit-learn's digits is used in training; `--report` only measures on them afterwards. But the
run length, the augmentation and the mixture of concepts follow a recipe whose author had seen
zero-shot accuracy on those digits, so that number is not blind.

Notation: b images, t captions, C concepts, d = 128 embedding dimensions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from tools.tiny.augment import IMAGE_SIZE, INKS, augment
from tools.tiny.glyphs import CONCEPTS, FONTS, HELD_OUT_FONTS, TEMPLATES, draw_masks
from trainables.backbones.layout import CONFIG_FILE, MERGES_FILE, WEIGHTS_FILE
from trainables.backbones.open_clip import open_clip
from trainables.core.files import replace_file

CONTEXT_LENGTH = 24
_VOCABULARY = 1536
_MERGES = _VOCABULARY - 2 * 256 - 2  # byte symbols, with and without word end; start and end
_EMBED_DIM = 128
_FEATURE_SCALE = 0.25
"""Factor on both projections at the end. Cosines, and so zero-shot logits, do not change, and a
power of two loses nothing in fp16 (but 1e-7 of an element near zero). It gives the elements of a
text feature the size (root mean square 0.4) that OpenAI's ViT-B/32 has (0.35, over 25 pet names),
so that TaskRes's published alpha and learning rate, which act on features that are not
normalised, mean here what they mean there."""


def model_config() -> dict[str, Any]:
    """The content of `open_clip_config.json`: architecture and preprocessing."""
    return {
        "model_cfg": {
            "embed_dim": _EMBED_DIM,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "patch_size": 8,
                "width": 128,
                "layers": 4,
                "head_width": 32,
                "mlp_ratio": 2.0,
                "pool_type": "tok",
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": _VOCABULARY,
                "width": 128,
                "layers": 2,
                "heads": 4,
                "mlp_ratio": 2.0,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, given one machine and one number of threads."""

    steps: int = 2600
    """Optimiser steps."""
    seed: int = 0
    """Seed of the initial weights and of every batch."""
    batch: int = 128
    """Images per step."""
    concepts: int = 40
    """Different concepts per step; each has one caption and at least one image."""
    coloured: int = 13
    """Further captions per step that also name the ink of one image."""
    lr: float = 1.5e-3
    """Peak learning rate of AdamW; cosine to zero."""
    warmup: int = 80
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices only."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters together."""
    ema: float = 0.995
    """Decay of the exponential moving average that is saved."""
    ramp: float = 0.3
    """Fraction of the steps over which the hardness of the augmentation rises to 1."""
    easiest: float = 0.15
    """Hardness at the first step."""
    token_std: float = 0.1
    """Standard deviation of the initial token embedding."""

    def __post_init__(self) -> None:
        if not 0 < self.concepts <= min(self.batch, len(CONCEPTS)) or self.coloured > self.batch:
            raise ValueError(
                f"a step shows each of its concepts and coloured captions at least once: "
                f"concepts={self.concepts} and coloured={self.coloured} must not exceed "
                f"batch={self.batch}, nor concepts the {len(CONCEPTS)} that exist"
            )


@dataclass(frozen=True)
class Batch:
    """One step's images and captions."""

    images: Tensor
    """(b, 3, 32, 32), normalised."""
    captions: list[str]
    """t captions."""
    image_concepts: Tensor
    """(b,) int64, index into `CONCEPTS`."""
    caption_concepts: Tensor
    """(t,) int64, index into `CONCEPTS`."""
    true: Tensor
    """(b, t) bool: the caption is true of the image. No row and no column is all false."""


class Sampler:
    """Draws batches from masks; all randomness is the generator's."""

    def __init__(self, config: PretrainConfig, generator: torch.Generator) -> None:
        self._config = config
        self._generator = generator
        self._masks, labels = draw_masks(FONTS)
        self._counts = torch.bincount(labels, minlength=len(CONCEPTS))
        self._starts = self._counts.cumsum(0) - self._counts
        self._weights = torch.tensor([c.weight for c in CONCEPTS])

    def _integers(self, high: int, n: int) -> list[int]:
        return torch.randint(high, (n,), generator=self._generator).tolist()

    def draw(self, hardness: float) -> Batch:
        """One batch of augmented images with captions."""
        config, g = self._config, self._generator
        concepts = torch.multinomial(self._weights, config.concepts, generator=g)
        more = torch.multinomial(
            self._weights[concepts], config.batch - config.concepts, replacement=True, generator=g
        )
        shown = torch.cat([concepts, concepts[more]])
        pick = torch.rand(len(shown), generator=g) * self._counts[shown]
        images, inks = augment(self._masks[self._starts[shown] + pick.long()], hardness, g)

        named = torch.randperm(len(shown), generator=g)[: config.coloured]
        caption_concepts = torch.cat([concepts, shown[named]])
        caption_inks = [""] * len(concepts) + [INKS[i] for i in inks[named].tolist()]
        templates = self._integers(len(TEMPLATES), len(caption_concepts))
        captions = [
            CONCEPTS[concept].caption(TEMPLATES[template], ink)
            for concept, template, ink in zip(
                caption_concepts.tolist(), templates, caption_inks, strict=True
            )
        ]
        true = shown[:, None] == caption_concepts
        true[:, len(concepts) :] &= inks[:, None] == inks[named]
        return Batch(images, captions, shown, caption_concepts, true)


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Symmetric softmax cross-entropy with several positives.

    Args:
        logits: (b, t) scaled similarities of images and captions.
        true: (b, t) bool, which captions are true of which image.

    Returns:
        Mean over both directions; each target is uniform over the positives. Scalar, nats.
    """
    by_image = true / true.sum(1, keepdim=True)
    by_caption = (true / true.sum(0, keepdim=True)).T
    return (F.cross_entropy(logits, by_image) + F.cross_entropy(logits.T, by_caption)) / 2


def pretrain(
    config: PretrainConfig, out: Path, *, progress: Callable[[str], None] = print
) -> list[float]:
    """Train and write the three files into `out` (made if missing).

    Returns:
        The loss of every step, nats.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write(out / CONFIG_FILE, (json.dumps(model_config(), indent=2) + "\n").encode())
    _write(out / MERGES_FILE, _merges())
    tokenize = load_tokenizer(out)

    with torch.random.fork_rng(devices=[]):  # open_clip initialises from the global generator
        torch.manual_seed(config.seed)
        model = open_clip.CLIP(**model_config()["model_cfg"])
        # Without these, thrown away afterwards, training stalls at chance.
        prototypes = nn.Parameter(torch.randn(len(CONCEPTS), _EMBED_DIM))
        nn.init.normal_(model.token_embedding.weight, std=config.token_std)
    sampler = Sampler(config, torch.Generator().manual_seed(config.seed))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters: list[nn.Parameter] = [*model.parameters(), prototypes]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))

    losses: list[float] = []
    start = time.monotonic()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        easy = max(0.0, 1 - step / (config.ramp * config.steps))
        batch = sampler.draw(1 - (1 - config.easiest) * easy)

        image = model.encode_image(batch.images, normalize=True)  # (b, d)
        text = model.encode_text(tokenize(batch.captions), normalize=True)  # (t, d)
        scale = model.logit_scale.exp()
        anchors = scale * F.normalize(prototypes, dim=-1)  # (C, d)
        match = contrastive_loss(scale * image @ text.T, batch.true)
        auxiliary = F.cross_entropy(image @ anchors.T, batch.image_concepts)
        auxiliary = auxiliary + F.cross_entropy(text @ anchors.T, batch.caption_concepts)
        loss = match + auxiliary / 2

        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            decay = min(config.ema, (1 + step) / (10 + step))  # short memory at the start
            for name, p in model.named_parameters():
                average[name].lerp_(p, 1 - decay)

        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            recent = losses[-100:]
            progress(
                f"step {step + 1}/{config.steps}  loss {sum(recent) / len(recent):.3f}  "
                f"match {match.item():.3f}  {time.monotonic() - start:.0f} s"
            )

    for name in ("visual.proj", "text_projection"):
        average[name] = average[name] * _FEATURE_SCALE
    _write(out / WEIGHTS_FILE, save({name: p.half() for name, p in average.items()}))
    return losses


def load_tokenizer(folder: Path) -> Callable[[list[str]], Tensor]:
    """The tokenizer of a written folder: n texts to (n, 24) int64, every id below 1536."""
    tokenizer: Callable[[list[str]], Tensor] = open_clip.tokenizer.SimpleTokenizer(
        bpe_path=str(folder / MERGES_FILE), context_length=CONTEXT_LENGTH
    )
    return tokenizer


def _schedule(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then cosine to zero; a factor in (0, 1]."""
    return min(1.0, (step + 1) / config.warmup) * (1 + math.cos(math.pi * step / config.steps)) / 2


def _merges() -> bytes:
    """The head of open_clip's own merge file, compressed; the same bytes every time."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as lines:
        head = [next(lines) for _ in range(1 + _MERGES)]  # the first line is a version
    # A newline at the end would read as one more, empty, merge.
    return gzip.compress("".join(head).rstrip("\n").encode(), mtime=0)


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once, readable by all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.chmod(0o644)
    replace_file(partial, path)


def zero_shot(folder: Path, images: Tensor, names: tuple[str, ...]) -> Tensor:
    """Index of the best of «a photo of the {name}.» for each image.

    Args:
        folder: a folder that `pretrain` wrote.
        images: (n, 3, 32, 32), normalised.
        names: k things such as «digit three».

    Returns:
        (n,) int64, below k.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        captions = [f"a photo of the {name}." for name in names]
        text = model.encode_text(load_tokenizer(folder)(captions), normalize=True)
        best: Tensor = (model.encode_image(images) @ text.T).argmax(1)
    return best


def report(folder: Path) -> dict[str, float]:
    """Zero-shot accuracies of a written folder, each in [0, 1].

    On scikit-learn's digits, upright and turned by 180 degrees; and on fonts that training did
    not see, among all concepts that fonts have and among the digits.
    """
    from sklearn.datasets import load_digits

    raw, target = load_digits(return_X_y=True)
    grey = torch.from_numpy((raw * 255 / 16).round()).float().view(-1, 1, 8, 8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    x = F.interpolate(grey, size=size, mode="bicubic", antialias=True).clamp(0, 255)
    x = ((x / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)
    masks, labels = draw_masks(HELD_OUT_FONTS, shapes=False)
    drawn = F.interpolate(masks[:, None], size=size, mode="bilinear", antialias=True)
    drawn = ((drawn - 0.5) / 0.5).expand(-1, 3, -1, -1)
    everything = tuple(f"{c.kind} {c.name}" for c in CONCEPTS)
    digits = everything[:10]

    def accuracy(images: Tensor, labels: Tensor, names: tuple[str, ...]) -> float:
        return (zero_shot(folder, images, names) == labels).float().mean().item()

    return {
        "digits": accuracy(x, torch.from_numpy(target), digits),
        "digits turned by 180 degrees": accuracy(x.flip(2, 3), torch.from_numpy(target), digits),
        "held-out fonts, digits": accuracy(drawn[labels < 10], labels[labels < 10], digits),
        "held-out fonts, all concepts": accuracy(drawn, labels, everything),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded tiny CLIP.")
    default = PretrainConfig()
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=default.steps, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--report", action="store_true", help="print zero-shot accuracies")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    pretrain(
        PretrainConfig(steps=args.steps, seed=args.seed),
        args.out,
        progress=lambda line: print(line, flush=True),
    )
    if args.report:
        for name, accuracy in report(args.out).items():
            print(f"{name}: {accuracy:.1%}")


if __name__ == "__main__":
    main()
