"""Accuracy of every method on real images with its presets: the table in docs/methods.md.

    python -m benchmarks.methods            measure what is missing, and print the table
    python -m benchmarks.methods --print    print the table only

Trains each method in the registry on `digits` with the embedded model, with 1, 4 and 16 shots and
three draws each, and evaluates it on the whole validation pool; the test split stays sealed. Each
figure is appended to `methods.jsonl` as soon as it is measured.

The number of trained parameters and their memory (parameters, gradients and the optimiser's moments
in float32, without the backbone) are computed for a ViT-B/16 with 100 classes and 16 shots.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.mask_step import open_shape
from trainables.data.prompts import class_features, prompt_set
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import BuildContext, ClassTexts, Preset, Schedule, TaskFacts
from trainables.methods.registry import METHODS
from trainables.presets import preset_trial
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.validation import accuracy

FILE = Path(__file__).with_name("methods.jsonl")
SHOTS = (1, 4, 16)
SEEDS = (1, 2, 3)
CLASSES = 100

PUBLISHED = {
    "zero-shot": "CLIP (2103.00020), one template",
    "linear-probe": "CLIP (2103.00020), logistic regression by L-BFGS",
    "clip-adapter": "CLIP-Adapter (2110.04544), with the optimiser of its code",
    "tip-adapter": "Tip-Adapter (2111.03930), training-free",
    "tip-adapter-f": "Tip-Adapter-F (2111.03930)",
    "cross-modal": "Cross-modal linear probe (2301.06267)",
    "lp-plus-plus": "LP++ (2404.02285)",
    "clap": "CLAP (2312.12730)",
    "gda": "GDA (2402.04087)",
    "taskres": "TaskRes (2211.10277), section 4.1; variants T, I, I&T, learned alpha",
    "text-adapter": "TaskRes (2211.10277), table 2",
    "linear-adapter": "TaskRes (2211.10277), appendix C; with its own recipe",
    "enhanced-base": "TaskRes (2211.10277), section 4.1; its recipe is ours",
    "coop": "CoOp (2109.01134)",
    "cocoop": "CoCoOp (2203.05557)",
    "prograd": "ProGrad (2205.14865)",
    "kgcoop": "KgCoOp (2303.13283)",
    "rmt": "R-AMT (2307.15049), section 4.1; R-MMT, R-PMT, R-DMT",
    "rmt-text": "R-AMT (2307.15049), text encoder",
    "rmt-both": "R-AMT (2307.15049), both encoders",
    "fine-tuning": "R-AMT (2307.15049), table 11; its recipe is ours",
    "clip-lora": "CLIP-LoRA (2405.18541)",
    "vpt": "VPT (2203.12119), by MaPLe's recipe (2210.03117)",
    "maple": "MaPLe (2210.03117)",
    "promptsrc": "PromptSRC (2307.06948)",
    "plot": "PLOT++ (2210.01253)",
}
"""Origin of the preset `paper`; numbers are arXiv's."""


@dataclass(frozen=True)
class Figure:
    """One training."""

    method: str
    """Registry name."""
    preset: str
    """`paper` or `clean`."""
    shots: int
    """Training images per class."""
    seed: int
    """Seed of the few-shot draw."""
    accuracy: float
    """Accuracy on the validation pool, as a fraction."""
    seconds: float
    """Seconds from the start of the draw to the end of training."""


def train(method: str, preset: Preset, shots: int, seed: int, bench: EncodedTask) -> Figure:
    """Train once with the preset and evaluate on the whole validation pool."""
    start = time.perf_counter()
    episode = Episode("digits", shots, seed)
    images = len(bench.views(episode)[0])
    setting = TaskFacts("digits", shots, images, bench.backbone.tower)
    found = judge(preset_trial(method, preset, setting), episode, bench)
    return Figure(method, preset, shots, seed, found, round(time.perf_counter() - start, 1))


