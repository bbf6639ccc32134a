"""From a backbone's specification to the backbone.

Activation and preprocessing belong to the weights. They come from the tag, the file or the folder;
if none of them decides, they are guessed only if every published model of the architecture agrees,
and what was assumed is stated in the backbone's notices.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainables.backbones import open_clip as library
from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.layout import CONFIG_FILE, HUB, WEIGHTS_FILES, split_path
from trainables.backbones.open_clip import Config, Published, build, find_tokenizer, open_clip
from trainables.backbones.weights import is_half_precision, read_weights
from trainables.core.files import read_text
from trainables.core.text import did_you_mean

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def open_spec(spec: str) -> Backbone:
    """The backbone of a specification, see `registry.open_backbone`; raises `BackboneError`."""
    head, _, rest = spec.partition(":")
    if head == "local-dir" or Path(spec).is_dir():
        return open_folder(Path(rest if head == "local-dir" else spec), spec)
    if spec.startswith(HUB):
        return _open_hub(rest, spec)
    if head == "openai":
        return _open_openai_file(Path(rest), spec)
    plain = head.endswith("-gelu") and head not in open_clip.list_models()
    arch = head.removesuffix("-gelu") if plain else head
    if arch not in open_clip.list_models():
        raise BackboneError(_unknown(head))
    tags = library.published_weights(arch)
    before, name = split_path(spec)
    tag = before[len(head) + 1 : -1] if before.endswith("@") else ""
    name = (name if before else "") or "openai"
    if plain and (tag or name in tags or not _is_file_name(name)):
        raise BackboneError(
            f"'-gelu' takes a file, got {spec!r}: use '{head}:FILE', or '{arch}:TAG' and "
            f"'{arch}:TAG@FILE' for published weights, whose tag decides the activation"
        )
    if tag and tag not in tags:
        raise BackboneError(did_you_mean(f"published weights of {arch}", tag, tags))
    if not tag and name in tags:
        return _open_tag(arch, name, spec)
    if not tag and not _is_file_name(name):
        raise BackboneError(did_you_mean(f"file or published weights of {arch}", name, tags))
    return _open_file(arch, tag, Path(name), spec, plain)


def open_folder(folder: Path, name: str, built_in: bool = False) -> Backbone:
    """A folder with `open_clip_config.json`, a weights file and, if the model has its own, a
    tokenizer: `bpe_merges.txt.gz` or the files of a Hugging Face tokenizer."""
    try:
        content = json.loads(read_text(folder / CONFIG_FILE))
        config, preprocess = content["model_cfg"], content.get("preprocess_cfg") or {}
        if not isinstance(config, dict) or not isinstance(preprocess, dict):
            raise TypeError("model_cfg and preprocess_cfg must be objects")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BackboneError(
            f"a model folder holds {CONFIG_FILE} with a model_cfg, {str(folder)!r} does not "
            f"({error!r}): check the path"
        ) from error
    files = [folder / file for file in WEIGHTS_FILES if (folder / file).is_file()]
    if not files:
        raise BackboneError(
            f"a model folder holds its weights as {', '.join(WEIGHTS_FILES)}, {str(folder)!r} does "
            "not: copy or rename them"
        )
    tokenizer, identity, merges = find_tokenizer(config, name, folder)
    given = "its folder" if preprocess else f"CLIP's, as its {CONFIG_FILE} has no preprocess_cfg"
    notices = () if built_in else (f"Backbone {name}: {{}} (from {given}).",)
    tensors = read_weights(files[0]).tensors
    known = (tokenizer, identity)
    return build(name, config, tensors, preprocess, known, notices, merges=merges, folder=folder)


def _open_hub(repository: str, name: str) -> Backbone:
    """A repository of the Hugging Face hub."""
    try:
        folder = library.download_repository(repository)
    except Exception as error:  # each transport fails in its own way
        raise BackboneError(
            f"{name!r} must be downloaded once, which failed ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): check the name and connect to the network, or "
            f"copy its files (open_clip_config.json, weights, tokenizer) into a folder and name "
            "the folder"
        ) from error
    return open_folder(folder, name)


def _open_openai_file(path: Path, name: str) -> Backbone:
    """A state dict in OpenAI's layout: dimensions from its shapes, QuickGELU always.

    Weights keep their precision; open_clip's own builder would pass them through float16.
    """
    tensors = read_weights(path).tensors
    config = _openai_config(tensors, path)
    tokenizer, identity, _ = find_tokenizer(config, name)
    notices = (f"Backbone {name}: {{}} (as OpenAI's models).",)
    return build(name, config, tensors, {}, (tokenizer, identity), notices)


def _open_tag(arch: str, tag: str, name: str) -> Backbone:
    """Published weights."""
    published = library.published_weights(arch)[tag]
    # open_clip's `create_model` only warns here and then runs the wrong activation.
    config = library.architecture(arch) | {"quick_gelu": published["quick_gelu"]}
    tokenizer, identity, _ = find_tokenizer(config, name)
    try:
        path = Path(library.download_pretrained(published))
    except Exception as error:  # each transport fails in its own way
        raise BackboneError(
            f"{name!r} must be downloaded once, which failed ({type(error).__name__}: "
            f"{str(error)[:200]}): connect to the network, or copy its file here and use "
            f"'{arch}:{tag}@FILE'"
        ) from error
    notices = (f"Backbone {name}: {{}} (as published).",)
    tensors = read_weights(path).tensors
    return build(name, config, tensors, published, (tokenizer, identity), notices)


def _open_file(arch: str, tag: str, path: Path, name: str, plain: bool) -> Backbone:
    """A local file for a named architecture, with the activation and preprocessing of published
    weights (`tag`), of the file if it is recognised, or of the architecture."""
    config, tags = library.architecture(arch), library.published_weights(arch)
    tokenizer, identity, _ = find_tokenizer(config, name)
    weights = read_weights(path)
    recognised = "openai" if weights.openai else library.recognise(arch, path)
    quick = bool(config.get("quick_gelu"))
    if recognised == "openai" and (plain or (tag and not tags[tag]["quick_gelu"])):
        meaning = f"'{tag}'" if tag else "'-gelu'"
        raise BackboneError(
            f"{meaning} means plain GELU, but {str(path)!r} is OpenAI's and needs QuickGELU: use "
            f"'openai:{path}'"
        )
    if plain and quick:
        raise BackboneError(
            f"'-gelu' means plain GELU, but {arch} means QuickGELU: use "
            f"'{arch.removesuffix('-quickgelu')}-gelu:{path}' or 'openai:{path}'"
        )
    choose = ""
    if known := tag or recognised:
        published = tags.get(known, {})
        quick = quick or known == "openai" or bool(published.get("quick_gelu"))
        origin = f"as {known}" + ("" if tag else ", by the file's content")
    else:
        published, origin = _unanimous(arch, tags, path)
        if library.has_both_activations(arch) and not plain:
            choose = _how_to_choose(arch, path, quick)
            if not quick and is_half_precision(weights.tensors):
                raise BackboneError(
                    "OpenAI's weights need QuickGELU, and these may be OpenAI's, since every one "
                    f"is a float16 number; got {name!r}: {choose} For plain GELU use "
                    f"'{arch}-gelu:{path}'."
                )
    config["quick_gelu"] = quick
    notices = (f"Backbone {name}: {{}} ({origin}).{f' {choose}' if choose else ''}",)
    return build(name, config, weights.tensors, published, (tokenizer, identity), notices)


def _by_preprocessing(tags: Mapping[str, Published]) -> dict[str, list[str]]:
    """Tags of published weights, by their preprocessing as JSON."""
    groups: dict[str, list[str]] = {}
    for tag, entry in tags.items():
        key = json.dumps({field: entry.get(field) for field in _PREPROCESSING})
        groups.setdefault(key, []).append(tag)
    return groups


def _unanimous(
    arch: str, tags: Mapping[str, Published], path: Path
) -> tuple[Mapping[str, Any], str]:
    """The preprocessing of all published weights of `arch` and its origin in words; raises
    `BackboneError` if they differ."""
    groups = _by_preprocessing(tags)
    if len(groups) > 1:
        listed = "; ".join(f"{', '.join(names)}: {group}" for group, names in groups.items())
        raise BackboneError(
            f"the preprocessing of {str(path)!r} must be known, and the published weights of "
            f"{arch} differ ({listed}): name those that the file is or was trained from, e.g. "
            f"'{arch}:{next(iter(tags))}@{path}'"
        )
    if not tags:
        return {}, f"CLIP's preprocessing, as no weights of {arch} are published"
    return next(iter(tags.values())), f"as all published weights of {arch}"


def _how_to_choose(arch: str, path: Path, quick: bool) -> str:
    """How to use the other activation, by names that exist and need no further choice."""
    base = arch.removesuffix("-quickgelu")
    tags = library.published_weights(base)
    others = [tag for tag, entry in tags.items() if entry["quick_gelu"] != quick]
    names = [f"'{base}:{others[0]}@{path}'"] if others else []
    if quick:
        if len(_by_preprocessing(tags)) <= 1:
            names.insert(0, f"'{base}-gelu:{path}'")
        return f"If it was trained with plain GELU, use {' or '.join(names)}."
    if f"{base}-quickgelu" in open_clip.list_models():
        names.insert(0, f"'{base}-quickgelu:{path}'")
    if "openai" in others:
        names.append(f"'openai:{path}'")
    return (
        "If it was trained with QuickGELU, as OpenAI's weights and models fine-tuned from them, "
        f"use {' or '.join(names)}."
    )


def _openai_config(tensors: Mapping[str, Tensor], path: Path) -> Config:
    """The architecture of a state dict in OpenAI's layout, whose heads are 64 wide."""
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        return {
            "embed_dim": tensors["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": _openai_vision(tensors),
            "text_cfg": {
                "context_length": tensors["positional_embedding"].shape[0],
                "vocab_size": tensors["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": _count(tensors, "transformer.resblocks."),
                "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.bias"].shape[0] / text_width,
            },
        }
    except (KeyError, IndexError) as error:
        raise BackboneError(
            f"'openai:FILE' needs a state dict in OpenAI's layout, {str(path)!r} lacks {error}: "
            "name its architecture instead, 'ARCH:FILE'"
        ) from error


def _openai_vision(tensors: Mapping[str, Tensor]) -> Config:
    if "visual.proj" not in tensors:
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        return {
            "layers": [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
            "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
            "patch_size": None,
            "image_size": 32 * grid,
        }
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    prefix = "visual.transformer.resblocks."
    return {
        "layers": _count(tensors, prefix),
        "width": width,
        "patch_size": patch,
        "image_size": patch * grid,
        "mlp_ratio": tensors[f"{prefix}0.mlp.c_fc.bias"].shape[0] / width,
    }


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in `names`."""
    return len(
        {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    )


def _unknown(name: str) -> str:
    # All hundred and fifty architectures would bury the one that was meant.
    near = difflib.get_close_matches(name, ["tiny", *open_clip.list_models()], n=3)
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    return (
        "A backbone is 'tiny', an architecture of open_clip (ARCH, ARCH:TAG, ARCH:FILE, "
        "ARCH:TAG@FILE), 'openai:FILE', 'hf-hub:OWNER/NAME' or a model folder; there is no "
        f"{name!r}.{hint}"
    )


def _is_file_name(text: str) -> bool:
    return "/" in text or "\\" in text or Path(text).suffix != "" or Path(text).exists()
