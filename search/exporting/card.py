"""The card of an exported model: a JSON record of what it is and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from search.exporting.model import Artifact, Model
from search.tracking.mlflow_page import plain, table
from trainables.backbones.base import Backbone
from trainables.data.base import distinct
from trainables.data.few_shot import JOINED
from trainables.trial import Episode

CARD = "card.json"
FORMAT = "few-shot-export"
FORMAT_VERSION = 1
_NAMES, _NAME_LENGTH = 30, 60  # classes named in a description, which may be 5000 characters


def card(model: Model, kind: str) -> dict[str, Any]:
    """The card of an export in the format `kind`, before it is verified."""
    artifact, trained = model.artifact, model.trained
    episode, config = artifact.episode, artifact.trial
    classes = model.task.classes(episode.dataset, episode.half, config.method_config.prompts)
    names = distinct(model.task.source.dataset(episode.dataset, episode.half).class_names)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "sweep": {"name": artifact.config.name, "id": artifact.record.id, "file": artifact.source},
        "trial": artifact.result.number,
        "method": config.methods,
        "members": _members(artifact),
        "configuration": config.to_dict(),
        "backbone": _backbone(artifact.task.backbone, model.task.backbone),
        "task": artifact.task.to_dict(),
        "dataset": episode.dataset,
        "half": episode.half,
        "shots": episode.shots,
        "seed": episode.seed,
        "classes": list(names),
        "prompts": classes.prompts.texts() if classes.prompts else None,
        "validation": None
        if artifact.task.draws == JOINED  # it was trained on these images
        else {"accuracy": model.accuracy, "images": len(trained.val)},
        "search_value": artifact.result.accuracy,
        "test": _test(model, episode),
        "versions": {
            "trained": artifact.record.versions,
            "exported": {name: version(name) for name in ("torch", "open_clip_torch")},
        },
    }


def described(record: Mapping[str, Any]) -> str:
    """Format a card as Markdown."""
    tests = [
        (
            f"{_percent(score['accuracy'])} of {score['images']} test images"
            f" ({plain(short_name(score['dataset']))}, {score['part']})"
        )
        for score in record["test"]
    ]
    names = [plain(name) for name in record["classes"]]
    shown = [name[:_NAME_LENGTH] for name in names[:_NAMES]]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    validation, backbone = record["validation"], record["backbone"]
    title = f"{record['method']} on {plain(short_name(record['dataset']))}, {record['shots']} shots"
    rows = {
        "Task": f"{plain(short_name(record['dataset']))}, {record['shots']} shots, "
        f"draw {record['seed']}, {record['half']} classes",
        "Method": f"{record['method']}, preset {record['configuration']['preset']}",
        "Found by": f"sweep {plain(record['sweep']['name'])}, trial {record['trial']}",
        "Validation accuracy": f"{_percent(validation['accuracy'])} of {validation['images']} "
        "images"
        if validation
        else "none: all labelled images were trained on",
        "Test accuracy": "; ".join(tests) or "not evaluated",
        "Backbone": f"{plain(short_name(backbone['name']))}, fingerprint "
        f"{backbone['fingerprint'][:12]}",
        "Input": "one column of paths, encoded files, or uint8 pixels [height, width, 3]",
        "Output": "class, probability, and the probabilities of all classes",
        f"{len(names)} classes": ", ".join(shown) + more,
    }
    return f"{title}\n\n{table(rows)}\n\nThe full record is in the model's `{CARD}`."


def short_name(spec: str) -> str:
    """Name of a data set or backbone without the folders above it."""
    kind, colon, path = spec.partition(":")
    return PurePath(path).name if colon and "/" in path else PurePath(kind).name + colon + path


def _members(artifact: Artifact) -> list[dict[str, Any]]:
    """The trials of an ensemble and their weights; a trial of null is the zero-shot model."""
    selection = artifact.evaluation.selection if artifact.evaluation else None
    if selection is None or selection.is_single:
        return []
    return [asdict(member) for member in selection.members]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _backbone(name: str, backbone: Backbone) -> dict[str, Any]:
    return {
        "name": name,
        "fingerprint": backbone.fingerprint,
        "activation": backbone.activation,
        "logit_scale": float(backbone.logit_scale),
        "preprocess": asdict(backbone.preprocess),
    }


def _test(model: Model, episode: Episode) -> list[dict[str, Any]]:
    """Test accuracies of this training; empty if it was not evaluated."""
    evaluation = model.artifact.evaluation
    if evaluation is None:
        return []
    place = evaluation.seeds.index(episode.seed)
    return [
        {
            "dataset": score.target,
            "part": score.part,
            "accuracy": score.values[place],
            "images": score.images,
        }
        for score in evaluation.of("winner")
        if (score.dataset, score.shots) == (episode.dataset, episode.shots)
    ]
