"""What a person, or a program, must know about an exported model: a record beside it, in JSON."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from search.exports.model import Model
from trainables.backbones.base import Backbone
from trainables.trial import Cell

CARD = "card.json"
FORMAT = "few-shot-export"
FORMAT_VERSION = 1


def card(model: Model, kind: str) -> dict[str, Any]:
    """The record of an export as `kind`, before it is verified."""
    chosen, training = model.chosen, model.training
    cell, config = chosen.cell, chosen.trial
    classes = model.bench.classes(cell.dataset, cell.half, config.method_config.prompts)
    names = model.bench.source.dataset(cell.dataset, cell.half).class_names
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "sweep": {"name": chosen.config.name, "id": chosen.record["id"], "file": chosen.file},
        "trial": chosen.result.number,
        "method": config.method,
        "configuration": config.to_dict(),
        "backbone": _backbone(chosen.task.backbone, model.bench.backbone),
        "dataset": cell.dataset,
        "half": cell.half,
        "shots": cell.shots,
        "seed": cell.seed,
        "classes": list(names),
        "prompts": classes.prompts.texts() if classes.prompts else None,
        "validation": {"accuracy": model.accuracy, "images": len(training.val)},
        "search_value": chosen.result.value,
        "test": _test(model, cell),
        "versions": {
            "trained": chosen.record.get("versions", {}),
            "exported": {name: version(name) for name in ("torch", "open_clip_torch")},
        },
    }


def _backbone(name: str, backbone: Backbone) -> dict[str, Any]:
    return {
        "name": name,
        "fingerprint": backbone.fingerprint,
        "activation": backbone.activation,
        "logit_scale": float(backbone.logit_scale),
        "preprocess": asdict(backbone.preprocess),
    }


def _test(model: Model, cell: Cell) -> list[dict[str, Any]]:
    """How this very training did in the evaluation; nothing where it was not judged."""
    evaluation = model.chosen.evaluation
    if evaluation is None:
        return []
    place = evaluation.seeds.index(cell.seed)
    return [
        {
            "dataset": score.target,
            "part": score.part,
            "accuracy": score.values[place],
            "images": score.images,
        }
        for score in evaluation.of("winner")
        if (score.dataset, score.shots) == (cell.dataset, cell.shots)
    ]