def judge(trial: TrialConfig, episode: Episode, bench: EncodedTask) -> float:
    """Train, and return the accuracy on the whole validation pool as a fraction."""
    trainer = Trainer(trial, bench, episode)
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    dataset = bench.source.dataset(episode.dataset)
    pool = bench.view(dataset.split("val"), dataset.flip)
    return accuracy(trainer.logits(pool), pool.labels)


def known() -> list[Figure]:
    """Figures measured so far."""
    if not FILE.exists():
        return []
    return [Figure(**json.loads(line)) for line in FILE.read_text().splitlines()]


def missing(methods: list[str], presets: list[Preset]) -> Iterator[tuple[str, Preset, int, int]]:
    """Combinations that are still missing, cheapest (fewest shots) first."""
    there = {(f.method, f.preset, f.shots, f.seed) for f in known()}
    for preset in presets:
        for shots in SHOTS:
            for method in methods:
                for seed in SEEDS:
                    if (method, preset, shots, seed) not in there:
                        yield method, preset, shots, seed


def sizes() -> dict[str, tuple[int, int]]:
    """Method -> parameters that the preset `paper` trains on a ViT-B/16 with random weights, and
    the bytes for them, their gradients and the optimiser's moments."""
    backbone = open_shape("ViT-B-16")
    prompts = prompt_set("caltech101", [f"thing {i}" for i in range(CLASSES)], "single")
    classes = ClassTexts(class_features(backbone, prompts), prompts)
    images = 16 * CLASSES
    found = {}
    for name, method in METHODS.items():
        recipe = method.preset("paper", TaskFacts("caltech101", 16, images))
        schedule = Schedule(recipe.optim.learning_rates(images))
        built = method.build(recipe.config, BuildContext(backbone, classes, schedule, images))
        count = sum(tensor.numel() for tensor in built.trainable().values())
        copies = 3 if recipe.optim.optimiser == "sgd" else 4
        found[name] = count, 4 * copies * count
        del built
    return found


def table(figures: list[Figure], counted: dict[str, tuple[int, int]]) -> str:
    """Markdown table of mean and sample standard deviation in per cent."""
    lines = [
        "| method | its preset `paper` is | trained | memory | "
        + " | ".join(f"{shots}-shot" for shots in SHOTS)
        + " |",
        "| --- | --- | ---: | ---: | " + " | ".join("---:" for _ in SHOTS) + " |",
    ]
    for method in METHODS:
        count, size = counted[method]
        episodes = [_cell(figures, method, shots) for shots in SHOTS]
        lines.append(
            f"| `{method}` | {PUBLISHED[method]} | {count:,} | {_size(size)} | "
            + " | ".join(episodes)
            + " |"
        )
    return "\n".join(lines)


def _cell(figures: list[Figure], method: str, shots: int) -> str:
    """Table cell: the preset `paper`, followed by `clean` in parentheses if it was measured."""
    found = {
        preset: [
            100 * f.accuracy
            for f in figures
            if (f.method, f.preset, f.shots) == (method, preset, shots)
        ]
        for preset in ("paper", "clean")
    }
    if len(found["paper"]) < len(SEEDS):
        return "not run"
    paper = f"{statistics.mean(found['paper']):.1f} ± {statistics.stdev(found['paper']):.1f}"
    clean = statistics.mean(found["clean"]) if len(found["clean"]) == len(SEEDS) else None
    return paper if clean is None else f"{paper} ({clean:.1f})"


def _size(size: int) -> str:
    if 0 < size < 2**16:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**20:,.1f} MiB" if size else "0"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the table only")
    parser.add_argument("--methods", default=",".join(METHODS), help="which (default: all)")
    parser.add_argument("--presets", default="paper,clean", help="which (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    if not given.print:
        bench = EncodedTask("tiny", "cpu", DataSource())
        for job in missing(given.methods.split(","), given.presets.split(",")):
            figure = train(*job, bench)
            print(figure, flush=True)
            with FILE.open("a") as file:
                file.write(json.dumps(asdict(figure)) + "\n")
    print(table(known(), sizes()))


if __name__ == "__main__":
    main()
